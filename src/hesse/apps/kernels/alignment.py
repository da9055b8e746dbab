# SPDX-License-Identifier: Apache-2.0
"""`alignment`: how much of a kernel points at the targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, ShapeError, check_flags, kind_of
from hesse.estimators.estimate import Estimate
from hesse.estimators.norm import norm
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_symmetric
from hesse.operators.dense import aslinearoperator
from hesse.operators.diagonal import IdentityOperator
from hesse.operators.low_rank import LowRankOperator
from hesse.progress import FilePath
from hesse.ranks import alike


@public("hesse.apps.alignment({K}, Y)")
def alignment(
    K: LinearOperator | Tensor,
    Y: Tensor,
    centred: bool = True,
    *,
    rtol: float = 0.01,
    generator: torch.Generator | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Estimate:
    r"""The cosine of the angle between a kernel and that of the targets.

    $$ \frac{\langle H K H,\, Y Y^T \rangle}{\lVert H K H \rVert_F\, \lVert H Y Y^T H \rVert_F},
       \qquad H = I - \tfrac1N 1 1^T $$

    1 where the kernel sees nothing but the targets; it grows as a network learns features.

    Args:
        K: a kernel of N examples, such as `ntk(..., trace=True)`; or of all outputs, N C of them.
        Y: targets (N,) or (N, C), of several processes those of this one. A kernel of all outputs
            is compared with vec(Y) vec(Y)', and centred over the examples of each output.
        centred: whether H is as above, or the identity.
        rtol: of the standard error of the Frobenius norm, if that is estimated.
        generator, progress, checkpoint: of that estimate, as in `norm`.

    Returns:
        Estimate(value, standard_error, products).

    Cost: a product for each column of Y, and those of `norm`: none for a matrix, at most N (or
        N C) for an operator.

    Raises:
        HesseError: targets that do not fit or are all alike; a kernel that is not symmetric, or is
            zero.

    References: Cortes, Mohri & Rostamizadeh 2012, JMLR 13 (centred alignment).

    >>> y = torch.tensor([1.0, -1.0, 2.0])
    >>> alignment(torch.outer(y, y), y, centred=False).value
    1.0
    """
    A = aslinearoperator(K)
    check_symmetric(A)
    check_flags(centred=centred)
    number = _number(A, Y)
    with alike(A.domain.ranks):
        columns = _columns(A, Y, number)
    if centred:
        H = _centring(A, number)
        columns, A = H._matmat(columns), H @ A @ H
    size = float(A.domain.gram(columns.T, columns.T).norm())
    inner = sum(A.domain.inner_pairs(*zip(columns.T, A._matmat(columns).T, strict=True)))
    found = norm(A, rtol=rtol, generator=generator, progress=progress, checkpoint=checkpoint)
    if size == 0.0 or found.value == 0.0:
        raise OperatorError(
            expected="a kernel and targets that are not constant over the examples",
            got="targets that are all alike" if size == 0.0 else "a kernel that is zero",
            remedy="Give varying targets; centred=False takes the kernel as it is.",
        )
    value = inner / (found.value * size)
    error = abs(value) * found.standard_error / found.value
    products = found.products + columns.shape[1]
    return Estimate(value, error, products, found.status, found.quantile)


def _number(K: LinearOperator, Y: Any) -> int:
    """The number of examples, of all processes that share the space of K."""
    with alike(K.domain.ranks):
        is_tensor = isinstance(Y, Tensor) and Y.ndim in (1, 2) and Y.is_floating_point()
        if not is_tensor:
            raise _misfit(K, Y)
    ranks = None if K.domain.shards is None else K.domain.ranks
    return len(Y) if ranks is None else sum(int(count) for (count,) in ranks.gather(len(Y)))


def _columns(K: LinearOperator, Y: Tensor, number: int) -> Tensor:
    """Y as columns of the space of K."""
    table, size = Y[:, None] if Y.ndim == 1 else Y, K.domain.size
    if K.shape[0] == number and size == len(Y):
        return table.to(K.device, K.dtype)
    if K.shape[0] == number * table.shape[1] and size == Y.numel():
        return table.reshape(-1, 1).to(K.device, K.dtype)
    raise _misfit(K, Y)


def _misfit(K: LinearOperator, Y: Any) -> ShapeError:
    return ShapeError(
        expected="Y with floating-point targets (N,) or (N, C), for a kernel of N or of N C rows",
        got=f"shape {tuple(Y.shape)}, {Y.dtype}, for a kernel of shape {K.shape}"
        if isinstance(Y, Tensor)
        else kind_of(Y),
        remedy="Of class labels give torch.nn.functional.one_hot(y, C).double().",
    )


def _centring(K: LinearOperator, number: int) -> LinearOperator:
    """H, over the examples of each output."""
    space, others = K.domain, K.shape[0] // number
    own = {"dtype": K.dtype, "device": K.device}
    units = torch.eye(others, **own).repeat(space.size // others, 1) * number**-0.5
    minus = -torch.ones(others, dtype=torch.float64, device=K.device)
    return IdentityOperator(space) + LowRankOperator(space, units, minus)
