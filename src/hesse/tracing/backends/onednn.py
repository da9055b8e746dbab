# SPDX-License-Identifier: Apache-2.0
"""Large float32 matrix products by oneDNN, on processors where torch's own take twice as long.

On x86 torch leaves float32 matrix products to MKL, which runs at half speed on processors of others
than Intel that have 512-bit instructions. oneDNN, which torch brings along for convolutions, does
not. The operands and the sums are float32 in both; only the order of summation differs. Which of
the two is faster is measured once per process, at the first product that is large enough
(docs/decisions/0019).

This is the only file that calls `torch.ops.mkldnn`, which is private to torch; tried on torch 2.13
and 2.15. A torch without that operation keeps its own matrix products.
`torch.backends.mkldnn.enabled = False` switches oneDNN off.
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
from hesse.tracing.graph import Node, TensorMeta

_aten = torch.ops.aten

# Below so many floating-point operations the call itself (20 us) takes about what it saves.
_MIN_FLOPS = 6_000_000
# A product with fewer columns than this is bound by reading the matrix.
_MIN_SIZE = 4
# A left matrix whose rows are not contiguous is copied, if there are at least so many columns.
_MIN_COLUMNS_FOR_COPY = 64

# oneDNN must save a fifth of the time. The two are compared on products of this size.
_RATIO, _SIZE, _ROUNDS = 0.8, 256, 12

# X + A B into the memory of X runs in blocks of at least so many rows and operations.
_BLOCK_ROWS, _BLOCK_FLOPS = 512, 64_000_000


def takes(node: Node, metas: dict[int, TensorMeta]) -> bool:
    """Whether a node is a matrix product that oneDNN computes faster than torch does."""
    if node.function not in _KERNELS or not node.kwargs.keys() <= {"out"}:
        return False
    numbers = [*node.reads(), *node.makes()]
    if any(metas[n].dtype != torch.float32 or metas[n].device.type != "cpu" for n in numbers):
        return False
    left, right = (metas[part.index] for part in node.args[-2:])
    if min(*left.shape, *right.shape) < _MIN_SIZE or flops(node, metas) < _MIN_FLOPS:
        return False
    reads_rows = left.is_contiguous or right.shape[1] >= _MIN_COLUMNS_FOR_COPY
    return right.is_dense and reads_rows and is_used()


def kernel(function: Any) -> Callable[..., Tensor]:
    """What computes `mm`, `addmm` or `addmm.out` by oneDNN, with the same arguments."""
    return _KERNELS[function]


def scratch_bytes(node: Node, metas: dict[int, TensorMeta], *, in_place: bool) -> int:
    """The bytes that oneDNN holds while a node runs, besides the result; 0 for other nodes."""
    if not takes(node, metas):
        return 0
    left, right = (metas[part.index] for part in node.args[-2:])
    block = _block_rows(left, right.shape[1]) * right.shape[1] * left.dtype.itemsize
    return left.nbytes * (not left.is_contiguous) + block * in_place


def is_used() -> bool:
    """Whether oneDNN is switched on, and multiplies faster than torch on this processor."""
    enabled: Any = torch.backends.mkldnn.enabled
    return bool(enabled) and is_faster_here()


@cache
def is_faster_here() -> bool:
    """Measured in a thread of its own, where no dispatch mode of the caller watches or counts."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(measure()))
    thread.start()
    thread.join()
    return found == [True]


def measure() -> bool:
    """Whether oneDNN multiplies two matrices right, and in less time than torch."""
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
    return right and min(ours) < _RATIO * min(theirs)


def _seconds(matmul: Callable[..., Tensor], a: Tensor, b: Tensor) -> float:
    start = time.perf_counter()
    matmul(a, b)
    return time.perf_counter() - start


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """A B; oneDNN computes X W'."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def _addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """C + A B."""
    return _mm(a, b).add_(c)


def _addmm_into(c: Tensor, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """C + A B into the memory of C, which is `out`."""
    rows = _block_rows(a, b.shape[1])
    for first in range(0, len(a), rows):
        c[first : first + rows].add_(_mm(a[first : first + rows], b))
    return out


def _block_rows(a: Tensor | TensorMeta, columns: int) -> int:
    """The rows of a block; a matrix that is copied anyway is one block."""
    m, k = a.shape
    is_contiguous = a.is_contiguous() if isinstance(a, Tensor) else a.is_contiguous
    rows = max(_BLOCK_ROWS, _BLOCK_FLOPS // (2 * k * columns)) if is_contiguous else m
    return min(m, rows)


_KERNELS: dict[Any, Callable[..., Tensor]] = {
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.addmm.out: _addmm_into,
}


def _linear_flops(rows: Any, columns: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """The floating-point operations of X W', from the shapes."""
    return 2 * rows[0] * rows[1] * columns[0]


# An operation of its own in the programs of a compiler, which would take `_linear_pointwise` for a
# layer whose weights never change.
_library = torch.library.Library("hesse", "FRAGMENT")
_library.define("mm(Tensor a, Tensor b) -> Tensor")
_library.impl("mm", _mm, "CPU")
_library.impl("mm", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
compiled_mm = torch.ops.hesse.mm.default

register_flop_formula(torch.ops.hesse.mm, get_raw=True)(flop_registry[_aten.mm])
_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
if _linear is not None and _linear not in flop_registry:
    register_flop_formula(_linear)(_linear_flops)
