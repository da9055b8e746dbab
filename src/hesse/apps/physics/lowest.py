# SPDX-License-Identifier: Apache-2.0
"""How to search for the lowest modes: from springs that resemble the energy, or without them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hesse.apps.physics.rigid import RigidMotions
from hesse.apps.physics.springs import MOST, springs_of
from hesse.krylov.eigen_problem import EigenMethod
from hesse.krylov.lanczos import Lanczos
from hesse.krylov.lobpcg import LOBPCG
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator

BLOCK = 6
"""Of block Lanczos: degenerate modes come in multiplets, of an icosahedron of up to five."""
# Springs have the symmetry of the molecule, and a start without noise may lack a whole kind of
# modes. With this much of it no mode was missed, at the price of a step.
_NOISE = 0.005
_LEAST = 1e-5  # of the largest curvature: a softer spring counts as this


class Search(NamedTuple):
    """A method, where it starts, and the products that this took."""

    method: EigenMethod
    start: Tensor | None
    products: int


def search_for(
    k: int,
    H: LinearOperator,
    Z: LinearOperator,
    x: Tensor,
    root_masses: Tensor,
    motions: RigidMotions,
    generator: torch.Generator | None,
    block_size: int | None,
    kinds: Tensor | None,
) -> Search:
    """For the k lowest modes of the mass-weighted H in the coordinates Z.

    Atoms of one mass are of one kind, unless `kinds` says which are.
    """
    plain = Lanczos(min(block_size or BLOCK, Z.shape[1]), search_missed=False)
    if block_size is not None or not motions.translations or H.domain.n > MOST:
        return Search(plain, None, 0)
    positions = x.view(-1, motions.dimensions)
    told = root_masses.view(positions.shape)[:, 0] if kinds is None else kinds
    F, products = springs_of(H, positions, told.unique(return_inverse=True)[1], generator)
    if F is None:
        return Search(plain, None, products)
    method, start = _from_springs(F / torch.outer(root_masses, root_masses), Z, k, generator)
    return Search(method, start, products)


def _from_springs(
    F: Tensor, Z: LinearOperator, k: int, generator: torch.Generator | None
) -> tuple[EigenMethod, Tensor]:
    """LOBPCG with the inverse of |F|, and its lowest vectors with some noise."""
    columns = Z.to_dense()
    values, vectors = torch.linalg.eigh(columns.T @ F.to(columns.dtype) @ columns)
    curvature = values.abs().clamp(min=_LEAST * float(values.abs().max()))
    inverse = aslinearoperator((vectors / curvature) @ vectors.T)
    size = min(k + max(2, k // 6), len(values))
    domain = inverse.domain
    noise = inverse._matmat(torch.stack([domain.gaussian(generator) for _ in range(size)], 1))
    sizes = torch.tensor(domain.norms(noise.T.contiguous())).to(noise)
    start = vectors[:, :size] + _NOISE * noise / sizes
    return LOBPCG(preconditioner=inverse, block_size=size), start
