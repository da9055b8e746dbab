# SPDX-License-Identifier: Apache-2.0
"""The entries of a sparse Hessian at a point, by a program of their own where there is one.

A program of the entries and the products of a coloured block give the same numbers. The program
takes a third of the time or less, but it has rules for few operations; the block is of use for any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.engine.program_product import ProgramProduct
from hesse.engine.quadratic_product import QuadraticProduct
from hesse.tracing.program import Program, run
from hesse.tracing.sparsity.collect import Places
from hesse.tracing.sparsity.detect import LinearPart
from hesse.tracing.sparsity.entries import entries_program


@dataclass(frozen=True)
class EntryPrograms:
    """For every summand of f residuals -> entries; for weight decay the entries of the identity."""

    programs: tuple[Program | Tensor, ...]

    def entries(self, H: CurvatureOperator, v: Tensor) -> Tensor:
        """All entries of H, in the order of the pattern; v is any direction."""
        total: Tensor | None = None
        for (c, product), program in zip(H.summand_products(v), self.programs, strict=True):
            part, owned = _part(product, program)
            if total is None:
                total = part if owned and c == 1.0 else c * part
            else:
                total.add_(part, alpha=c)
        assert total is not None
        return total


def entry_programs(
    H: CurvatureOperator, v: Tensor, pattern: Any, varying: list[Any], count: int
) -> EntryPrograms | None:
    """The programs for H at its point, if all summands have one that costs less than products.

    Args:
        H: the operator, whose programs are there.
        v: any direction.
        pattern: of H, with sorted indices.
        varying: for every summand the rows of the entries that are not frozen.
        count: how many products give all entries.
    """
    places = Places(pattern)
    programs: list[Program | Tensor] = []
    for (_, product), rows in zip(H.summand_products(v), varying, strict=True):
        program = _program(product, places, rows, count)
        if program is None:
            return None
        programs.append(program)
    return EntryPrograms(tuple(programs))


def _part(product: Any, program: Program | Tensor) -> tuple[Tensor, bool]:
    """The entries of a summand, and whether their memory may be written to."""
    if isinstance(program, Tensor):
        return product.curvature * program, True
    (part,) = run(program, product.residuals)
    return part, program.makes_outputs


def _program(product: Any, places: Places, rows: Any, count: int) -> Program | Tensor | None:
    if isinstance(product, QuadraticProduct):
        space = product.point.variables.space
        diagonal = torch.zeros(places.count + 1, dtype=space.dtype)
        diagonal[places.of(rows, rows)] = 1.0
        return diagonal[places.origins].to(space.device)
    assert isinstance(product, ProgramProduct)
    partition, num_variables = product.partition, len(product.point.variables.x)
    single = partition.tangents["product"]
    try:
        part = LinearPart.of(single, product.residuals, partition.primal, num_variables)
        program = entries_program(single, product.residuals, part, places, rows)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # an operation without a rule, or too many terms: products serve
        return None
    return program if costs_less(program, single, count) else None


def costs_less(program: Program, product: Program, count: int) -> bool:
    """Whether the program of the entries writes less than so many products."""
    return program.written_bytes < count * product.written_bytes
