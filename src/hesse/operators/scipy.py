# SPDX-License-Identifier: Apache-2.0
"""Operators as SciPy sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hesse.errors import MissingExtraError
from hesse.vectors.space import Space

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


def as_scipy(A: Any) -> ScipyOperator:
    """A `hesse.LinearOperator` as a SciPy one, on NumPy vectors; see `LinearOperator.to_scipy`."""
    try:
        from scipy.sparse.linalg import LinearOperator as ScipyOperator
    except ImportError as error:
        raise MissingExtraError(
            f"{A}.to_scipy()",
            expected="SciPy",
            got=str(error),
            remedy="pip install 'hesse[scipy]'",
        ) from error

    def through(product: Callable[[Tensor], Tensor], space: Space) -> Callable[[Any], Any]:
        def function(array: Any) -> Any:
            tensor = torch.tensor(array)  # a copy: SciPy's arrays may be strided or read-only
            return product(tensor.to(space.device, space.dtype)).cpu().numpy()

        return function

    functions: dict[str, Any] = {  # SciPy's type stubs do not know its keyword constructor
        "matvec": through(lambda v: A._matvec(v.reshape(-1)), A.domain),
        "rmatvec": through(lambda u: A._rmatvec(u.reshape(-1)), A.codomain),
        "matmat": through(A._matmat, A.domain),
        "dtype": torch.empty(0, dtype=A.dtype).numpy().dtype,
    }
    return ScipyOperator(shape=A.shape, **functions)
