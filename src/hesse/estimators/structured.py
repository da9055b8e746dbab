# SPDX-License-Identifier: Apache-2.0
"""Answers that the structure of an operator gives without a product, so that nothing is sampled."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hesse.errors import OperatorError
from hesse.estimators.estimate import Estimate
from hesse.estimators.exact import ExactValue, exact_estimate
from hesse.operators.algebra import LinearOperator

_ROUNDINGS = 32.0  # errors of a number, in units of eps times the size of what is added up


def known_diagonal(A: LinearOperator) -> Estimate | None:
    """The diagonal."""
    diagonal = A._diagonal() if A.is_structured else None
    if diagonal is None:
        return None
    rounding = _eps(A) * diagonal.abs()
    return exact_estimate(ExactValue(diagonal, torch.zeros_like(diagonal), rounding), 0)


def known_trace(A: LinearOperator) -> Estimate | None:
    """The trace."""
    trace = A._trace() if A.is_structured else None
    if trace is None:
        return None
    diagonal = A._diagonal()
    size = abs(trace) if diagonal is None else A.domain.inner(diagonal.sign(), diagonal)
    return _exact(trace, _eps(A) * size)


def known_logdet(A: LinearOperator) -> Estimate | None:
    """log det A of a positive definite A."""
    if not A.is_structured:
        return None
    logdet, negative = A._logdet(), A._num_negative()
    if logdet is None or negative is None:
        return None
    sign, log = logdet
    if negative or sign <= 0.0:
        what = f"one with {negative} negative eigenvalues" if negative else "a singular one"
        raise OperatorError(
            expected="a positive definite operator",
            got=what,
            remedy="Add damping: A + c * hesse.identity_operator(n).",
        )
    return _exact(log, _eps(A) * (abs(log) + A.domain.n))


def known_norm(A: LinearOperator, ord: Any) -> Estimate | None:
    """The Frobenius or the spectral norm of a symmetric A."""
    values = known_eigenvalues(A)
    if values is None:
        return None
    norm = float(values.abs().max()) if ord == 2 else float(values.norm())
    return _exact(norm, _eps(A) * norm)


def known_eigenvalues(A: LinearOperator) -> Tensor | None:
    """All eigenvalues of a symmetric A, ascending, on the CPU."""
    values = A._eigenvalues() if A.is_structured and A.symmetric else None
    return None if values is None else values.cpu().sort().values


def _exact(value: float, rounding: float) -> Estimate:
    return exact_estimate(ExactValue(value, 0.0, rounding if math.isfinite(rounding) else 0.0), 0)


def _eps(A: LinearOperator) -> float:
    return _ROUNDINGS * torch.finfo(A.dtype).eps
