# SPDX-License-Identifier: Apache-2.0
"""Laplace's approximation of a risk of one process, or of several."""

import torch

import hesse
from hesse.apps.uncertainty.structures import LowRank
from tests.outputs_jobs import INPUTS, OUTPUTS, Problem
from tests.shards_jobs import seed


def _posterior(**options):
    def answer(p):
        found = hesse.apps.laplace(p.risk, p.params, generator=seed(), **options)
        x = torch.linspace(-1.0, 1.0, 2 * INPUTS, dtype=torch.float64).view(2, INPUTS)
        return {
            "prior": found.prior_precision,
            "noise": found.noise,
            "parameters": found.effective_parameters.value,
            "evidence": found.evidence(max_products=100).value,
            "variance": found.functional_variance(x),
            "predictions": list(found.predict(x)),
            "draws": list(found.samples(2).values()),
            "products": found.products,
        }

    return answer


def _held_out():
    generator = seed(11)
    x = torch.randn(5, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, OUTPUTS, (5,), generator=generator)


POSTERIORS = {
    "full": _posterior(prior="evidence"),
    "kron": _posterior(structure="kron", prior="weight-decay"),
    "diag": _posterior(structure="diag"),
    "low-rank": _posterior(structure=LowRank(6)),
    "last layer": _posterior(structure="last-layer", prior="held-out", held_out=_held_out()),
    "a part": _posterior(where="2.*", groups="parameter"),
    # Few steps: later ones of block CG depend on rounding, as do their number.
    "without the matrix": _posterior(max_dense=1, rtol=1e-2),
}


def posteriors(place, split, loss, names, is_sharded=False):
    """What each of these gives, by name."""
    p = Problem(place, split, is_sharded=is_sharded, loss=loss)
    return {name: POSTERIORS[name](p) for name in names}
