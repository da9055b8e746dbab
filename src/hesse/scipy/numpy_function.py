# SPDX-License-Identifier: Apache-2.0
"""A function of NumPy arrays with its derivatives as a function that PyTorch differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.errors import ShapeError
from hesse.vectors.arrays import as_array


class NumPyFunction:
    """fun(x, *args) with the gradient jac(x, *args) and products hessp(x, v, *args).

    Args:
        fun, jac: as in `scipy.optimize.minimize`.
        hess: x -> the Hessian, an array, a sparse matrix or a linear operator of SciPy.
        hessp: x, v -> the Hessian times v.
        args: further arguments of all of them.
    """

    def __init__(
        self,
        fun: Callable,
        jac: Callable,
        hess: Callable | None,
        hessp: Callable | None,
        args: tuple,
    ) -> None:
        self._fun, self._jac, self._hess, self._hessp = fun, jac, hess, hessp
        self._args = args
        self._known: dict[str, tuple[np.ndarray, Any]] = {}

    @property
    def has_products(self) -> bool:
        """Whether products with the Hessian were given."""
        return self._hess is not None or self._hessp is not None

    def __call__(self, x: Tensor) -> Tensor:
        return _Value.apply(x, self)  # type: ignore[return-value]

    def value(self, x: Tensor) -> Tensor:
        """fun(x)."""
        value = np.asarray(self._once("fun", self._fun, x), dtype=np.float64)
        return torch.tensor(value.item(), dtype=x.dtype)

    def gradient(self, x: Tensor) -> Tensor:
        """jac(x)."""
        return _vector(self._once("jac", self._jac, x), x, "jac(x)")

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """The Hessian at x times v."""
        if self._hessp is not None:
            return _vector(self._hessp(_copy(x), _copy(v), *self._args), x, "hessp(x, v)")
        assert self._hess is not None
        return _vector(self._once("hess", self._hess, x) @ _copy(v), x, "hess(x) @ v")

    def _once(self, name: str, function: Callable, x: Tensor) -> Any:
        """function(x), which is kept until the next x: a graph asks again for what it has seen."""
        at, known = self._known.get(name, (None, None))
        if at is None or not np.array_equal(at, as_array(x)):
            known = function(_copy(x), *self._args)
            known = known.copy() if isinstance(known, np.ndarray) else known
            self._known[name] = (_copy(x), known)
        return known


class _Value(torch.autograd.Function):
    """fun, whose derivative is jac."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: NumPyFunction) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return function.value(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * _Gradient.apply(x, ctx.function), None


VALUE = _Value.__name__
"""The name by which an error of the engine calls a `NumPyFunction`."""


class _Gradient(torch.autograd.Function):
    """jac, whose derivative is a product with the Hessian."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: NumPyFunction) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return function.gradient(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.function.product(x, grads[0]), None


def _copy(x: Tensor) -> np.ndarray:
    """An array that the caller's function may write to."""
    return as_array(x).copy()


def _vector(value: Any, x: Tensor, what: str) -> Tensor:
    array = np.asarray(value, dtype=np.float64).reshape(-1)
    if array.size != x.numel():
        raise ShapeError(
            expected=f"{what} with {x.numel()} entries, as x has",
            got=f"shape {np.shape(value)}",
            remedy="Return an array like x.",
        )
    return torch.from_numpy(array.copy()).to(x).view_as(x)
