# SPDX-License-Identifier: Apache-2.0
r"""Hutchinson's estimator: independent probes, and no sketch of the operator.

$$ \operatorname{tr} A = \mathbb{E}\, z^T A z, \qquad
   \operatorname{diag} A = \mathbb{E}\, z \odot A z, \qquad z \in \{-1, 1\}^n $$

Of all probes with independent entries signs have the smallest variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun, RunningEstimate
from hesse.estimators.probes import products, quadratic_forms, signs
from hesse.methods import Hyperparameters


@dataclass(frozen=True, repr=False)
class Hutchinson(Hyperparameters):
    """The mean over random signs z of z'A z, or of z * A z: a method of `trace` and `diagonal`.

    For symmetric A a sample of the trace has the variance 2 (|A|_F^2 - sum_i a_ii^2), and one of
    entry i of the diagonal has sum_{j != i} a_ij^2.

    Cost: a product a probe; 2 block_size vectors for the trace, 3 block_size + 7 for the diagonal.

    References: Hutchinson 1990, doi:10.1080/03610919008812866; Bekas, Kokiopoulou & Saad 2007,
        doi:10.1016/j.apnum.2007.01.003.

    >>> import torch
    >>> from hesse.estimators import trace
    >>> trace(2 * torch.eye(20), method=Hutchinson()).value    # z'z is the same for all signs
    40.0
    """

    name: ClassVar[str] = "hutchinson"

    def estimate_trace(self, run: EstimatorRun) -> Estimate:
        """The mean of z'A z."""
        state, space = RunningEstimate(run.generator), run.A.domain

        def step() -> bool:
            k = run.next_samples(state)
            probes = signs(space, k, state.generator)
            state.add(quadratic_forms(run.A, probes, run.block_size), k)
            return True

        return run.sample(state, step)

    def estimate_diagonal(self, run: EstimatorRun) -> Estimate:
        """The mean of z * A z."""
        state, space = RunningEstimate(run.generator), run.A.domain

        def step() -> bool:
            probes = signs(space, run.next_samples(state), state.generator)
            images = products(run.A, probes, run.block_size)
            state.add(list(probes * images), len(probes))
            return True

        return run.sample(state, step)
