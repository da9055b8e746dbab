"""Sparse Hessians: patterns, colours, evaluations and Newton's method, beside asdex on JAX.

`functions` are the problems, `peer` the same in JAX, `command` measures and prints.
"""

from benchmarks.sparse.command import main

__all__ = ["main"]
