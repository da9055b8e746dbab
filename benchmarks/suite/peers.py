# SPDX-License-Identifier: Apache-2.0
"""Other libraries as solvers, where they are installed: pytorch-minimize, GALAHAD, optimistix.

`pip install pytorch-minimize galahad-optrove optimistix` gives them all.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.suite.counted import Counted, OverLimit
from benchmarks.suite.solvers import (
    MAX_ITERATIONS,
    RTOL,
    AtOnePoint,
    Ending,
    Solver,
    SparseHessians,
    tolerance,
)

ENVIRONMENT = {"OMP_CANCELLATION": "TRUE", "OMP_PROC_BIND": "TRUE"}
"""What GALAHAD's solver of sparse systems wants before its process starts."""


def with_torchmin(method: str) -> Solver:
    """A method of pytorch-minimize, which differentiates by itself."""

    def solve(f: Counted, x: Tensor, *, rtol: float = RTOL) -> Ending:
        from torchmin import minimize

        options: dict[str, Any] = {"xtol": rtol}
        if method != "newton-cg":
            options = {"gtol": tolerance(f, x, rtol)}
        result = minimize(f, x, method=method, max_iter=MAX_ITERATIONS, options=options)
        return Ending(result.x.detach(), bool(result.success), result.message)

    return solve


def with_galahad(name: str) -> Solver:
    """TRU (a trust region) or ARC (cubic regularisation), with the entries of a sparse Hessian.

    These take entries, not products: a Hessian counts as many products as its pattern has colours.
    """

    def solve(f: Counted, x: Tensor, *, rtol: float = RTOL) -> Ending:
        package = import_module(f"galahad.{name}")
        gtol, at, entries = tolerance(f, x, rtol), AtOnePoint(f), _Entries(f, x)
        options = package.initialize()
        options |= {"maxit": MAX_ITERATIONS, "stop_g_absolute": gtol, "stop_g_relative": 0.0}
        rows, columns = entries.rows, entries.columns
        package.load(len(x), "coordinate", len(rows), rows, columns, None, options=options)
        try:
            found, _ = package.solve(
                len(x), len(rows), x.numpy().copy(), at.value, at.gradient, entries.at
            )
            status = package.information()["status"]
        except SystemError as error:
            raise _cause(error) from None
        finally:
            package.terminate()
        message = _STATUS.get(status, f"status {status}")
        return Ending(torch.from_numpy(np.array(found)), status == 0, message)

    return solve


_STATUS = {
    0: "converged",
    -7: "the objective seems unbounded",
    -16: "ill-conditioned",
    -17: "the step is too small",
    -18: "iteration limit",
    -19: "time limit",
}


def _cause(error: BaseException) -> BaseException:
    """What a callback raised, below what the extension made of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OverLimit):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


class _Entries:
    """The entries of the lower triangle of a Hessian, on a pattern found once."""

    def __init__(self, f: Counted, x: Tensor) -> None:
        self._hessians = SparseHessians(f, x)
        pattern = self._hessians.operator.to_scipy().tocoo()
        is_lower = pattern.row >= pattern.col
        self.rows = pattern.row[is_lower].astype(np.int64)
        self.columns = pattern.col[is_lower].astype(np.int64)

    def at(self, x: Any) -> np.ndarray:
        """The entries at x."""
        matrix = self._hessians(None, torch.as_tensor(np.array(x))).to_scipy().tocsr()
        return np.asarray(matrix[self.rows, self.columns]).ravel()


def with_optimistix(name: str) -> Solver:
    """A minimiser of optimistix, on a JAX function that calls back to PyTorch."""

    def solve(f: Counted, x: Tensor, *, rtol: float = RTOL) -> Ending:
        import jax
        import optimistix

        jax.config.update("jax_enable_x64", True)
        at = AtOnePoint(f)
        scalar = jax.ShapeDtypeStruct((), np.float64)
        vector = jax.ShapeDtypeStruct((len(x),), np.float64)

        @jax.custom_jvp
        def value(y: Any, _: Any) -> Any:
            return jax.pure_callback(lambda y: np.float64(at.value(y)), scalar, y)

        @value.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            g = jax.pure_callback(lambda y: at.gradient(y), vector, primals[0])
            return value(*primals), g @ tangents[0]

        solver = getattr(optimistix, name)(rtol=rtol, atol=rtol)
        found = optimistix.minimise(
            value, solver, jax.numpy.asarray(x.numpy()), max_steps=MAX_ITERATIONS, throw=False
        )
        claims = bool(found.result == optimistix.RESULTS.successful)
        return Ending(torch.from_numpy(np.array(found.value)), claims, str(found.result)[:100])

    return solve


def installed() -> tuple[dict[str, Solver], list[str]]:
    """The solvers of the libraries that are here, and the names of the others."""
    torchmin = {f"torchmin {m}": with_torchmin(m) for m in ("newton-cg", "trust-ncg", "l-bfgs")}
    galahad = {f"galahad {m}": with_galahad(m) for m in ("tru", "arc")}
    optimistix = {f"optimistix {m}": with_optimistix(m) for m in ("BFGS", "NonlinearCG")}
    solvers, missing = {}, []
    for module, some in {
        "torchmin": torchmin,
        "galahad": galahad,
        "optimistix": optimistix,
    }.items():
        if find_spec(module) is None:
            missing.append(module)
        else:
            solvers |= some
    return solvers, missing
