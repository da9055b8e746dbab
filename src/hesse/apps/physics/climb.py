# SPDX-License-Identifier: Apache-2.0
"""One step uphill along a mode, and downhill along all others, within a radius."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.krylov.cg import CG
from hesse.krylov.eigsh import eigsh
from hesse.krylov.lanczos import Lanczos
from hesse.krylov.solve import solve
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import DenseOperator
from hesse.operators.low_rank import LowRankOperator

# Up to so many variables the matrix and all its eigenvectors are taken.
_SMALL = 60
_MAX_CG = 50
_CG_RTOL = 1e-3
_MODE_RTOL = 1e-2
# An eigenvalue below this, of the largest, is zero.
_ZERO = 1e-10
_BISECTIONS = 100


@dataclass(frozen=True)
class Mode:
    """The mode that is climbed, in coordinates without rigid motions."""

    u: Tensor
    curvature: float
    lowest: float
    """The lowest eigenvalue."""
    num_negative: int
    """How many are negative; 2 stands for more as well."""
    products: int
    direction: Tensor | None = None
    """u in the coordinates of x, for the next step."""
    eigen: tuple[Tensor, Tensor] | None = None
    """All eigenvalues and vectors, where there are few."""
    index: int = 0

    @staticmethod
    def of(A: LinearOperator, last: Tensor | None) -> tuple[LinearOperator, Mode]:
        """The mode of A most like the last one, or the lowest; and A, dense if it is small."""
        if A.domain.n > _SMALL:
            return A, _lowest(A, last)
        matrix = A.to_dense()
        matrix = (matrix + matrix.T) / 2
        w, U = torch.linalg.eigh(matrix)
        negative = int((w < -_ZERO * w.abs().max()).sum())
        index = 0
        if last is not None and negative != 1:
            index = int((U.T @ last).abs().argmax())
        u = _turned(U[:, index].contiguous(), last)
        mode = Mode(
            u,
            float(w[index]),
            float(w[0]),
            negative,
            A.domain.n,
            eigen=(w, U),
            index=index,
        )
        return DenseOperator(matrix, symmetric=True, space=A.domain), mode


def _turned(u: Tensor, last: Tensor | None) -> Tensor:
    """u with the sign of the last one."""
    return -u if last is not None and float(u @ last) < 0.0 else u


def _lowest(A: LinearOperator, last: Tensor | None) -> Mode:
    """The two lowest modes by Lanczos from the last one."""
    method = Lanczos(search_missed=False)
    found = eigsh(
        *(A, 2, "SA"),
        method=method,
        v0=last,
        rtol=_MODE_RTOL,
        generator=torch.Generator().manual_seed(0),
    )
    negative = int((found.values < 0.0).sum())
    u = _turned(found.vectors[:, 0].contiguous(), last)
    lowest = float(found.values[0])
    return Mode(u, lowest, lowest, negative, found.products)


def step_of(A: LinearOperator, g: Tensor, mode: Mode, radius: float) -> tuple[Tensor, int]:
    """The step of the reflected quadratic within the radius, and the products it took.

    Where the slope along the mode is zero, as on a line of symmetry, its sign is that of u.
    """
    reflected = g - 2.0 * mode.u * float(mode.u @ g)
    if mode.eigen is not None:
        w, U = mode.eigen
        w = w.clone()
        w[mode.index] = -w[mode.index]
        s = U @ _trust_step(w, U.T @ reflected, radius)
        rest = radius**2 - A.domain.inner(s, s)
        if float(w.min()) < 0.0 and rest > 0.02 * radius**2:
            s = s + math.sqrt(rest) * _turned(U[:, int(w.argmin())], mode.u)
        return s, 0
    weight = torch.tensor([-2.0 * mode.curvature], dtype=A.dtype, device=A.device)
    R = A + LowRankOperator(A.domain, mode.u[:, None], weight)
    found = solve(R, -reflected, CG(radius=radius), rtol=_CG_RTOL, max_iterations=_MAX_CG)
    s, p = found.x, found.direction
    if p is not None and A.domain.norm(s) < 0.99 * radius:
        s = _to_the_boundary(A, s, p if float(p @ reflected) < 0.0 else -p, radius)
    return s, found.products


def _trust_step(w: Tensor, g: Tensor, radius: float) -> Tensor:
    """-(diag(w) + mu)^-1 g of norm at most the radius, with the least mu >= 0, -min w."""
    lowest = float(w.min())
    tiny = _ZERO * float(w.abs().max())
    if lowest > tiny:
        s = -g / w
        if float(s.norm()) <= radius:
            return s
    low = max(0.0, -lowest) + tiny
    high = low + float(g.norm()) / radius
    for _ in range(_BISECTIONS):
        mu = (low + high) / 2
        if float((g / (w + mu)).norm()) > radius:
            low = mu
        else:
            high = mu
    return -g / (w + high)


def _to_the_boundary(A: LinearOperator, s: Tensor, p: Tensor, radius: float) -> Tensor:
    """s + t p with the norm of the radius, t > 0."""
    space = A.domain
    p = p / space.norm(p)
    along = space.inner(s, p)
    rest = radius**2 - space.inner(s, s)
    return s + (math.sqrt(along**2 + max(rest, 0.0)) - along) * p
