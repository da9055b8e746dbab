"""What the tests of outputs that ranks share compute where a rank is at fault, or stops."""

from unittest import mock

import torch
from torch import nn

import hesse
from hesse.errors import NonFiniteError
from tests.outputs_jobs import INPUTS, OUTPUTS, Problem, examples
from tests.ranks_faults import BAD, FAULTS, _error
from tests.shards_jobs import seed


def in_a_product(place, fault, is_adjoint, is_sharded):
    """The errors of a product that a rank cannot take, and whether the next one is right."""
    p = Problem(place, "ragged", is_sharded=is_sharded)
    J = hesse.jacobian_operator(p.risk, p.params)
    A, v = (J.T, J.codomain.gaussian(seed())) if is_adjoint else (J, p.vector())
    before = A @ v
    name = "_rmatvec" if is_adjoint else "_matvec"
    error, product = FAULTS[fault], getattr(J.local, name)
    if fault == "nan":
        error = NonFiniteError(expected="numbers", got="NaN", remedy="none")
    faulty = {"side_effect": error} if place.rank == BAD else {"wraps": product}
    with mock.patch.object(J.local, name, **faulty):
        found = _error(lambda: A @ v)
    return found, bool((A @ v == before).all())


def other_vectors(place):
    p = Problem(place, "ragged")
    J = hesse.jacobian_operator(p.risk, p.params)
    return _error(lambda: J @ p.vector(place.rank // 2))


def named(place):
    """How matrices of outputs are shown."""
    p = Problem(place, "empty")
    J, R = hesse.jacobian_operator(p.risk, p.params), hesse.fisher_root_operator(p.risk, p.params)
    return repr(J), repr(R), repr(J.at(p.params))


def other_outputs(place):
    """A rank whose model has more outputs than those of the others."""
    x, y = examples("squares")
    outputs = OUTPUTS + (place.rank == BAD)
    params = {"w": torch.ones(INPUTS, dtype=torch.float64)}
    mine = x[place.rank :: place.size], y[place.rank :: place.size]
    risk = hesse.Risk(
        lambda p, x: (x * p["w"]).repeat(1, 2)[:, :outputs],
        lambda z, y: (z[:, :OUTPUTS] - y).square().mean(),
        [mine],
        params=params,
        group=place.ranks(),
    )
    return _error(lambda: hesse.jacobian_operator(risk, params))


def rejected(place):
    """A fit whose model is not defined, on one rank, where the first steps lead."""

    def rate(p, x):
        if bool((x @ p["w"] <= 0).any()):
            raise ValueError("a negative rate")
        return (x @ p["w"]).log()

    x = torch.tensor([[1.0, 0.0], [1.0, -3.0]], dtype=torch.float64)
    y = torch.tensor([0.5, -2.0], dtype=torch.float64)
    params = {"w": torch.tensor([3.0, 0.1], dtype=torch.float64)}
    data, options = [(x, y)], {}
    if place is not None:
        data = [(x[place.rank :: 2], y[place.rank :: 2])]
        options["group"] = place.ranks()
    risk = hesse.Risk(rate, nn.MSELoss(), data, params=params, **options)
    found = []
    for method in ("svd", "lsmr"):
        fit = hesse.least_squares(risk, params, method, max_iterations=4)
        found.append([fit.x["w"], fit.cost, fit.nfev, fit.njev, "raised" in fit.message])
    return found


def stopped_and_resumed(place, folder, method, is_sharded):
    """Whether a fit that was stopped goes on to the bits of one that was not."""
    p = Problem(place, "ragged", is_sharded=is_sharded, loss="squares")

    def fit(path, stop=None):
        steps = []
        return hesse.least_squares(
            *(p.risk, p.params, method),
            checkpoint=path,
            max_iterations=5,
            callback=lambda state: steps.append(state) or len(steps) == stop,
        )

    first = fit(f"{folder}/run", 2)
    again, whole = fit(f"{folder}/run"), fit(f"{folder}/other")
    same = bool((p.whole(again.x) == p.whole(whole.x)).all())
    return first.status.name, first.nit, again.nit, whole.nit, same


def refusals(place):
    """What is not done with vectors of outputs, by name."""
    p = Problem(place, "ragged", loss="squares")
    q = Problem(place, "ragged", is_sharded=True, loss="squares")
    above = dict.fromkeys(q.params, 1.0 if place.rank == BAD else None), None
    J, K = hesse.jacobian_operator(p.risk, p.params), hesse.ntk_operator(p.risk, p.params)
    b = J.codomain.zeros() + 1.0
    path = "never/written"
    return {
        "checkpoint": _error(lambda: hesse.solve(J, b, "lsmr", checkpoint=path)),
        "kernel": _error(lambda: hesse.eigsh(K, 2, checkpoint=path)),
        "a pair": _error(lambda: hesse.least_squares((p.risk, lambda x: x), p.params)),
        "out of bounds": _error(lambda: hesse.least_squares(q.risk, q.params, bounds=above)),
    }
