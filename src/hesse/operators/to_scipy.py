# SPDX-License-Identifier: Apache-2.0
"""Operators for SciPy: `A.to_scipy()`, and errors that lead there."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from hesse.errors import MissingExtraError, StructureError
from hesse.vectors.rows import transposed
from hesse.vectors.space import Space

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


Product = Callable[[Tensor], Tensor]


def as_scipy(A: Any) -> ScipyOperator:
    """A `hesse.LinearOperator` as a SciPy one, on NumPy vectors; see `LinearOperator.to_scipy`."""
    try:
        from scipy.sparse.linalg import LinearOperator as ScipyOperator
    except ImportError as error:
        raise MissingExtraError(
            expected="SciPy",
            got=str(error),
            remedy="pip install 'hesse[scipy]'",
        ) from error

    def on_arrays(product: Product, space: Space, results: Space) -> Callable[[Any], Any]:
        def function(array: Any) -> Any:
            if numpy.iscomplexobj(array):  # A is real
                return function(numpy.real(array)) + 1j * function(numpy.imag(array))
            tensor = torch.tensor(array)  # a copy: SciPy's arrays may be strided or read-only
            part = _part(space, tensor.to(space.device, space.dtype))
            return _whole(results, product(part)).cpu().numpy()

        return function

    sides = A.domain, A.codomain
    functions: dict[str, Any] = {  # SciPy's type stubs do not know its keyword constructor
        "matvec": on_arrays(lambda v: A._matvec(v.reshape(-1)), *sides),
        "rmatvec": on_arrays(lambda u: A._rmatvec(u.reshape(-1)), *reversed(sides)),
        "matmat": on_arrays(A._matmat, *sides),
        "rmatmat": on_arrays(A._rmatmat, *reversed(sides)),
        "dtype": torch.empty(0, dtype=A.dtype).numpy().dtype,
    }
    return ScipyOperator(shape=A.shape, **functions)


def _part(space: Space, v: Tensor) -> Tensor:
    """What an operator has, in this process, of a vector or a block that all of them give."""
    if space.shards is None:
        return v
    assert space.ranks is not None
    return space.ranks.each(lambda: space.part(v), v)


def _whole(space: Space, v: Tensor) -> Tensor:
    """All entries of a vector or a block of which each process has a part."""
    if space.shards is None:
        return v
    return space.whole(v[None])[0] if v.ndim == 1 else space.whole(transposed(v)).T


def check_not_asked_by_scipy(A: Any, frame: FrameType) -> None:
    """Raise if the frame is one of SciPy's, which does not know torch's dtypes.

    SciPy takes everything with `shape`, `dtype` and `matvec` for an operator; its own error would
    be that it cannot interpret 'torch.float32' as a data type.
    """
    if frame.f_globals.get("__name__", "").startswith("scipy."):
        raise StructureError(
            expected="an operator of SciPy",
            got=repr(A),
            remedy="Give SciPy H.to_scipy() for an operator H; hesse.eigsh, svds and solve take H.",
        )


def not_an_array(A: Any) -> StructureError:
    """The error for an operator where NumPy or SciPy want an array."""
    return StructureError(
        expected="an array",
        got=repr(A),
        remedy="Give A.to_scipy() where SciPy takes an operator, A.to_dense().numpy() elsewhere.",
    )
