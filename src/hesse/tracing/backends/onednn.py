# SPDX-License-Identifier: Apache-2.0
"""Large float32 matrix products by oneDNN, on processors where torch's own take twice as long.

On x86 torch leaves float32 matrix products to MKL, which computes at half of their speed on
processors of others than Intel that have 512-bit instructions. oneDNN, which torch brings along for
convolutions, does not. What is computed is the same: float32 operands and sums, added up in another
order. Which of the two is faster here is measured once a process, when first there is a product
large enough to ask (docs/decisions/0019).

This is the only file that calls `torch.ops.mkldnn`, which is private to torch; tried on torch 2.13
and 2.15.
`torch.backends.mkldnn.enabled = False` switches it off.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from hesse.tracing.flops import flops
from hesse.tracing.graph import Meta, Op

_aten = torch.ops.aten

# Below so many floating-point operations calling it (20 us) takes about what it saves.
_SMALL = 6_000_000
# A product with fewer columns than this reads its matrix, and hardly computes.
_FEW = 4
# Rows of the left matrix that are no neighbours in memory are copied, for so many columns at least.
_WORTH_A_COPY = 64

# The one in the place of the other must save a fifth. They are compared on products of this size.
_FASTER, _SIZE, _ROUNDS = 0.8, 256, 12

# What is added to a matrix in its place comes in blocks of at least so many rows and operations.
_ROWS, _BLOCK = 512, 64_000_000


def takes(op: Op, metas: dict[int, Meta]) -> bool:
    """Whether an operation is a matrix product that oneDNN computes faster than torch does."""
    if op.function not in _FORMS or not op.kwargs.keys() <= {"out"}:
        return False
    numbers = [*op.reads(), *(n for n in op.results if n is not None)]
    if any(metas[n].dtype != torch.float32 or metas[n].device.type != "cpu" for n in numbers):
        return False
    left, right = (metas[part.index] for part in op.args[-2:])
    if min(*left.shape, *right.shape) < _FEW or flops(op, metas) < _SMALL or not right.is_dense:
        return False
    return (left.is_contiguous or right.shape[1] >= _WORTH_A_COPY) and is_faster()


def form(op: Op) -> Callable[..., Tensor]:
    """What computes an operation that `takes` is true of."""
    return _FORMS[op.function]


def scratch(op: Op, metas: dict[int, Meta], *, in_place: bool) -> int:
    """The bytes that oneDNN holds while an operation runs, besides its result."""
    if not takes(op, metas):
        return 0
    left, right = (metas[part.index] for part in op.args[-2:])
    block = _rows(left, right.shape[1]) * right.shape[1] * left.dtype.itemsize
    return left.nbytes * (not left.is_contiguous) + block * in_place


def is_faster() -> bool:
    """Whether oneDNN multiplies faster than torch on this processor, and may be used."""
    return torch.backends.mkldnn.enabled and _measured()  # pyright: ignore[reportReturnType]


@cache
def _measured() -> bool:
    """Compared in a thread of its own, where no mode of the caller watches or counts."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(_compare()))
    thread.start()
    thread.join()
    return found == [True]


def _compare() -> bool:
    try:
        a = torch.linspace(-1.0, 1.0, _SIZE**2, dtype=torch.float32, device="cpu")
        a = a.view(_SIZE, _SIZE)
        b = a.t().contiguous()
        ours, theirs = zip(
            *((_seconds(_mm, a, b), _seconds(torch.mm, a, b)) for _ in range(_ROUNDS)), strict=True
        )
        right = torch.allclose(_mm(a, b), torch.mm(a, b), atol=1e-4)
    except (RuntimeError, AttributeError):  # this torch has no such operation
        return False
    return right and min(ours) < _FASTER * min(theirs)


def _seconds(product: Callable[..., Tensor], a: Tensor, b: Tensor) -> float:
    start = time.perf_counter()
    product(a, b)
    return time.perf_counter() - start


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """A B; oneDNN's form is X W'."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def _addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """C + A B."""
    return _mm(a, b).add_(c)


def _addmm_into(c: Tensor, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """C + A B into the memory of C, which is `out`."""
    rows = _rows(a, b.shape[1])
    for first in range(0, len(a), rows):
        c[first : first + rows].add_(_mm(a[first : first + rows], b))
    return out


def _rows(a: Tensor | Meta, columns: int) -> int:
    """Of a block; a matrix that is copied is not cut."""
    m, k = a.shape
    is_contiguous = a.is_contiguous() if isinstance(a, Tensor) else a.is_contiguous
    return min(m, max(_ROWS, _BLOCK // (2 * k * columns))) if is_contiguous else m


_FORMS: dict[Any, Callable[..., Tensor]] = {
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.addmm.out: _addmm_into,
}


def _count(rows: Any, columns: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """The floating-point operations of X W', from the shapes."""
    return 2 * rows[0] * rows[1] * columns[0]


# An operation of its own in the programs of a compiler, which would take the other for a layer
# whose weights never change.
_library = torch.library.Library("hesse", "FRAGMENT")
_library.define("mm(Tensor a, Tensor b) -> Tensor")
_library.impl("mm", _mm, "CPU")
_library.impl("mm", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
compiled_mm = torch.ops.hesse.mm.default

register_flop_formula(torch.ops.hesse.mm, get_raw=True)(flop_registry[_aten.mm])
_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
if _linear is not None and _linear not in flop_registry:
    register_flop_formula(_linear)(_count)
