# SPDX-License-Identifier: Apache-2.0
"""Where a Hessian can have entries, and the products that give them: the same at many points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.sparse_entries import Entries, EntryPrograms, entry_programs
from hesse.engine.compiler import remedy_for
from hesse.engine.point import Point
from hesse.engine.program_product import ProgramProduct
from hesse.engine.quadratic_product import QuadraticProduct
from hesse.errors import DerivativeError, ShapeError
from hesse.operators.sparse.colouring import Method
from hesse.operators.sparse.recovery import Compression
from hesse.tracing.partition import Partition
from hesse.tracing.sparsity.detect import Detection, UnknownOperationError, detect
from hesse.tracing.sparsity.patterns import TooDenseError

# So many products will follow: a trace pays.
MANY = 1000


@dataclass(frozen=True)
class Structure:
    """A pattern with a colouring, and what the pattern was detected from.

    Args:
        compression: the pattern and its colouring.
        detections: of every summand of f its programs, and the pattern of its product; none for a
            pattern that the user gave.
        dtype, device: of the products.
        programs: of the entries, where there are such.
    """

    compression: Compression
    detections: tuple[tuple[Partition, Detection] | None, ...]
    dtype: torch.dtype
    device: torch.device
    programs: EntryPrograms | None = None

    @property
    def is_local(self) -> bool:
        """Whether the pattern may be another at another point."""
        return any(found is not None and found[1].is_local for found in self.detections)

    @property
    def num_products(self) -> int:
        """How many products give all entries."""
        return self.compression.colouring.count

    @property
    def cost(self) -> int:
        """What the entries at a point cost, in products; less than that many by a program."""
        return self.num_products if self.programs is None else math.ceil(self.programs.cost)

    @cached_property
    def seeds(self) -> Tensor:
        """The directions of these products, as columns; shape (n, colours)."""
        return self.compression.seeds(self.dtype, self.device).T

    @cached_property
    def direction(self) -> Tensor:
        """Any one, for which a product is made ready."""
        n = self.compression.pattern.shape[0]
        return torch.ones(n, dtype=self.dtype, device=self.device)

    def entries(self, H: CurvatureOperator, *, verified: bool) -> Entries | None:
        """All entries of H, in the order of the pattern; None where the structure may be another.

        Args:
            H: the operator.
            verified: whether H has taken a product at its point, which is then known to be right.
        """
        if self.programs is not None:
            found = self.programs.entries(H, verified=verified)
            if found is not None or not verified:
                return found  # else f is a difference of large terms here, and one of rounding
        H.announce(MANY)
        if not self.holds_for(H):
            return None
        return Entries(self.compression.entries(H._matmat(self.seeds).T), are_finite=False)

    def holds_for(self, H: CurvatureOperator) -> bool:
        """Whether the pattern is that of H too, which is taken at another point.

        It is if the programs are the same and all indices in them.
        """
        if not self.detections:
            return True
        pairs = zip(H.summand_products(self.direction), self.detections, strict=True)
        return all(_holds_for(product, found) for (_, product), found in pairs)


def detected(H: CurvatureOperator, v: Tensor, method: Method) -> Structure:
    """The structure of a Hessian at its point.

    Args:
        H: the operator; it has taken a product, so that its programs are there.
        v: any direction.
        method: of the colouring.
    """
    total, detections, varying = None, [], []
    for _, product in H.summand_products(v):
        varying.append(_varying(product.point))
        found, pattern = _detected(H, product, varying[-1])
        detections.append(found)
        total = pattern if total is None else total + pattern
    assert total is not None
    compression = Compression(_symmetric(total), method)
    programs = entry_programs(H, v, compression, varying, detections)
    return Structure(compression, tuple(detections), H.dtype, H.device, programs)


def given(H: CurvatureOperator, pattern: Any, method: Method) -> Structure:
    """The structure with a pattern that the user knows."""
    n = H.domain.n
    pattern = sp.csr_array(pattern).astype(bool)
    if pattern.shape != (n, n):
        raise ShapeError(
            expected=f"pattern of shape ({n}, {n}), that of the Hessian",
            got=f"shape {pattern.shape}",
            remedy="Give a matrix with a nonzero wherever the Hessian may have one.",
        )
    return Structure(Compression(_symmetric(pattern), method), (), H.dtype, H.device)


def _symmetric(pattern: Any) -> Any:
    """The symmetric pattern with sorted indices."""
    pattern = (pattern + pattern.T).tocsr()
    pattern.eliminate_zeros()
    pattern.sort_indices()
    return pattern


def _holds_for(product: Any, found: tuple[Partition, Detection] | None) -> bool:
    if found is None or not isinstance(product, ProgramProduct):
        return found is None and isinstance(product, QuadraticProduct)
    partition, detection = found
    return product.partition is partition and detection.holds_for(product.residuals)


def _detected(
    H: CurvatureOperator, product: Any, varying: Any
) -> tuple[tuple[Partition, Detection] | None, Any]:
    """What was detected in the product of a summand, and the pattern of the whole vector."""
    n = product.point.variables.space.n
    if isinstance(product, QuadraticProduct):
        ones = np.ones(len(varying), dtype=bool)
        return None, sp.csr_array((ones, (varying, varying)), shape=(n, n))
    if not isinstance(product, ProgramProduct):
        reason = "; ".join(H.plan.notes) or "a product that was not traced"
        raise DerivativeError(
            expected="an f whose products can be traced: the pattern is found in the trace",
            got=reason,
            remedy=remedy_for(reason, "Use hesse.hessian_operator(f, x), which takes another way."),
        )
    partition, num_variables = product.partition, len(product.point.variables.x)
    try:
        found = detect(
            *(partition.tangents["product"], product.residuals, partition.primal, num_variables)
        )
    except TooDenseError as error:
        raise DerivativeError(
            expected="an f with a sparse Hessian: a sum of terms of few variables each",
            got=f"an operation of its product, {error}",
            remedy="Use hesse.hessian_operator(f, x). A function of a sum over all variables, such "
            "as a norm, has a dense Hessian.",
        ) from None
    except UnknownOperationError as error:
        raise DerivativeError(
            expected="an f made of operations whose sparsity is known",
            got=f"the operation {error}",
            remedy="Give pattern=, a matrix with a nonzero wherever the Hessian may have one; it "
            "is checked by a product. Or use hesse.hessian_operator(f, x).",
        ) from None
    pattern = found.pattern
    if len(varying) < n:  # a frozen leaf has zero rows
        place = sp.csr_array((np.ones(len(varying), bool), (varying, np.arange(len(varying)))))
        place.resize(n, len(varying))
        pattern = (place @ pattern).tocsr()
    return (partition, found), pattern


def _varying(point: Point) -> Any:
    """The places of the leaves that are not frozen, in a flat vector."""
    variables = point.variables
    starts = accumulate([0, *variables.sizes])
    return np.concatenate(
        [
            np.arange(start, start + size)
            for start, size, cold in zip(starts, variables.sizes, variables.constants, strict=False)
            if cold is None
        ]
    )
