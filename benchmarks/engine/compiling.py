"""Seconds to compile a product, and a gradient, in processes of their own.

The cache of TorchInductor is in a folder of its own, at first empty, then as the first process left
it. What torch imports for compiling is part of both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import torch

from benchmarks.engine.study import THREE, Cell, Settings, Study

PRODUCT, TRACED = "hesse/hessian/compiled-split", "hesse/hessian/traced-split"
GRADIENT = "torch.compile/gradient/func.grad"

LIMIT = 600.0
"""Seconds for a process."""


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row; the seconds of compiling are those of the first product beyond tracing."""
    with tempfile.TemporaryDirectory(prefix="hesse-bench-") as folder:
        tracing = _first(model, TRACED, folder)
        products = [_less(_first(model, PRODUCT, f"{folder}/p"), tracing) for _ in range(2)]
        gradients = [_first(model, GRADIENT, f"{folder}/g") for _ in range(2)]
    return [[model, tracing, *products, *gradients]]


def _first(model: str, subject: str, cache: str) -> float | None:
    """Seconds of the preparation and the first result in a fresh process; None if it fails."""
    variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    variables.pop("TORCHINDUCTOR_FORCE_DISABLE_CACHES", None)
    command = [sys.executable, "-m", "benchmarks.totals_worker", model, subject]
    command += ["0", str(torch.get_num_threads()), "1"]
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=LIMIT, check=True
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    return json.loads(done.stdout.splitlines()[-1]).get("seconds", {}).get("1")


def _less(seconds: float | None, tracing: float | None) -> float | None:
    return None if seconds is None or tracing is None else seconds - tracing


STUDY = Study(
    "Compiling",
    "Seconds in a fresh process: tracing; compiling the tangent program beyond that, with an "
    "empty cache on disk and with one that knows it; `torch.compile` of the gradient (`torch.func."
    "grad`), its first call included, likewise.",
    ("model", "tracing", "product", "cached", "gradient", "cached "),
    THREE,
    rows,
)
