# SPDX-License-Identifier: Apache-2.0
"""A standalone script of one check of a case: it prints what is expected and what Hesse gives."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace

from tools.fuzz import prelude
from tools.fuzz.cases import Case
from tools.fuzz.judge import code_of, expectation

_HEAD = """\
import contextlib

import torch
import torch.utils.checkpoint
import torch.utils.flop_counter
from torch import nn
from torch.nn import functional as F

import hesse

"""


def script(case: Case, check: str, verdict: str) -> str:
    """Python source that needs torch and hesse alone."""
    case = replace(case, checks=(check,))
    body = case.source() + "\n\n" + _vectors(case) + code_of(case, check)
    crashes = verdict in ("crashed", "hung")  # and torch may, without Hesse
    expected = None if crashes else expectation(case, check)
    shown = "" if expected is None else f"\nprint('expected', {expected})"
    return f'"""{verdict}: {check}"""\n\n' + _HEAD + _definitions(body) + "\n\n" + body + (
        f"\nprint('got', got){shown}\n"
    )  # fmt: skip


def _vectors(case: Case) -> str:
    return f"""\
leaves, spec = torch.utils._pytree.tree_flatten(x)
n = sum(leaf.numel() for leaf in leaves)
generator = torch.Generator().manual_seed({case.seed})
v, w, y = (torch.randn(n, generator=generator).to(torch.{case.dtype}) for _ in range(3))
{_direction(case)}y = torch.cat([leaf.detach().reshape(-1) for leaf in leaves]) + 0.1 * y


def like_x(vector):
    parts = vector.split([leaf.numel() for leaf in leaves])
    return torch.utils._pytree.tree_unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)], spec)


"""


def _direction(case: Case) -> str:
    if case.direction == "unit":
        return f"v = torch.eye(n, dtype=v.dtype)[{case.seed} % n]\n"
    scale = {"tiny": "1e-6 * ", "huge": "1e6 * ", "zero": "0 * "}.get(case.direction, "")
    return f"v = {scale}v\n" if scale else ""


def _definitions(body: str) -> str:
    """What the body calls of the prelude, and what that calls."""
    source = inspect.getsource(prelude)
    parts = {
        node.name: ast.get_source_segment(source, node) or ""
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    for node in ast.parse(source).body:  # with the decorators
        if isinstance(node, ast.FunctionDef):
            marks = "".join(f"@{ast.unparse(mark)}\n" for mark in node.decorator_list)
            parts[node.name] = marks + parts[node.name]
    wanted: set[str] = set()
    text = body
    while True:
        found = {name for name in parts if re.search(rf"\b{name}\b", text)} - wanted
        if not found:
            return "\n\n\n".join(parts[name] for name in parts if name in wanted)
        wanted |= found
        text += "".join(parts[name] for name in found)
