# SPDX-License-Identifier: Apache-2.0
"""A x = b where products or b are so large or small that squares of them over- or underflow.

For powers of two s and t the system (s A) y = t b has the solution y = t x / s.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from hesse.krylov.auto import Auto
from hesse.krylov.extreme import usual_scale, with_usual_products
from hesse.krylov.method import Method
from hesse.krylov.solution import Solution
from hesse.krylov.system import System
from hesse.operators.algebra import LinearOperator

NumberT = TypeVar("NumberT", Tensor, float)


def solve_scaled(method: Method | Auto, system: System) -> Solution:
    """The solution, by way of a system with entries of a usual size where these are extreme.

    Callbacks and stopping rules then see the scaled system.
    """
    if not method.is_homogeneous:
        return method.solve_system(system)
    (size,) = system.A.codomain.largest(system.b)
    t = usual_scale(size, system.A.dtype)
    before = system.run.before

    def solve(A: LinearOperator, s: float, lost: int) -> Solution:
        system.run.before = before + lost
        if s == t == 1.0:
            return method.solve_system(replace(system, A=A))
        solution = _unscaled(method.solve_system(_scaled(system, A, s, t)), s, t)
        return replace(solution, products=solution.products + lost)

    solution = with_usual_products(system.A, solve)
    system.run.before = before
    return solution


def _scaled(system: System, A: LinearOperator, s: float, t: float) -> System:
    M, file = system.preconditioner, system.checkpoint
    return replace(
        system,
        A=A,
        b=t * system.b,
        x0=None if system.x0 is None else _times(system.x0, t, 1 / s),
        preconditioner=None if M is None else _usual(M, t * system.b),
        atol=t * system.atol,
        checkpoint=None if file is None else file.part("scaled"),
    )


def _usual(M: LinearOperator, b: Tensor) -> LinearOperator:
    """c M of the size of the identity: the scale of a preconditioner says nothing."""
    v = b if b.ndim == 1 else b[:, 0]
    size, product = M.domain.largest(v, M._matvec(v))
    return usual_scale(product / size, M.dtype) * M if size else M


def _unscaled(found: Solution, s: float, t: float) -> Solution:
    def value(model: float) -> float:
        return _times(model, s, 1 / t) / t

    norms = found.residual_norms
    kept = [
        replace(k, x=_times(k.x, s, 1 / t), model_value=value(k.model_value))
        for k in found.iterates
    ]
    return replace(
        found,
        x=_times(found.x, s, 1 / t),
        residual_norm=found.residual_norm / t,
        residual_norms=None if norms is None else norms / t,
        history=[norm / t for norm in found.history],
        model_value=value(found.model_value),
        iterates=kept,
    )


def _times(x: NumberT, a: float, b: float) -> NumberT:
    """a b x for powers of two, without overflow on the way."""
    e = round(math.log2(a) + math.log2(b))
    return x * 2.0 ** (e // 2) * 2.0 ** (e - e // 2)
