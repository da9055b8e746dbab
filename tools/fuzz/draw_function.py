# SPDX-License-Identifier: Apache-2.0
"""A random function: templates are drawn, tried on the tensors so far, and kept if torch can."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tools.fuzz import prelude
from tools.fuzz.cases import FunctionCase, Leaf, Step
from tools.fuzz.operations import GROUPS
from tools.fuzz.trees import TREES

_ALTERNATIVES = re.compile(r"\{([^{}]*\|[^{}]*)\}")
_NEW_LEAF = re.compile(r"<([^<>]+)>")
_KINDS = ("integers", "zeros", "positive", "strided", "transposed")
_MOST_VARIABLES, _MOST_ENTRIES, _LARGEST = 40, 100, 1e3


def draw_function(rng: random.Random, extra: Sequence[str] = (), **options: Any) -> FunctionCase:
    """A composition of one to eight operations."""
    builder = _Builder(rng)
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        builder.add_leaf([rng.choice((2, 3, 3, 4)) for _ in range(rng.choice((1, 1, 2, 2, 2, 3)))])
    for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 6))):
        builder.grow(extra)
    leaves = builder.leaves
    trees = TREES if sum(leaf.varies for leaf in leaves) == 1 else TREES[1:]
    tree = rng.choice(trees)
    if tree == "tensor":  # its leaf has no name
        options["checks"] = tuple(check for check in options["checks"] if check != "leaf")
    return FunctionCase(leaves=tuple(leaves), steps=tuple(builder.steps), tree=tree, **options)


class _Builder:
    """The leaves and steps so far, with their values."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.leaves: list[Leaf] = []
        self.steps: list[Step] = []
        self.values: dict[str, Tensor] = {}

    def add_leaf(self, shape: Sequence[int]) -> str:
        """A new leaf, which varies while there are few variables."""
        rng, name = self.rng, f"p{len(self.leaves)}"
        size = sum(value.numel() for name, value in self.values.items() if name[0] == "p")
        varies = not self.leaves or (
            rng.random() < 0.85 and size + torch.Size(shape).numel() <= _MOST_VARIABLES
        )
        kind = rng.choice(_KINDS) if rng.random() < 0.25 else "normal"
        leaf = Leaf(name, tuple(shape), rng.randrange(1000), kind, varies)
        self.leaves.append(leaf)
        self.values[name] = prelude.numbers(leaf.seed, *leaf.shape, kind=leaf.kind)
        return name

    def grow(self, extra: Sequence[str]) -> None:
        """One step more, if one is found in some tries."""
        for _ in range(12):
            leaves, values = list(self.leaves), dict(self.values)
            if self._try(self._template(extra)):
                return
            self.leaves, self.values = leaves, values

    def _template(self, extra: Sequence[str]) -> str:
        if extra and self.rng.random() < 0.2:
            return self.rng.choice(extra)
        groups = list(GROUPS.values())
        (_, templates), *_ = self.rng.choices(groups, [weight for weight, _ in groups])
        return self.rng.choice(templates)

    def _try(self, template: str) -> bool:
        rng, names = self.rng, list(self.values)
        recent = names[-3:]
        args = [rng.choice(recent if rng.random() < 0.6 else names) if self.steps else "p0"]
        if "{1}" in template:
            args.append(rng.choice(names))
        shape = self.values[args[0]].shape
        code = _ALTERNATIVES.sub(lambda found: rng.choice(found[1].split("|")), template)
        if "{d}" in code:
            if not shape:
                return False
            code = code.replace("{d}", str(rng.randrange(-len(shape), len(shape))))
        try:
            code = _NEW_LEAF.sub(lambda found: self.add_leaf(_shape(found[1], shape)), code)
            step = Step(code, (*args, *_mentioned(code, self.values)), f"t{len(self.steps)}")
            value = _value(step, self.values)
        except Exception:  # whatever torch says to shapes that do not fit
            return False
        if value is None:
            return False
        self.steps.append(step)
        self.values[step.out] = value
        return True


def _shape(text: str, s: torch.Size) -> list[int]:
    shape = eval(f"[{text}]", {"s": s})
    if not all(0 < n <= 16 for n in shape):
        raise ValueError
    return shape


def _mentioned(code: str, values: dict[str, Tensor]) -> tuple[str, ...]:
    """The leaves that a template names itself."""
    return tuple(name for name in re.findall(r"\bp\d+\b", code) if name in values)


def _value(step: Step, values: dict[str, Tensor]) -> Tensor | None:
    """The value of a step; None if it is not one that can be used."""
    names = {**vars(prelude), **{name: value.clone() for name, value in values.items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(step.source, names)
    value = names[step.out]
    if (
        not isinstance(value, Tensor)
        or value.dtype != torch.float64
        or value.layout != torch.strided
    ):
        return None
    if not 0 < value.numel() <= _MOST_ENTRIES or not bool(torch.isfinite(value).all()):
        return None
    return value.detach().clone() if float(value.abs().max()) <= _LARGEST else None
