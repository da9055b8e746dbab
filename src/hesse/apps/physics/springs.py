# SPDX-License-Identifier: Apache-2.0
r"""Springs between atoms that do what a Hessian does, from one of its products.

$$ F_{ij} = -k(r)\, e e^T - t(r)\, (I - e e^T), \qquad F_{ii} = -\sum_j F_{ij} $$

r and e are the distance and the direction of a pair. This is the Hessian of any pair potential, and
resembles that of other energies of one kind of atoms; k and t are piecewise linear in log r, and
fitted to a product with a random vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator

MOST = 4096
"""The most coordinates of which a matrix of springs is held."""
_REACH = 2.6  # of springs, in distances of nearest neighbours
_KNOTS = 20
_GOOD = 0.1  # the relative error of the product that is fitted


@dataclass(frozen=True)
class Pairs:
    """Pairs of atoms within reach of one another.

    Args:
        first, second: the atoms of each, (p,).
        direction: from the second to the first, unit vectors (p, d).
        shares: what each knot has in the stiffness of the pair, (p, knots).
    """

    atoms: int
    first: Tensor
    second: Tensor
    direction: Tensor
    shares: Tensor

    @staticmethod
    def of(positions: Tensor) -> Pairs:
        """The pairs among these atoms, (atoms, d)."""
        N = len(positions)
        i, j = torch.triu_indices(N, N, 1, device=positions.device)
        steps = positions[i] - positions[j]
        r = steps.norm(dim=1)
        table = torch.full((N, N), torch.inf, dtype=r.dtype, device=r.device)
        table[i, j], table[j, i] = r, r
        near = r <= _REACH * table.min(1).values.median()
        i, j, r = i[near], j[near], r[near]
        knots = torch.linspace(0.0, 1.0, _KNOTS, dtype=r.dtype, device=r.device)
        place = (r / r.min()).log()
        place = place / place.max().clamp(min=torch.finfo(r.dtype).eps)
        shares = (1.0 - (place[:, None] - knots).abs() * (_KNOTS - 1)).clamp(min=0.0)
        return Pairs(N, i, j, steps[near] / r[:, None], shares)

    @property
    def are_apart(self) -> bool:
        """Whether every pair has a direction; it is NaN for two atoms in one place."""
        return bool((self.direction.norm(dim=1) > 0.0).all())

    def forces(self, z: Tensor) -> Tensor:
        """What each knot of stiffness one adds to F z, (n, 2 knots): along, then across."""
        d = self.direction.shape[1]
        stretch = z.view(-1, d)[self.first] - z.view(-1, d)[self.second]
        along = self.direction * (self.direction * stretch).sum(1, keepdim=True)
        both = torch.stack([along, stretch - along], 1)  # (p, 2, d)
        pulled = torch.einsum("pk,ptd->pdtk", self.shares, both).flatten(2)
        result = torch.zeros(self.atoms, *pulled.shape[1:]).to(pulled)
        result.index_add_(0, self.first, pulled).index_add_(0, self.second, pulled, alpha=-1.0)
        return result.flatten(0, 1)

    def matrix(self, stiffness: Tensor) -> Tensor:
        """F, (n, n), for the stiffness at each knot, (2 knots,)."""
        k, t = (self.shares @ stiffness.view(2, -1).T).T
        outer = self.direction[:, :, None] * self.direction[:, None, :]
        d = outer.shape[1]
        unit = torch.eye(d).to(outer)
        blocks = k[:, None, None] * outer + t[:, None, None] * (unit - outer)
        F = torch.zeros(self.atoms, self.atoms, d, d).to(outer)
        F[self.first, self.second], F[self.second, self.first] = -blocks, -blocks
        atoms = torch.arange(self.atoms, device=F.device)
        F[atoms, atoms] = -F.sum(1)
        return F.permute(0, 2, 1, 3).reshape(self.atoms * d, self.atoms * d)


def fitted_springs(H: LinearOperator, positions: Tensor, z: Tensor) -> Tensor | None:
    """F, (n, n), with F z as near to H z as can be, one product; None if that is not near."""
    pairs, wanted = Pairs.of(positions.double()), H._matvec(z).double()
    if not pairs.are_apart:  # as where x are displacements, from zero
        return None
    columns = pairs.forces(z.double())
    stiffness = torch.linalg.pinv(columns) @ wanted  # some knots have no pairs
    error = H.domain.norm((columns @ stiffness - wanted).to(z))
    if not error <= _GOOD * H.domain.norm(wanted.to(z)):
        return None
    return pairs.matrix(stiffness)
