# SPDX-License-Identifier: Apache-2.0
"""A case: Python source that defines a function and its point, and the checks to make on it.

A case is data: it goes to JSON and back. Its source is what runs, and what a script shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tools.fuzz.trees import build_line, unpack_line


@dataclass(frozen=True)
class Leaf:
    """A tensor at the start: a variable, or a constant that f closes over."""

    name: str
    shape: tuple[int, ...]
    seed: int
    kind: str = "normal"
    varies: bool = True

    def source(self, dtype: str) -> str:
        """The line that makes it."""
        shape = "".join(f", {n}" for n in self.shape)
        kind = "" if self.kind == "normal" else f", kind={self.kind!r}"
        return f"{self.name} = numbers({self.seed}{shape}{kind}, dtype={dtype})"


@dataclass(frozen=True)
class Step:
    """One operation: a template with its tensors, and the name of its result."""

    code: str
    args: tuple[str, ...]
    out: str

    @property
    def source(self) -> str:
        """The line that computes it."""
        code = self.code if "{out}" in self.code else "{out} = " + self.code
        return code.replace("{out}", self.out).replace("{0}", self.args[0]).replace(
            "{1}", self.args[-1]
        )  # fmt: skip


@dataclass(frozen=True)
class FunctionCase:
    """A scalar function of a tree of tensors."""

    seed: int
    leaves: tuple[Leaf, ...]
    steps: tuple[Step, ...]
    checks: tuple[str, ...]
    tree: str = "dict"
    context: str = "none"
    dtype: str = "float64"
    direction: str = "normal"
    kind: str = "function"

    @property
    def variables(self) -> list[str]:
        """The names of the leaves of x."""
        return [leaf.name for leaf in self.leaves if leaf.varies]

    @property
    def sinks(self) -> list[str]:
        """The results that no later step reads."""
        read = {name for step in self.steps for name in step.args}
        return [step.out for step in self.steps if step.out not in read]

    def source(self, dtype: str | None = None) -> str:
        """What defines x, f and outputs (f before the last sums)."""
        names = self.variables
        body = [unpack_line(self.tree, names), *(step.source for step in self.steps)]
        lines = [leaf.source(dtype or f"torch.{self.dtype}") for leaf in self.leaves]
        lines += ["", f"x = {build_line(self.tree, names)}", "", "", "def outputs(x):"]
        lines += [f"    {line}" for line in body]
        lines += [f"    return [{', '.join(self.sinks)}]", "", "", "def f(x):"]
        lines += [
            "    return sum((t if t.ndim == 0 else (t + 0.5 * t**2).sum()) for t in outputs(x))"
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class ModelCase:
    """The risk of a model over batches."""

    seed: int
    layers: tuple[str, ...]
    loss: str
    inputs: str
    targets: str
    batches: tuple[int, ...]
    checks: tuple[str, ...]
    wrapper: str = "nn.Sequential"
    form: str = "list"
    weight_decay: float = 0.0
    context: str = "none"
    dtype: str = "float64"
    direction: str = "normal"
    kind: str = "model"

    def source(self, dtype: str | None = None) -> str:
        """What defines x, f (a risk), the whole of it as a plain function, and its outputs."""
        dtype = dtype or f"torch.{self.dtype}"
        facts = {"TOTAL": str(sum(self.batches)), "DTYPE": dtype}
        criterion, inputs, targets = (
            re.sub("TOTAL|DTYPE", lambda found: facts[found[0]], text)
            for text in (self.loss, self.inputs, self.targets)
        )
        loss = "criterion"
        if self.form == "dicts":
            loss = 'lambda outputs, batch: criterion(outputs, batch["labels"])'
        return f"""\
torch.manual_seed({self.seed})
model = {self.wrapper}({", ".join(self.layers)}).to({dtype}).eval()
criterion = {criterion}
loss = {loss}
inputs = {inputs}
targets = {targets}
data = batches_of(inputs, targets, {list(self.batches)}, {self.form!r})
x = {{name: p.detach().clone() for name, p in model.named_parameters()}}


def outputs(x):
    return called(model, x, inputs, {self.form!r})


def output_loss(z):
    return criterion(z, targets)


def of_inputs(inputs):
    return criterion(called(model, x, inputs, {self.form!r}), targets)


def f(x):
    decay = sum((p**2).sum() for p in x.values())
    return output_loss(outputs(x)) + 0.5 * {self.weight_decay} * decay
"""


Case = FunctionCase | ModelCase


def to_json(case: Case) -> dict[str, Any]:
    """A case as plain data."""
    return asdict(case)


def from_json(data: Mapping[str, Any]) -> Case:
    """The case of `to_json`."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    if fields["kind"] == "model":
        return ModelCase(**fields)
    leaves = (Leaf(**{**leaf, "shape": tuple(leaf["shape"])}) for leaf in fields["leaves"])
    steps = (Step(**{**step, "args": tuple(step["args"])}) for step in fields["steps"])
    return FunctionCase(**{**fields, "leaves": tuple(leaves), "steps": tuple(steps)})
