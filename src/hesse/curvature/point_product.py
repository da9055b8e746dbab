# SPDX-License-Identifier: Apache-2.0
"""The product at a point: its summands, the modes to take it in, and what is held in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hesse.ad.definition import Definition, Vectors
from hesse.ad.summands import Sum, Summand, unweighted
from hesse.ad.variables import BoundFunction, Variables
from hesse.engine.assembly import Assembly
from hesse.engine.fallback import PointProduct
from hesse.engine.kept_products import KeptProducts
from hesse.engine.one_shot_sum import OneShotSum
from hesse.engine.options import ProductOptions
from hesse.engine.point import Point
from hesse.engine.program_cache import ProgramCache
from hesse.engine.row_layout import RowLayout
from hesse.engine.summed_product import PREPARED_MODES, SummedProduct
from hesse.memory.available import available_bytes

# The fraction of the free memory that residuals of several batches may take by default.
_SHARE = 0.5


def summand_points(
    definition: Definition,
    f: Sum,
    shared: Variables,
    layouts: Mapping[Vectors, RowLayout] | None = None,
) -> Iterator[tuple[Summand, Point]]:
    """The summands of f, and the point at which each is taken."""
    summands = f.summands() if definition.is_sum else unweighted(f.summands())
    for index, summand in enumerate(summands):
        spaces = {side: layout.slices[index] for side, layout in (layouts or {}).items()}
        own = spaces.get("variables")
        variables = shared if own is None else Variables.of(summand.x, own)
        function = BoundFunction(summand.function, variables)
        data, outputs = tuple(summand.data), spaces.get("outputs")
        yield summand, Point(definition, function, variables, data, outputs)


def point_product(
    points: Any,
    assemblies: Mapping[Vectors, Assembly],
    definition: Definition,
    options: ProductOptions,
    programs: ProgramCache,
    f: Sum,
) -> PointProduct:
    """The product of a definition at a point, by the modes that are asked for."""
    one_shot = OneShotSum(points, assemblies, definition.one_shot_modes)
    prepared, modes = None, [options.mode]
    if options.mode in ("auto", *PREPARED_MODES):
        modes = fallback_modes(definition) if options.mode == "auto" else []
        device = assemblies["variables"].space.device
        kept = _kept_products(f, options, device)
        prepared = SummedProduct(
            points,
            assemblies,
            options,
            programs,
            kept,
            holds_data=f.holds_data,
            holds_points=_stays(f),
        )
    product = definition.quantities[0]
    domain, codomain = (
        assemblies[side or "variables"].space for side in (product.direction, product.result)
    )
    return PointProduct(domain, codomain, one_shot, prepared, modes, options.mode, programs.in_use)


def fallback_modes(definition: Definition) -> list[str]:
    """Exact modes and central differences; the one-sided difference is never chosen for a user."""
    return [mode for mode in definition.one_shot_modes if mode != "forward-difference"]


def _kept_products(f: Sum, options: ProductOptions, device: torch.device) -> KeptProducts:
    """What is held between products: by default all of a single summand, else a share of memory."""
    if options.kept_bytes is not None:
        keeps_graphs = not options.low_memory
        return KeptProducts(options.kept_bytes, keeps_graphs=keeps_graphs, stays=_stays(f))
    if f.num_summands == 1:
        return KeptProducts((math.inf, math.inf))
    share = kept_share(device)
    return KeptProducts((share, share), stays=_stays(f))


def kept_share(device: torch.device) -> float:
    """The bytes that residuals of several batches may take by default."""
    return _SHARE * available_bytes(device)


def _stays(f: Sum) -> bool:
    """Whether every sweep gives the same tensors, and takes no computation."""
    return f.holds_data and getattr(f, "sweep_is_free", False)
