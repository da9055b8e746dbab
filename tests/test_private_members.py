# SPDX-License-Identifier: Apache-2.0
"""No file reaches into another object's private members, but for the operator protocol."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hesse
from hesse.operators import protocol

FOLDER = Path(hesse.__file__).parent
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.py"))

# What every operator implements and every algorithm may call: the table of protocol.py.
PROTOCOL = set(re.findall(r"^\| `(_\w+)\(", protocol.__doc__ or "", re.MULTILINE))
# Private names of torch and Python for which there is no public one, and the files that use them.
FOREIGN = {
    "ad/decompositions.py": {"torch._VF", "torch._weight_norm"},
    "ad/double_backward.py": {"part._is_zerotensor"},
    "ad/forward_mode.py": {
        "node._saved_input2",
        "node._saved_reduce",
        "node._saved_self",
        "node._saved_training",
    },
    "ad/graph_nodes.py": {"node._forward_cls"},
    "ad/likelihoods/seen.py": {"p._version"},
    "boundary.py": {"sys._getframe"},
    "dispatch.py": {
        "torch.utils._python_dispatch",
        "_python_dispatch._get_current_dispatch_mode_stack",
    },
    "engine/data_version.py": {"t._version"},
    "operators/protocol.py": {"sys._getframe"},
    "vectors/aliasing.py": {"tensor._version"},
    "surroundings.py": {
        "torch._C",
        "torch._C._autograd",
        "_hooks._pop_saved_tensors_default_hooks",
        "_hooks._push_saved_tensors_default_hooks",
        "_hooks._top_saved_tensors_default_hooks",
        "torch._C._len_torch_dispatch_stack",
        "torch._C._get_overrideable_sdp_enabled",
        "torch._C._is_any_autocast_enabled",
        "torch._C._len_torch_function_stack",
        "torch._C._set_sdp_use_overrideable",
    },
    "tracing/backends/inductor.py": {"torch._inductor"},
    "tracing/operations.py": {"function._op", "function._overloadname", "function._schema"},
    "tracing/transforms.py": {"torch._C", "torch._C._functorch"},
    "tracing/vmap.py": {
        "torch._C",
        "torch._C._functorch",
        "functorch._set_vmap_fallback_warning_enabled",
    },
    "vectors/checks.py": {
        "torch._C",
        "torch._C._functorch",
        "torch._functorch.pyfunctorch",
    },
}
# Operations of torch whose names begin with an underscore are as public as all others.
OPERATIONS = ("_aten.", "torch.ops.")
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
FIELDS = {"_fields", "_repr_html_"}  # of named tuples and notebooks, both documented


def is_private(name: str) -> bool:
    return any(re.match(r"_(?!_)", part) for part in name.split("."))


class Reader(ast.NodeVisitor):
    """The private members of other objects that a module reads or writes."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []
        self.own: list[set[str]] = []  # the members of the classes around

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.own.append(set(members(node)))
        self.generic_visit(node)
        self.own.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = ast.unparse(node.value)
        of_itself = owner in ("self", "cls", "super()") or any(node.attr in own for own in self.own)
        if is_private(node.attr) and not of_itself:
            self.note(node, node.attr, f"{owner}.{node.attr}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in BY_NAME and len(node.args) > 1:
            owner, name = node.args[:2]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                self.note(node, str(name.value), f"{ast.unparse(owner)}.{name.value}")
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if is_private(node.module or ""):
            self.note(node, "", node.module or "")
        for alias in node.names:
            if is_private(alias.name):
                self.note(node, "", f"{node.module}.{alias.name}")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if is_private(alias.name):
                self.note(node, "", alias.name)

    def note(self, node: ast.AST, name: str, full: str) -> None:
        if name not in PROTOCOL | FIELDS and not full.startswith(OPERATIONS):
            self.found.append((getattr(node, "lineno", 0), full))


def members(cls: ast.ClassDef) -> Iterator[str]:
    """The names that a class defines: methods, fields, and what it sets on `self`."""
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) == "self":
                yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def reaches(source: str) -> list[tuple[int, str]]:
    reader = Reader()
    reader.visit(ast.parse(source))
    return reader.found


def test_private_members_stay_private():
    for file in FILES:
        found = reaches((FOLDER / file).read_text(encoding="utf-8"))
        assert {full for _, full in found} <= FOREIGN.get(file, set()), f"{file}: {found}"


def test_every_exception_is_in_use():
    for file, names in FOREIGN.items():
        assert {full for _, full in reaches((FOLDER / file).read_text(encoding="utf-8"))} == names


def test_the_protocol_is_the_documented_one():
    methods = {name for name in vars(protocol.OperatorProtocol) if is_private(name)}
    assert methods - {"_abc_impl"} == PROTOCOL


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x._secret", ["x._secret"]),
        ("self._at._secret = 1", ["self._at._secret"]),
        ("getattr(x, '_secret')", ["x._secret"]),
        ("from hesse.engine.point import _secret", ["hesse.engine.point._secret"]),
        ("from torch._C import name", ["torch._C"]),
        ("class A:\n    def f(self, other): return other._n\n", ["other._n"]),
        ("class A:\n    def f(self, other): self._n = other._n\n", []),
        ("A._matvec(v); super()._f(); self._f(); x.__class__; torch.ops.aten._to_copy", []),
    ],
)
def test_the_reader_sees_what_is_private(source, found):
    assert [full for _, full in reaches(source)] == found
