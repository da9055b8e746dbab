# SPDX-License-Identifier: Apache-2.0
"""When a gradient counts as small: relative to its start, and on a scale of the function's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hesse.optimize.point import Point

# The tolerance where none is given, by the dtype of the vectors.
_DEFAULT = {torch.float64: 1e-8}
_DEFAULT_OTHER = 1e-4


@dataclass(frozen=True)
class Criterion:
    r"""The first-order test of a minimisation.

    $$ \lVert g \rVert \le \max\bigl(\mathrm{atol},\;
       \min(r \lVert g_0 \rVert,\, \max(r, r_0))\bigr) $$

    where r is rtol, g_0 the gradient at the start and r_0 the default of rtol: a large gradient at
    a bad start does not loosen the test. Where rtol decides, the quadratic model must also predict
    a decrease that is negligible, at most max(r, r_0) max(|f|, f_0 - f): the gradient of -log x
    vanishes although f has no minimum.

    Args:
        rtol, atol: of `minimize`.
        dtype: of the vectors.
        start_value, start_gradient_norm: f and |g| at the start.
    """

    rtol: float | None
    atol: float
    dtype: torch.dtype
    start_value: float
    start_gradient_norm: float

    @property
    def level(self) -> float:
        """max(r, r_0)."""
        return self._default if self.rtol is None else max(self.rtol, self._default)

    @property
    def tolerance(self) -> float:
        """The largest norm of a small gradient."""
        rtol = self.level if self.rtol is None else self.rtol
        return max(self.atol, min(rtol * self.start_gradient_norm, self.level))

    @property
    def is_loose(self) -> bool:
        """Whether less than the default precision was asked for."""
        return self.level > self._default

    @property
    def _default(self) -> float:
        return _DEFAULT.get(self.dtype, _DEFAULT_OTHER)

    @property
    def accepts_rounding(self) -> bool:
        """Whether a gradient that is zero up to rounding is small: no rtol was given."""
        return self.rtol is None

    def negligible(self, point: Point) -> float:
        """A decrease of f that does not matter at this point."""
        value = point.value
        return self.level * max(abs(value), self.start_value - value, 0.0)
