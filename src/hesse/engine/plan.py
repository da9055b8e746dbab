# SPDX-License-Identifier: Apache-2.0
"""`Plan`: how products are taken, what it costs, and what was tried; made to be printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hesse.engine.compiler import block_size
from hesse.engine.program_cache import CachedProgram
from hesse.memory.sizes import format_bytes
from hesse.result import html_table


class Held(NamedTuple):
    """How many summands are held between products, of how many, and in how many bytes."""

    kept: int = 0
    total: int = 0
    nbytes: float = 0.0


_NONE = Held()


@dataclass(frozen=True, repr=False)
class Plan:
    """How the products of an operator are taken.

    `mode` is the one in use, `reason` why. The numbers are those of one summand (one batch) of the
    most frequent shape, None where there is no program: operations of the primal program, which
    runs at a point, and of the tangent program, which runs for a product; bytes of the residuals;
    floating-point operations of a product.
    """

    mode: str
    reason: str
    primal_operations: int | None = None
    tangent_operations: int | None = None
    residual_bytes: int | None = None
    flops: int | None = None
    directions_at_once: int = 1
    points: int = 0
    verified: int = 0
    shapes: int = 1
    held: Held = _NONE
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "\n".join(f"{label:10} {text}" for label, text in self._rows())

    def _repr_html_(self) -> str:
        return html_table("Plan", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("mode", f"{self.mode}: {self.reason}")]
        if self.tangent_operations is not None:
            shapes = f"; for {self.shapes} shapes of data" if self.shapes > 1 else ""
            rows += [
                (
                    "programs",
                    f"{self.primal_operations} operations at a point, {self.tangent_operations} a "
                    f"product{shapes}",
                ),
                ("residuals", f"{format_bytes(self.residual_bytes or 0)} a batch"),
                ("product", f"{(self.flops or 0) / 1e6:.3g} MFLOP in matrix products a batch"),
                ("blocks", _together(self.directions_at_once)),
                (
                    "checks",
                    f"the value of f at each of {self.points} points so far; a product by double "
                    f"backward at the 2nd, 4th, 8th, ...: {self.verified} so far",
                ),
            ]
        if self.held.total > 1:
            rows.append(("held", _held(self.held)))
        return rows + [("note", note) for note in self.notes]


def plan_of(
    mode: str, entries: Sequence[CachedProgram], failures: list[str], held: Held = _NONE
) -> Plan:
    """The plan of an operator in a mode, with its programs and what failed on the way."""
    notes = tuple(dict.fromkeys([*failures, *(note for e in entries for note in e.notes)]))
    traced = [entry for entry in entries if entry.partition is not None]
    if not traced:
        return Plan(mode, _why_not_traced(mode, entries), held=held, notes=notes)
    chief = max(traced, key=lambda entry: entry.validator.num_points)
    assert chief.partition is not None
    product = chief.partition.tangents["product"]
    if product.uses_onednn:
        notes = (*notes, "large matrix products by oneDNN, which is faster here than torch's own")
    return Plan(
        mode,
        "traced once, for every point and all data of this shape",
        primal_operations=len(chief.partition.primal_and_gradient),
        tangent_operations=len(product),
        residual_bytes=chief.partition.residual_bytes,
        flops=product.flops(),
        directions_at_once=block_size(chief),
        points=sum(entry.validator.num_points for entry in traced),
        verified=sum(entry.validator.num_verified for entry in traced),
        shapes=len(traced),
        held=held,
        notes=notes,
    )


def _why_not_traced(mode: str, entries: Sequence[CachedProgram]) -> str:
    if mode != "retained-graph":
        return "every product is taken anew"
    if not entries:
        return "nothing has been computed yet"
    chief = max(entries, key=lambda entry: entry.usage.seconds)
    if chief.options.mode == "retained-graph":
        return "as asked for"
    if chief.disabled:
        return "the programs of the product cannot be used (see the note)"
    waiting = sum(entry.disabled is None for entry in entries)
    reason = chief.options.cost_model.break_even(chief.usage)
    return reason + (f", for {waiting} shapes" if waiting > 1 else "")


def _held(held: Held) -> str:
    if held.kept == 0:
        return f"none of {held.total} batches between products; each is computed again"
    return f"{held.kept} of {held.total} batches between products, {format_bytes(held.nbytes)}"


def _together(directions: int) -> str:
    if directions == 1:
        return "one direction at a time; more together would not be faster"
    return f"up to {directions} directions together"
