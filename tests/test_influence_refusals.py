# SPDX-License-Identifier: Apache-2.0
"""What `influence` refuses with a remedy, and what it warns of."""

import math
import warnings

import numpy
import pytest
import torch
from torch import nn

import hesse
from hesse import Risk
from hesse.apps import influence, lds, self_influence
from hesse.errors import NonFiniteError
from tests.influence_problem import (
    CE,
    FIRST,
    NEAR,
    THETA,
    TIGHT,
    XQ,
    YQ,
    N,
    X,
    Y,
    losses,
    net,
    risk_of,
)
from tests.refusals import assert_refused

# -- What is refused, and what warns ---------------------------------------------------------------

QUERIES = (XQ, YQ)
REFUSED = {
    "a function for a risk": (lambda: influence(losses, THETA, QUERIES), "hesse.Risk"),
    "a name of no curvature": (
        lambda: influence(FIRST, THETA, QUERIES, curvature="fisher"),
        "curvature to be one of",
    ),
    "an operator of another size": (
        lambda: influence(FIRST, THETA, QUERIES, curvature=hesse.identity_operator(3)),
        "symmetric operator of shape",
    ),
    "a negative damping": (
        lambda: influence(FIRST, THETA, QUERIES, damping=-1.0),
        "the mu >= 0",
    ),
    "damping that is no number": (
        lambda: self_influence(FIRST, THETA, damping="0.1"),
        "the mu >= 0",
    ),
    "a name of no removal": (
        lambda: influence(FIRST, THETA, QUERIES, removal="renormalize"),
        "renormalise",
    ),
    "newton without groups": (
        lambda: influence(FIRST, THETA, QUERIES, removal="newton"),
        "a system of its own",
    ),
    "newton of EK-FAC": (
        lambda: influence(
            FIRST, THETA, QUERIES, removal="newton", groups=[[0]], curvature="ekfac"
        ),
        "of the remaining data",
    ),
    "newton of a weighted risk": (
        lambda: influence(
            FIRST.weighted(torch.ones(N)), THETA, QUERIES, removal="newton", groups=[[0]]
        ),
        "without weights",
    ),
    "renormalise of a sum": (
        lambda: influence(
            risk_of(loss=nn.CrossEntropyLoss(reduction="sum")),
            THETA, QUERIES, removal="renormalise",
        ),
        "weigh alike",
    ),
    "renormalise with class weights": (
        lambda: influence(
            risk_of(loss=nn.CrossEntropyLoss(weight=torch.arange(1.0, 4.0).double())),
            THETA, QUERIES, removal="renormalise",
        ),
        "weigh alike",
    ),
    "labels of another length": (
        lambda: influence(FIRST, THETA, QUERIES, groups=torch.arange(3)),
        "labels from 0",
    ),
    "a list of places for groups": (
        lambda: influence(FIRST, THETA, QUERIES, groups=[0, 1]),
        "list of sets",
    ),
    "places of NumPy for groups": (
        lambda: influence(FIRST, THETA, QUERIES, groups=list(numpy.array([0, 1]))),
        "a single int64",
    ),
    "a place that is a tensor for a group": (
        lambda: influence(FIRST, THETA, QUERIES, groups=[torch.tensor([0]), torch.tensor(1)]),
        "a single Tensor",
    ),
    "a place that is not there": (
        lambda: influence(FIRST, THETA, QUERIES, groups=[[N]]),
        "places of examples",
    ),
    "a group of all": (
        lambda: influence(FIRST, THETA, QUERIES, groups=torch.zeros(N, dtype=torch.int64)),
        "leave examples",
    ),
    "no top": (lambda: influence(FIRST, THETA, QUERIES, top=0), "top"),
    "of= that is a name": (lambda: influence(FIRST, THETA, QUERIES, of="margin"), "of='loss'"),
    "of= beside a function": (
        lambda: influence(FIRST, THETA, lambda p: p["0.weight"].sum(), of=lambda z, y: z[:, 0]),
        "either",
    ),
    "of= that does not reduce": (
        lambda: influence(FIRST, THETA, QUERIES, of=lambda z, y: z),
        "a number for each query",
    ),
    "queries that are not finite": (
        lambda: influence(FIRST, THETA, lambda p: (p["0.weight"] * math.nan).sum()),
        "finite gradients",
    ),
    "one example": (
        lambda: influence(Risk(net(), CE, (X[:1], Y[:1])), THETA, QUERIES),
        "two training examples",
    ),
    "an indefinite Hessian": (
        lambda: influence(
            risk_of(decay=0.0), {k: 3.0 * v for k, v in FIRST.params.items()}, QUERIES,
            curvature="hessian", rtol=1e-9,
        ),
        "negative or zero curvature",
    ),
    "a loss that is no mean": (
        lambda: influence(
            Risk(net(), lambda z, y: z.logsumexp(1).max(), (X, Y)), THETA, QUERIES
        ),
        "by functions of torch",
    ),
    "most that is no count": (lambda: self_influence(FIRST, THETA, most=0), "most"),
    "scores that are a vector": (
        lambda: lds(torch.ones(3), torch.ones(4, 3).bool(), torch.ones(4, 1)),
        "scores to be a matrix",
    ),
    "subsets that do not fit": (
        lambda: lds(torch.ones(1, 3), torch.ones(4, 2).bool(), torch.ones(4, 1)),
        "subsets \\(M, 3\\)",
    ),
    "subsets that are no mask": (
        lambda: lds(torch.ones(1, 3), torch.ones(4, 3), torch.ones(4, 1)),
        "mask of booleans",
    ),
    "two subsets": (
        lambda: lds(torch.ones(1, 3), torch.ones(2, 3).bool(), torch.ones(2, 1)),
        "three subsets",
    ),
    "outcomes that are not finite": (
        lambda: lds(torch.ones(1, 3), torch.ones(4, 3).bool(), torch.full((4, 1), math.nan)),
        "finite scores",
    ),
    "outcomes that are all alike": (
        lambda: lds(torch.ones(1, 3), torch.ones(4, 3).bool(), torch.ones(4, 1)),
        "change with the subset",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_a_remedy(case):
    assert_refused(*REFUSED[case])


def test_a_system_that_is_not_solved_warns():
    with pytest.warns(UserWarning, match="not exact"):
        result = influence(risk_of(), THETA, (XQ, YQ), rtol=1e-12, max_products=12)
    assert not result.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        influence(risk_of(), THETA, (XQ, YQ))


def test_the_default_point_is_the_model_as_it_is_now():
    risk = risk_of()
    with torch.no_grad():
        for name, p in risk.model.named_parameters():
            p.copy_(THETA[name])
    got = influence(risk, None, (XQ, YQ), **TIGHT).scores
    torch.testing.assert_close(got, influence(risk, THETA, (XQ, YQ), **TIGHT).scores, **NEAR)


def test_an_example_whose_target_is_missing_is_named():
    """The Gauss-Newton matrix does not see targets, so the system itself is solved."""
    model, x = nn.Linear(3, 2).double(), torch.randn(7, 3, dtype=torch.float64)
    y = x[:, :2].clone()
    y[5, 1] = math.nan
    risk = Risk(model, nn.MSELoss(), [(x[:4], y[:4]), (x[4:], y[4:])], weight_decay=0.1)
    with pytest.raises(NonFiniteError, match="NaN or Inf for example 5"):
        influence(risk, None, (x[:2], x[:2, :2]))
