"""HessianFree, and the optimisers beside it, each as one that takes a new batch in every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from benchmarks.training.task import Batch, Rival, Sizes, Task

Optimizer = torch.optim.Optimizer

NEEDS = {"SOAP": "pytorch_optimizer", "Shampoo": "pytorch_optimizer"}
"""Packages that a rival needs beside torch."""


def hessian_free(sizes: Sizes, name: str = "HessianFree", **options: Any) -> Rival:
    """HessianFree."""

    def make(task: Task, model: nn.Module, batch: Batch) -> hesse.HessianFree:
        return hesse.HessianFree(hesse.Risk(model, task.loss, batch), **options)

    def step(optimizer: hesse.HessianFree, _: Task, __: nn.Module, batch: Batch) -> None:
        optimizer.step(data=batch)

    return Rival(name, make, step, sizes)


def kfac(sizes: Sizes, name: str = "K-FAC", **options: Any) -> Rival:
    """Steps of EK-FAC, their length and momentum from the exact Gauss-Newton matrix."""
    return hessian_free(sizes, name, max_cg_iterations=0, **options)


def first_order(
    name: str,
    make: Callable[[nn.Module], Optimizer | Pair],
    batch: int,
    *,
    clip: float | None = None,
    model: Any = None,
    before: Callable[[Any], None] | None = None,
) -> Rival:
    """One gradient a step, clipped if that is asked for.

    Args:
        name: of the rival.
        make: the optimiser of a model.
        batch: examples of a step.
        clip: the largest norm of a gradient.
        model: another one than that of the task, of a seed.
        before: changes the settings of the optimiser before a step.
    """

    def step(optimizer: Optimizer, task: Task, module: nn.Module, data: Batch) -> None:
        optimizer.zero_grad()
        task.loss(module(data[0]), data[1]).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        if before is not None:
            before(optimizer)
        optimizer.step()

    return Rival(name, lambda _, module, __: make(module), step, lambda _: batch, model)


def adamw(lr: float, batch: int, *, name: str = "AdamW", **options: Any) -> Rival:
    """AdamW, fused."""

    def make(module: nn.Module) -> Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=lr, fused=True)

    return first_order(name, make, batch, **options)


def nesterov(lr: float, batch: int, most: float = 0.99, name: str = "Nesterov") -> Rival:
    """SGD with the growing momentum of Sutskever et al. 2013, from 0.5 to `most`."""

    def make(module: nn.Module) -> Optimizer:
        optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.5, nesterov=True)
        optimizer.param_groups[0]["steps"] = 0
        return optimizer

    def grow(optimizer: Optimizer) -> None:
        group = optimizer.param_groups[0]
        group["momentum"] = min(1.0 - 2.0 ** (-1.0 - math.log2(group["steps"] // 250 + 1)), most)
        group["steps"] += 1

    return first_order(name, make, batch, before=grow)


def muon(lr: float, batch: int, name: str = "Muon") -> Rival:
    """Muon for the matrices between layers, AdamW for embeddings, the last layer and vectors."""

    def make(module: nn.Module) -> Pair:
        matrices, others = split_for_muon(module)
        return Pair(
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, weight_decay=0.0, fused=True),
        )

    return first_order(name, make, batch)


def soap(lr: float, batch: int, name: str = "SOAP") -> Rival:
    """SOAP of pytorch-optimizer, new eigenvectors every ten steps."""

    def make(module: nn.Module) -> Optimizer:
        from pytorch_optimizer import SOAP

        return SOAP(module.parameters(), lr=lr, weight_decay=0.0)

    return first_order(name, make, batch)


def shampoo(lr: float, batch: int, name: str = "Shampoo") -> Rival:
    """Shampoo of pytorch-optimizer, its step as long as Adam's, new roots every ten steps."""

    def make(module: nn.Module) -> Optimizer:
        from pytorch_optimizer import ScalableShampoo

        return ScalableShampoo(module.parameters(), lr=lr, preconditioning_compute_steps=10)

    return first_order(name, make, batch)


def lbfgs(batch: int, name: str = "L-BFGS") -> Rival:
    """L-BFGS with 50 pairs and a strong Wolfe search, on data that stay those of the first step."""

    def make(_: Task, model: nn.Module, batch: Batch) -> torch.optim.LBFGS:
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=10, max_eval=100, history_size=50,
            line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0,
        )  # fmt: skip
        optimizer.__dict__["data"] = batch
        return optimizer

    def step(optimizer: Any, task: Task, module: nn.Module, _: Batch) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = task.loss(module(optimizer.data[0]), optimizer.data[1])
            loss.backward()
            return loss

        optimizer.step(closure)

    return Rival(name, make, step, lambda _: batch)


class Pair:
    """Two optimisers as one."""

    def __init__(self, *parts: Optimizer) -> None:
        self._parts = parts

    def zero_grad(self) -> None:
        """Of both."""
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        """Of both."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Of both."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Into both."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def split_for_muon(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The weights of all linear layers but the last, and the other parameters."""
    linear = [m.weight for m in module.modules() if isinstance(m, nn.Linear)][:-1]
    matrices = {id(weight) for weight in linear}
    return linear, [p for p in module.parameters() if id(p) not in matrices]
