# SPDX-License-Identifier: Apache-2.0
r"""Springs between atoms that do what a Hessian does, from one of its products, or a few.

$$ F_{ij} = -k(r)\, e e^T - t(r)\, (I - e e^T), \qquad F_{ii} = -\sum_j F_{ij} $$

r and e are the distance and the direction of a pair. This is the Hessian of any pair potential, and
resembles that of other energies. k and t are a power of r times a piecewise linear function of
log r; each pair of kinds of atoms has its own. They are fitted to products with random vectors,
which tell of the stiff springs, and with one more vector, which F hardly holds: it tells of soft
modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator

MOST = 4096
"""The most coordinates of which a matrix of springs is held."""
_REACH = 3.5  # of springs, in distances of nearest neighbours
_KNOTS = 30
_DECAYS = (0, 6, 11)  # powers of 1 / r that are tried: of Hooke's springs, of soft and hard atoms
_GOOD = 0.1  # the relative error of the products that are fitted
_SOFT = 1e-5  # of the largest curvature
_EQUATIONS = 3  # for each number that is fitted
_MOST_PRODUCTS = 8  # more kinds than these determine count as one


@dataclass(frozen=True)
class Pairs:
    """Pairs of atoms within reach of one another.

    Args:
        first, second: the atoms of each, (p,).
        direction: from the second to the first, unit vectors (p, d).
        shares: what each knot has in the stiffness of the pair, (p, knots); each pair of kinds has
            knots of its own.
    """

    atoms: int
    first: Tensor
    second: Tensor
    direction: Tensor
    shares: Tensor

    @staticmethod
    def of(positions: Tensor, kinds: Tensor | None = None, decay: int = 0) -> Pairs:
        """The pairs among these atoms, (atoms, d), of the kinds 0, 1, ... (atoms,).

        A knot of a pair at the distance r stands for a stiffness of r^-decay.
        """
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
        shares = shares * ((r.min() / r) ** decay)[:, None]
        if kinds is not None:
            _, which = _sorted_pairs(kinds[i], kinds[j]).unique(return_inverse=True)
            own = torch.nn.functional.one_hot(which).to(shares)
            shares = (own[:, :, None] * shares[:, None, :]).flatten(1)
        return Pairs(N, i, j, steps[near] / r[:, None], shares)

    @property
    def are_apart(self) -> bool:
        """Whether every pair has a direction; it is NaN for two atoms in one place."""
        return bool((self.direction.norm(dim=1) > 0.0).all())

    @property
    def num_products(self) -> int:
        """How many products determine the stiffness at all knots."""
        numbers = 2 * int((self.shares > 0.0).any(0).sum())
        return max(1, math.ceil(_EQUATIONS * numbers / (self.atoms * self.direction.shape[1])))

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


def _sorted_pairs(a: Tensor, b: Tensor) -> Tensor:
    """A number for each pair of kinds, the same in either order."""
    return torch.minimum(a, b) * (int(torch.maximum(a, b).max()) + 1) + torch.maximum(a, b)


def springs_of(
    H: LinearOperator, positions: Tensor, kinds: Tensor, generator: torch.Generator | None
) -> tuple[Tensor | None, int]:
    """The springs that fit products with random vectors, and how many products these are."""
    pairs = Pairs.of(positions.double(), kinds)
    if not pairs.are_apart:  # as where x are displacements, from zero
        return None, 0
    told = kinds if pairs.num_products <= _MOST_PRODUCTS else None
    fit = Fit(H, [Pairs.of(positions.double(), told, decay) for decay in _DECAYS])
    for _ in range(fit.ways[0].num_products):
        fit.add(H.domain.gaussian(generator))
    F = fit.springs()
    if F is not None:
        fit.add(_soft(F, H.domain.gaussian(generator).double()))
        F = fit.springs()
    return F, fit.num_products


@dataclass
class Fit:
    """Springs F with F z as near to H z as can be, for some z, each of which counts alike.

    Args:
        ways: the same pairs, whose stiffness is sought in several forms; the nearest one counts.
    """

    H: LinearOperator
    ways: list[Pairs]
    vectors: list[Tensor] = field(default_factory=list)
    wanted: list[Tensor] = field(default_factory=list)

    @property
    def num_products(self) -> int:
        """Products with H."""
        return len(self.wanted)

    def add(self, z: Tensor) -> None:
        """Take one more product."""
        product = self.H._matvec(z.to(self.H.dtype)).double()
        size = float(product.norm()) or 1.0
        self.vectors.append(z.double() / size)
        self.wanted.append(product / size)

    def springs(self) -> Tensor | None:
        """F, (n, n); None if that is not near."""
        wanted, best, least = torch.cat(self.wanted), None, _GOOD
        for pairs in self.ways:
            columns = torch.cat([pairs.forces(z) for z in self.vectors])
            stiffness = torch.linalg.pinv(columns) @ wanted  # some knots have no pairs
            error = float((columns @ stiffness - wanted).norm() / wanted.norm())
            if error <= least:
                best, least = pairs.matrix(stiffness), error
        return best


def _soft(F: Tensor, z: Tensor) -> Tensor:
    """(F + c I)^-1 z, which is large along soft modes."""
    shift = _SOFT * float(F.abs().sum(1).max())
    return torch.linalg.solve(F + shift * torch.eye(len(F)).to(F), z)
