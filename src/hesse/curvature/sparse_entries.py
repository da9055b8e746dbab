# SPDX-License-Identifier: Apache-2.0
"""The entries of a sparse Hessian at a point, by a program of their own where there is one.

A program of the entries and the products of a coloured block give the same numbers. The program
takes a third of the time or less, but it has rules for few operations; the block is of use for any.
It is written from residuals, and composed with the program of these: at a point nothing else runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.engine.point_program import Evaluation, PointProgram, SameFunction
from hesse.engine.program_product import ProgramProduct
from hesse.engine.quadratic_product import QuadraticProduct
from hesse.operators.sparse.recovery import Compression
from hesse.tracing.compose import composed
from hesse.tracing.partition import Partition
from hesse.tracing.program import Program
from hesse.tracing.sparsity.collect import Places
from hesse.tracing.sparsity.detect import Detection, LinearPart
from hesse.tracing.sparsity.entries import entries_program
from hesse.vectors.space import Space


class Entries(NamedTuple):
    """The entries of a matrix, in the order of its pattern."""

    values: Tensor
    are_finite: bool
    """Whether they are known to be."""


@dataclass(frozen=True)
class SummandEntries:
    """The entries of one summand of f at any point.

    Args:
        program: inputs of f -> the operands of the detection, the entries, a sum that is finite
            only if these are.
        detection: of the pattern.
        written_bytes: what is written for the entries, once residuals are there.
    """

    program: PointProgram
    detection: Detection
    written_bytes: int

    def entries(self, at: Evaluation, *, verified: bool) -> Entries | None:
        """Those at a point; None where the program or the pattern may be another."""
        results = self.program.run(at, verified=verified)
        if results is None:
            return None
        *operands, values, total = results
        if not self.detection.holds_with(operands):
            return None
        return Entries(values, math.isfinite(float(total)))


@dataclass(frozen=True)
class EntryPrograms:
    """The entries of every summand of f; of weight decay those of the identity.

    Args:
        summands: these.
        cost: of all of them, in products, by the bytes that are written.
    """

    summands: tuple[SummandEntries | Tensor, ...]
    cost: float

    def entries(self, H: CurvatureOperator, *, verified: bool) -> Entries | None:
        """All entries of H, in the order of the pattern; None where programs do not hold."""
        total: Tensor | None = None
        are_finite = len(self.summands) == 1  # a sum of finite entries may overflow
        for (c, at), summand in zip(H.evaluations(), self.summands, strict=True):
            if isinstance(summand, Tensor):
                part, owned = QuadraticProduct(at.point).curvature * summand, True
            else:
                found, owned = summand.entries(at, verified=verified), summand.program.makes_results
                if found is None:
                    return None
                part, are_finite = found.values, are_finite and found.are_finite and c == 1.0
            if total is None:
                total = part if owned and c == 1.0 else c * part
            else:
                total.add_(part, alpha=c)
        return None if total is None else Entries(total, are_finite)


def entry_programs(
    H: CurvatureOperator,
    v: Tensor,
    compression: Compression,
    varying: list[Any],
    detections: Sequence[tuple[Partition, Detection] | None],
) -> EntryPrograms | None:
    """The programs for H at its point, if all summands have one that costs less than products.

    Args:
        H: the operator, whose programs are there.
        v: any direction.
        compression: of H; the colouring is made only if it decides.
        varying: for every summand the rows of the entries that are not frozen.
        detections: in every summand.
    """
    places = Places(compression.pattern)
    summands: list[SummandEntries | Tensor] = []
    written = product_written = 0
    products = H.summand_products(v)
    for (_, product), rows, found in zip(products, varying, detections, strict=True):
        if found is None or isinstance(product, QuadraticProduct):
            summands.append(_identity(product.point.variables.space, places, rows))
            continue
        assert isinstance(product, ProgramProduct)
        summand = _summand(product, places, rows, compression, found[1])
        if summand is None:
            return None
        summands.append(summand)
        written += summand.written_bytes
        product_written += product.partition.tangents["product"].written_bytes
    return EntryPrograms(tuple(summands), written / max(product_written, 1))


def _identity(space: Space, places: Places, rows: Any) -> Tensor:
    """The entries of the identity."""
    diagonal = torch.zeros(places.count + 1, dtype=space.dtype)
    diagonal[places.of(rows, rows)] = 1.0
    return diagonal[places.origins].to(space.device)


def _summand(
    product: ProgramProduct, places: Places, rows: Any, compression: Compression, found: Detection
) -> SummandEntries | None:
    entry, single = product.entry, product.partition.tangents["product"]
    program = _from_residuals(product, places, rows)
    if program is None:
        return None
    if not (
        costs_less(program, single, compression.fewest)
        or costs_less(program, single, compression.colouring.count)  # made only if it decides
    ):
        return None
    partition, checked, after = (
        product.partition,
        entry.primal_and_outputs,
        [found.operands, program],
    )
    assert checked is not None
    point_program = PointProgram(
        composed(checked, entry.num_outputs, after),
        composed(partition.primal, 0, after),
        entry,
        SameFunction(product.point.function.function, checked),
    )
    return SummandEntries(point_program, found, program.written_bytes)


def _from_residuals(product: ProgramProduct, places: Places, rows: Any) -> Program | None:
    """residuals -> entries; None for an operation without a rule, or too many terms."""
    partition, num_variables = product.partition, len(product.point.variables.x)
    single = partition.tangents["product"]
    try:
        part = LinearPart.of(single, product.residuals, partition.primal, num_variables)
        return entries_program(single, product.residuals, part, places, rows)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None


def costs_less(program: Program, product: Program, count: int) -> bool:
    """Whether the program of the entries writes less than so many products."""
    return program.written_bytes < count * product.written_bytes
