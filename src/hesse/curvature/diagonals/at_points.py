# SPDX-License-Identifier: Apache-2.0
"""How the diagonal of a curvature matrix is computed at the points of its function."""

from __future__ import annotations

from typing import Any

from hesse.ad.definition import Definition
from hesse.ad.variables import Variables
from hesse.vectors.space import Tree


class Diagonals:
    """How the diagonal is computed at the points of f, as the definition says at the first one."""

    def __init__(self, definition: Definition, f: Any) -> None:
        self._definition, self._f = definition, f
        self._found: tuple[Any] | None = None

    def at(self, x: Tree, variables: Variables) -> Any:
        """The `ComputedDiagonal` at x, which has these variables; or None."""
        if self._found is None:
            self._found = (self._definition.diagonals(self._f, x),)
        (diagonals,) = self._found
        return None if diagonals is None else diagonals.at(variables)
