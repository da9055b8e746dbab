# SPDX-License-Identifier: Apache-2.0
"""Translations and rotations of a molecule, which cost no energy, and the coordinates without them.

They are looked for, not assumed: an energy in a field or in a periodic cell has fewer. Atoms on a
line have one rotation less, which the rank of the motions shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, FunctionError, ShapeError
from hesse.operators.algebra import LinearOperator
from hesse.operators.complement import complement_operator
from hesse.operators.diagonal import IdentityOperator
from hesse.vectors.arrays import as_numbers
from hesse.vectors.space import Space

Rigid = Literal["auto", "translations", "all", "none"]
RIGID = ("auto", "translations", "all", "none")

# Relative change of the energy under a motion that counts as rounding: an exponent of eps.
_ROUNDING = 0.75
# A singular value below this, of the largest, belongs to no motion.
_RANK = 1e-8


@dataclass(frozen=True)
class RigidMotions:
    """Which motions leave the energy as it is: translations, and rotations with them or not."""

    dimensions: int
    translations: bool
    rotations: bool

    def basis(self, x: Tensor, root_masses: Tensor) -> Tensor:
        """Orthonormal columns of the motions at flat x, each weighted with the root of the mass."""
        r = x.reshape(-1, self.dimensions)
        weight = root_masses.reshape(-1, self.dimensions)
        columns = []
        if self.translations:
            for a in range(self.dimensions):
                shift = torch.zeros_like(r)
                shift[:, a] = 1.0
                columns.append(shift)
        if self.rotations:
            masses = weight[:, :1] ** 2
            centred = r - (masses * r).sum(dim=0) / masses.sum()
            for a, b in combinations(range(self.dimensions), 2):
                turn = torch.zeros_like(r)
                turn[:, a], turn[:, b] = -centred[:, b], centred[:, a]
                columns.append(turn)
        if not columns:
            return x.new_zeros(len(x), 0)
        motions = torch.stack([(weight * column).reshape(-1) for column in columns], dim=1)
        sizes = motions.norm(dim=0)
        motions = motions[:, sizes > 0.0] / sizes[sizes > 0.0]
        if motions.shape[1] == 0:  # all atoms lie where they rotate about
            return motions
        U, S, _ = torch.linalg.svd(motions, full_matrices=False)
        return U[:, S / S[0] > _RANK]

    def coordinates(self, space: Space, x: Tensor, root_masses: Tensor) -> LinearOperator:
        """Z whose columns span all that is orthogonal to the motions at x."""
        Q = self.basis(x, root_masses)
        if Q.shape[1] == 0:
            return IdentityOperator(Space.flat(space.n, space.dtype, space.device))
        if Q.shape[1] >= space.n:
            raise ArgumentError(
                expected="a molecule that can vibrate",
                got=f"{space.n} coordinates, all of rigid motions",
                remedy="Give rigid='none' for an energy of other variables.",
            )
        Z = complement_operator(Q)
        flat = Space.flat(space.n, space.dtype, space.device)
        return Z._in_space(flat)


def rigid_motions(
    f: Callable[[Tensor], Tensor], x: Tensor, space: Space, rigid: Rigid
) -> RigidMotions:
    """The motions named, or with "auto" those under which f does not change."""
    if rigid not in RIGID:
        raise ArgumentError(
            expected=f"rigid to be one of {', '.join(map(repr, RIGID))}",
            got=repr(rigid),
            remedy="Leave it out to have them looked for.",
        )
    dimensions = _dimensions(space)
    if rigid == "none" or (rigid == "auto" and dimensions == 0):
        return RigidMotions(max(dimensions, 1), translations=False, rotations=False)
    if dimensions == 0:
        raise ShapeError(
            expected="positions of shape (atoms, 3) or (atoms, 2), or a flat vector of them",
            got=f"x with {space.describe()}",
            remedy="Give rigid='none' for an energy of other variables.",
        )
    if rigid != "auto":
        return RigidMotions(dimensions, translations=True, rotations=rigid == "all")
    r = x.reshape(-1, dimensions)
    g = torch.Generator().manual_seed(0)
    shift = torch.randn(dimensions, generator=g, dtype=torch.float64).to(r)
    turn = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=g, dtype=torch.float64)).Q
    turn = turn * torch.linalg.det(turn).sign()  # in two dimensions that may be a reflection
    value = _energy(f, x)
    translations = _same(f, value, (r + shift).reshape(-1))
    centre = r.mean(dim=0)
    rotations = _same(f, value, ((r - centre) @ turn.to(r).T + centre).reshape(-1))
    return RigidMotions(dimensions, translations, rotations)


def _dimensions(space: Space) -> int:
    """2 or 3 where x is positions in so many dimensions, else 0."""
    if len(space.shapes) != 1:
        return 0
    (shape,) = space.shapes
    if len(shape) == 2 and shape[1] in (2, 3):
        return int(shape[1])
    return 3 if len(shape) == 1 and shape[0] % 3 == 0 and shape[0] > 3 else 0


def _same(f: Callable[[Tensor], Tensor], value: float, moved: Tensor) -> bool:
    """Whether the energy is the same at another point, up to rounding."""
    change = abs(_energy(f, moved) - value)
    return change <= torch.finfo(moved.dtype).eps ** _ROUNDING * max(abs(value), 1e-3)


def _energy(f: Callable[[Tensor], Tensor], x: Tensor) -> float:
    value = f(x)
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    raise FunctionError(
        expected="f(x) to be an energy, a scalar tensor",
        got=f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__,
        remedy="Add up the energies of the atoms.",
    )


def root_masses_of(masses: Any, space: Space) -> Tensor:
    """The root of the mass of each coordinate, (n,); 1 without masses."""
    ones = torch.ones(space.n, dtype=space.dtype, device=space.device)
    if masses is None:
        return ones
    form = {"dtype": space.dtype, "device": space.device}
    given = as_numbers(masses, "masses", "Give masses of shape (atoms,).", **form).reshape(-1)
    if len(given) == 0 or space.n % len(given):
        raise ShapeError(
            expected=f"a mass for each atom; their number divides {space.n}",
            got=f"{len(given)} masses",
            remedy="Give masses of shape (atoms,).",
        )
    if not bool((given > 0.0).all()) or not space.all_finite(given):
        raise ArgumentError(
            expected="positive masses",
            got=f"masses from {float(given.min()):g} to {float(given.max()):g}",
            remedy="Leave out massless particles.",
        )
    return given.repeat_interleave(space.n // len(given)).sqrt()


def kinds_of(kinds: Any, space: Space) -> Tensor:
    """Labels of the kinds of atoms, (atoms,)."""
    remedy = "Give an integer for each atom."
    given = as_numbers(kinds, "kinds", remedy, device=space.device)
    dimensions = _dimensions(space)
    if dimensions == 0 or given.shape != (space.n // dimensions,) or given.is_floating_point():
        raise ShapeError(
            expected="kinds to be an integer for each atom, as its atomic number",
            got=f"shape {tuple(given.shape)}, {given.dtype}, for {space.describe()}",
            remedy="Leave it out where atoms of one mass are of one kind.",
        )
    return given
