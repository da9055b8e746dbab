# SPDX-License-Identifier: Apache-2.0
"""The trees that a point may be: how to build one of its leaves, and how to take it apart."""

from __future__ import annotations

from collections.abc import Sequence

TREES = ("tensor", "dict", "list", "tuple", "nested", "named tuple", "parameters", "reversed dict")


def build_line(tree: str, names: Sequence[str]) -> str:
    """The expression of the tree."""
    if tree == "tensor" and len(names) == 1:
        return names[0]
    if tree == "list":
        return f"[{', '.join(names)}]"
    if tree == "tuple":
        return f"({', '.join(names)},)"
    if tree == "named tuple":
        fields = " ".join(names)
        return f'__import__("collections").namedtuple("Point", "{fields}")({", ".join(names)})'
    if tree == "nested":
        rest = ", ".join(f'"{name}": {name}' for name in names[1:])
        return f'{{"first": [({names[0]},)], "rest": {{{rest}}}}}'
    if tree == "parameters":
        return "{" + ", ".join(f'"{name}": nn.Parameter({name})' for name in names) + "}"
    if tree == "reversed dict":
        return "{" + ", ".join(f'"{99 - i}": {name}' for i, name in enumerate(names)) + "}"
    return "{" + ", ".join(f'"{name}": {name}' for name in names) + "}"


def unpack_line(tree: str, names: Sequence[str]) -> str:
    """The statement that takes the leaves out of x."""
    left = ", ".join(names) + ("," if len(names) == 1 else "")
    if tree == "tensor" and len(names) == 1:
        return f"{names[0]} = x"
    if tree in ("list", "tuple", "named tuple"):
        return f"{left} = x"
    if tree == "nested":
        rest = "".join(f'x["rest"]["{name}"], ' for name in names[1:])
        return f'{left} = x["first"][0][0], {rest}'
    if tree == "reversed dict":
        return f"{left} = " + ", ".join(f'x["{99 - i}"]' for i in range(len(names))) + ","
    return f"{left} = " + ", ".join(f'x["{name}"]' for name in names) + ","
