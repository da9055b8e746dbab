# SPDX-License-Identifier: Apache-2.0
"""The operations that random functions are composed of, as templates of Python source.

In a template

- `{0}`, `{1}` are tensors computed so far, and `{out}` is the result, of a template that is a
  statement;
- `{a|b|c}` is one of the alternatives; `{d}` a dimension of the first tensor;
- `<3, s[-1]>` is a new leaf of that shape, where s is the shape of the first tensor.

A template does not say what it needs: it is tried, and another is taken if torch refuses it.
"""

from __future__ import annotations

from tools.fuzz.operations.algebra import ALGEBRA
from tools.fuzz.operations.elementwise import BINARY, KINKED, SMOOTH
from tools.fuzz.operations.linear_algebra import LINEAR_ALGEBRA
from tools.fuzz.operations.nested import NESTED
from tools.fuzz.operations.networks import NETWORKS
from tools.fuzz.operations.reductions import LOSSES, REDUCTIONS
from tools.fuzz.operations.shapes import IN_PLACE, INDEXING, VIEWS

__all__ = ["GROUPS", "LOSSES"]

GROUPS: dict[str, tuple[float, tuple[str, ...]]] = {
    "smooth": (4.0, SMOOTH),
    "binary": (4.0, BINARY),
    "kinked": (1.5, KINKED),
    "reductions": (2.5, REDUCTIONS),
    "algebra": (3.0, ALGEBRA),
    "linear algebra": (1.5, LINEAR_ALGEBRA),
    "networks": (3.0, NETWORKS),
    "views": (2.0, VIEWS),
    "indexing": (2.0, INDEXING),
    "in place": (1.5, IN_PLACE),
    "nested": (0.6, NESTED),
    "losses": (1.0, LOSSES),
}
"""Groups of templates, each with its weight in a draw."""
