# SPDX-License-Identifier: Apache-2.0
"""`alignment`: how much of a kernel points at the targets."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, ShapeError, check_flags, kind_of
from hesse.estimators.estimate import Estimate
from hesse.estimators.norm import norm
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_symmetric
from hesse.operators.dense import aslinearoperator
from hesse.operators.diagonal import identity_operator
from hesse.operators.kronecker import kronecker_operator
from hesse.operators.low_rank import LowRankOperator
from hesse.progress import FilePath


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
        Y: targets (N,) or (N, C). A kernel of all outputs is compared with vec(Y) vec(Y)', and
            centred over the examples of each output.
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
    columns = _columns(A, Y)
    if centred:
        H = _centring(A, len(Y))
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


def _columns(K: LinearOperator, Y: Tensor) -> Tensor:
    """Y as columns of the space of K."""
    is_tensor = isinstance(Y, Tensor) and Y.ndim in (1, 2) and Y.is_floating_point()
    if is_tensor and K.shape[0] == len(Y):
        return Y.reshape(len(Y), -1).to(K.device, K.dtype)
    if is_tensor and K.shape[0] == Y.numel():
        return Y.reshape(-1, 1).to(K.device, K.dtype)
    raise ShapeError(
        expected="Y with floating-point targets (N,) or (N, C), for a kernel of N or of N C rows",
        got=f"shape {tuple(Y.shape)}, {Y.dtype}, for a kernel of shape {K.shape}"
        if isinstance(Y, Tensor)
        else kind_of(Y),
        remedy="Of class labels give torch.nn.functional.one_hot(y, C).double().",
    )


def _centring(K: LinearOperator, number: int) -> LinearOperator:
    """H, over the examples of each output."""
    own = {"dtype": K.dtype, "device": K.device}
    ones = torch.full((number, 1), number**-0.5, **own)
    I = identity_operator(number, **own)
    H = I + LowRankOperator(I.domain, ones, -torch.ones(1, dtype=torch.float64, device=K.device))
    others = K.shape[0] // number
    return H if others == 1 else kronecker_operator(H, identity_operator(others, **own))
