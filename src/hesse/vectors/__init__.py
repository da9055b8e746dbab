# SPDX-License-Identifier: Apache-2.0
"""Vectors: trees of tensors outside, flat tensors inside; all that a Krylov method does to them."""

from hesse.vectors.space import Space, all_finite, check_finite, unshared
from hesse.vectors.trees import Tree

__all__ = ["Space", "Tree", "all_finite", "check_finite", "unshared"]
