# SPDX-License-Identifier: Apache-2.0
"""Measure in the middle of a training, and leave no trace of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """The model in eval mode; every module's mode and the global random numbers come back."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    on_host = device.type == "cpu"
    kind = "cuda" if on_host else device.type
    devices = [] if on_host else [device]
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given, so that a clock counts it where it belongs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
