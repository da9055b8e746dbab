# SPDX-License-Identifier: Apache-2.0
"""Errors, checks of arguments, and the status of an iterative result.

Every error says the call, what was expected, what was given, and the remedy. A numerical outcome
that is not the caller's mistake (an iteration limit, a direction of negative curvature) is a
`Status`, not an error; its value says what happened and what to do.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from enum import Enum
from numbers import Real
from typing import Any

__all__ = ["HesseError", "Status"]


class HesseError(Exception):
    r"""Base of every error that Hesse raises: `except hesse.HesseError` catches them all.

    Attributes:
        call: the call that the user made. `hesse.boundary.public` adds it; inside the library
            errors are raised without it.
        expected: what the argument should have been.
        got: what it was.
        remedy: what to do.

    >>> str(HesseError("hesse.f(x)", expected="a", got="b", remedy="Give a."))
    'hesse.f(x)\n  expected: a\n  got:      b\n  remedy:   Give a.'
    """

    def __init__(self, call: str = "", *, expected: str, got: str, remedy: str) -> None:
        super().__init__(expected, got, remedy)
        self.call, self.expected, self.got, self.remedy = call, expected, got, remedy

    def __str__(self) -> str:
        lines = f"expected: {self.expected}\n  got:      {self.got}\n  remedy:   {self.remedy}"
        return f"{self.call}\n  {lines}" if self.call else lines

    def __reduce__(self):  # keyword-only arguments: the default would pickle the message alone
        return _rebuild, (type(self), self.call, self.expected, self.got, self.remedy)


def _rebuild(kind: type[HesseError], call: str, expected: str, got: str, remedy: str) -> HesseError:
    return kind(call, expected=expected, got=got, remedy=remedy)


class StructureError(HesseError, TypeError):
    """A tree of tensors with another structure than expected, or no tree of tensors at all."""


class ShapeError(HesseError, ValueError):
    """A tensor or an operator of the wrong shape."""


class DtypeError(HesseError, TypeError):
    """A tensor of the wrong dtype: integer or complex parameters, float32 beside float64."""


class DeviceError(HesseError, ValueError):
    """Tensors that live on different devices."""


class ArgumentError(HesseError, ValueError):
    """An argument outside its range, or a name that is not one of the choices."""


class FunctionError(HesseError, ValueError):
    """A function that is not a differentiable scalar function of its argument."""


class DerivativeError(HesseError, RuntimeError):
    """A derivative that automatic differentiation cannot give (the message names the operation)."""


class RandomnessError(HesseError, RuntimeError):
    """A function that draws random numbers, so that two evaluations differ (dropout, BatchNorm)."""


class NonFiniteError(HesseError, ArithmeticError):
    """NaN or Inf in a value, a gradient or a product (the message names the parameter)."""


class DataError(HesseError, ValueError):
    """Data that are empty, of an unknown form, or that change between two sweeps."""


class OperatorError(HesseError, ValueError):
    """An operator that is not what an algorithm needs: not symmetric, not linear, not definite."""


class MissingExtraError(HesseError, ImportError):
    """An optional dependency that is not installed."""


class FallbackWarning(UserWarning):
    """A requested or preferred method failed and another one is used; given once."""


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless the argument `name` has one of these values; the first is the default.

    >>> check_choice("mode", "auto", ["auto", "fast"])
    >>> check_choice("mode", "fats", ["auto", "fast"])
    Traceback (most recent call last):
    hesse.errors.ArgumentError: expected: mode to be one of 'auto', 'fast'
      got:      'fats'
      remedy:   Did you mean 'fast'?
    """
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(
            expected=f"{name} to be one of {', '.join(map(repr, choices))}",
            got=repr(value),
            remedy=_nearest(value, choices) or f"Leave it out for {choices[0]!r}.",
        )


def _nearest(value: Any, choices: Sequence[str]) -> str | None:
    """The remedy that names the choice most like the value, if one is similar."""
    close = difflib.get_close_matches(value, choices, 1) if isinstance(value, str) else []
    return f"Did you mean {close[0]!r}?" if close else None


def check_count(name: str, value: Any, least: int) -> int:
    """The argument `name` as an int; raises unless it is an integer of at least `least`.

    Integers of NumPy and PyTorch are integers; 2.0, "2" and True are not.

    >>> check_count("k", 3, 1)
    3
    """
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count >= least and not is_bool:
        return count
    raise ArgumentError(
        expected=f"{name} to be an integer, {name} >= {least}",
        got=repr(value),
        remedy="Give an int, or leave it out for the default.",
    )


def check_tolerances(**tolerances: float) -> None:
    """Raise unless each of these named numbers is at least 0.

    >>> check_tolerances(rtol=1e-3, atol=0.0)
    """
    for name, value in tolerances.items():
        if not (is_number(value) and value >= 0.0):
            raise _not_a_number(f"{name} >= 0", value)


def check_positive(**numbers: float) -> None:
    """Raise unless each of these named numbers is above 0.

    >>> check_positive(radius=2.0)
    """
    for name, value in numbers.items():
        if not (is_number(value) and value > 0.0):
            raise _not_a_number(f"{name} > 0", value)


def check_callable(**functions: Any) -> None:
    """Raise unless each of these named arguments, if given, can be called.

    >>> check_callable(callback=print)
    """
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise ArgumentError(
                expected=f"{name} to be a function",
                got=repr(value),
                remedy="Give a function, or leave it out.",
            )


def check_not_empty(shape: tuple[int, int]) -> None:
    """Raise unless an operator of this shape has rows and columns.

    >>> check_not_empty((1, 2))
    """
    if 0 in shape:
        raise ShapeError(
            expected="an operator with at least one row and one column",
            got=f"shape {shape}",
            remedy="Leave out the empty operator.",
        )


def check_has_variables(n: int) -> None:
    """Raise unless a function has variables to be minimised over.

    >>> check_has_variables(1)
    """
    if n == 0:
        raise ShapeError(
            expected="x0 with at least one number",
            got="none",
            remedy="Evaluate the function; there is nothing to minimise over.",
        )


def check_flags(**flags: bool) -> None:
    """Raise unless each of these named arguments is True or False.

    >>> check_flags(progress=True)
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ArgumentError(
                expected=f"{name} to be True or False",
                got=repr(value),
                remedy="Leave it out for the default.",
            )


def kind_of(value: Any) -> str:
    """The type of a value with its article, for messages.

    >>> kind_of(1), kind_of({})
    ('an int', 'a dict')
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"


def is_number(value: Any) -> bool:
    """Whether this is a real number of Python or NumPy; a bool is not.

    >>> is_number(1.5), is_number("1.5"), is_number(True)
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def _not_a_number(expected: str, value: Any) -> ArgumentError:
    return ArgumentError(
        expected=f"a number, {expected}",
        got=repr(value),
        remedy="Leave it out for the default; of a tensor give .item().",
    )


class Status(Enum):
    """How an iteration ended; the value is the sentence to show to the user.

    >>> Status.CONVERGED.value
    'Converged: the recomputed residual (of a minimisation, the gradient) meets the tolerance.'
    """

    CONVERGED = (
        "Converged: the recomputed residual (of a minimisation, the gradient) meets the tolerance."
    )
    TRUNCATED = "Stopped by the rule asked for; the residual was not recomputed."
    BOUNDARY = "The step reached the trust-region radius and was stopped there."
    NEGATIVE_CURVATURE = (
        "A direction of zero or negative curvature was met: the operator is not positive definite. "
        "The direction is returned; add damping, use a trust radius, or a method for indefinite "
        "systems."
    )
    MAX_ITERATIONS = (
        "The iteration limit was reached before the tolerance. Raise `max_iterations`, loosen "
        "`rtol`, or give a preconditioner."
    )
    MAX_PRODUCTS = (
        "The limit of products was reached before the tolerance; the best result so far is "
        "returned. Raise `max_products`, or loosen the tolerance."
    )
    MAX_SECONDS = (
        "The time limit was reached before the tolerance; the best result so far is returned. "
        "Raise `max_seconds`, or loosen the tolerance."
    )
    LEAST_SQUARES = (
        "The system has no exact solution: x minimises |b - A x|, whose gradient A'(b - A x) "
        "vanishes to the tolerance."
    )
    STAGNATED = (
        "No further progress is possible at this precision. Loosen the tolerance, use float64, or "
        "give a preconditioner."
    )
    NOT_FINITE = (
        "A product or a value became NaN or infinite; the last finite iterate is returned. Check "
        "the operator with hesse.testing.check_operator."
    )
    SADDLE_POINT = (
        "The gradient vanishes, but the curvature is negative in some direction: the point is a "
        "saddle point or a maximum, and no lower value was found along that direction. Start "
        "elsewhere."
    )
    UNBOUNDED = (
        "The function seems to have no minimum: it falls without end, or to minus infinity. The "
        "best point so far is returned. Check its sign, or add a penalty or weight decay."
    )
    STOPPED = "Stopped by the callback; the best result so far is returned."
    INTERRUPTED = "Interrupted from the keyboard; the best result so far is returned."
    UNFINISHED = "The iteration has not ended yet."


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
