# SPDX-License-Identifier: Apache-2.0
"""`Hidden`: what products have along directions that a Krylov basis or its T does not show."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


class Hidden:
    """Coefficients of the products A V_j' along given-up directions: a bound of any combination.

    Each `add` stands for directions that are orthonormal. Those of several need not be orthogonal
    to one another, so that the norm of a sum is at most the root of their number times the norm of
    all coefficients. No rotation of the basis changes that.

    >>> hidden = Hidden()
    >>> hidden.add(torch.tensor([[3.0, 0.0]], dtype=torch.float64))
    >>> hidden.rotate(torch.tensor([[0.6], [0.8]], dtype=torch.float64))
    >>> hidden.bounds(torch.eye(1, dtype=torch.float64))
    tensor([1.8000], dtype=torch.float64)
    """

    saved = ("coefficients", "count")

    def __init__(self) -> None:
        self.coefficients = torch.zeros(0, 0, dtype=torch.float64)
        self.count = 0

    def add(self, lost: Tensor) -> None:
        """The products, a column each, have these components along orthonormal directions."""
        before = pad(self.coefficients, (0, lost.shape[1] - self.coefficients.shape[1]))
        self.coefficients = torch.linalg.qr(torch.cat([before, lost]), mode="r").R
        self.count += 1

    def rotate(self, coordinates: Tensor) -> None:
        """The products are those of the rows with these coordinates now."""
        self.coefficients = self.coefficients @ coordinates[: self.coefficients.shape[1]]

    def bounds(self, coordinates: Tensor) -> Tensor:
        """At most this is hidden of the products of the rows with these coordinates (columns)."""
        known = min(self.coefficients.shape[1], len(coordinates))
        return self.count**0.5 * (self.coefficients[:, :known] @ coordinates[:known]).norm(dim=0)
