# SPDX-License-Identifier: Apache-2.0
"""How well predictive distributions fit data: MAP, MAP with a temperature, and Laplace."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.apps.uncertainty.evidence import bisected
from hesse.errors import DataError

_BINS = 15
_LOG_T = 5.0  # |log T| at most


@dataclass(frozen=True, repr=False)
class Calibration:
    """A table of scores, one row for each predictive distribution; made to be printed."""

    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    note: str

    def __getitem__(self, name: str) -> dict[str, float]:
        """The scores of a row, by the names of the columns."""
        return dict(zip(self.columns, self.rows[name], strict=True))

    def __repr__(self) -> str:
        return "\n".join([*self.lines(), self.note])

    def lines(self) -> list[str]:
        """The table as text."""
        width = max(map(len, self.rows))
        heads = "".join(f"{name:>10}" for name in self.columns)
        cells = {
            name: "".join(f"{value:10.4f}" for value in row) for name, row in self.rows.items()
        }
        return [" " * width + heads, *(f"{name:{width}}{text}" for name, text in cells.items())]

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *self.columns))
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>"
            + "".join(f"<td>{value:.4f}</td>" for value in row)
            + "</tr>"
            for name, row in self.rows.items()
        )
        caption = html.escape(self.note)
        return f"<table><caption>{caption}</caption><tr>{heads}</tr>{body}</table>"


# -- Classes ---------------------------------------------------------------------------------------


def class_scores(p: Tensor, y: Tensor) -> tuple[float, ...]:
    """NLL, ECE (15 bins), Brier score and accuracy of probabilities (m, K) for classes y (m,)."""
    p = p.double()
    chosen = p.gather(1, y[:, None])[:, 0]
    nll = -chosen.clamp(min=torch.finfo(torch.float64).tiny).log().mean()
    hit = (p.argmax(1) == y).double()
    brier = (p - torch.nn.functional.one_hot(y, p.shape[1])).square().sum(1).mean()
    return float(nll), expected_calibration_error(p, hit), float(brier), float(hit.mean())


def expected_calibration_error(p: Tensor, hit: Tensor) -> float:
    """Mean over 15 bins of confidence of |accuracy - confidence|.

    >>> p = torch.tensor([[0.9, 0.1], [0.9, 0.1]], dtype=torch.float64)
    >>> round(expected_calibration_error(p, torch.tensor([1.0, 0.0]).double()), 4)
    0.4
    """
    confidence = p.amax(1)
    place = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
    gaps = torch.zeros(_BINS, dtype=p.dtype, device=p.device)
    return float(gaps.index_add(0, place, hit - confidence).abs().sum()) / len(p)


def temperature_of(z: Tensor, y: Tensor) -> float:
    """T > 0 of the least NLL of softmax(z / T), z (m, K): the NLL is convex in 1 / T."""
    z = z.double()

    def fall(log: float) -> float:
        expected = ((z * math.exp(log)).softmax(1) * z).sum(1)
        return float((z.gather(1, y[:, None])[:, 0] - expected).mean())

    return math.exp(-bisected(fall, -_LOG_T, _LOG_T))


def as_rows(z: Tensor, class_dim: int, kind: str) -> Tensor:
    """Logits with the classes last, (m, K); of a Bernoulli output z those of two, 0 and z."""
    if kind == "bernoulli":
        flat = z.reshape(-1)
        return torch.stack([torch.zeros_like(flat), flat], 1)
    return z.movedim(class_dim, -1).reshape(-1, z.shape[class_dim])


def classes(y: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The classes, (m,), and a mask of those that count."""
    flat = y.reshape(-1)
    if y.is_floating_point():
        if kind != "bernoulli" or not bool(((flat == 0) | (flat == 1)).all()):
            raise DataError(
                expected="targets that are classes, for a calibration table",
                got="probabilities",
                remedy="Score them by your own rule, with the result of predict(x).",
            )
        flat = flat.long()
    return flat, flat >= 0


# -- Numbers ---------------------------------------------------------------------------------------


def number_scores(mean: Tensor, variance: Tensor, y: Tensor) -> tuple[float, ...]:
    """NLL, root mean squared error, and the share of y inside of 95 % intervals."""
    error, v = (y - mean).double(), variance.double()
    nll = 0.5 * (error.square() / v + (2.0 * math.pi * v).log()).mean()
    inside = (error.abs() <= 1.959963984540054 * v.sqrt()).double().mean()
    return float(nll), float(error.square().mean().sqrt()), float(inside)


CLASS_COLUMNS = ("NLL", "ECE", "Brier", "accuracy")
NUMBER_COLUMNS = ("NLL", "RMSE", "in 95 %")
