# SPDX-License-Identifier: Apache-2.0
"""`Fault`: one thing that goes wrong, in one call; `Seen`: what came of it; `judge`: the verdict.

A scenario is a function that makes a fault happen and returns what it saw: the numbers, what they
should be, and the error or status that came with them. It does not say whether that is good:
`judge` does, by one rule for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from hesse.errors import (
    DataError,
    DerivativeError,
    HesseError,
    NonFiniteError,
    OperatorError,
    RandomnessError,
    Status,
)


class Verdict(Enum):
    """What Hesse does about a fault."""

    REFUSED = "refused"
    CAUGHT = "caught"
    SURVIVED = "survived"
    PASSED_ON = "passed on"
    NOT_CONVERGED = "not converged"
    # None of these may be in the table.
    SILENT = "silent"
    RAW_ERROR = "raw error"
    CRASH = "crash"
    HANG = "hang"
    DID_NOT_HAPPEN = "did not happen"

    @property
    def is_good(self) -> bool:
        """Whether the user is not misled."""
        return self in GOOD


GOOD = {
    Verdict.REFUSED,
    Verdict.CAUGHT,
    Verdict.SURVIVED,
    Verdict.PASSED_ON,
    Verdict.NOT_CONVERGED,
}
# What a status says of a fault. Others say that the result is not the one wanted.
_TELLING = {Status.NOT_FINITE, Status.NEGATIVE_CURVATURE, Status.INTERRUPTED, Status.STOPPED,
            Status.UNBOUNDED, Status.SADDLE_POINT}  # fmt: skip

_LONGEST = 200  # characters of what is said, in the table

# Errors that say what happened in a computation; others say what an argument is.
_FOUND = (NonFiniteError, OperatorError, RandomnessError, DerivativeError, DataError)


class Injected(Exception):
    """The error that a scenario raises in the place of a user's own."""


class Happened:
    """Whether the fault has happened: a scenario without it shows nothing."""

    times = 0

    @classmethod
    def now(cls) -> None:
        """It happens."""
        cls.times += 1


@dataclass
class Seen:
    """What a scenario saw.

    Args:
        numbers: what the user gets in spite of the fault, or with the next call after it.
        expected: what these are without the fault.
        rtol: how far they may be off; 0 for the same bits.
        error: an error that came before the numbers.
        status: a status that says what happened.
        usual: the status without the fault.
        warning: what a warning says that tells of other numbers; others do not.
    """

    numbers: Any = 0.0
    expected: Any = 0.0
    rtol: float = 0.0
    error: BaseException | None = None
    status: Status | None = None
    usual: Status | None = Status.CONVERGED
    warning: str | None = None

    @property
    def is_told(self) -> bool:
        """Whether the status says that something is not as it should be."""
        return self.status not in (None, Status.CONVERGED, self.usual)


@dataclass(frozen=True)
class Fault:
    """A fault in a call."""

    group: str
    title: str
    call: str
    scenario: Callable[..., Seen]
    arguments: tuple = ()
    slow: bool = False
    timeout: float = 60.0

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return f"{self.title} / {self.call}"


@dataclass
class Outcome:
    """The verdict, and what the user reads."""

    verdict: Verdict
    says: str = ""


FAULTS: list[Fault] = []


def fault(
    group: str,
    title: str,
    calls: str | dict[str, Any],
    *,
    slow: bool = False,
    timeout: float = 60.0,
) -> Callable[[Callable[..., Seen]], Callable[..., Seen]]:
    """Enter a scenario into the list; of several calls each is given to it as its argument."""

    def enter(scenario: Callable[..., Seen]) -> Callable[..., Seen]:
        each = {calls: ()} if isinstance(calls, str) else {c: (a,) for c, a in calls.items()}
        for call, arguments in each.items():
            FAULTS.append(Fault(group, title, call, scenario, arguments, slow, timeout))
        return scenario

    return enter


def marked(error: BaseException) -> BaseException:
    """The error as one of the user's own."""
    vars(error)["injected"] = True
    return error


def error_of(call: Callable[[], Any]) -> BaseException | None:
    """The error that a call raises, if it does."""
    try:
        call()
    except BaseException as error:
        return error
    return None


# -- The rule --------------------------------------------------------------------------------------


def judge(this: Fault) -> Outcome:
    """Run a scenario, and say what Hesse does about the fault."""
    Happened.times = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            seen = this.scenario(*this.arguments)
        except BaseException as error:
            seen = Seen(error=error)
    told = [w for w in caught if issubclass(w.category, UserWarning)]
    outcome = _verdict(seen, told)
    if len(outcome.says) > _LONGEST:
        outcome.says = f"{outcome.says[:_LONGEST]}..."
    if outcome.verdict.is_good and not Happened.times:
        return Outcome(Verdict.DID_NOT_HAPPEN, outcome.says)
    return outcome


def _verdict(seen: Seen, told: list[warnings.WarningMessage]) -> Outcome:
    if seen.error is not None:
        kind = _kind(seen.error)
        if not kind.is_good or agree(seen.numbers, seen.expected, seen.rtol):
            return Outcome(kind, text_of(seen.error))
        return Outcome(Verdict.SILENT, f"after {text_of(seen.error)}: {_difference(seen)}")
    if seen.is_told and seen.status is not None:
        kind = Verdict.CAUGHT if seen.status in _TELLING else Verdict.NOT_CONVERGED
        return Outcome(kind, f"status {seen.status.name}: {_sentence(seen.status.value)}")
    if not agree(seen.numbers, seen.expected, seen.rtol):
        return _told_by_a_warning(seen, told)
    says = "the same bits" if seen.rtol == 0.0 else "the same numbers"
    if told:
        first = str(told[0].message).splitlines()[0]
        return Outcome(Verdict.SURVIVED, f"{says}, and a {told[0].category.__name__}: {first}")
    return Outcome(Verdict.SURVIVED, says)


def _told_by_a_warning(seen: Seen, told: list[warnings.WarningMessage]) -> Outcome:
    """Whether other numbers came with the warning that tells of them."""
    for warning in told:
        text = str(warning.message)
        if seen.warning is not None and seen.warning in text:
            return Outcome(Verdict.CAUGHT, f"{warning.category.__name__}: {text}")
    return Outcome(Verdict.SILENT, f"{_difference(seen)}, status {seen.status}")


def _kind(error: BaseException) -> Verdict:
    if isinstance(error, Injected) or getattr(error, "injected", False):
        return Verdict.PASSED_ON
    if not isinstance(error, HesseError):
        return Verdict.RAW_ERROR
    return Verdict.CAUGHT if isinstance(error, _FOUND) else Verdict.REFUSED


def text_of(error: BaseException) -> str:
    """An error in one line: of Hesse's what was expected and what came."""
    name = type(error).__name__
    if isinstance(error, HesseError):
        return f"{name}: expected {error.expected}; got {error.got}"
    return f"{name}: {(str(error).strip().splitlines() or [''])[0]}"


def _sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".") + "."


def _difference(seen: Seen) -> str:
    pairs = zip(_tensors(seen.numbers), _tensors(seen.expected), strict=False)
    off = [float((a.double() - b.double()).abs().max()) for a, b in pairs if a.shape == b.shape]
    return f"off by {max(off, default=float('nan')):.3g}"


def agree(numbers: Any, expected: Any, rtol: float) -> bool:
    """Whether all numbers are those expected, relative to the largest of each tensor."""
    ours, theirs = list(_tensors(numbers)), list(_tensors(expected))
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return False
    return all(_agree(a, b, rtol) for a, b in zip(ours, theirs, strict=True))


def _agree(a: Tensor, b: Tensor, rtol: float) -> bool:
    if rtol == 0.0:
        return torch.equal(a, b)
    if not bool(torch.isfinite(a).all()):
        return False
    size = float(b.abs().max()) if b.numel() else 0.0
    return bool(((a - b).abs() <= rtol * size).all())


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    else:
        yield torch.tensor(value, dtype=torch.float64)
