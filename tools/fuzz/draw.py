# SPDX-License-Identifier: Apache-2.0
"""A case for an integer: half a function composed of operations, or the risk of a model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tools.fuzz.cases import Case
from tools.fuzz.checks import COMPILED, names
from tools.fuzz.contexts import CONTEXTS
from tools.fuzz.draw_function import draw_function
from tools.fuzz.draw_model import draw_model


def draw(seed: int, extra: Sequence[str] = ()) -> Case:
    """The case of a seed; `extra` templates are drawn often."""
    rng = random.Random(seed)
    is_model = rng.random() < 0.25 and not extra
    context = rng.choice(list(CONTEXTS)) if rng.random() < 0.35 else "none"
    options = {
        "seed": seed,
        "context": context,
        "direction": rng.choice(("unit", "tiny", "huge", "zero"))
        if rng.random() < 0.15
        else "normal",
        "dtype": "float32" if rng.random() < 0.1 and context == "none" else "float64",
    }
    checks = _checks(rng, "model" if is_model else "function", options["dtype"])
    if is_model:
        if context == "flop counter":  # it fails on modules whose inputs are leaves, without Hesse
            options["context"] = "none"
        return draw_model(rng, checks=checks, **options)
    case = draw_function(rng, extra, checks=checks, **options)
    if context in ("save on cpu", "mutation") and "torch.func" in case.source():
        return replace(case, context="none")  # torch.func takes no hooks, without Hesse either
    return case


_SLOW = ("dense", "trace", "diagonal", "norm", "eigsh", "solve", "logdet", "square")
_TRACED = ("traced-split", "after counts")


def _checks(rng: random.Random, of: str, dtype: str) -> tuple[str, ...]:
    """A few checks, more of the cheap ones."""
    every = [name for name in names(of) if COMPILED not in name]
    cheap = [name for name in every if name not in _SLOW and not name.endswith(_TRACED)]
    traced = [name for name in every if name.endswith(_TRACED)]
    chosen = rng.sample(cheap, 2)
    if rng.random() < 0.3:
        chosen.append(rng.choice(traced))
    if rng.random() < 0.08 and dtype == "float64":
        chosen.append(rng.choice(_SLOW))
    if rng.random() < 0.001:
        chosen.append(rng.choice([name for name in names(of) if COMPILED in name]))
    if dtype == "float32":
        chosen = [name for name in chosen if not name.startswith(("gauss", "inputs"))]
    return tuple(chosen)
