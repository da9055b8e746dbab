# SPDX-License-Identifier: Apache-2.0
"""`ntk`: the tangent kernel of a model between two sets of inputs, or its trace over outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from hesse.apps.kernels.outputs import jacobian_of
from hesse.apps.kernels.over_outputs import Spread, space_of_examples
from hesse.boundary import public
from hesse.errors import ShapeError, check_count, check_flags
from hesse.operators.algebra import LinearOperator
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree


@public("hesse.apps.ntk(g, params)")
def ntk(
    g: Risk | nn.Module | Callable[[Any, Any], Any],
    params: Tree | None = None,
    x: Any = None,
    x2: Any = None,
    *,
    trace: bool = False,
    signs: int | None = 1,
    generator: torch.Generator | None = None,
) -> LinearOperator:
    r"""The tangent kernel of a model, K = J(x) J(x2)', as an operator; the matrix is never formed.

    $$ K(x, x') = \frac{df(x)}{d\theta} \frac{df(x')}{d\theta}^T \in \mathbb{R}^{C \times C}, \qquad
       \bar K(x, x') = \tfrac1C \operatorname{tr} K(x, x') =
       \tfrac1C\, \mathbb{E}_z\, z^T K(x, x')\, z $$

    with C outputs an example, and random signs z. The nonzero eigenvalues of K are those of the
    Gauss-Newton matrix of the squared loss |f - y|^2 / 2, summed over the examples.

    Args:
        g: an `nn.Module`, or a callable (params, inputs) -> outputs; or a `Risk`, whose batches
            give the inputs (and whose loss and weight decay play no part).
        params: the point; of a module or a risk by default the parameters as they are now.
        x: inputs: a tensor, a tuple of positional or a mapping of keyword arguments. With a risk
            they take the place of its batches; each of several processes gives its part of them.
        x2: other inputs, for the columns; default x.
        trace: the trace kernel, with a row for each example instead of one for each output.
        signs: how many random signs z the trace kernel is the mean of. It is unbiased and positive
            semi-definite with one already. None: the exact trace, which is a sum over C outputs.
        generator: of the signs.

    Returns:
        An operator, symmetric without x2: (N C, N2 C), on vectors of outputs and trees like them;
        of the trace (N, N2). Of a risk that several processes share, vectors of outputs, or of
        examples, are in the process that has the examples.

    Cost: of a product, J' u and J v, 1.33 gradients together, with the residuals of x and x2 held;
        a risk takes one batch after the other. Of the trace kernel the same for each of the signs.
        A sum of outputs is one sign pattern too, but all ones: biased unless the outputs are
        independent, as they are at initialisation.

    Raises:
        HesseError: as `jacobian_operator`; no inputs; outputs that are not one tensor with an
            example in each row, for the trace; no signs.

    References: Jacot, Gabriel & Hongler 2018, arXiv:1806.07572; Mohamadi, Bae & Sutherland 2023,
        arXiv:2206.12543 (the kernel of a sum of outputs).

    >>> model, x = nn.Linear(2, 3), torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> ntk(model, x=x, trace=True).to_dense()                       # x x' + 1
    tensor([[6., 3.],
            [3., 2.]])
    >>> ntk(model, x=x).shape, ntk(model, x=x, x2=x[:1]).shape
    ((6, 6), (6, 3))
    """
    check_flags(trace=trace)
    J = jacobian_of(g, params, x)
    J2 = J if x2 is None else jacobian_of(g, params, x2)
    K = J @ J2.T
    if not trace:
        return K
    C = num_outputs(J)
    if num_outputs(J2) != C:
        raise ShapeError(
            expected=f"{C} outputs an example for x2, as for x",
            got=str(num_outputs(J2)),
            remedy="Give inputs of the same kind.",
        )
    return trace_kernel(J, J2, directions(C, signs, K, generator))


def directions(
    C: int, signs: int | None, K: LinearOperator, generator: torch.Generator | None
) -> Tensor:
    """Rows z: random signs, whose products have the mean I; or sqrt(C) times the unit vectors."""
    if signs is None:
        return torch.eye(C, dtype=K.dtype, device=K.device) * C**0.5
    count = check_count("signs", signs, 1)
    if generator is None and K.domain.ranks is not None:  # the one that all ranks have in common
        generator = K.domain.ranks.generator
    where = "cpu" if generator is None else generator.device
    bits = torch.randint(0, 2, (count, C), generator=generator, device=where)
    return (2 * bits - 1).to(K.device, K.dtype)


def trace_kernel(J: LinearOperator, J2: LinearOperator, rows: Tensor) -> LinearOperator:
    """The mean over z of (I x z') J J2' (I x z) / C."""
    C = rows.shape[1]
    space, parts = space_of_examples(J.codomain), []
    space2 = space if J2 is J else space_of_examples(J2.codomain)
    for z in rows / C**0.5:
        left = Spread(space, J.codomain, z)
        right = left if J2 is J else Spread(space2, J2.codomain, z)
        parts.append(left.T @ (J @ J2.T) @ right)
    return (1.0 / len(parts)) * reduce(add, parts) if len(parts) > 1 else parts[0]


def num_outputs(J: LinearOperator) -> int:
    """C, the number of outputs of an example.

    Raises:
        ShapeError: the outputs are not one tensor with an example in each row.
    """
    shapes = J.codomain.shapes
    if len(shapes) != 1 or len(shapes[0]) == 0:
        raise ShapeError(
            expected="outputs in one tensor, with a row for each example",
            got="a number" if len(shapes) == 1 else f"{len(shapes)} tensors",
            remedy="Let the model return outputs of shape (N, C).",
        )
    return max(shapes[0][1:].numel(), 1)
