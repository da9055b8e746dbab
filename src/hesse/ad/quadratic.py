# SPDX-License-Identifier: Apache-2.0
"""Weight decay as a function: a quadratic whose derivatives are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.vectors.trees import Tree, walk


@dataclass(frozen=True)
class Quadratic:
    """f(x) = (c / 2) (|x|^2 + |y|^2) over all leaves of trees x and y: gradient c x, Hessian c I.

    >>> Quadratic(2.0)({"a": torch.tensor([1.0, 2.0])})
    tensor(5.)
    """

    curvature: float
    fixed: Tree = ()
    """y, which is held fixed."""

    def __call__(self, x: Tree) -> Tensor:
        leaves = [leaf for tree in (x, self.fixed) for _, leaf in walk(tree, "x")]
        squares = [(leaf * leaf).sum() for leaf in leaves]
        return 0.5 * self.curvature * torch.stack(squares).sum()
