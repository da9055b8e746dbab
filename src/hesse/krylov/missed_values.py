# SPDX-License-Identifier: Apache-2.0
"""The search for eigenvalues that the start of a Lanczos process could not see (decision 11).

From one vector only one vector of each eigenspace can be found, from a given one perhaps none of
some. So when all wanted pairs have converged, steps from a random direction orthogonal to the basis
look for others, until it is unlikely that one stayed unseen (decision 30). The rows that waited
before the search stay, so that nothing is lost by it, and the block has grown by the copies that
were found (decision 24).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.krylov.eigenpairs import Selection
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.krylov.lanczos_state import LanczosState
from hesse.progress import uninterrupted

# A search takes at least so many steps.
_SEARCH = 2
# It ends when no more than this is the probability that an eigenvector was not seen. Where that
# takes long, the bound is far above the probability: most eigenvalues that could be missed are
# further from the others than the nearest one that counts. So a search of so many steps, and a
# sixth of the limit, is content with more.
_UNSEEN, _UNSEEN_LATE, _LATE = 0.05, 0.15, 6
# It gives up when at its rate it would take so many times its limit.
_HOPELESS = 1.5
# A missed eigenvalue is found after about as many steps as its neighbours were. A search ends after
# twice as many, or after so many where convergence took few; a given start does not tell how many.
_LONGEST, _LEAST, _GIVEN = 2, 12, 40
# With so few steps to go, or this part of the space, it ends with the whole space: little room is
# left to hide in, but the rows that wait are no random part of it, as the probability supposes.
_NEARLY, _LITTLE = 8, 1 / 8

RitzPairs = tuple[Tensor, Tensor, Tensor]
"""What `LanczosProcess.ritz` gives."""


@dataclass
class MissedValues:
    """The search within a basis of m vectors, of which `keep` survive a restart."""

    selection: Selection
    m: int
    keep: int
    is_given: bool
    """Whether the start was given, and not random."""

    def begin(self, state: LanczosState) -> None:
        """Continue from random directions, for some steps."""
        lanczos, least = state.lanczos, self._shortest(state.lanczos)
        if not self._has_room(lanczos):
            state.restart(self.selection, self.selection.k)
            lanczos.drop()
        room = self.m - least - lanczos.waiting
        if lanczos.size > room and self.m < lanczos.A.domain.n:
            state.restart(self.selection, room)
        lanczos.explore(self.selection.edges(state.values, self._margins(state)))
        state.new = torch.zeros(lanczos.size, dtype=torch.float64)
        state.due = lanczos.size + least
        steps = (state.products - state.phase_from) // lanczos.b
        state.search_from = state.phase_from = state.products
        enough = max(_GIVEN if self.is_given else _LEAST, _LONGEST * steps)
        state.search_until = state.products + lanczos.b * enough

    def finds_another(self, state: LanczosState, ritz: RitzPairs) -> bool:
        """Whether another wanted value was found; then the iteration continues with it."""
        lanczos, (values, coordinates, _) = state.lanczos, ritz
        best = self.selection.among(values)
        if bool(((values[best] - state.values).abs() <= self._margins(state)).all()):
            return False
        with uninterrupted():
            if not self._has_room(lanczos):
                self._lock(state, coordinates[:, best])
            state.search_until = 0
        return True

    def is_over(self, state: LanczosState, ritz: RitzPairs) -> bool:
        """Whether the search is over: nothing was missed, or it takes too long to tell."""
        lanczos, (values, coordinates, _) = state.lanczos, ritz
        n = lanczos.A.domain.n
        missing = n - lanczos.size
        if self.m >= n and missing <= max(_NEARLY * lanczos.b, _LITTLE * n):
            return False
        is_new = _share_new(state, coordinates) > 0.5
        state.aim = coordinates[:, is_new][:, self.selection.ends(values[is_new])]
        products = state.products - state.search_from
        limit = state.search_until - state.search_from
        is_late = products >= max(_LATE * lanczos.b, limit / 6)
        enough = _UNSEEN_LATE if is_late else _UNSEEN
        if products >= self._shortest(lanczos) and lanczos.unseen.probability <= enough:
            return True
        expected = lanczos.unseen.expected_products(products, enough)
        is_hopeless = products >= _LEAST * lanczos.b and expected >= _HOPELESS * limit
        return products >= limit or is_hopeless

    def restart(self, state: LanczosState) -> None:
        """Make room: keep the wanted vectors as they are, and the best new ones."""
        lanczos, order = state.lanczos, state.residuals.argsort()
        size, k = lanczos.size, len(order)
        known = _padded(state)[:, order]
        # Ritz vectors orthogonal to those: for equal values the old and the new would be mixed.
        others = torch.linalg.qr(known, mode="complete").Q[:, k:]
        values, coordinates = torch.linalg.eigh(others.T @ lanczos.T[:size, :size] @ others)
        coordinates = others @ coordinates
        share = _share_new(state, coordinates)
        new = (share > 0.5).nonzero()[:, 0]
        best = new[self.selection.among(values[new], state.limited(self.keep) - k)]
        lanczos.compress(torch.cat([known, coordinates[:, best]], dim=1))
        state.due, state.new = 0, torch.cat([torch.zeros_like(state.values), share[best]])
        state.coordinates = torch.eye(lanczos.size, dtype=torch.float64)[:, order.argsort()]
        state.aim = state.aim[:0]

    def _margins(self, state: LanczosState) -> Tensor:
        """How far a value may be from a wanted one and still count as equal."""
        return state.tolerance(self.selection).clamp(min=state.lanczos.value_noise)

    def _shortest(self, lanczos: LanczosProcess) -> int:
        return min(_SEARCH * lanczos.b, self.m - self.selection.k)

    def _has_room(self, lanczos: LanczosProcess) -> bool:
        """Whether a search leaves room for the rows that wait, and for steps after it."""
        if self.m >= lanczos.A.domain.n:
            return True
        k, b, waiting = self.selection.k, lanczos.b, lanczos.waiting
        fits = k + waiting + self._shortest(lanczos) <= self.m
        return fits and waiting + b <= max(2 * b, (self.m - k) // 3)

    def _lock(self, state: LanczosState, best: Tensor) -> None:
        """Keep the converged vectors alone, and continue from the new ones among the best."""
        lanczos, known = state.lanczos, _padded(state)
        old = best.T @ known  # (k, k): the part that is not new
        new = best[:, old.norm(dim=1).argsort()[: lanczos.b]]
        start, best_first = lanczos.combine(new), state.residuals.argsort()
        lanczos.lock(known[:, best_first], start)
        state.coordinates = torch.eye(len(old), dtype=torch.float64)[:, best_first.argsort()]
        state.aim, state.due = state.aim[:0], 0
        state.converged = 0  # what was found is still to converge


def _padded(state: LanczosState) -> Tensor:
    """The coordinates of the wanted vectors, with zeros for the rows of the search."""
    known = torch.zeros(state.lanczos.size, len(state.values), dtype=torch.float64)
    known[: len(state.coordinates)] = state.coordinates
    return known


def _share_new(state: LanczosState, coordinates: Tensor) -> Tensor:
    """The fraction of each Ritz vector that is new since the search began."""
    rest = len(coordinates) - len(state.new)
    return torch.cat([state.new, torch.ones(rest, dtype=torch.float64)]) @ coordinates**2
