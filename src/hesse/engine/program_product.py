# SPDX-License-Identifier: Apache-2.0
"""`ProgramProduct`: products at a point by a tangent program, from the residuals of this point."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.ad.definition import Quantity
from hesse.engine.compiler import block_program, compile_product
from hesse.engine.data_version import Versions, versions
from hesse.engine.point import Point
from hesse.engine.program_cache import CachedProgram
from hesse.tracing.partition import Partition
from hesse.tracing.precision import units
from hesse.tracing.program import run


@dataclass(frozen=True)
class ProgramProduct:
    """Programs with their residuals, which are its own; nothing of it changes.

    `partition` may no longer be that of the entry: another point may have had the programs traced
    again meanwhile.
    """

    point: Point
    entry: CachedProgram
    partition: Partition
    residuals: list[Tensor]
    versions: Versions
    """Of the data and of all tensors that f closes over."""
    outputs: list[Tensor] | None = None
    gradient: list[Tensor] | None = None

    @staticmethod
    def of(
        point: Point,
        entry: CachedProgram,
        residuals: list[Tensor],
        outputs: list[Tensor] | None = None,
        gradient: list[Tensor] | None = None,
    ) -> ProgramProduct:
        """A product by the present programs of an entry."""
        partition = entry.partition
        assert partition is not None
        seen = versions([*point.data, *partition.constants])
        return ProgramProduct(point, entry, partition, residuals, seen, outputs, gradient)

    @property
    def is_current(self) -> bool:
        """Whether nobody has written to the data, or to what f closes over, since."""
        return self.versions == versions([*self.point.data, *self.partition.constants])

    @property
    def tensors(self) -> list[Tensor]:
        """What products are computed from."""
        return [*self.residuals, *self.point.data, *self.partition.constants]

    @property
    def owns_results(self) -> bool:
        """Whether a product is made of tensors of its own, which may be given away."""
        return self.partition.tangents["product"].makes_outputs

    is_outdated = False
    custom_function = None

    @property
    def kept_bytes(self) -> float:
        """What holding on to it takes."""
        return self.partition.residual_bytes

    def without_gradient(self) -> ProgramProduct:
        """The same, in less memory."""
        return self if self.gradient is None else replace(self, gradient=None)

    def apply(self, quantity: Quantity, direction: Tensor) -> Tensor:
        """The quantity in a flat direction, flat."""
        entry, start = self.entry, time.perf_counter()
        tensors = [*self.residuals, direction]
        program = self.partition.tangents[quantity.name]
        if quantity.name == "product" and self.partition is entry.partition:
            if entry.usage.should_compile:
                compile_product(entry, tensors)
            program = entry.compiled or program
        (result,) = self._run(program, tensors)
        entry.usage.add_program_product(time.perf_counter() - start)
        return result

    def apply_block(self, block: Tensor) -> Tensor | None:
        """The products with the k rows, as rows; None where taking them at once does not work."""
        if self.partition is not self.entry.partition:
            return None
        program = block_program(self.entry, self.residuals, block)
        if program is None:
            return None
        try:
            return self._run(program, [*self.residuals, block])[0]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # one by one they say why, or work
            return None

    def _run(self, program: Callable[..., list[Tensor]], tensors: list[Tensor]) -> list[Tensor]:
        if self.entry.options.precision == "highest":
            return run(program, tensors)
        with units(self.entry.options.precision):
            return run(program, tensors)
