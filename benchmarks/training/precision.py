"""Matrix products in bfloat16, several times as fast on processors with units for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.training.task import Task


class InBfloat16(nn.Module):
    """A model of float32 parameters that computes in bfloat16."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, in float32."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.module(x).float()


def in_bfloat16(task: Task) -> Task:
    """The task for models that compute in bfloat16; errors are those of the float32 model."""

    def error(model: nn.Module) -> float:
        assert isinstance(model, InBfloat16)
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return task.error(model.module)
        finally:
            torch.set_float32_matmul_precision(precision)

    def model(seed: int) -> nn.Module:
        return InBfloat16(task.model(seed))

    return replace(task, name=f"{task.name}-bfloat16", model=model, error=error)
