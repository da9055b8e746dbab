"""The next character of a text, by a small GPT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.models.gpt import GPT, TIME
from benchmarks.training.task import Batch, Task

_HELD_OUT = 0.1  # of the text, its end
_WINDOWS = 128  # of the text held out, on which the error is measured


def read(path: Path | None) -> str:
    """A file, or 465,000 characters of English that Python ships: its manual of the language."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def language(text: str, width: int, layers: int) -> Task:
    """Windows of 64 characters from the text; the error is that of windows of its last tenth."""
    letters = sorted(set(text))
    index = {letter: i for i, letter in enumerate(letters)}
    codes = torch.tensor([index[letter] for letter in text])
    known, unseen = codes[: -int(_HELD_OUT * len(codes))], codes[-int(_HELD_OUT * len(codes)) :]
    x, y = windows(unseen, _WINDOWS, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def error(model: nn.Module) -> float:
        return float(loss(model(x), y))

    return Task(
        name="language",
        model=_seeded(len(letters), width, layers),
        loss=loss,
        draw=lambda count, generator: windows(known, count, generator),
        error=error,
        error_name="nats a character",
        solved=0.0,
    )


def windows(codes: Tensor, count: int, generator: torch.Generator) -> Batch:
    """Windows at random places and the characters after each of theirs; both (count, 64)."""
    starts = torch.randint(0, len(codes) - TIME, (count, 1), generator=generator)
    places = starts + torch.arange(TIME)
    return codes[places], codes[places + 1]


def loss(logits: Tensor, following: Tensor) -> Tensor:
    """Cross-entropy, mean over the characters."""
    return cross_entropy(logits.flatten(0, 1), following.flatten())


def _seeded(vocabulary: int, width: int, layers: int) -> Callable[[int], nn.Module]:
    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return GPT(vocabulary, width, layers)

    return model
