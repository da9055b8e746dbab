# SPDX-License-Identifier: Apache-2.0
"""`Repair`: how the weights that are kept make up for those that go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hesse.errors import ArgumentError, check_count, check_flags, check_tolerances
from hesse.methods import Hyperparameters


@dataclass(frozen=True, repr=False)
class Repair(Hyperparameters):
    """How the weights that are kept make up for those that go; the options of `prune`.

    Args:
        gradient: whether the model has the gradient of the risk in it. Without it the network is
            taken to be at a minimum, and stays near what it was, which needs few examples; with it
            every step is a Gauss-Newton step that trains the network, and needs many.
        refit: steps with the gradient and the last mask, after the pruning: damped Gauss-Newton
            steps that minimise the risk over the weights that are kept. They end where the judge, a
            held-out risk if there is one, finds nothing better.
        exchanges: exchanges of kept for removed weights that are tried, with score="exchange".
        examples: examples of the risk that make the model of a step, others for each; None for
            all of them.
        rtol: of a system.
        max_iterations: of conjugate gradients for a system; an unsolved one is used as it is.

    >>> Repair(refit=3)
    Repair(refit=3)
    """

    gradient: bool = False
    refit: int = 0
    exchanges: int = 10
    examples: int | None = None
    rtol: float = 1e-2
    max_iterations: int = 150

    def _check(self) -> None:
        check_flags(gradient=self.gradient)
        check_count("refit", self.refit, 0)
        check_count("exchanges", self.exchanges, 0)
        check_count("max_iterations", self.max_iterations, 1)
        check_tolerances(rtol=self.rtol)
        if self.examples is not None:
            check_count("examples", self.examples, 1)


def as_repair(repair: Any) -> Repair | None:
    """The options, or None for no repair."""
    if repair is False:
        return None
    if isinstance(repair, Repair):
        return repair
    if repair is True:
        return Repair()
    if repair == "refit":
        return Repair(gradient=True, refit=10)
    raise ArgumentError(
        expected="repair to be True, False, 'refit', or hesse.apps.Repair(...)",
        got=repr(repair),
        remedy="Leave it out for True.",
    )
