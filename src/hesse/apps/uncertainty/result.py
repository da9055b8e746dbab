# SPDX-License-Identifier: Apache-2.0
"""`Laplace`: the posterior of `laplace`, and what it is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.apps.uncertainty.calibration import (
    CLASS_COLUMNS,
    NUMBER_COLUMNS,
    Calibration,
    classes,
    temperature_of,
)
from hesse.apps.uncertainty.held_out import HeldOut
from hesse.apps.uncertainty.links import LINKS, Link, inverse_link
from hesse.apps.uncertainty.outputs import Outputs
from hesse.apps.uncertainty.posterior import Posterior
from hesse.apps.uncertainty.precision import ExactPrecision
from hesse.apps.uncertainty.predictive import DRAWS, Normal, Predictive
from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import ArgumentError, check_choice, check_count
from hesse.estimators.estimate import Estimate, RunningMean, quantile_of
from hesse.result import html_table, summary
from hesse.vectors.space import Tree


@dataclass(frozen=True, repr=False, eq=False)
class Laplace:
    """A Gaussian posterior N(theta, P^-1) of the parameters of a trained model; see `laplace`."""

    structure: str
    """In which structure P is held."""
    posterior: Posterior
    predictive_of: Any
    """A function that finds out how outputs are predicted, when that is first asked."""
    held_out: Any = None
    """Data that were not trained on."""

    @property
    def prior_precision(self) -> float | dict[str, float]:
        """delta, or that of each group."""
        return self.posterior.prior.summary

    @property
    def noise(self) -> float | None:
        """The standard deviation s of the observations of a regression."""
        return self.posterior.noise

    @property
    def products(self) -> int:
        """Products with the curvature so far."""
        return self.posterior.work.products

    @cached_property
    @public("hesse.apps.laplace(...).effective_parameters")
    def effective_parameters(self) -> Estimate:
        """gamma = tr(M beta A P^-1): how many parameters the data determine."""
        mean = RunningMean()
        for total in self.posterior.effective_columns.sum(0).tolist():
            mean.add(total)
        if mean.count == 1:
            return Estimate(mean.mean, 0.0, 0)
        return Estimate(mean.mean, mean.standard_error, 0, quantile=quantile_of(mean.count))

    # -- The evidence ------------------------------------------------------------------------------

    @cached_property
    def log_evidence(self) -> Estimate:
        """`evidence()` with its default tolerance, computed when it is first asked for."""
        return self.evidence()

    @public("hesse.apps.laplace(...).evidence()")
    def evidence(
        self,
        rtol: float = 0.01,
        atol: float = 0.0,
        max_products: int = 10000,
        checkpoint: FilePath = None,
    ) -> Estimate:
        r"""log p(D) of the model by Laplace's method.

        $$ \log p(D \mid \theta) - \tfrac12 \Bigl[\log\det P - \sum \log\delta
           + \sum \delta\, \theta^2\Bigr] $$

        Args:
            rtol, atol, max_products, checkpoint: as of `logdet`, for the difference of the
                logarithms; where P has an exact determinant they do not matter.

        Returns:
            Estimate; its `interval` contains the number that a dense matrix would give.
        """
        return self.posterior.evidence(
            rtol=rtol, atol=atol, max_products=max_products, checkpoint=checkpoint
        )

    # -- The posterior of parameters and outputs ---------------------------------------------------

    @public("hesse.apps.laplace(...).samples({count})")
    def samples(self, count: int) -> Tree:
        """Draws of the parameters: a tree like params whose leaves have a first dimension of count.

        Parameters outside of `where` are the same in all. A network at such draws predicts poorly
        (link="network"): `predict` linearises it.
        """
        check_count("count", count, 1)
        chosen = self.posterior.chosen
        theta = chosen.whole.flatten(chosen.params).detach()
        draws = theta + chosen.embed(
            self.posterior.precision.draws(count, fresh=True).T.contiguous()
        )
        parts = draws.split(chosen.whole.sizes, dim=1)
        shapes = zip(parts, chosen.whole.shapes, chosen.whole.dtypes, strict=True)
        return chosen.whole.build([p.reshape(count, *s).to(d) for p, s, d in shapes])

    @public("hesse.apps.laplace(...).functional_variance(x)")
    def functional_variance(self, x: Any, draws: int | None = None) -> Tensor:
        r"""The covariance of the outputs of the linearised model, $J P^{-1} J^T$.

        Args:
            x: inputs as the model takes them: a tensor, a tuple, or a mapping.
            draws: None for the covariance itself, by a system for every output where P has no
                inverse; a number k for its estimate from k draws of the parameters, with a relative
                standard error sqrt(2 / k): k systems whatever the number of inputs.

        Returns:
            (Q, D, D), D the number of outputs of an example. J is never held for more than some
            examples.
        """
        if draws is None:
            return self._predictive.covariances(x)[1]
        check_count("draws", draws, 1)
        _, z = self._predictive.pushed(x, draws)
        z = z.reshape(*z.shape[:2], -1)
        return torch.einsum("kqd,kqe->qde", z, z) / draws

    @public("hesse.apps.laplace(...).predict(x, link={link})")
    def predict(self, x: Any, link: Link = "probit", draws: int | None = None) -> Tensor | Normal:
        """Predictive distributions: probabilities of classes, or of a regression (mean, variance).

        Args:
            x: as of `functional_variance`.
            link: how the Gaussian outputs become probabilities: "probit", "bridge" or "draws" (see
                the table in `hesse.apps.uncertainty.links`); or "network": no linearisation, the
                mean over outputs of the model itself at draws of its parameters, which underfits.
            draws: of "draws" and "network", default 100; of "probit" as of `functional_variance`.

        Returns:
            Probabilities shaped like the outputs of the model, of one output for two classes that
            of the second; or Normal(mean, variance), the noise included.
        """
        check_choice("link", link, LINKS)
        if draws is not None:
            check_count("draws", draws, 1)
        return self._predictive.predict(x, link, draws)

    @public("hesse.apps.laplace(...).calibration(data)")
    def calibration(self, data: Any = None, link: Link = "probit") -> Calibration:
        """How well the predictions fit data, beside those of the trained model alone.

        Args:
            data: like those of the risk, best never used before; default: the held-out data.
            link: as of `predict`.

        Returns:
            A table: "MAP", the trained model; "temperature", the same with its logits divided by
            the T (of a regression: with the noise) that fits the held-out data best, or, without
            held-out data, these; and "Laplace". Nothing promises that the last row is best.
        """
        check_choice("link", link, LINKS)
        if data is None and self.held_out is None:
            raise ArgumentError(
                expected="data for the table, or held_out= of laplace",
                got="none",
                remedy="Give data that were not trained on.",
            )
        data = self._held_out if data is None else self._data(data)
        draws = None if self._predictive.is_exact else DRAWS
        predictions = [self._predictive.predict(x, link, draws) for x, _ in data]
        z = [self._predictive.map(x) for x, _ in data]
        fitted = data if self.held_out is None else self._held_out
        T = self._temperature(fitted)
        rows = {
            "MAP": data.scores([self._at(part, None) for part in z]),
            "temperature": data.scores([self._at(part, T) for part in z]),
            "Laplace": data.scores(predictions),
        }
        is_gaussian = self.posterior.observations.kind == "gaussian"
        columns = NUMBER_COLUMNS if is_gaussian else CLASS_COLUMNS
        what = "noise" if is_gaussian else "T"
        where = "the same data" if fitted is data else "held-out data"
        return Calibration(columns, rows, f"{len(data.targets)} targets; {what} = {T:.4g}, {where}")

    @cached_property
    def _table(self) -> Calibration:
        return self.calibration()

    # -- Inside ------------------------------------------------------------------------------------

    @cached_property
    def _predictive(self) -> Predictive:
        return self.predictive_of(self.posterior)

    @cached_property
    def _held_out(self) -> HeldOut:
        return self._data(self.held_out)

    def _data(self, data: Any) -> HeldOut:
        return held_out_data(data, self._predictive.outputs, self.posterior)

    def _temperature(self, data: HeldOut) -> float:
        """T, or the noise s, of the least NLL."""
        z = [self._predictive.map(x) for x, _ in data]
        if data.kind == "gaussian":
            mean = torch.cat([part.reshape(-1) for part in z])
            return math.sqrt(float((data.targets.to(mean) - mean).double().square().mean()))
        y, counted = classes(data.targets, data.kind)
        logits = data.logits(z)
        return temperature_of(logits[counted], y[counted].to(logits.device))

    def _at(self, z: Tensor, T: float | None) -> Tensor | Normal:
        """The prediction of the trained model, with a temperature or a noise of its own."""
        kind = self.posterior.observations.kind
        if kind == "gaussian":
            noise = self.noise if T is None else T
            assert noise is not None
            return Normal(z, torch.full_like(z, noise**2))
        return inverse_link(z / (T or 1.0), kind, self._predictive.outputs.class_dim)

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        lines = ["Laplace", *(f"  {name:{width}}  {text}" for name, text in rows)]
        if self.held_out is not None:
            lines += [f"  {line}" for line in repr(self._table).splitlines()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = html_table("Laplace", self._rows())
        return table if self.held_out is None else table + self._table._repr_html_()

    def _rows(self) -> list[tuple[str, str]]:
        posterior = self.posterior
        s, n = len(posterior.chosen.index), posterior.chosen.whole.n
        rows = [
            ("structure", f"{self.structure}: {posterior.curvature.about}"),
            ("parameters", f"{s:,}" + ("" if s == n else f" of {n:,}")),
            ("prior precision", summary(self.prior_precision)),
        ]
        if self.noise is not None:
            rows.append(("noise", summary(self.noise)))
        if posterior.temperature != 1.0:
            rows.append(("temperature", summary(posterior.temperature)))
        if isinstance(posterior.precision, ExactPrecision) or "log_evidence" in vars(self):
            low, high = self.log_evidence.interval
            value = f"{self.log_evidence.value:.8g}"
            is_exact = self.log_evidence.standard_error == 0.0
            rows.append(
                ("log evidence", value if is_exact else f"{value}, {low:.7g} to {high:.7g}")
            )
        return rows


def held_out_data(data: Any, outputs: Outputs, posterior: Posterior) -> HeldOut:
    """Data of a call, in the form of those of the risk."""
    risk = outputs.risk.on(data)
    return HeldOut(risk, outputs.chosen.params, posterior.observations.kind, outputs.class_dim)
