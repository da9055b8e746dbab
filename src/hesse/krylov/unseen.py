# SPDX-License-Identifier: Apache-2.0
r"""`Unseen`: how likely it is that steps from random directions have not seen an eigenvector.

Let u be a unit eigenvector for theta, orthogonal to the rows V that a Lanczos process had before it
added b random directions R. Its components c = V'u along all rows satisfy T c = theta c in every
row whose product was taken: each product gives the component along the new row from those before.

$$ c = Q \, R'u, \qquad q_{new} = \frac{\theta q_j - \sum_i T_{ij} q_i}{\beta}, \qquad |c| \le 1 $$

R'u is Gaussian of variance 1/n, and |Q R'u| at most 1. So u stays unseen with a probability that is
at most the volume of that ellipsoid times the largest density:

$$ \frac{(n/2)^{b/2}}{\Gamma(b/2 + 1)} \det(Q'Q)^{-1/2} $$

For b = 1 the entries of Q are the orthogonal polynomials of the measure of R, and 1 / |Q|^2
is its Christoffel function at theta, the largest mass that the measure can have there. Outside of
the eigenvalues that were seen Q grows with every step, the faster the further theta is from them.

References: Golub & Meurant 2010, Matrices, Moments and Quadrature, ch. 2; Nevai 1986,
doi:10.1016/0021-9045(86)90016-X (Christoffel functions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

# Stands for the norm of a new row that vanishes: what it multiplies must vanish too.
_TINY = 1e-100


class Unseen:
    """Bounds the probability for an eigenvector of any eigenvalue beyond the `edges`.

    >>> unseen = Unseen()
    >>> unseen.begin(torch.tensor([3.0], dtype=torch.float64), old=0, b=1, n=10_000)
    >>> for j in range(8):  # T of the Chebyshev polynomials of the second kind: edges -1 and 1
    ...     coupling = [0.0] * (j - 1) + [0.5] * min(j, 1) + [0.0]
    ...     unseen.extend(j, torch.tensor(coupling, dtype=torch.float64), 0.5)
    >>> print(f"{unseen.probability:.1e}")
    5.7e-05
    """

    saved = ("edges", "components", "log_bound", "log_start")

    def __init__(self) -> None:
        self.edges = torch.zeros(0, dtype=torch.float64)
        self.components = torch.zeros(0, 0, 0, dtype=torch.float64)
        """Q for an eigenvalue at each edge, of shape (edges, rows, b)."""
        self.log_bound = self.log_start = 0.0
        """Of the probability: now, and at the beginning."""

    @property
    def probability(self) -> float:
        """That an eigenvector stayed unseen: at most this."""
        return math.exp(min(self.log_bound, 0.0))

    def expected_products(self, products: int, probability: float) -> float:
        """How many it takes to reach the probability at the rate of the products so far."""
        gained, needed = self.log_start - self.log_bound, self.log_start - math.log(probability)
        return products * needed / gained if gained > 0.0 else math.inf

    def begin(self, edges: Tensor, old: int, b: int, n: int) -> None:
        """After so many old rows, b random directions of n entries were added."""
        new = torch.eye(b, dtype=torch.float64).expand(len(edges), b, b)
        self.edges, self.components = edges, pad(new, (0, 0, old, 0))
        self.log_bound = self.log_start = 0.5 * b * math.log(n / 2) - math.lgamma(0.5 * b + 1)

    def extend(self, j: int, column: Tensor, beta: float | None) -> None:
        """The product of row j has these components along the rows, and beta along a new one."""
        if len(self.edges) == 0:
            return
        Q = self.components
        rest = self.edges[:, None] * Q[:, j] - column @ Q[:, : len(column)]
        grown = torch.cat([Q, rest[:, None] / max(beta or 0.0, _TINY)], dim=1)
        volume = -torch.linalg.svdvals(grown).log().sum(dim=1)
        self.log_bound = min(self.log_bound, self.log_start + float(volume.max()))
        if beta == 0.0:  # the new row is random
            grown[:, -1] = 0.0
        if beta is not None:
            self.components = grown

    def rotate(self, coordinates: Tensor) -> None:
        """The first rows are replaced by combinations of them with these coordinates."""
        if len(self.edges) > 0:
            first, rest = self.components.tensor_split([len(coordinates)], dim=1)
            self.components = torch.cat([coordinates.T @ first, rest], dim=1)

    def swap(self, i: int, j: int) -> None:
        """Exchange two rows."""
        if len(self.edges) > 0:
            self.components[:, [i, j]] = self.components[:, [j, i]]

    def drop(self, rows: int) -> None:
        """Keep so many rows."""
        self.components = self.components[:, :rows]
