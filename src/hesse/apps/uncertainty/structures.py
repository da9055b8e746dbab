# SPDX-License-Identifier: Apache-2.0
"""The curvature of the negative log-likelihood in each structure that it may be taken in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.apps.uncertainty.chosen import Chosen
from hesse.curvature.fisher import fisher_operator
from hesse.curvature.fisher_root import fisher_root_operator
from hesse.curvature.kfac import kfac_operator
from hesse.curvature.memory_budget import MemoryBudget
from hesse.errors import OperatorError, ShapeError, StructureError, check_count
from hesse.estimators.diagonal import diagonal
from hesse.krylov.eigsh import eigsh
from hesse.methods import Hyperparameters
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import DenseOperator, aslinearoperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.operators.low_rank_factors import low_rank_operator
from hesse.operators.placed_blocks import Indexed, PlacedBlocks
from hesse.operators.rotated_diagonal import RotatedDiagonal
from hesse.risk.risk import Risk
from hesse.vectors.space import Space

Name = Literal["full", "kron", "diag", "low-rank", "last-layer"]
NAMES: list[Name] = ["full", "kron", "diag", "low-rank", "last-layer"]


@dataclass(frozen=True)
class Curvature:
    """A, the curvature of the data part of a risk on the chosen parameters."""

    A: LinearOperator
    about: str
    """How it was computed, in a few words."""
    products: int = 0
    root: LinearOperator | None = None
    """R with A = E' R R' E, from outputs to all parameters, where A is not a matrix."""

    @cached_property
    def spectrum(self) -> Tensor | None:
        """The eigenvalues in float64, where structure gives them."""
        return self.A._eigenvalues() if self.A.is_structured else None


@dataclass(frozen=True, repr=False)
class LowRank(Hyperparameters):
    """The largest eigenvalues of the curvature, a structure of `laplace`.

    Args:
        rank: how many.

    >>> LowRank(20)
    LowRank(rank=20)
    """

    rank: int = 100

    def _check(self) -> None:
        check_count("rank", self.rank, 1)


@dataclass(frozen=True)
class Settings:
    """How a structure is computed: see `laplace`."""

    max_dense: int
    is_uniform: bool
    """Whether the prior precision is a multiple of I, for which eigenvalues serve."""
    memory_budget: MemoryBudget
    generator: torch.Generator | None


def curvature_of(risk: Risk, chosen: Chosen, structure: Any, settings: Settings) -> Curvature:
    """The curvature of a risk without weight decay."""
    if not isinstance(structure, (str, LowRank)):
        return _given(structure, chosen)
    few = len(chosen.index) <= settings.max_dense
    if structure == "kron" or (structure == "last-layer" and not few):
        return _kronecker(risk, chosen, settings)
    F = fisher_operator(risk, chosen.params, memory_budget=settings.memory_budget)
    if structure == "diag":
        estimate = diagonal(F, generator=settings.generator)
        d = chosen.take(estimate.value).clamp(min=0.0)
        return Curvature(DiagonalOperator(chosen.space, d), "diagonal", estimate.products)
    A = chosen.restrict(F)
    if isinstance(structure, LowRank):
        return _low_rank(A, structure.rank, settings)
    if few:
        dense = _matrix(A.to_dense(), chosen.space, decomposed=settings.is_uniform)
        return Curvature(dense, "dense matrix", A.shape[0])
    kept = None if settings.memory_budget is None else "none"
    root = fisher_root_operator(risk, chosen.params, memory_budget=kept)
    return Curvature(A, "without the matrix", 0, root)


def _matrix(matrix: Tensor, space: Space, *, decomposed: bool) -> LinearOperator:
    """A semi-definite matrix, by its eigenvalues where these serve all precision matrices."""
    matrix = (matrix + matrix.T) / 2  # a product is symmetric up to rounding
    if not decomposed:
        return DenseOperator(matrix, symmetric=True, space=space)
    w, Q = torch.linalg.eigh(matrix.double())
    vectors = DenseOperator(Q.to(matrix.dtype), symmetric=False, space=space)
    return RotatedDiagonal(space, vectors, w.clamp(min=0.0))


def _low_rank(A: LinearOperator, rank: int, settings: Settings) -> Curvature:
    k = min(rank, A.shape[0])
    pairs = eigsh(A, k, generator=settings.generator)
    U, s = pairs.vectors, pairs.values.clamp(min=0.0)
    return Curvature(low_rank_operator(U, s), f"rank {k}", pairs.products)


def _kronecker(risk: Risk, chosen: Chosen, settings: Settings) -> Curvature:
    """K-FAC on the chosen parameters; every block must be chosen as a whole or not at all."""
    K = kfac_operator(risk, chosen.params, generator=settings.generator)
    position = torch.full((chosen.whole.n,), -1, device=chosen.index.device)
    position[chosen.index] = torch.arange(len(chosen.index), device=position.device)
    blocks, places = [], []
    for block in K.blocks:
        local = block.place.take(position)
        if bool((local < 0).all()):
            continue
        if bool((local < 0).any()):
            raise StructureError(
                expected="where= to choose the blocks of K-FAC as a whole: a weight with its bias",
                got=f"a part of the block of {', '.join(block.names)}",
                remedy="Choose both, by a pattern such as '2.*'; or structure='full'.",
            )
        blocks.append(block.operator(0.0))
        places.append(Indexed(local))
    A = PlacedBlocks(chosen.space, blocks, places)
    return Curvature(A, f"K-FAC, {len(blocks)} block{'s' * (len(blocks) != 1)}")


def _given(structure: Any, chosen: Chosen) -> Curvature:
    """An operator of the user's, on all parameters or on the chosen ones."""
    A = aslinearoperator(structure)
    n, s = chosen.whole.n, len(chosen.index)
    if A.shape not in ((n, n), (s, s)) or not A.symmetric:
        raise ShapeError(
            expected=f"structure to be a name, or a symmetric operator of shape ({n}, {n})"
            + ("" if s == n else f" or ({s}, {s})"),
            got=f"shape {A.shape}" + ("" if A.symmetric else ", not known to be symmetric"),
            remedy="Give the curvature of the risk, such as hesse.hessian_operator(risk, params).",
        )
    _, shift = A._split_shift()
    if shift != 0.0:
        raise OperatorError(
            expected="the curvature of the data alone: the prior precision is added to it",
            got=f"an operator with {shift:g} I in it, such as a weight decay, which would "
            "regularise twice",
            remedy="Build it from a risk without weight decay, or subtract it: A - c * I.",
        )
    return Curvature(A if A.shape == (s, s) else chosen.restrict(A), A._expression())
