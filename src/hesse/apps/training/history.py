# SPDX-License-Identifier: Apache-2.0
"""What a tracker has measured: one row a measurement."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from hesse.boundary import public
from hesse.errors import ArgumentError
from hesse.result import OneLine, Result, html_table, pyplot


@dataclass(frozen=True, repr=False)
class CurvatureMeasurement(Result):
    """The curvature at one step of a training; None is what was not asked for."""

    step: int
    """How many steps the tracker had seen."""
    loss: float
    """R, of the probe set, weight decay included."""
    gradient_norm: float
    """|g| of R."""
    sharpness: float | None = None
    """The largest eigenvalue of the Hessian."""
    ggn_sharpness: float | None = None
    """The largest eigenvalue of the Gauss-Newton matrix."""
    learning_rate: float | None = None
    """eta."""
    momentum: float = 0.0
    """beta."""
    stability: float | None = None
    """sharpness / limit: lambda eta / 2, or lambda eta / (2 (1 + beta)); 1 at the edge."""
    largest_rate: float | None = None
    """The advice: the learning rate at which stability would be 1, 2 (1 + beta) / lambda."""
    gradient_share: float | None = None
    """The part of |g|^2 that lies in the top eigenvectors of the Hessian."""
    trace: float | None = None
    """Of the Hessian."""
    trace_error: float | None = None
    """Its standard error."""
    noise_scale: float | None = None
    """tr S / |g|^2, in examples, with S the covariance of their gradients."""
    curvature_noise_scale: float | None = None
    """tr (H S) / g'Hg; None where g'Hg is not positive."""
    eigenvalues: tuple[float, ...] = ()
    """The top ones of the Hessian, falling."""
    layers: dict[str, float] = field(default_factory=dict)
    """The largest eigenvalue of the diagonal block of each layer."""
    products: int = 0
    """Products with curvature matrices that this took."""
    seconds: float = 0.0
    """Time that this took."""

    def numbers(self) -> dict[str, float]:
        """All numbers by name, for loggers: "layers/0", "eigenvalues/1" and so on."""
        flat: dict[str, float] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, dict):
                flat |= {f"{each.name}/{name}": number for name, number in value.items()}
            elif isinstance(value, tuple):
                flat |= {f"{each.name}/{i + 1}": number for i, number in enumerate(value)}
            elif value is not None:
                flat[each.name] = value
        return flat

    def to_dict(self) -> dict[str, Any]:
        """All fields; the eigenvalues as a list, as JSON has them."""
        row = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**row, "eigenvalues": list(self.eigenvalues), "layers": dict(self.layers)}

    @staticmethod
    def of(row: dict[str, Any]) -> CurvatureMeasurement:
        """The measurement that `to_dict` gave."""
        return CurvatureMeasurement(**{**row, "eigenvalues": tuple(row["eigenvalues"])})


_COLUMNS = ("step", "loss", "sharpness", "stability", "gradient_share", "products")
_SHOWN = 8


@dataclass(frozen=True, repr=False)
class CurvatureHistory(OneLine):
    """The measurements so far, oldest first; immutable. `len`, indices and `for` as of a tuple.

    >>> one, two = CurvatureMeasurement(0, 1.5, 0.1, 2.0), CurvatureMeasurement(100, 1.25, 0.1, 4.0)
    >>> history = CurvatureHistory((one, two))
    >>> history
    step   loss  sharpness  products
       0    1.5          2         0
     100   1.25          4         0
    >>> history.to_dict()["sharpness"], history[-1].loss
    ([2.0, 4.0], 1.25)
    """

    rows: tuple[CurvatureMeasurement, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[CurvatureMeasurement]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> CurvatureMeasurement:
        return self.rows[index]

    def __repr__(self) -> str:
        if not self.rows:
            return "CurvatureHistory(no measurements yet)"
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in table
        ]
        if len(self) > _SHOWN:
            lines.insert(1 + _SHOWN // 2, f"... {len(self) - _SHOWN} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        header, *rows = self._table() if self.rows else [["no measurements yet"]]
        return html_table(", ".join(header), ((row[0], ", ".join(row[1:])) for row in rows))

    def _table(self) -> list[list[str]]:
        """A header, and the first and the last rows, as texts."""
        names = [n for n in _COLUMNS if any(getattr(row, n) is not None for row in self.rows)]
        half = _SHOWN // 2
        few = self.rows if len(self) <= _SHOWN else self.rows[:half] + self.rows[-half:]
        return [names, *([_text(getattr(row, name)) for name in names] for row in few)]

    def to_dict(self) -> dict[str, list[Any]]:
        """A list for each field, as `pandas.DataFrame` takes them."""
        names = [each.name for each in fields(CurvatureMeasurement)]
        return {name: [getattr(row, name) for row in self.rows] for name in names}

    def to_csv(self) -> str:
        """A text with a line for each measurement, and the names of the numbers above."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.numbers()))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.numbers() for row in self.rows)
        return text.getvalue()

    @public("hesse.apps.CurvatureTracker.history.plot()")
    def plot(self, axes: Any = None) -> Any:
        """Draw the sharpness and the limit of stability with matplotlib.

        Args:
            axes: where to draw; new ones by default.

        Returns:
            The axes.
        """
        if not self.rows:
            raise ArgumentError(
                expected="at least one measurement",
                got="none yet",
                remedy="Call tracker.step(...) in the training loop first.",
            )
        if axes is None:
            axes = pyplot().subplots()[1]
        for name, label in (("sharpness", "Hessian"), ("ggn_sharpness", "Gauss-Newton")):
            points = self._points(name)
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        limits = [(row.step, _limit(row)) for row in self.rows if row.stability]
        if limits:
            label = "limit of stability, 2 (1 + momentum) / learning rate"
            axes.plot(*zip(*limits, strict=True), "--", color="0.4", label=label)
        axes.set(xlabel="step", ylabel="largest eigenvalue")
        axes.legend()
        return axes

    def _points(self, name: str) -> list[tuple[int, float]]:
        pairs = ((row.step, getattr(row, name)) for row in self.rows)
        return [(step, value) for step, value in pairs if value is not None]


def _limit(row: CurvatureMeasurement) -> float:
    """The eigenvalue at which the stability would be 1."""
    assert row.sharpness is not None
    assert row.stability is not None
    return row.sharpness / row.stability


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
