# SPDX-License-Identifier: Apache-2.0
"""One measurement: the curvature of a risk at a point, from where the last one ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.operator import CurvatureOperator
from hesse.errors import NonFiniteError
from hesse.estimators.trace import trace
from hesse.krylov.eigenpairs import Eigenpairs
from hesse.krylov.eigsh import eigsh
from hesse.krylov.lanczos import Lanczos
from hesse.operators.algebra import LinearOperator
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

# A picture of a training needs no more digits; the error of a value is far below its residual.
_RTOL, _TRACE_RTOL = 0.01, 0.1
_ROWS = 32  # gradients of examples held at a time


@dataclass
class Probe:
    """What is measured, and the eigenvectors that were found last."""

    risk: Risk
    top: int
    layers: Sequence[str]
    trace: bool
    noise: int
    generator: torch.Generator
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """By matrix: the sum of its top eigenvectors, from which the next search starts."""

    def at(self, params: Tree) -> dict[str, Any]:
        """The fields of a `CurvatureMeasurement` that are about the risk.

        Where a training has diverged, it is the loss alone.
        """
        H = hessian_operator(self.risk, params)
        try:
            found = {"loss": float(H.value), "gradient_norm": H.domain.norm(H.flat_gradient)}
            return found | self._curvature(H, params)
        except NonFiniteError:
            with torch.no_grad():
                return {"loss": float(self.risk(params)), "gradient_norm": math.nan}

    def _curvature(self, H: CurvatureOperator, params: Tree) -> dict[str, Any]:
        g, space = H.flat_gradient, H.domain
        pairs = self._pairs("hessian", H, min(self.top, space.n))
        of_ggn = self._pairs("ggn", ggn_operator(self.risk, params), 1)
        found: dict[str, Any] = {
            "eigenvalues": tuple(pairs.values.flip(0).tolist()),
            "sharpness": float(pairs.values[-1]),
            "ggn_sharpness": float(of_ggn.values[-1]),
            "gradient_share": _share(space, pairs.vectors, g),
            "products": pairs.products + of_ggn.products,
        }
        for part in (self._traced(H), self._noisy(H, params, g), self._layered(params)):
            found["products"] += part.pop("products", 0)
            found |= part
        return found

    def _pairs(self, name: str, A: LinearOperator, k: int) -> Eigenpairs:
        """The largest eigenvalues; at first those of the GGN start from those of the Hessian."""
        start = self.vectors.get(name, self.vectors.get("hessian") if name == "ggn" else None)
        fits = start is not None and A.domain.size == len(start)
        pairs = eigsh(
            *(A, k),
            v0=start if fits else None,
            rtol=_RTOL,
            method=Lanczos(search_missed=False),
            max_products=50 * (k + 1),
            generator=self.generator,
        )
        self.vectors[name] = pairs.vectors.sum(1)
        return pairs

    def _traced(self, H: CurvatureOperator) -> dict[str, Any]:
        if not self.trace:
            return {}
        found = trace(H, rtol=_TRACE_RTOL, max_products=200, generator=self.generator)
        error = float(found.standard_error)
        return {"trace": float(found), "trace_error": error, "products": found.products}

    def _layered(self, params: Tree) -> dict[str, Any]:
        values, products = {}, 0
        for name in self.layers:
            block = hessian_operator(self.risk, params, with_respect_to=name)
            pairs = self._pairs(f"layers/{name}", block, 1)
            values[name] = float(pairs.values[-1])
            products += pairs.products
        return {"layers": values, "products": products}

    def _noisy(self, H: CurvatureOperator, params: Tree, g: Tensor) -> dict[str, Any]:
        r"""Both noise scales, from the gradients of random examples.

        S = 1/(N-1) sum_i d_i d_i', where d_i is the gradient of l_i minus their mean: without the
        weight decay, which all have alike.
        """
        if not self.noise:
            return {}
        each, space = self.risk.per_example, H.domain
        N = each.number
        chosen = torch.randperm(N, generator=self.generator)[: self.noise].sort().values
        mean = g - self.risk.weight_decay * space.flatten(params)
        # The loss of an example is a sum times their number.
        scale = 1.0 if self.risk.averages else N / len(chosen)
        squares, curvatures = 0.0, 0.0
        for rows in self.risk.subset(each.here(chosen)).per_example.gradients_of_all(params, _ROWS):
            d = scale * rows - mean
            squares += sum(space.inner_pairs(*zip(d, d, strict=True)))
            products = H.matmat(d.T).T
            curvatures += sum(space.inner_pairs(*zip(d, products, strict=True)))
        mean_of = N / (N - 1) / len(chosen)
        gHg = float(H.curvature(g))
        return {
            "noise_scale": mean_of * squares / space.inner(g, g),
            "curvature_noise_scale": mean_of * curvatures / gHg if gHg > 0.0 else None,
            "products": len(chosen) + 1,
        }


def _share(space: Space, vectors: Tensor, g: Tensor) -> float | None:
    """|U'g|^2 / |g|^2."""
    whole = space.inner(g, g)
    along = space.inners(vectors.T.contiguous(), g).double().square().sum()
    return float(along) / whole if whole > 0.0 else None


def layers_of(risk: Risk) -> list[str]:
    """The names of the modules that have parameters: "0" for "0.weight" and "0.bias"."""
    names = Space.of(risk.params, what="params", ranks=risk.ranks).names
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
