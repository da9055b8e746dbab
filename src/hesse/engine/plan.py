# SPDX-License-Identifier: Apache-2.0
"""`Plan`: how products are taken, what it costs, and what was tried; made to be printed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hesse.engine.preparation import Preparation


@dataclass(frozen=True)
class Plan:
    """How the products of an operator are taken.

    `rung` is the mode in use, `reason` why. The numbers are those of one term (one batch) of the
    most frequent shape, None where there is no program: operations of the point and of the
    direction program, bytes of the residuals, floating-point operations of a product.
    """

    rung: str
    reason: str
    point_operations: int | None = None
    direction_operations: int | None = None
    residual_bytes: int | None = None
    flops: int | None = None
    directions_at_once: int = 1
    points: int = 0
    verified: int = 0
    shapes: int = 1
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [("rung", f"{self.rung}: {self.reason}")]
        if self.direction_operations is not None:
            lines += [
                (
                    "programs",
                    f"{self.point_operations} operations at a point, {self.direction_operations} a "
                    f"product" + (f"; for {self.shapes} shapes of data" if self.shapes > 1 else ""),
                ),
                ("residuals", f"{_size(self.residual_bytes or 0)} a batch"),
                ("product", f"{(self.flops or 0) / 1e6:.3g} MFLOP in matrix products a batch"),
                ("blocks", _together(self.directions_at_once)),
                (
                    "checks",
                    f"the value of f at each of {self.points} points so far; a product by double "
                    f"backward at the 2nd, 4th, 8th, ...: {self.verified} so far",
                ),
            ]
        lines += [("note", note) for note in self.notes]
        return "\n".join(f"{label:10} {text}" for label, text in lines)


def plan_of(rung: str, preparations: list[Preparation], failures: list[str]) -> Plan:
    """The plan of an operator in mode `rung`, with what it prepared and what failed on the way."""
    notes = tuple(dict.fromkeys([*failures, *(note for p in preparations for note in p.notes)]))
    split = [p for p in preparations if p.split is not None]
    if not split:
        return Plan(rung, _why_not_split(rung, preparations), notes=notes)
    chief = max(split, key=lambda p: p.points)
    assert chief.split is not None
    product = chief.split.tangents["product"]
    if product.uses_onednn:
        notes = (*notes, "large matrix products by oneDNN, which is faster here than torch's own")
    return Plan(
        rung,
        "recorded once, for every point and all data of this shape",
        point_operations=len(chief.split.primal_and_gradient),
        direction_operations=len(product),
        residual_bytes=chief.split.residual_bytes,
        flops=product.flops(),
        directions_at_once=chief.directions_at_once,
        points=sum(p.points for p in split),
        verified=sum(p.verified for p in split),
        shapes=len(split),
        notes=notes,
    )


def _why_not_split(rung: str, preparations: list[Preparation]) -> str:
    if rung != "retained-graph":
        return "every product is taken anew"
    if not preparations:
        return "nothing has been computed yet"
    chief = max(preparations, key=lambda p: p.spent)
    if chief.request.mode == "retained-graph":
        return "as asked for"
    if chief.given_up:
        return "the programs of the product cannot be used (see the note)"
    waiting = Counter(p.given_up is None for p in preparations)[True]
    return (
        f"until products have taken {chief.patience:.2g} s ({chief.spent:.2g} s so far), when "
        f"recording programs will pay" + (f", for {waiting} shapes" if waiting > 1 else "")
    )


def _together(directions: int) -> str:
    if directions == 1:
        return "one direction at a time; more together would not be faster"
    return f"up to {directions} directions together"


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count / 1000  # pyright: ignore[reportAssignmentType]
    return f"{count:.3g} GB"
