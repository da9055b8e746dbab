# SPDX-License-Identifier: Apache-2.0
"""`standard_errors`: how exact a maximum likelihood estimate is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.apps.statistics.information import dense_information
from hesse.apps.statistics.likelihood import Likelihood, likelihood_at
from hesse.boundary import public
from hesse.curvature.jacobian import jacobian_operator
from hesse.errors import ArgumentError, ShapeError, check_choice
from hesse.operators.algebra import LinearOperator
from hesse.ranks import alike
from hesse.result import Result
from hesse.risk.risk import Risk
from hesse.vectors.arrays import as_numbers
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True, repr=False)
class StandardErrors(Result):
    """Estimates with their standard errors."""

    estimate: Any
    """The parameters, a tree; or the linear map of them that was asked for, shape (m,)."""
    standard_error: Any
    """Of the same form; NaN where the data do not determine the estimate."""
    z: Any
    """estimate / standard_error."""
    covariance: Tensor
    """The covariance matrix of all estimates, in the order of the flat vector, (m, m)."""
    information: str
    """Which information matrix, and which robust form."""
    distance: float
    """How far params is from the minimum, in standard errors: sqrt(g' H^-1 g)."""
    null_vectors: Tensor | None = None
    """Directions (n, r) that leave the likelihood unchanged, if there are any."""

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """(low, high) by the normal distribution (Wald), each a tree like the estimate.

        Args:
            level: how often it holds the truth, for many observations.
        """
        width = normal_quantile(level)
        space = Space.of(self.estimate)
        middle, error = space.flatten(self.estimate), space.flatten(self.standard_error)
        return space.unflatten(middle - width * error), space.unflatten(middle + width * error)


def normal_quantile(level: float) -> float:
    """z with P(|Z| <= z) = level."""
    if not (isinstance(level, float) and 0.0 < level < 1.0):
        raise ArgumentError(
            expected="level between 0 and 1", got=repr(level), remedy="Give 0.95 for 95%."
        )
    return math.sqrt(2.0) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))


@public("hesse.apps.standard_errors(f, params)")
def standard_errors(
    f: Callable[[Any], Tensor] | Risk,
    params: Tree | None = None,
    *,
    information: Literal["observed", "fisher"] = "observed",
    robust: Literal["HC0", "HC1"] | Tensor | None = None,
    of: Tensor | Callable[[Any], Tensor] | None = None,
) -> StandardErrors:
    r"""Standard errors of a maximum likelihood estimate, from the curvature at it.

    $$ \widehat{\mathrm{cov}}(\hat\theta) = H^{-1}, \qquad
       \text{robust: } H^{-1} \Bigl(\sum_i s_i s_i^T\Bigr) H^{-1}, \qquad
       \text{of } c^T\theta:\; c^T \widehat{\mathrm{cov}}\, c $$

    with H the Hessian of the negative log-likelihood in **sum** form and s_i the score of
    observation i. That of a mean is multiplied by the number of observations.

    Args:
        f: the negative log-likelihood as a function of params: a vector (n,) with a term for each
            observation, or their sum, which has no robust errors; or a `Risk` whose loss is one
            (cross-entropy, `PoissonNLLLoss`, ...; a squared error is one for the variance 1/2).
        params: the estimate, a minimum of f. Default: those of the risk.
        information: "observed", the Hessian; or "fisher", the expected information, of a `Risk`.
            For canonical links (logit, Poisson with logarithm) they are equal.
        robust: None; "HC0", the sandwich, right if the distribution is wrong but the mean is right;
            "HC1", times n / (n - k); or the cluster of each observation, integers (n,): the scores
            of a cluster are added first, with the factor G / (G - 1) (n - 1) / (n - k). Each of
            several processes gives the clusters of its own examples.
        of: errors of a function of the parameters instead: a matrix (m, n) of linear maps, or a
            differentiable function of params that returns a vector (delta method).

    Returns:
        StandardErrors(estimate, standard_error, z, covariance, ...); `interval(0.95)`. Of several
        processes all have the same, of whole parameters.

    Cost: k products for k parameters, and k^3 operations; a robust form 2/3 of a gradient for each
        row of `of`, or parameter, more; clusters of a `Risk` a gradient each.

    Raises:
        HesseError: f is no likelihood; more than 4,096 parameters; H is indefinite, so that params
            is no minimum; clusters that do not fit. Warns at a singular H, whose null vectors are
            reported, with a weight decay, and where params is far from the minimum.

    References: White 1982, doi:10.2307/1912526 (the sandwich); Liang & Zeger 1986,
        doi:10.1093/biomet/73.1.13 (clusters).

    >>> y = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    >>> fit = standard_errors(lambda log_mean: log_mean.exp() - y * log_mean, y.mean().log())
    >>> fit.standard_error * y.sum().sqrt()                 # 1 / sqrt(sum y), of a Poisson mean
    tensor(1., dtype=torch.float64)
    """
    check_choice("information", information, ["observed", "fisher"])
    likelihood = likelihood_at(f, params)
    space, k = likelihood.space, likelihood.space.n
    clusters, factor = _robust(robust, likelihood, k)
    H = dense_information(likelihood, likelihood.hessian if information == "observed" else None)
    rows, estimate = _contrasts(of, likelihood)
    Y, determined = H.solved(rows)
    covariance = rows.T @ Y if robust is None else factor * likelihood.spread(Y, clusters)
    _mask(covariance, determined)
    error = covariance.diagonal().clone().sqrt()
    form = space.unflatten if of is None else (lambda vector: vector)
    return StandardErrors(
        estimate=form(estimate),
        standard_error=form(error),
        z=form(estimate / error),
        covariance=covariance,
        information=information + ("" if robust is None else f", {_label(robust)}"),
        distance=H.distance(likelihood.gradient),
        null_vectors=H.null_vectors if H.null_vectors.shape[1] else None,
    )


def _label(robust: Any) -> str:
    return robust if isinstance(robust, str) else "clustered"


def _robust(robust: Any, likelihood: Likelihood, k: int) -> tuple[Tensor | None, float]:
    """The cluster of each observation, numbered from 0, and the factor of the covariance."""
    if robust is None:
        return None, 1.0
    if isinstance(robust, str):
        check_choice("robust", robust, ["HC0", "HC1"])
        n = likelihood.num_observations
        _check_many(n, k, robust)
        return None, 1.0 if robust == "HC0" else n / (n - k)
    n, ranks = likelihood.num_observations, likelihood.ranks
    with alike(ranks):
        given = _clusters(robust, likelihood)
    given = given if ranks is None else ranks.concatenated(given)
    clusters = given.unique(return_inverse=True)[1]
    G = int(clusters.max()) + 1
    _check_many(n, k, "clusters")
    if G < 2:
        raise ArgumentError(
            expected="at least two clusters", got="one", remedy="Use robust='HC1' without clusters."
        )
    return clusters.to(likelihood.space.device), G / (G - 1) * (n - 1) / (n - k)


def _clusters(robust: Any, likelihood: Likelihood) -> Tensor:
    """The clusters of the observations of this process."""
    remedy = "Give 'HC0', 'HC1', or an integer for each observation."
    given, here = as_numbers(robust, "robust", remedy), likelihood.here
    n = here.stop - here.start
    if given.shape != (n,) or given.is_floating_point():
        raise ShapeError(
            expected=f"robust to be 'HC0', 'HC1', or the clusters of {n} observations, integers",
            got=f"{given.dtype} of shape {tuple(given.shape)}",
            remedy="Give an integer for each observation, in the order of the data.",
        )
    return given.long()


def _check_many(n: int, k: int, what: str) -> None:
    if n <= k and what != "HC0":
        raise ArgumentError(
            expected=f"more observations than parameters, for {what}",
            got=f"{n} observations, {k} parameters",
            remedy="Use robust='HC0', which has no correction.",
        )


def _contrasts(of: Any, likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """The columns c_j (n, m) whose c_j' theta are asked for, and these estimates (m,)."""
    space = likelihood.space
    theta = space.flatten(likelihood.params).detach()
    if of is None:
        return torch.eye(space.n, dtype=space.dtype, device=space.device), theta
    if not isinstance(of, (Tensor, LinearOperator)) and callable(of):
        J = jacobian_operator(of, likelihood.params)
        with torch.no_grad():
            value = torch.as_tensor(of(space.copy(likelihood.params)))
        return J.to_dense().T, value.reshape(-1)
    remedy = "Give a row for each linear map, or a function of params."
    matrix = of.to_dense() if isinstance(of, LinearOperator) else as_numbers(of, "of", remedy)
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or matrix.shape[1] != space.n:
        raise ShapeError(
            expected=f"of to be a matrix (m, {space.n}), or a function of params",
            got=f"shape {tuple(matrix.shape)}",
            remedy="Give a row for each linear map, in the order of the flat vector.",
        )
    matrix = matrix.to(space.dtype)
    return matrix.T, matrix @ theta


def _mask(covariance: Tensor, determined: Tensor) -> None:
    """NaN in the rows and columns of estimates that the data do not determine."""
    covariance[~determined] = math.nan
    covariance[:, ~determined] = math.nan
