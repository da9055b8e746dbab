# SPDX-License-Identifier: Apache-2.0
"""Two directions at a point, and the quadratic model of a function on their plane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.errors import ArgumentError, StructureError, check_choice, kind_of
from hesse.krylov.eigsh import eigsh
from hesse.vectors.space import Space

# A picture needs no more digits of an eigenvector.
_RTOL = 1e-3
# Where the curvature gives no radius, this part of |theta| (or of 1) does.
_FALLBACK = 0.1
# Directions whose cosine is this close to 1 span no plane.
_PARALLEL = 1.0 - 1e-6


@dataclass(frozen=True)
class Plane:
    """theta + a u + b v."""

    H: CurvatureOperator
    theta: Tensor
    directions: Tensor
    found: int
    """Products that the search for eigenvectors took."""

    @property
    def products(self) -> int:
        """All products with H."""
        return self.found + 2

    def reach(self, k: int) -> float:
        """Where the quadratic term is as large as f, in multiples of direction k."""
        space = self.H.domain
        unit, size = space.norm(self.directions[:, k]), space.norm(self.theta)
        value, curvature = abs(self.value), abs(float(self.eigenvalues[k]))
        if value == 0.0 or curvature == 0.0:
            return _FALLBACK * (size or 1.0) / unit
        return min(math.sqrt(2.0 * value / curvature), size or math.inf) / unit

    @cached_property
    def value(self) -> float:
        """f at the centre."""
        return float(self.H.value)

    @cached_property
    def curvatures(self) -> Tensor:
        """The 2 x 2 matrix of u'Hu, u'Hv and v'Hv, float64."""
        rows = self.directions.T.contiguous()
        C = self.H.domain.gram(rows, self.H.matmat(self.directions).T.contiguous())
        return (C + C.T) / 2

    @property
    def eigenvalues(self) -> Tensor:
        """u'Hu / u'u and v'Hv / v'v."""
        return self.curvatures.diagonal() / self.H.domain.column_norms(self.directions) ** 2

    def quadratic(self, a: Tensor, b: Tensor) -> Tensor:
        """f + g's + s'Hs / 2 on the grid."""
        rows = self.directions.T.contiguous()
        slopes = self.H.domain.gram(rows, self.H.flat_gradient[None])[:, 0]
        s = torch.stack(torch.meshgrid(a, b, indexing="ij"), -1)
        model = self.value + s @ slopes + 0.5 * ((s @ self.curvatures) * s).sum(-1)
        return model.to(self.H.dtype)


def plane_of(
    H: CurvatureOperator, theta: Tensor, directions: str | Tensor, generator: torch.Generator | None
) -> Plane:
    """The plane of a call, along named directions or the columns (n, 2).

    Raises:
        HesseError: fewer than two variables; directions that do not fit, are zero or parallel.
    """
    if H.domain.n < 2:
        raise ArgumentError(
            expected="at least two variables, which span a plane",
            got="one",
            remedy="Evaluate the function on torch.linspace.",
        )
    if isinstance(directions, str):
        check_choice("directions", directions, ["top", "ends", "gradient"])
        columns, found = _named(H, directions, generator)
    else:
        columns, found = directions, 0
    _check_spans(H.domain, columns)
    return Plane(H, theta, columns, found)


def _named(
    H: CurvatureOperator, name: str, generator: torch.Generator | None
) -> tuple[Tensor, int]:
    """u and v, both of length 1, and the products that they took."""
    if name == "ends":
        pairs = eigsh(H, 2, "BE", rtol=_RTOL, generator=generator)
        return pairs.vectors.flip(1), pairs.products
    pairs = eigsh(H, 2 if name == "top" else 1, rtol=_RTOL, generator=generator)
    if name == "top":
        return pairs.vectors.flip(1), pairs.products
    g, top = H.flat_gradient, pairs.vectors[:, 0]
    size = H.domain.norm(g)
    if size == 0.0:
        raise ArgumentError(
            expected="a gradient that is not zero, for directions='gradient'",
            got="a stationary point",
            remedy="Use directions='top'.",
        )
    u = g / size
    v = top - H.domain.inner(u, top) * u
    return torch.stack([u, v / (H.domain.norm(v) or 1.0)], 1), pairs.products


def given_directions(space: Space, directions: Any) -> Tensor:
    """u and v of a call, (n, 2)."""
    if not isinstance(directions, (tuple, list)) or len(directions) != 2:
        raise StructureError(
            expected="directions as 'top', 'ends', 'gradient', or two vectors",
            got=f"{len(directions)} of them"
            if isinstance(directions, (tuple, list))
            else kind_of(directions),
            remedy="Give (u, v), flat vectors or trees like the parameters.",
        )
    return torch.stack([space.enter(d, what="a direction")[0] for d in directions], 1)


def _check_spans(space: Space, columns: Tensor) -> None:
    rows = columns.T.contiguous()
    space.check_finite(columns, "directions")
    gram = space.gram(rows, rows)
    sizes = gram.diagonal().sqrt()
    if bool((sizes == 0.0).any()) or abs(float(gram[0, 1])) > _PARALLEL * float(sizes.prod()):
        raise ArgumentError(
            expected="two directions that span a plane",
            got=f"norms {sizes.tolist()}, inner product {float(gram[0, 1]):.3g}",
            remedy="Give others.",
        )
