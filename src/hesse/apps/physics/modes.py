# SPDX-License-Identifier: Apache-2.0
"""`modes`: normal modes of vibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.apps.physics.lowest import BLOCK, search_for
from hesse.apps.physics.rigid import Rigid, kinds_of, rigid_motions, root_masses_of
from hesse.boundary import public, warn
from hesse.curvature.hessian import hessian_operator
from hesse.errors import ArgumentError, Status, check_count
from hesse.krylov.eigsh import eigsh
from hesse.operators.diagonal import DiagonalOperator
from hesse.progress import Callback, FilePath
from hesse.result import Result
from hesse.vectors.space import Space, Tree

# The whole matrix is taken where the lowest modes would take as many products.
_SMALL = 150
_SHARE = 4
# The curvature that a gradient leaves in a rotation, |g| / |r|, beside that of the lowest mode.
_STATIONARY = 0.01


@dataclass(frozen=True, repr=False)
class Modes(Result):
    """Normal modes, the lowest first."""

    frequencies: Tensor
    """Angular frequencies omega = sqrt(eigenvalue), float64, (k,); negative where imaginary."""
    eigenvalues: Tensor
    """Of M^-1/2 H M^-1/2 without the rigid motions, ascending, (k,)."""
    vectors: Tensor
    """Orthonormal eigenvectors in mass-weighted coordinates, (n, k)."""
    displacements: Any
    """M^-1/2 times these, a tree like x with a first dimension of k."""
    residuals: Tensor
    """A true eigenvalue lies within this of each."""
    converged: Tensor
    """Whether each pair met the tolerance."""
    num_rigid: int
    """How many motions were projected out."""
    products: int
    """Hessian products."""
    status: Status
    """How the search for eigenvalues ended."""


@public("hesse.apps.modes(f, x)")
def modes(
    f: Callable[[Any], Tensor],
    x: Tree,
    masses: Tensor | None = None,
    k: int | None = None,
    *,
    rigid: Rigid = "auto",
    kinds: Tensor | None = None,
    rtol: float = 1e-4,
    block_size: int | None = None,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Modes:
    r"""Normal modes of the energy f at x: small vibrations about a minimum or a saddle point.

    $$ M^{-1/2} H M^{-1/2} u = \omega^2 u, \qquad u \perp M^{1/2} t \text{ for rigid motions } t $$

    Args:
        f: the energy, a scalar function of the positions.
        x: a stationary point: positions (atoms, 3) or (atoms, 2), or flat; or a tree of other
            variables, which have no rigid motions.
        masses: of the atoms, (atoms,); default 1.
        k: how many of the lowest modes. Default: all, from the whole matrix.
        rigid: "auto" projects out the translations and rotations that leave f as it is; "all",
            "translations" and "none" say which. Of atoms on a line there are five.
        kinds: integers that say which atoms are of one kind, (atoms,), as atomic numbers. Default:
            those of one mass. They make the search for some modes faster, and change no result.
        rtol: of the residual of a pair, relative to its eigenvalue, whose error is quadratic in it.
        block_size: of block Lanczos, to have that and no springs. Default 6 where it is used: modes
            of a symmetric molecule come in multiplets of up to five, of which a smaller block finds
            some modes and not the others.
        max_products, generator, callback, progress: of `hesse.eigsh`.
        checkpoint: of block Lanczos, which is then taken: with springs a search ends within some
            ten blocks.

    Returns:
        Modes(frequencies, eigenvalues, vectors, displacements, ...). An imaginary frequency is
        returned as a negative number: at a minimum there is none, at a transition state one.

    Cost: n products for all modes, for k of a quarter of them, or for n <= 150. Else some products
        fit springs between the atoms, and LOBPCG starts from their modes with their inverse as
        preconditioner, up to 4,096 coordinates: of a cluster of 236 atoms 12 modes take 44 products
        at rtol=1e-3 and 67 at 1e-4, instead of 702. Where springs do not fit, block Lanczos, 440.
        Three evaluations of f look for rigid motions. Memory: about max(2 k, 5 blocks) vectors;
        with springs n^2 numbers.

    Raises:
        HesseError: f is no scalar function; masses that do not fit; more modes than there are.
            Warns where x is not stationary and may turn, as rotations have curvature there.

    References: Wilson, Decius & Cross 1955, Molecular Vibrations; Packwood et al. 2016,
        doi:10.1063/1.4947024 (preconditioners of atoms in reach of one another).

    >>> spring = lambda r: ((r[1] - r[0]).norm() - 1.0) ** 2 / 2
    >>> r = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> vibration = modes(spring, r, masses=torch.tensor([1.0, 3.0]))
    >>> vibration.num_rigid, vibration.eigenvalues * 3              # 1 / reduced mass = 4 / 3
    (5, tensor([4.], dtype=torch.float64))
    """
    space = Space.of(x)
    flat = space.flatten(x, what="x").detach()
    H = hessian_operator(f, x)
    root_masses = root_masses_of(masses, space)
    labels = None if kinds is None else kinds_of(kinds, space)
    motions = rigid_motions(lambda v: _value(f, space, v), flat, space, rigid)
    Z = motions.coordinates(space, flat, root_masses)
    D = DiagonalOperator(space, 1.0 / root_masses)
    A = (D @ H @ D).project(Z)
    n = A.shape[0]
    count = n if k is None else check_count("k", k, 1)
    if count > n:
        raise ArgumentError(
            expected=f"at most {n} modes, of {space.n} coordinates without rigid motions",
            got=f"k = {k}",
            remedy="Leave out k for all of them.",
        )
    if k is None or (max_products is None and (n <= _SMALL or count * _SHARE >= n)):
        values, reduced = torch.linalg.eigh(A.to_dense())
        values, reduced = values[:count].double(), reduced[:, :count]
        residuals = torch.full_like(
            values, n * torch.finfo(A.dtype).eps * float(values.abs().max())
        )
        converged, products = torch.ones(count, dtype=torch.bool), n
        status = Status.CONVERGED
    else:
        size = block_size if checkpoint is None else block_size or BLOCK
        search = search_for(count, H, Z, flat, root_masses, motions, generator, size, labels)
        found = eigsh(
            *(A, count, "SA"),
            method=search.method,
            v0=search.start,
            rtol=rtol,
            max_products=max_products,
            generator=generator,
            callback=callback,
            progress=progress,
            checkpoint=checkpoint,
        )
        values, reduced, residuals, converged, products = found
        products += search.products
        status = found.status
    vectors = Z._matmat(reduced)
    if motions.rotations:
        _check_stationary(H.flat_gradient, flat, values, space)
    shifted = (vectors / root_masses[:, None]).T
    trees = [space.leaves(space.unflatten(row)) for row in shifted]
    stacked = space.build([torch.stack(leaves) for leaves in zip(*trees, strict=True)])
    return Modes(
        frequencies=values.abs().sqrt() * values.sign(),
        eigenvalues=values,
        vectors=vectors,
        displacements=stacked,
        residuals=residuals,
        converged=converged,
        num_rigid=space.n - n,
        products=products,
        status=status,
    )


def _value(f: Callable[[Any], Tensor], space: Space, v: Tensor) -> Tensor:
    with torch.no_grad():
        return f(space.unflatten(v))


def _check_stationary(gradient: Tensor, x: Tensor, values: Tensor, space: Space) -> None:
    size, radius = space.norm(gradient), space.norm(x - x.mean())
    rounding = torch.finfo(gradient.dtype).eps ** 0.5 * float(values.abs().max())
    if radius > 0.0 and size / radius > max(_STATIONARY * float(values.abs().min()), rounding):
        warn(
            f"x is not a stationary point: |grad f| = {size:.2g}. Low modes mix with rotations, "
            "and are no vibrations; minimise first, with a small atol."
        )
