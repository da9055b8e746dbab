"""`nn.LSTM` over 50 steps: 32 sequences of 16 channels, 64 hidden units, the next value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models.seeded import normal, seeded
from benchmarks.problem import ModelAndLoss, Problem

CHANNELS, HIDDEN, BATCH, TIME = 16, 64, 32, 50


class Forecaster(nn.Module):
    """An LSTM with a linear layer on top of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(CHANNELS, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CHANNELS)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.lstm(series)[0])


def problem() -> Problem:
    """Forecast random sines one step ahead."""
    times = torch.arange(TIME + 1) / 5
    frequencies, phases = normal(BATCH, 1, CHANNELS, seed=3), normal(BATCH, 1, CHANNELS, seed=4)
    series = torch.sin(frequencies * times[None, :, None] + phases)
    parts = ModelAndLoss(seeded(Forecaster), nn.MSELoss(), series[:, :-1], series[:, 1:])
    return Problem.of("lstm", parts, fused="recurrent")
