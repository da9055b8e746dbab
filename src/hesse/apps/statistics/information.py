# SPDX-License-Identifier: Apache-2.0
"""An information matrix, which may be singular: solutions, null vectors, and what is determined."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.apps.statistics.likelihood import Likelihood
from hesse.boundary import warn
from hesse.errors import ArgumentError, NonFiniteError, OperatorError
from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space

_MOST = 4096  # parameters, whose matrix is held

# Entries of a null vector that are named.
_NAMED = 4
# A gradient that moves the estimate by more than this many standard errors is worth a warning.
_FAR = 0.01


@dataclass(frozen=True)
class Information:
    """H = V diag(w) V' of the parameters, scaled to a unit diagonal: H = D S D."""

    scale: Tensor
    """D, the square roots of the diagonal of H; 1 where that is 0."""
    w: Tensor
    """The eigenvalues of S that are not zero to rounding."""
    V: Tensor
    """Their eigenvectors."""
    null_vectors: Tensor
    """An orthonormal basis of the null space of H, (n, r)."""

    def solved(self, C: Tensor) -> tuple[Tensor, Tensor]:
        """H^+ C for columns C, and which of them are orthogonal to the null space."""
        scaled = C / self.scale[:, None]
        Y = (self.V @ ((self.V.T @ scaled) / self.w[:, None])) / self.scale[:, None]
        overlap = (self.null_vectors.T @ C).norm(dim=0)
        return Y, overlap <= 1e3 * torch.finfo(C.dtype).eps ** 0.5 * C.norm(dim=0)

    def distance(self, gradient: Tensor) -> float:
        """sqrt(g' H^+ g): how many standard errors a minimum of the quadratic is away.

        Warns where it is far.
        """
        along = self.V.T @ (gradient / self.scale)
        distance = float((along.square() / self.w).sum().sqrt())
        if distance > _FAR:
            warn(
                f"params is {distance:.2g} standard errors from the minimum of the negative "
                "log-likelihood: minimise further, or f has a penalty that is left out here."
            )
        return distance


def dense_information(likelihood: Likelihood, H: LinearOperator | None) -> Information:
    """The factorisation of an information matrix, by default of the expected one.

    Parameters of different units make H badly scaled, not singular: eigenvalues are those of the
    matrix with a unit diagonal. Raises at a negative one, warns at a zero.
    """
    space = likelihood.space
    if space.n > _MOST:
        raise ArgumentError(
            expected=f"at most {_MOST} parameters, whose information matrix is held",
            got=f"{space.n}",
            remedy="For one linear map c of very many parameters take hesse.solve(H, c).x @ c.",
        )
    matrix = (likelihood.fisher if H is None else H).to_dense()
    matrix = (matrix + matrix.T) / 2
    if not space.all_finite(matrix.reshape(-1)):
        raise NonFiniteError(
            expected="a finite information matrix",
            got="NaN or Inf",
            remedy="Check params and the data.",
        )
    diagonal = matrix.diagonal().clamp(min=0.0)
    scale = torch.where(diagonal > 0.0, diagonal.sqrt(), 1.0)
    values, vectors = torch.linalg.eigh(matrix / (scale[:, None] * scale))
    zero = 100 * len(values) * torch.finfo(matrix.dtype).eps * max(float(values[-1]), 0.0)
    if float(values[0]) < -max(zero, torch.finfo(matrix.dtype).eps ** 0.5 * float(values[-1])):
        raise OperatorError(
            expected="params to be a minimum of the negative log-likelihood",
            got=f"an information matrix with a negative eigenvalue, {float(values[0]):.3g} of its "
            "scaled form",
            remedy="Minimise further, with hesse.minimize(f, params); check the sign of f.",
        )
    kept = values > zero
    null = vectors[:, ~kept] / scale[:, None]
    if null.shape[1]:
        null = torch.linalg.qr(null).Q
        warn(_singular(space, null))
    return Information(scale, values[kept], vectors[:, kept], null)


def _singular(space: Space, null: Tensor) -> str:
    first = null[:, 0]
    largest = first.abs().argsort(descending=True)[:_NAMED]
    words = [f"{float(first[i]):+.2g} {entry_name(space, int(i))}" for i in largest.tolist()]
    return (
        f"The information matrix is singular: {null.shape[1]} direction(s) leave the likelihood "
        f"unchanged, the first along {' '.join(words)}. Estimates that depend on them have the "
        "standard error NaN. Fix a parameter, or drop a variable that the others determine."
    )


def entry_name(space: Space, i: int) -> str:
    """The name of an entry of the flat vector, such as weight[2]."""
    for name, size in zip(space.names, space.sizes, strict=True):
        if i < size:
            return f"{name or 'params'}[{i}]" if size > 1 else name or "params"
        i -= size
    raise IndexError(i)
