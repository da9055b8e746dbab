# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: a few numbers by which a run recognises its operators and its sharded vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space

Fingerprint = tuple[float, float, float]
"""A norm, an inner product with a fixed vector, and the rounding error to allow in both."""


def of_operator(A: LinearOperator) -> Fingerprint:
    """|A z| and z'A z for a fixed z with |z| = 1. One product."""
    z = _probe(A.domain)
    product = A._matvec(z)
    along = A.domain.inner(z, product) if A.shape[0] == A.shape[1] else 0.0
    return A.codomain.norm(product), along, _rounding(A.domain)


def of_vector(space: Space, v: Tensor) -> Fingerprint:
    """|v| and z'v; of a block (n, k) those of a fixed combination of its columns.

    They do not depend on how vectors are sharded, up to rounding.
    """
    columns = v.reshape(len(v), -1)
    weights = torch.cos(torch.arange(1, columns.shape[1] + 1, dtype=torch.float64) ** 2)
    combined = columns @ weights.to(columns)
    return space.norm(combined), space.inner(_probe(space), combined), _rounding(space)


def _probe(space: Space) -> Tensor:
    """The same vector of norm 1 however vectors are sharded, up to rounding."""
    z = torch.cos((space.positions.cpu() + 1).double() ** 2).to(space.device, space.dtype)
    return z / space.norm(z)


def _rounding(space: Space) -> float:
    return torch.finfo(space.dtype).eps ** 0.5
