# SPDX-License-Identifier: Apache-2.0
"""Hutchinson's estimator of the trace: the mean of z'A z over random signs z.

Of all probes with independent entries signs have the smallest variance: 2 (|A|_F^2 - sum_i a_ii^2)
for symmetric A. References: Hutchinson 1990, doi:10.1080/03610919008812866.
"""

from __future__ import annotations

from hesse.estimators.estimate import Estimate
from hesse.estimators.probes import forms, signs
from hesse.estimators.sampling import Sampler, Stream


def hutchinson(sampler: Sampler) -> Estimate:
    """The mean of z'A z."""
    state = Stream(sampler.generator)
    A, call = sampler.A, sampler.call

    def step() -> bool:
        k = sampler.block(state)
        state.add(forms(A, signs(A, k, sampler.generator), sampler.block_size, call), k)
        return True

    return sampler.sample(state, step)
