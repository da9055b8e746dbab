# SPDX-License-Identifier: Apache-2.0
"""`precision=`: let matrix products and convolutions inside a product use faster, coarser units.

    "highest"   as the tensors are: float32 in float32
    "high"      TF32 where a GPU has it (10 bits of mantissa)
    "medium"    bfloat16 operands (8 bits), sums in float32 within an operation

Only tangent nodes are touched: value and gradient stay exact. What does not become faster (small
products, float64) stays as it is, and so does everything on a processor without such units.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from hesse.errors import ArgumentError, check_choice
from hesse.tracing.flops import flops
from hesse.tracing.graph import Graph, Node, Value, new_numbers

Precision = Literal["highest", "high", "medium"]
PRECISIONS = ["highest", "high", "medium"]

_aten = torch.ops.aten
_REDUCED = frozenset(
    [
        *(_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default),
        *(_aten.convolution.default, _aten.convolution_backward.default),
    ]
)

# Below so many floating-point operations the casts take longer than what they save.
_SMALL = 1 << 22


def check_precision(precision: str, mode: str) -> None:
    """Raise unless products in this mode can be taken in this precision."""
    check_choice("precision", precision, PRECISIONS)
    if precision != "highest" and mode not in ("auto", "traced-split", "compiled-split"):
        raise ArgumentError(
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
    units = ("avx512_bf16", "amx_bf16")  # Arm and Apple processors report none: float32
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


def with_bfloat16(graph: Graph, tangent: Collection[int]) -> Graph:
    """The graph with bfloat16 operands in the large products whose results are in `tangent`."""
    return replace(graph, nodes=_Cast(graph, set(tangent)).run(graph.nodes))


class _Cast:
    """Puts casts around nodes; adds to the metas of the graph."""

    def __init__(self, graph: Graph, tangent: set[int]) -> None:
        self._metas, self._tangent = graph.metas, tangent
        self._numbers = new_numbers(graph.metas)
        self._coarse: dict[int, int] = {}
        self._result: list[Node] = []

    def run(self, nodes: list[Node]) -> list[Node]:
        """The nodes with casts around the large tangent products."""
        for node in nodes:
            large = node.function in _REDUCED and flops(node, self._metas) >= _SMALL
            if large and self._tangent.intersection(node.makes()) and self._is_float32(node):
                self._reduce(node)
            else:
                self._result.append(node)
        return self._result

    def _reduce(self, node: Node) -> None:
        """The same operation in bfloat16, between casts of its arguments and of its results."""
        args = tuple(self._cast(argument) for argument in node.args)
        results = tuple(n if n is None else self._new(n, torch.bfloat16) for n in node.results)
        self._result.append(replace(node, args=args, results=results))
        for fine, coarse in zip(node.results, results, strict=True):
            if fine is not None and coarse is not None:
                self._copy(coarse, fine, torch.float32)

    def _cast(self, argument: Any) -> Any:
        if not isinstance(argument, Value) or self._metas[argument.index].dtype != torch.float32:
            return argument
        number = argument.index
        if number not in self._coarse:
            self._coarse[number] = self._new(number, torch.bfloat16)
            self._copy(number, self._coarse[number], torch.bfloat16)
        return Value(self._coarse[number])

    def _new(self, like: int, dtype: torch.dtype) -> int:
        number = next(self._numbers)
        self._metas[number] = replace(self._metas[like], offset=0, dtype=dtype)
        return number

    def _copy(self, source: int, result: int, dtype: torch.dtype) -> None:
        node = Node(_aten._to_copy.default, (Value(source),), {"dtype": dtype}, (result,), True)
        self._result.append(node)

    def _is_float32(self, node: Node) -> bool:
        numbers = [*node.reads(), *node.makes()]
        return all(self._metas[number].dtype == torch.float32 for number in numbers)
