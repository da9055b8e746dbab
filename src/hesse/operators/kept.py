# SPDX-License-Identifier: Apache-2.0
"""`kept`: what an operator computes once, and again after a matrix in it was written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def kept(compute: Callable[[Any], T]) -> Callable[[Any], T]:
    """A method of an operator whose result is kept for as long as `_written()` stays the same.

    An operator is immutable, but a dense matrix in it belongs to the user, who may write to it.

    >>> import torch
    >>> from hesse.operators import dense_operator, identity_operator, kronecker_operator
    >>> M = torch.eye(2)
    >>> A = kronecker_operator(M, M) + identity_operator(4)
    >>> A._inverse().to_dense().diagonal()
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    >>> _ = M.mul_(2.0)
    >>> A._inverse().to_dense().diagonal()
    tensor([0.2000, 0.2000, 0.2000, 0.2000])
    """
    name = f"_kept_{compute.__name__}"

    def result(self: Any) -> T:
        written, known = self._written(), vars(self).get(name)
        if known is None or known[0] != written:
            known = vars(self)[name] = (written, compute(self))
        return known[1]

    result.__name__, result.__doc__ = compute.__name__, compute.__doc__
    return result
