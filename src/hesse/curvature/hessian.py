# SPDX-License-Identifier: Apache-2.0
"""The Hessian of a function at a point, as an operator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from hesse.ad.definition import Definition
from hesse.ad.hessian import HessianGraph
from hesse.ad.one_shot import ONE_SHOT_MODES
from hesse.ad.product import Mode
from hesse.boundary import public
from hesse.curvature.inputs_of_ranks import inputs_of_ranks
from hesse.curvature.memory_budget import MemoryBudget, within_budget
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.point import point_of
from hesse.curvature.with_respect_to import restrict
from hesse.engine.options import ProductOptions
from hesse.engine.summed_product import PREPARED_MODES
from hesse.errors import check_choice
from hesse.risk.risk import Risk
from hesse.tracing.precision import Precision, check_precision
from hesse.vectors.space import Tree

HessianMode = Literal[
    "auto",
    "compiled-split",
    "traced-split",
    "retained-graph",
    "reverse-over-reverse",
    "forward-over-reverse",
    "reverse-over-forward",
    "finite-difference",
    "forward-difference",
]


@dataclass(frozen=True)
class HessianDefinition(Definition):
    """H v = grad^2 f(x) v of a scalar f."""

    linearise = HessianGraph
    one_shot_modes: ClassVar[Mapping[str, Mode]] = ONE_SHOT_MODES


@public("hesse.hessian_operator(f, x)", nested=False)
def hessian_operator(
    f: Callable[[Any], Tensor],
    x: Tree | None = None,
    *,
    mode: HessianMode = "auto",
    with_respect_to: str | Collection[str] | None = None,
    memory_budget: MemoryBudget = None,
    precision: Precision = "highest",
) -> CurvatureOperator:
    r"""The Hessian of f at x as a symmetric operator.

    $$ H = \nabla^2 f(x) \in \mathbb{R}^{n \times n} $$

    Args:
        f: scalar function of one argument; a `Risk` is one.
        x: the point, as in `hvp`; it is copied. Of a `Risk` it may be left out: it is then the
            model as it is now (`risk.params` are the parameters at construction).
        mode: "auto", a mode of `hvp`, or one of three that prepare at x what all products share.
            "retained-graph" keeps the graph of the gradient: nothing to set up. "traced-split"
            traces once, for all points and all data of these shapes, a program of the product and
            keeps what does not depend on v. "compiled-split" compiles that. "auto" starts with the
            graph, on one batch or one after the other, and goes on to the others as soon as the
            time spent on products shows that they pay; `plan` tells which is in use, and why.
        with_respect_to: the name of a leaf of x, or of a group of leaves, a pattern, "*.weight", or
            a list of these: the other leaves are held fixed. "inputs", of a `Risk` at the
            parameters x: the inputs of the model, those of several batches concatenated along their
            first dimension; with `group=` those of this process.
        memory_budget: bytes, or a text such as "4GB", that tensors made for a product may take. The
            batches of a `Risk` are cut until a product fits, and residuals are kept for as many of
            them as fit. Some small products are taken at once to find out; for another f, one.
            Default: residuals of as many batches are kept as half of the free memory allows; "none"
            keeps those of no batch.
        precision: "highest", "high" (TF32 where a GPU has it) or "medium" (bfloat16 operands in
            large matrix products and convolutions, where the processor is faster in it). Value and
            gradient stay exact; `plan` tells the measured relative error of a product.

    Nothing else is computed until the first product or the first look at `value` or `gradient`.
    After a change of anything else that f reads, such as other parameters, make a new operator
    (`H.at(x)`): programs follow the change, a retained graph only where it needs what was changed,
    and a value or gradient that was looked at not at all.

    Cost: a prepared product 2 gradients, one-shot as in `hvp`; memory n for x, and the residuals
    of the batches that are kept until the operator is released.

    Raises:
        HesseError: as `hvp`; also if f draws random numbers.

    >>> import torch
    >>> H = hessian_operator(lambda x: (x**4).sum() / 12, torch.tensor([1.0, 2.0]))
    >>> H @ torch.ones(2), H.gradient, H.value
    (tensor([1., 4.]), tensor([0.3333, 2.6667]), tensor(1.4167))
    >>> H.at(torch.tensor([3.0, 0.0])).to_dense()
    tensor([[9., 0.],
            [0., 0.]])
    """
    check_choice("mode", mode, ["auto", *PREPARED_MODES, *ONE_SHOT_MODES])
    check_precision(precision, mode)
    x = point_of(f, x)
    definition, options = HessianDefinition(), ProductOptions(mode, precision)
    if with_respect_to is None:
        return within_budget(definition, f, x, options, memory_budget)

    def restricted(f: Any, x: Tree) -> CurvatureOperator:
        of, part, layouts = restrict(f, x, with_respect_to)
        return within_budget(definition, of, part, options, memory_budget, layouts=layouts)

    if with_respect_to == "inputs" and isinstance(f, Risk) and f.ranks is not None:
        return inputs_of_ranks(f.ranks, f, restricted, x, definition.name)
    return restricted(f, x)
