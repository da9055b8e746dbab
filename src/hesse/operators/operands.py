# SPDX-License-Identifier: Apache-2.0
"""What an operator may be added to or multiplied by, and what is said of anything else."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy
from torch import Tensor

from hesse.errors import ArgumentError, OperatorError, kind_of


def number(value: Any) -> float:
    """A number, or a tensor or an array without dimensions, as a float; raises for another."""
    given = value
    if isinstance(value, (Tensor, numpy.ndarray)) and value.ndim == 0:
        given = value.item()
    if not isinstance(given, Real):
        raise OperatorError(
            expected="a number to scale by",
            got=kind_of(value) if given is value else repr(given),
            remedy="Use A @ v for a product with a vector, A @ B for one with an operator.",
        )
    try:
        return float(given)
    except OverflowError:
        raise ArgumentError(
            expected="a number within the range of float64",
            got="a larger one",
            remedy="Scale in several steps.",
        ) from None


def divisor(value: Any) -> float:
    """As `number`, and not 0."""
    result = number(value)
    if result != 0.0:
        return result
    raise ArgumentError(
        expected="a number other than 0 to divide by", got="0", remedy="Check the divisor."
    )


def not_an_operator(other: Any) -> OperatorError:
    """What a sum with something else says."""
    return OperatorError(
        expected="another operator",
        got=kind_of(other),
        remedy="For a multiple c of the identity write A + c * hesse.identity_operator(n); for a "
        "matrix hesse.dense_operator(M).",
    )
