# SPDX-License-Identifier: Apache-2.0
"""`laplace`: a Gaussian posterior of the parameters of a trained model, from its curvature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.apps.uncertainty import prior as priors
from hesse.apps.uncertainty import structures
from hesse.apps.uncertainty.chosen import Chosen
from hesse.apps.uncertainty.evidence import maximised
from hesse.apps.uncertainty.held_out import chosen_on
from hesse.apps.uncertainty.last_layer import LastLayer
from hesse.apps.uncertainty.observations import Observations, observations_of
from hesse.apps.uncertainty.outputs import Outputs
from hesse.apps.uncertainty.posterior import Posterior
from hesse.apps.uncertainty.precision import Solver, Work
from hesse.apps.uncertainty.predictive import Predictive
from hesse.apps.uncertainty.prior import Prior, PriorName
from hesse.apps.uncertainty.result import Laplace, held_out_data
from hesse.apps.uncertainty.structures import LowRank, Name, Settings, curvature_of
from hesse.boundary import public
from hesse.checkpoint import Checkpoint, FilePath
from hesse.curvature.memory_budget import MemoryBudget
from hesse.curvature.point import checked_point
from hesse.errors import (
    ArgumentError,
    StructureError,
    check_choice,
    check_count,
    check_positive,
    is_number,
    kind_of,
)
from hesse.operators.algebra import LinearOperator
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree

_LEAST_NOISE = 1e-12  # where the fit has no error, before it is found that there is none


@public("hesse.apps.laplace(risk, params, structure={structure})")
def laplace(
    risk: Risk,
    params: Tree | None = None,
    *,
    structure: Name | LowRank | LinearOperator | Tensor = "full",
    prior: float | Tensor | PriorName = 1.0,
    groups: Literal["parameter"] | list[str] | None = None,
    where: Any = None,
    noise: float | Literal["evidence"] = "evidence",
    temperature: float = 1.0,
    held_out: Any = None,
    max_dense: int = 2048,
    rtol: float = 1e-2,
    memory_budget: MemoryBudget = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Laplace:
    r"""Laplace's approximation of the posterior of a trained model, and its predictions.

    $$ p(\theta \mid D) \approx N(\theta, P^{-1}), \qquad P = M \beta A + \mathrm{diag}(\delta),
       \qquad f(x) \sim N\bigl(f_{\mathrm{MAP}},\; J P^{-1} J^T\bigr) $$

    with A the Gauss-Newton matrix of the data part of the risk, M the number of observations (M
    times the risk is the negative log-likelihood), beta = 1 / T, of a regression 1 / (2 s^2 T), and
    delta the prior precision. A weight decay lambda is the prior precision lambda M beta; it is no
    part of A, and another prior takes its place.

    | structure | A | evidence, draws, variance |
    |---|---|---|
    | "full" | the matrix | exact up to `max_dense` parameters; beyond by products alone |
    | "kron" | K-FAC | exact, by the eigenvalues of the factors |
    | "diag" | its diagonal | exact |
    | "low-rank", `LowRank(rank)` | its 100, or `rank`, largest eigenvalues | exact |
    | "last-layer" | "full" on the last linear layer, or "kron" beyond `max_dense` | exact |
    | an operator | yours, of the data part of the risk | exact where its structure says so |

    Without the matrix: the evidence is an estimate with an interval (`logdet`), variances are
    solutions by block CG, one for each output, draws solutions of perturbed systems.

    Args:
        risk: a `Risk` whose loss is cross-entropy, `BCEWithLogitsLoss` or `MSELoss`.
        params: a minimum of it. None: the model as it is now.
        structure: see above. Of an operator: curvature in the units of the risk, such as
            `hessian_operator(risk, params)`, for all parameters or those of `where`.
        prior: delta > 0, one or one for each group; "evidence", the maximum of the evidence with
            theta held; "held-out", the least NLL of the held-out data on a grid from 1e-4 to 1e6
            (without the matrix 1e-2 to 1e4); "weight-decay", that of the risk.
        groups: parameters with a prior precision of their own: "parameter", each tensor; or names
            or patterns, the last that fits counts. Default: one for all.
        where: the parameters that have a posterior, by names or patterns (a subnetwork of other
            kind by an index as of `A.restrict`); the others stay as they are.
        noise: s, the standard deviation of a regression; "evidence" finds it.
        temperature: T; the posterior of T < 1 is narrower than that of the model.
        held_out: data like those of the risk, for prior="held-out" and for a calibration table.
        max_dense: the most parameters of which a dense matrix is decomposed.
        rtol: of systems. A variance is wrong by a square: on digits by 0.8% at 0.1, 0.006% at 0.01.
        memory_budget: of products, as of `ggn_operator`.
        generator: of all random numbers.
        progress: show bars.
        checkpoint: as in `solve`, of a search for the prior precision without the matrix; the state
            is saved after every step.

    Of several processes all have the same posterior, of whole parameters: sharded ones are gathered
    once. `held_out`, and what is predicted, are given by all of them alike.

    Returns:
        Laplace: `log_evidence`, `samples(k)`, `predict(x)`, `functional_variance(x)`,
        `calibration(data)`, `prior_precision`, `noise`.

    Cost: "full" n products, or none; "kron" and "diag" some gradients; "low-rank" some products
        for each eigenvalue; without the matrix prior="evidence" takes some 10 blocks of 32 systems.

    Raises:
        HesseError: a loss that is no likelihood, or weighs observations; an operator that is not
            positive definite with the prior, or has a weight decay in it; a prior that is not
            positive; parameters that are not there.

    References: MacKay 1992, doi:10.1162/neco.1992.4.3.448; Immer, Korzepa & Bauer 2021,
        arXiv:2008.08400 (linearised predictions); Daxberger et al. 2021, arXiv:2106.14806; Antoran
        et al. 2023, arXiv:2210.04994 (draws by perturbed systems).

    >>> x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)           # a line through the origin
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> risk = Risk(model, torch.nn.MSELoss(), (x, 3 * x + 0.1))
    >>> fit = {"weight": torch.tensor([[3.0]]).double()}
    >>> posterior = laplace(risk, fit, prior=1.0, noise=1.0)
    >>> posterior.functional_variance(x).flatten()                      # x^2 / (1 + 4 + 1)
    tensor([0.1667, 0.6667], dtype=torch.float64)
    """
    risk, params = _checked(risk, params)
    structure = LowRank() if isinstance(structure, str) and structure == "low-rank" else structure
    name = structure if isinstance(structure, str) else _title(structure)
    way = prior if isinstance(prior, str) else "given"
    _check_structure(name, where, max_dense)
    _check_prior(way, groups, held_out, risk)
    if risk.ranks is not None:
        generator = generator or risk.ranks.generator
    check_positive(rtol=rtol, temperature=temperature)
    last = LastLayer.of(risk, params) if name == "last-layer" else None
    chosen = Chosen.of(params, where if last is None else list(last.names))
    observations = observations_of(risk, params)
    start = Prior.of(prior, groups, chosen)
    settings = Settings(max_dense, len(start.names) == 1, memory_budget, generator)
    curvature = curvature_of(_data_part(risk), chosen, structure, settings)
    posterior = Posterior(
        *(curvature, chosen, observations, start, _noise(noise, observations), temperature),
        *(Solver(rtol, generator, progress), Work(curvature.products)),
    )
    settled = repr((way, noise, temperature, rtol, start.names, risk.weight_decay))
    if curvature.A.domain.ranks is not risk.ranks:
        checkpoint = None  # a matrix that all ranks have: nothing is long, and all would write
    file = Checkpoint(
        *(checkpoint, curvature.A), function="laplace", settings=settled, prior=start.values
    )
    posterior = _learnt(posterior, way, noise, risk.weight_decay, file)
    predictive = _PredictiveOf(risk, chosen, last)
    if way == "held-out":
        found = predictive(posterior)
        data = held_out_data(held_out, found.outputs, posterior)
        posterior = chosen_on(found, data, file)
    _ = posterior.precision  # raises here, not at the first use
    return Laplace(name, posterior, predictive, held_out)


@dataclass(frozen=True)
class _PredictiveOf:
    """A posterior -> what it says of the outputs of a risk; it can be pickled."""

    risk: Risk
    chosen: Chosen
    last: LastLayer | None

    def __call__(self, posterior: Posterior) -> Predictive:
        return Predictive(posterior, Outputs.of(self.risk, self.chosen), self.last)


def _checked(risk: Any, params: Tree | None) -> tuple[Risk, Tree]:
    if not isinstance(risk, Risk):
        raise StructureError(
            expected="risk to be a hesse.Risk, whose loss says the likelihood",
            got=kind_of(risk),
            remedy="Build hesse.Risk(model, loss, data, weight_decay=...).",
        )
    # A posterior is about whole parameters, and so are its draws.
    return risk, risk.share.whole(checked_point(risk, params))


def _title(structure: Any) -> str:
    return "low-rank" if isinstance(structure, LowRank) else "operator"


def _check_structure(name: str, where: Any, max_dense: int) -> None:
    if name != "operator":
        check_choice("structure", name, structures.NAMES)
    check_count("max_dense", max_dense, 1)
    if name == "last-layer" and where is not None:
        raise ArgumentError(
            expected="no where= beside structure='last-layer'",
            got=repr(where),
            remedy="Give structure='full' for the parameters that where= names.",
        )


def _check_prior(way: str, groups: Any, held_out: Any, risk: Risk) -> None:
    if way != "given":
        check_choice("prior", way, priors.NAMES)
    if way == "held-out" and held_out is None:
        raise ArgumentError(
            expected="held_out= for prior='held-out'",
            got="none",
            remedy="Give data that were not trained on, or prior='evidence'.",
        )
    if way in ("held-out", "weight-decay") and groups is not None:
        raise ArgumentError(
            expected=f"one prior precision for prior={way!r}",
            got=f"groups={groups!r}",
            remedy="Leave out groups=, or take prior='evidence'.",
        )
    if way == "weight-decay" and not risk.weight_decay:
        raise ArgumentError(
            expected="a risk with a weight decay, for prior='weight-decay'",
            got="one without",
            remedy="Give a prior precision, or prior='evidence'.",
        )


def _data_part(risk: Risk) -> Risk:
    """The risk without its weight decay."""
    other = risk.with_loss(risk.loss)
    other.weight_decay = 0.0
    return other


def _noise(noise: Any, observations: Observations) -> float | None:
    """s; where it is to be found, that of the residuals, to begin with."""
    is_name = isinstance(noise, str) and noise == "evidence"
    if observations.kind != "gaussian":
        if not is_name:
            raise ArgumentError(
                expected="no noise= of a classification",
                got=repr(noise),
                remedy="Leave it out; a regression has MSELoss.",
            )
        return None
    if not (is_name or (is_number(noise) and 0.0 < float(noise) < math.inf)):
        raise ArgumentError(
            expected="noise to be a standard deviation above 0, or 'evidence'",
            got=repr(noise),
            remedy="Leave it out to learn it from the data.",
        )
    if not is_name:
        return float(noise)
    return max(math.sqrt(observations.total / observations.entries), _LEAST_NOISE)


def _learnt(
    posterior: Posterior, way: str, noise: Any, decay: float, file: Checkpoint
) -> Posterior:
    """The posterior with the prior, and the noise, that the evidence and the weight decay give."""
    learns_noise = posterior.noise is not None and isinstance(noise, str)
    if way == "weight-decay":
        posterior = posterior.at(decay * posterior.scale)
    if not (learns_noise or way == "evidence"):
        return posterior
    found = maximised(posterior, prior=way == "evidence", noise=learns_noise, file=file)
    return found.at(decay * found.scale) if way == "weight-decay" else found
