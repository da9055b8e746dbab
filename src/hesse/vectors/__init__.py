# SPDX-License-Identifier: Apache-2.0
"""Vectors: trees of tensors outside, flat tensors inside, and what a Krylov method does to them."""

from hesse.vectors.aliasing import unshared
from hesse.vectors.arrays import as_array, as_tensor
from hesse.vectors.space import Space
from hesse.vectors.trees import Tree

__all__ = ["Space", "Tree", "as_array", "as_tensor", "unshared"]
