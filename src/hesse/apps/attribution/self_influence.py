# SPDX-License-Identifier: Apache-2.0
"""`self_influence`: what the removal of a training example does to its own loss."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.apps.attribution.blocks import Blocks, examples_at
from hesse.apps.attribution.influence import Influence, checked
from hesse.apps.attribution.matrix import Curvature, Matrix
from hesse.boundary import public
from hesse.checkpoint import Checkpoint, FilePath, same_generator
from hesse.errors import check_count
from hesse.krylov.solution import Solution
from hesse.operators.algebra import LinearOperator
from hesse.ranks import check_same_checkpoint
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree


@public("hesse.apps.self_influence(risk, params)")
def self_influence(
    risk: Risk,
    params: Tree | None = None,
    *,
    curvature: Curvature = "ggn",
    damping: float = 0.0,
    most: int = 256,
    rtol: float = 1e-2,
    preconditioner: LinearOperator | Tensor | str | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Influence:
    r"""How much the loss of each training example rises if it is removed: how far it is memorised.

    $$ I_{ii} = \tfrac1N\, g_i^T (H + \mu I)^{-1} g_i $$

    with H, g_i, mu and the sign as in `influence`: H has the weight decay in it, g_i has not, and
    a positive number is a rise of the loss by removal. Outliers and wrong labels have large ones.
    They normalise influences: I_qi / sqrt(N I_ii) is the relative influence (l-RelatIF), in which
    outliers do not come first for every query.

    Args:
        risk, params, curvature, damping, rtol, preconditioner, generator: as in `influence`.
        most: gradients held at a time, which are solved for as one block.
        progress: show a bar for each block.
        checkpoint: as in `solve`; the state is saved after every block.

    Returns:
        Influence, with `scores` of shape (N,), where several processes share the data those of the
        examples of this one; `solution` is that of the last block.

    Cost: a gradient for each example, and a system, in blocks: 2 or 3 products each where `most` is
        some hundreds. With curvature="ekfac", or an operator with a cheap inverse such as low rank
        plus `lam * I`, no products. Memory: some 8 `most` vectors.

    Raises:
        HesseError: as `influence`.

    References: Barshan et al. 2020, arXiv:2003.11630 (relative influence).

    >>> x = torch.tensor([[1.0], [1.0], [2.0]]).double()
    >>> y = torch.tensor([[1.0], [2.0], [3.0]]).double()
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> slope = {"weight": torch.tensor([[1.5]]).double()}
    >>> self_influence(Risk(model, torch.nn.MSELoss(), (x, y)), slope).scores   # g = 1, -1, 0
    tensor([0.0833, 0.0833, 0.0000], dtype=torch.float64)
    """
    check_count("most", most, 1)
    risk, params, each = checked(risk, params)
    check_same_checkpoint(risk.ranks, checkpoint)
    matrix = Matrix(
        *(risk, params, curvature, damping, rtol, preconditioner),
        generator=same_generator(generator, checkpoint),
        progress=progress,
    )
    A = matrix.of(risk)

    def solved(rows: Tensor) -> tuple[Tensor, Solution]:
        """The self-influence of the examples with these gradients."""
        solution = matrix.solved(A, rows.T.contiguous())
        inner = matrix.space.inner_pairs(*zip(rows, solution.x.T, strict=True))
        own = torch.tensor(inner, dtype=rows.dtype, device=rows.device) / each.number
        return own, solution

    file = Checkpoint(
        *(checkpoint, A),
        function="self_influence",
        settings=repr((damping, most, rtol, each.number)),
        examples=None if checkpoint is None else examples_at(params, each),
    )
    done, solution = Blocks(solved, file).of(each.gradients_of_all(params, most))
    scores = torch.cat(done.scores)[each.places.start : each.places.stop]
    return Influence(scores, None, "downweight", solution, done.products, done.converged)
