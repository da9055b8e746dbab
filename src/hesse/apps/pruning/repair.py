# SPDX-License-Identifier: Apache-2.0
"""`Repair`: how the weights that are kept make up for those that go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hesse.errors import ArgumentError, check_choice, check_count, check_tolerances
from hesse.methods import Hyperparameters


@dataclass(frozen=True, repr=False)
class Repair(Hyperparameters):
    """How the weights that are kept make up for those that go; the options of `prune`.

    Args:
        target: what the gradient in the model leads back to. "outputs": those of the dense network
            on the same examples, by the divergence D of the loss (for cross entropy that of
            Kullback and Leibler, for squared errors the squared distance), which needs few
            examples. "risk": a lower risk; every step is then a Gauss-Newton step that trains the
            network, and needs many. None: no gradient; every step stays near the weights of the
            last one, as with curvature="layers" always.
        refit: damped Gauss-Newton steps towards the target with the last mask, after the pruning.
            They end where the judge, a held-out risk if there is one, finds nothing better.
        exchanges: exchanges of kept for removed weights that are tried, with score="exchange".
        examples: examples of the risk that make the model of a step, others for each; None for
            all of them.
        rtol: of a system.
        max_iterations: of conjugate gradients for a system; an unsolved one is used as it is.

    >>> Repair(refit=3)
    Repair(refit=3)
    """

    target: Literal["outputs", "risk"] | None = "outputs"
    refit: int = 0
    exchanges: int = 10
    examples: int | None = None
    rtol: float = 1e-2
    max_iterations: int = 150

    def _check(self) -> None:
        if self.target is not None:
            check_choice("target", self.target, ["outputs", "risk"])
        check_count("refit", self.refit, 0)
        if self.target is None and self.refit > 0:
            raise ArgumentError(
                expected="a target for the steps of a refit",
                got="None",
                remedy="Leave it out for the outputs of the dense network, or give 'risk'.",
            )
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
        return Repair(target="risk", refit=10)
    raise ArgumentError(
        expected="repair to be True, False, 'refit', or hesse.apps.Repair(...)",
        got=repr(repair),
        remedy="Leave it out for True.",
    )
