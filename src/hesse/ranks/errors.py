# SPDX-License-Identifier: Apache-2.0
"""`RankError`: what happened on another rank, or between ranks; what tells that f is undefined."""

from __future__ import annotations

import torch

from hesse.errors import DataError, FunctionError, HesseError, NonFiniteError, OperatorError

# What a function raises where it is not defined. NumPy's and torch's LinAlgError are among them.
_OUTSIDE_DOMAIN = (ArithmeticError, ValueError, RuntimeError)
# What it raises because of a fault in it, or of the machine, which no other point would mend.
_FAULTS: tuple[type[BaseException], ...] = (
    NotImplementedError,
    RecursionError,
    torch.OutOfMemoryError,
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError),
)


SEE = "See the error of that rank; its data or parameters are the cause."
"""The remedy of an error that another rank has."""


class RankError(HesseError, RuntimeError):
    """A computation that one rank could not do, or that ranks do differently; raised on all."""

    is_outside_domain = False
    """Whether f is not defined at this point, on the rank that failed."""
    is_unsuitable = False
    """Whether the function or the data of the rank that failed are not of the kind needed."""


def is_outside_domain(error: Exception) -> bool:
    """Whether an error says that f is not defined at a point, and is no fault of f.

    >>> is_outside_domain(ValueError("rate must be positive")), is_outside_domain(KeyError("a"))
    (True, False)
    """
    if isinstance(error, RankError):
        return error.is_outside_domain
    if isinstance(error, HesseError):
        return isinstance(error, (NonFiniteError, OperatorError))
    return isinstance(error, _OUTSIDE_DOMAIN) and not isinstance(error, _FAULTS)


def is_unsuitable(error: Exception) -> bool:
    """Whether an error says that a function or data are not of the kind needed.

    >>> is_unsuitable(ValueError("rate must be positive"))
    False
    """
    if isinstance(error, RankError):
        return error.is_unsuitable
    return isinstance(error, (FunctionError, DataError))


def is_said_elsewhere(error: HesseError) -> bool:
    """Whether an error repeats what another rank says, or what all of them do."""
    return isinstance(error, RankError) or error.remedy == SEE
