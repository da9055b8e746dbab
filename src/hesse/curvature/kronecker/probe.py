# SPDX-License-Identifier: Apache-2.0
"""Which example a row belongs to: the rows are taken again with another scale for each example."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hesse.curvature.kronecker.examples import ExampleMap, read_map, scales
from hesse.curvature.kronecker.programs import FactorPoint
from hesse.curvature.kronecker.roots import LossRoots, scaled, vectors
from hesse.curvature.kronecker.rows import gradient_rows, rows_of_g
from hesse.tracing.uses import Use


def probed_maps(
    point: FactorPoint, loss: LossRoots, examples: int, uses: Sequence[Use]
) -> dict[Use, ExampleMap | None]:
    """The examples of the rows of each use; None where rows depend on several examples."""
    (_, u), *_ = vectors(loss, "sampled", examples, 1, 0)
    plain = point.tangent(u)
    probed = [point.tangent(scaled(loss, u, s)) for s in scales(examples)]
    maps = {}
    for use in uses:

        def rows(g: dict[int, Tensor], use: Use = use) -> Tensor:
            return (rows_of_g if use.is_factored else gradient_rows)(use, g, point.a)

        maps[use] = read_map(rows(plain), [rows(g) for g in probed], examples)
    return maps
