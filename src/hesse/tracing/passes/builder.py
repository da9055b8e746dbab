# SPDX-License-Identifier: Apache-2.0
"""What passes make new nodes with; no rewrite of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hesse.tracing.graph import Node, TensorMeta
from hesse.tracing.shape_inference import infer_meta


class Builder:
    """A sequence of new nodes that takes the place of an old one.

    Args:
        metas: of the graph; those of new values are added.
        numbers: gives new values their numbers.
    """

    def __init__(self, metas: dict[int, TensorMeta], numbers: Iterator[int]) -> None:
        self._metas, self._numbers = metas, numbers
        self._nodes: list[Node] = []

    def call(self, function: Any, *args: Any) -> int:
        """Append function(*args), and return the number of its result."""
        number = next(self._numbers)
        self._metas[number] = infer_meta(function, args, self._metas)
        self._nodes.append(Node(function, args, {}, (number,), True))
        return number

    def instead_of(self, node: Node) -> list[Node]:
        """The nodes, if the last one's result has the layout of that of `node`; else `node`."""
        (result,), (made,) = node.results, self._nodes[-1].results
        assert result is not None and made is not None
        if not self._metas[made].same_layout(self._metas[result]):
            return [node]
        return [*self._nodes[:-1], replace(self._nodes[-1], results=node.results)]
