# SPDX-License-Identifier: Apache-2.0
"""The smallest case that still shows a fault: parts are taken away while it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tools.fuzz.cases import Case, FunctionCase, Leaf, ModelCase, Step


def shrink(case: Case, shows: Callable[[Case], bool], most: int = 400) -> Case:
    """A case from which no single part can be taken without losing what `shows` looks for."""
    tries = 0
    progress = True
    while progress and tries < most:
        progress = False
        for smaller in _smaller(case):
            tries += 1
            if shows(smaller):
                case, progress = smaller, True
                break
            if tries >= most:
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    plain = {"context": "none", "dtype": "float64", "direction": "normal"}
    yield from (
        replace(case, **{key: value}) for key, value in plain.items() if getattr(case, key) != value
    )
    if isinstance(case, ModelCase):
        yield from _smaller_models(case)
    else:
        yield from _smaller_functions(case)


# --------------------------------------------------------------------------------------------------
# Functions


def _smaller_functions(case: FunctionCase) -> Iterator[FunctionCase]:
    for index in reversed(range(len(case.steps))):
        yield from _without_step(case, index)
    for leaf in case.leaves:
        if not any(leaf.name in step.args for step in case.steps):
            yield _with_leaves(case, [other for other in case.leaves if other is not leaf])
    for leaf in case.leaves:
        for other in _simpler_leaves(leaf):
            yield _with_leaves(case, [other if part is leaf else part for part in case.leaves])
    if case.tree != "dict":
        yield replace(case, tree="dict")


def _without_step(case: FunctionCase, index: int) -> Iterator[FunctionCase]:
    """The result of a step replaced by one of its arguments."""
    gone, others = case.steps[index], case.steps[:index] + case.steps[index + 1 :]
    if not others:
        return
    for arg in dict.fromkeys(gone.args):
        steps = tuple(
            Step(s.code, tuple(arg if name == gone.out else name for name in s.args), s.out)
            for s in others
        )
        yield replace(case, steps=steps)


def _with_leaves(case: FunctionCase, leaves: list[Leaf]) -> FunctionCase:
    return replace(case, leaves=tuple(leaves))


def _simpler_leaves(leaf: Leaf) -> Iterator[Leaf]:
    if leaf.varies:
        yield replace(leaf, varies=False)
    if leaf.kind != "normal":
        yield replace(leaf, kind="normal")
    for place, n in enumerate(leaf.shape):
        yield replace(leaf, shape=leaf.shape[:place] + leaf.shape[place + 1 :])
        for smaller in range(1, n):
            yield replace(leaf, shape=(*leaf.shape[:place], smaller, *leaf.shape[place + 1 :]))


# --------------------------------------------------------------------------------------------------
# Models


def _smaller_models(case: ModelCase) -> Iterator[ModelCase]:
    for index in range(len(case.layers)):
        if len(case.layers) > 1:
            yield replace(case, layers=case.layers[:index] + case.layers[index + 1 :])
    if len(case.batches) > 1:
        yield replace(case, batches=case.batches[:-1])
        yield replace(case, batches=case.batches[:1], form="pair")
    for index, size in enumerate(case.batches):
        if size > 1:
            batches = (*case.batches[:index], size - 1, *case.batches[index + 1 :])
            yield replace(case, batches=batches)
    if case.weight_decay:
        yield replace(case, weight_decay=0.0)
    if case.form != "list":
        yield replace(case, form="list", wrapper="nn.Sequential")
    if case.loss != "nn.MSELoss()":
        yield replace(case, loss="nn.MSELoss()")
