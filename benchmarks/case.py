"""A problem with the directions that every subject multiplies, in the form that each likes best."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.problem import Problem

BLOCK = 8
"""The number of vectors in a block."""


@dataclass(frozen=True, eq=False)
class Case:
    """A problem, a direction v of shape (n,), and a block of shape (n, 8) whose first column is v.

    All forms are made before anything is timed.
    """

    problem: Problem
    v: Tensor
    block: Tensor

    @staticmethod
    def of(problem: Problem, seed: int = 0) -> Case:
        """Standard normal directions."""
        generator = torch.Generator().manual_seed(seed)
        block = torch.randn(problem.n, BLOCK, generator=generator)
        return Case(problem, block[:, 0].contiguous(), block)

    @cached_property
    def tangents(self) -> dict[str, Tensor]:
        """v, one tensor a parameter."""
        return self._tree(self.v)

    @cached_property
    def leading_block(self) -> dict[str, Tensor]:
        """The block, one tensor a parameter, the vectors along the first axis."""
        columns = [self._tree(column) for column in self.block.T]
        return {name: torch.stack([c[name] for c in columns]) for name in self.problem.params}

    @cached_property
    def trailing_block(self) -> list[Tensor]:
        """The block, one tensor a parameter, the vectors along the last axis."""
        return [leaf.movedim(0, -1).contiguous() for leaf in self.leading_block.values()]

    @cached_property
    def cotangent(self) -> Tensor:
        """u: standard normal, of the shape of the model's outputs."""
        parts = self.problem.parts
        assert parts is not None
        shape = parts.outputs(self.problem.params).shape  # not in no_grad: f may differentiate
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def _tree(self, vector: Tensor) -> dict[str, Tensor]:
        params = self.problem.params
        parts = vector.split([leaf.numel() for leaf in params.values()])
        return {
            name: part.view_as(leaf).clone()
            for (name, leaf), part in zip(params.items(), parts, strict=True)
        }

    def differentiable_kernels(self) -> AbstractContextManager:
        """Kernels that have second derivatives: what a peer's user has to ask for."""
        if self.problem.fused == "attention":
            return sdpa_kernel(SDPBackend.MATH)
        if self.problem.fused == "recurrent":
            return torch.backends.mkldnn.flags(enabled=False)
        return nullcontext()

    def leaves(self) -> list[Tensor]:
        """Fresh parameters that require a gradient."""
        return [leaf.detach().requires_grad_() for leaf in self.problem.params.values()]

    def value(self, leaves: list[Tensor]) -> Tensor:
        """f of such parameters."""
        return self.problem.f(dict(zip(self.problem.params, leaves, strict=True)))
