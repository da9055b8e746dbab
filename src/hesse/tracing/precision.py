# SPDX-License-Identifier: Apache-2.0
"""`precision=`: let matrix products and convolutions inside a product use faster, coarser units.

    "highest"   as the tensors are: float32 in float32
    "high"      TF32 where a GPU has it (10 bits of mantissa)
    "medium"    bfloat16 operands (8 bits), sums in float32 within an operation

Only what depends on the direction is touched: value and gradient stay exact. What does not become
faster by it (small products, float64) stays as it is, and so does everything on a processor without
such units.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from hesse.errors import ArgumentError, check_choice
from hesse.tracing.flops import flops
from hesse.tracing.graph import Meta, Op, Ref, Trace
from hesse.tracing.memory.liveness import made_by

Precision = Literal["highest", "high", "medium"]
PRECISIONS = ["highest", "high", "medium"]

_aten = torch.ops.aten
_REDUCED = frozenset(
    [
        *(_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default),
        *(_aten.convolution.default, _aten.convolution_backward.default),
    ]
)

# Below this many floating-point operations the casts take longer than what they save.
_SMALL = 1 << 22


def check_precision(precision: str, mode: str, call: str) -> None:
    """Raise unless products in this mode can be taken in this precision."""
    check_choice("precision", precision, PRECISIONS, call)
    if precision != "highest" and mode not in ("auto", "traced-split", "compiled-split"):
        raise ArgumentError(
            call,
            expected="precision='highest', or a mode whose products are programs",
            got=f"precision={precision!r} and mode={mode!r}",
            remedy="Use mode='auto'.",
        )


def has_units(precision: str, device: torch.device) -> bool:
    """Whether the device computes faster in this precision than in float32."""
    if precision == "highest":
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    units = ("avx512_bf16", "amx_bf16")  # an Arm or Apple processor tells nothing: float32
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return precision == "medium" and any(capabilities.get(unit) for unit in units)


@contextmanager
def units(precision: str) -> Iterator[None]:
    """Within it, and in it only, float32 products on a GPU use TF32 if the precision is "high"."""
    if precision != "high" or not torch.cuda.is_available():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(allow_tf32=True):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def with_bfloat16(trace: Trace, moving: Collection[int]) -> Trace:
    """The trace with bfloat16 operands in the large products whose results are among `moving`."""
    return replace(trace, ops=_Cast(trace, set(moving)).run(trace.ops))


class _Cast:
    """Adds casts, and to the numbers of a trace."""

    def __init__(self, trace: Trace, moving: set[int]) -> None:
        self._metas, self._moving = trace.metas, moving
        self._next = max(trace.metas) + 1
        self._coarse: dict[int, int] = {}
        self._result: list[Op] = []

    def run(self, ops: list[Op]) -> list[Op]:
        """The operations with casts around those that are large and move."""
        for op in ops:
            large = op.function in _REDUCED and flops(op, self._metas) >= _SMALL
            if large and self._moving.intersection(made_by(op)) and self._is_single(op):
                self._reduce(op)
            else:
                self._result.append(op)
        return self._result

    def _reduce(self, op: Op) -> None:
        """The same operation between a cast of what it reads and a cast of what it gives."""
        args = tuple(self._cast(argument) for argument in op.args)
        results = tuple(n if n is None else self._new(n, torch.bfloat16) for n in op.results)
        self._result.append(replace(op, args=args, results=results))
        for fine, coarse in zip(op.results, results, strict=True):
            if fine is not None and coarse is not None:
                self._copy(coarse, fine, torch.float32)

    def _cast(self, argument: Any) -> Any:
        if not isinstance(argument, Ref) or self._metas[argument.index].dtype != torch.float32:
            return argument
        number = argument.index
        if number not in self._coarse:
            self._coarse[number] = self._new(number, torch.bfloat16)
            self._copy(number, self._coarse[number], torch.bfloat16)
        return Ref(self._coarse[number])

    def _new(self, like: int, dtype: torch.dtype) -> int:
        number, self._next = self._next, self._next + 1
        meta = self._metas[like]
        self._metas[number] = Meta(meta.shape, meta.stride, 0, dtype, meta.device)
        return number

    def _copy(self, source: int, result: int, dtype: torch.dtype) -> None:
        op = Op(_aten._to_copy.default, (Ref(source),), {"dtype": dtype}, (result,), True)
        self._result.append(op)

    def _is_single(self, op: Op) -> bool:
        numbers = [*op.reads(), *made_by(op)]
        return all(self._metas[number].dtype == torch.float32 for number in numbers)
