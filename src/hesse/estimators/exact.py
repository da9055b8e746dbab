# SPDX-License-Identifier: Apache-2.0
"""Exact answers from n products with unit vectors, where sampling would take no fewer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.estimators.estimate import Estimate
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products
from hesse.vectors.space import Space

MAX_DENSE = 8192
"""The largest dimension of which a dense matrix is factored: 0.5 GB."""


_ROUNDINGS = 32.0  # errors of a product, in units of eps times its size


class ExactValue(NamedTuple):
    """A value that is not sampled."""

    value: Any
    error: Any
    """What is in doubt; nearly always 0."""
    rounding: Any = 0.0
    """The size of the rounding errors."""
    relative_rounding: float = 0.0
    """More of them, in units of the value."""


Columns = Iterator[tuple[int, Tensor]]
"""The columns of A as rows, a few at a time, each time with the index of the first."""

Exact = Callable[[Columns], ExactValue]
"""What makes the answer of all columns."""


def trace_of(columns: Columns) -> ExactValue:
    """The trace."""
    value, rounding = [], []
    for first, rows in columns:
        value.append(float(rows[:, first:].diagonal().double().sum()))
        rounding.append(float(_rounding(rows).sum()))
    return ExactValue(math.fsum(value), 0.0, math.fsum(rounding))


def diagonal_of(space: Space, columns: Columns) -> ExactValue:
    """The diagonal, a flat vector of the space."""
    parts = [(rows[:, first:].diagonal().clone(), _rounding(rows)) for first, rows in columns]
    value, rounding = (space.part(torch.cat(part)) for part in zip(*parts, strict=True))
    return ExactValue(value, torch.zeros_like(value), rounding.to(value.dtype))


def frobenius_norm_of(columns: Columns) -> ExactValue:
    """The Frobenius norm."""
    parts = [(rows.double().norm(dim=1), _rounding(rows)) for _, rows in columns]
    value, rounding = (float(torch.cat(part).norm()) for part in zip(*parts, strict=True))
    return ExactValue(value, 0.0, rounding)


def spectral_norm_of(columns: Columns) -> ExactValue:
    """The largest singular value."""
    matrix, rounding = _matrix_of(columns)
    return ExactValue(float(torch.linalg.matrix_norm(matrix, 2)), 0.0, rounding)


def eigenvalues_of(columns: Columns) -> tuple[Tensor, float]:
    """All eigenvalues of a symmetric operator, ascending, in float64, and their rounding error."""
    matrix, rounding = _matrix_of(columns)
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).cpu(), rounding


def exact_estimate(exact: ExactValue, products: int, status: Status = Status.CONVERGED) -> Estimate:
    """The estimate that is none."""
    value, error, rounding, relative = exact
    return Estimate(value, error, products, status, 1.0, rounding, relative)


def columns_of(A: LinearOperator) -> Columns:
    """All columns at once, of a small operator."""
    yield 0, check_finite_products(A, A.to_dense()).T


def _matrix_of(columns: Columns) -> tuple[Tensor, float]:
    parts = [(rows.double(), _rounding(rows)) for _, rows in columns]
    matrix, rounding = (torch.cat(part) for part in zip(*parts, strict=True))
    return matrix, float(rounding.norm())


def _rounding(rows: Tensor) -> Tensor:
    """The rounding error of each column, in float64."""
    return _ROUNDINGS * torch.finfo(rows.dtype).eps * rows.double().norm(dim=1)
