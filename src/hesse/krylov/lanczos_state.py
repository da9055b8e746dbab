# SPDX-License-Identifier: Apache-2.0
"""The state of `ThickRestart` after a step: the wanted Ritz pairs, and what a search has seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.krylov.eigenpairs import Selection
from hesse.krylov.lanczos_process import LanczosProcess

# Ritz values are computed at every step of a small basis, and later whenever it has grown by 1/24.
_SMALL, _GROWTH = 64, 24


@dataclass
class LanczosState:
    """What a callback sees after every step: the wanted Ritz values and their residuals so far."""

    lanczos: LanczosProcess
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    residuals: Tensor = field(default_factory=lambda: torch.zeros(0))
    coordinates: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """Of the wanted Ritz vectors, as columns."""
    largest: float = 0.0
    """The largest Ritz value in magnitude so far."""
    due: int = 0
    """The size of the basis at which Ritz values are computed again."""
    converged: int = 0
    """How many of the wanted pairs have converged, the outermost first, without a gap."""
    search_from: int = 0
    search_until: int = 0
    """The products between which others are looked for; 0 while not looking."""
    phase_from: int = 0
    """The products at which the last search began."""
    aim: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """The coordinates of what the next products are for, as columns."""
    new: Tensor = field(default_factory=lambda: torch.zeros(0))
    """The fraction of each row that is new since the search began; 1 for later rows."""
    status: Status = Status.UNFINISHED

    @property
    def products(self) -> int:
        """Products taken so far."""
        return self.lanczos.products

    @property
    def is_current(self) -> bool:
        """Whether the Ritz values are those of the basis as it is."""
        return len(self.coordinates) == self.lanczos.size

    @property
    def must_restart(self) -> bool:
        """Whether there is no memory for another row."""
        return self.lanczos.free == 0 and not self.lanczos.is_whole

    def is_due(self) -> bool:
        """Whether to compute Ritz values: at every step of a basis that is small or full."""
        size, is_full = self.lanczos.size, self.lanczos.free == 0 or self.lanczos.is_whole
        if _SMALL <= size < self.due and not is_full:
            return False
        self.due = size + size // _GROWTH
        return True

    def update(self, selection: Selection) -> bool:
        """Compute the wanted Ritz pairs; whether all have converged."""
        values, coordinates, residuals = self.lanczos.ritz()
        order = selection.outermost(values)
        best = order.sort().values
        self.values, self.residuals = values[best], residuals[best]
        self.coordinates = coordinates[:, best]
        self.largest = max(self.largest, float(values.abs().max()))
        good = residuals[order] <= selection.tolerance(values[order], self.largest)
        self.converged = int(good.cumprod(0).sum())
        self.aim = coordinates[:, order[self.converged :][:1]]
        return self.converged == selection.k

    def tolerance(self, selection: Selection) -> Tensor:
        """The largest residuals with which the wanted pairs count as converged."""
        return selection.tolerance(self.values, self.largest)

    def restart(self, selection: Selection, keep: int) -> None:
        """Make room: keep the best Ritz vectors, the wanted ones among them."""
        lanczos = self.lanczos
        values, coordinates, residuals = lanczos.ritz()
        best, kept = selection.among(values), selection.among(values, self.limited(keep))
        kept = kept[(residuals + lanczos.lost_orthogonality(coordinates))[kept].argsort()]
        lanczos.restart(coordinates[:, kept], values[kept])
        self.coordinates, self.due = (kept[:, None] == best).double(), 0
        self.aim = self.aim[:0]

    def limited(self, keep: int) -> int:
        """How many vectors can be kept so that there is room for a step."""
        return min(keep, len(self.lanczos.basis.rows) - self.lanczos.waiting - 1)
