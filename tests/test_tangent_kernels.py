"""Tangent kernels and linearised models: against dense Jacobians, and what they refuse."""

import itertools
import math

import pytest
import torch
from torch import nn

import hesse
from hesse import Risk
from hesse.apps import alignment, linearised, ntk
from hesse.testing import check_operator
from tests.refusals import assert_refused

N, C = 9, 3
FLOAT = {"dtype": torch.float64}
NEAR = {"rtol": 1e-8, "atol": 1e-11}


def net(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, C)).double()


def data(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, **FLOAT)
    return x, torch.tanh(x[:, :C]) + 0.1 * torch.randn(n, C, generator=g, **FLOAT)


X, Y = data(N, 1)
X2, _ = data(5, 2)
MODEL = net()
THETA = {name: p.detach() for name, p in MODEL.named_parameters()}


def outputs(params, x):
    return torch.func.functional_call(MODEL, params, (x,))


def jacobian(x, params=THETA, f=outputs):
    leaves = torch.func.jacrev(f)(params, x).values()
    return torch.cat([leaf.reshape(C * len(x), -1) for leaf in leaves], 1)


J, J2 = jacobian(X), jacobian(X2)
K = J @ J.T
R = (Y - outputs(THETA, X)).reshape(-1)
SIDES = {"fewer outputs": N, "fewer parameters": 40}


# -- Kernels ---------------------------------------------------------------------------------------


def test_kernels_are_those_of_dense_jacobians():
    batches = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    for g in (MODEL, Risk(MODEL, nn.MSELoss(), batches, weight_decay=0.1)):
        here = None if isinstance(g, Risk) else X
        torch.testing.assert_close(ntk(g, THETA, here).to_dense(), K)
        torch.testing.assert_close(ntk(g, THETA, here, X2).to_dense(), J @ J2.T)
    check_operator(ntk(outputs, THETA, X, X2))


def test_the_trace_kernel_is_the_mean_over_signs():
    exact = torch.einsum("icjc->ij", (J @ J2.T).reshape(N, C, 5, C)) / C
    torch.testing.assert_close(ntk(MODEL, x=X, x2=X2, trace=True, signs=None).to_dense(), exact)
    full = K.reshape(N, C, N, C)
    g = torch.Generator().manual_seed(0)
    one = ntk(MODEL, x=X, trace=True, generator=g)
    check_operator(one)
    patterns = [torch.tensor(z, **FLOAT) for z in itertools.product([1.0, -1.0], repeat=C)]
    each = [torch.einsum("icjd,c,d->ij", full, z, z) / C for z in patterns]
    assert min(float((one.to_dense() - part).norm()) for part in each) < 1e-12
    torch.testing.assert_close(sum(each) / 2**C, torch.einsum("icjc->ij", full) / C)
    several = ntk(MODEL, x=X, trace=True, signs=3, generator=g)
    assert several.symmetric
    distance = [float((several.to_dense() - part).norm()) for part in each]
    assert min(distance) > 0.0  # a mean of different ones
    assert float(torch.linalg.eigvalsh(several.to_dense())[0]) > -1e-10


# -- Fits ------------------------------------------------------------------------------------------


@pytest.fixture(params=SIDES, scope="module")
def side(request):
    """(x, y, J, r) with fewer outputs than parameters, or more."""
    x, y = data(SIDES[request.param], 1)
    return x, y, jacobian(x), (y - outputs(THETA, x)).reshape(-1)


@pytest.mark.parametrize("preconditioner", ["auto", "nystrom", None])
def test_ridge_regression_is_that_of_the_dense_formula(side, preconditioner):
    x, y, J, r = side
    fit = linearised(MODEL, THETA).fit(x, y, ridge=0.3, rtol=1e-13, preconditioner=preconditioner)
    change = J.T @ torch.linalg.solve(J @ J.T + 0.3 * torch.eye(len(J), **FLOAT), r)
    expected = outputs(THETA, X2) + (J2 @ change).reshape(-1, C)
    torch.testing.assert_close(fit.predict(X2), expected, **NEAR)
    torch.testing.assert_close(hesse.Space.of(THETA).flatten(fit.change), change, **NEAR)
    assert fit.converged
    assert fit.space == ("outputs" if J.shape[0] < J.shape[1] else "parameters")


def test_without_a_ridge_it_is_the_least_change_of_least_squares(side):
    x, y, J, r = side
    fit = linearised(MODEL, THETA).fit(x, y, rtol=1e-13)
    change = torch.linalg.lstsq(J, r[:, None], rcond=1e-10, driver="gelsd").solution[:, 0]
    expected = outputs(THETA, X2).reshape(-1) + J2 @ change
    torch.testing.assert_close(fit.predict(X2).reshape(-1), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_gradient_flow_is_the_matrix_exponential(side, ridge):
    x, y, J, r = side
    fit = linearised(outputs, THETA).fit(x, y, ridge=ridge, time=0.05, rtol=1e-12)
    G = J.T @ J + ridge * torch.eye(J.shape[1], **FLOAT)
    # d(change)/dt = J'r - G change, as one linear system with a constant.
    top = torch.cat([-G, (J.T @ r)[:, None]], 1)
    system = torch.cat([top, torch.zeros(1, top.shape[1], **FLOAT)])
    change = torch.linalg.matrix_exp(0.05 * system)[:-1, -1]
    torch.testing.assert_close(hesse.Space.of(THETA).flatten(fit.change), change, **NEAR)
    if ridge == 0.0:
        there = y.reshape(-1) - torch.linalg.matrix_exp(-0.05 * J @ J.T) @ r
        torch.testing.assert_close(fit.predict(x).reshape(-1), there, **NEAR)


@pytest.mark.slow
def test_gradient_descent_on_a_linear_model_takes_the_steps_of_the_flow():
    model = nn.Linear(4, C).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=4e-4)
    fit = linearised(model, start).fit(X, Y, time=500 * 4e-4, rtol=1e-12)
    for _ in range(500):
        optimizer.zero_grad()
        (0.5 * (model(X) - Y).square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(fit.predict(X2), model(X2).detach(), rtol=2e-3, atol=2e-3)


def test_ragged_batches_and_a_risk_give_the_fit_of_one_batch():
    one = linearised(MODEL).fit(X, Y, ridge=0.5, rtol=1e-13).predict(X2)
    batches = [(X[:2], Y[:2]), (X[2:7], Y[2:7]), (X[7:], Y[7:])]
    risk = Risk(MODEL, nn.MSELoss(), batches, weight_decay=3.0)
    torch.testing.assert_close(linearised(risk).fit(ridge=0.5, rtol=1e-13).predict(X2), one, **NEAR)
    other = linearised(risk, THETA).fit(X, Y, ridge=0.5, rtol=1e-13)
    torch.testing.assert_close(other.predict(X2), one, **NEAR)


def test_the_trace_kernel_preconditioner_pays():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 128), nn.Tanh(), nn.Linear(128, 5)).double()
    x = torch.randn(80, 8, generator=torch.Generator().manual_seed(0), **FLOAT)
    x = x * torch.logspace(0, -1.5, 8, **FLOAT)
    y = torch.sin(3 * x[:, :5])
    ridge = (
        1e-3 * float(hesse.trace(ntk(model, x=x), generator=torch.Generator().manual_seed(0))) / 400
    )
    plain, quick = (
        linearised(model).fit(
            x, y, ridge=ridge, preconditioner=p, generator=torch.Generator().manual_seed(0)
        )
        for p in (None, "trace-kernel")
    )
    torch.testing.assert_close(quick.predict(x), plain.predict(x), rtol=1e-3, atol=1e-3)
    assert quick.products <= plain.products / 3


def test_a_fit_that_does_not_converge_warns():
    with pytest.warns(UserWarning, match="not exact"):
        fit = linearised(MODEL).fit(X, Y, ridge=1e-9, max_products=3, preconditioner=None)
    assert not fit.converged


# -- Alignment -------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
def test_alignment_is_the_cosine_of_the_definition(centred):
    def cosine(A, B):
        return float((A * B).sum() / A.norm() / B.norm())

    H = torch.eye(N, **FLOAT) - centred / N
    trace = torch.einsum("icjc->ij", K.reshape(N, C, N, C)) / C
    expected = cosine(H @ trace @ H, H @ Y @ Y.T @ H)
    T = ntk(MODEL, x=X, trace=True, signs=None)
    assert alignment(trace, Y, centred).value == pytest.approx(expected, abs=1e-12)
    assert alignment(T, Y, centred).value == pytest.approx(expected, abs=1e-12)
    y = (H @ Y).reshape(-1)
    H_all = torch.kron(H, torch.eye(C, **FLOAT))
    got = alignment(ntk(MODEL, x=X), Y, centred, rtol=1e-9)
    assert got.value == pytest.approx(cosine(H_all @ K @ H_all, torch.outer(y, y)), abs=1e-12)
    assert got.products > 0


# -- What is refused -------------------------------------------------------------------------------

FIT = linearised(MODEL).fit
REFUSED = {
    "no inputs": (lambda: ntk(MODEL), "x, the inputs"),
    "no model": (lambda: ntk(3, THETA, X), "a model"),
    "a callable without a point": (lambda: ntk(outputs, x=X), "params"),
    "no signs": (lambda: ntk(MODEL, x=X, trace=True, signs=0), "signs"),
    "a trace that is a number": (lambda: ntk(MODEL, x=X, trace=3), "True or False"),
    "dropout in train mode": (
        lambda: ntk(nn.Sequential(nn.Linear(4, 4), nn.Dropout()).double().train(), x=X),
        "eval",
    ),
    "a trace over outputs that are two tensors": (
        lambda: ntk(lambda p, x: (x @ p, x @ p), torch.ones(4, 2, **FLOAT), X, trace=True),
        "outputs in one tensor",
    ),
    "outputs of two kinds": (
        lambda: ntk(lambda p, x: x * p, torch.ones((), **FLOAT), X, X[:, :2], trace=True),
        "outputs an example for x2",
    ),
    "linearised without a point": (lambda: linearised(outputs), "params"),
    "linearised of no model": (lambda: linearised(3, THETA), "a model"),
    "no targets": (lambda: FIT(X), "no y"),
    "labels": (lambda: FIT(X, Y.argmax(1)), "targets like the outputs"),
    "targets of another shape": (lambda: FIT(X, Y[:, :2]), "targets like the outputs|shape"),
    "a negative ridge": (lambda: FIT(X, Y, ridge=-1.0), "rho >= 0"),
    "a time of zero": (lambda: FIT(X, Y, time=0.0), "time > 0"),
    "a tolerance that is no number": (lambda: FIT(X, Y, rtol="1e-3"), "rtol"),
    "targets that are not finite": (lambda: FIT(X, Y * math.nan), "finite"),
    "a preconditioner without a ridge": (
        lambda: FIT(X, Y, preconditioner="nystrom"),
        "a ridge > 0",
    ),
    "a preconditioner for a time": (
        lambda: FIT(X, Y, ridge=1.0, time=1.0, preconditioner="nystrom"),
        "no time",
    ),
    "a name of no preconditioner": (
        lambda: FIT(X, Y, ridge=1.0, preconditioner="cholesky"),
        "preconditioner",
    ),
    "the trace kernel in the space of the parameters": (
        lambda: FIT(*data(40, 1), ridge=1.0, preconditioner="trace-kernel"),
        "more parameters than outputs",
    ),
    "a kernel of another size": (lambda: alignment(torch.eye(4, **FLOAT), Y), "N or of N C"),
    "labels for alignment": (lambda: alignment(K, torch.arange(N)), "one_hot|floating-point"),
    "targets that are all alike": (
        lambda: alignment(torch.eye(N, **FLOAT), torch.ones(N, **FLOAT)),
        "not constant",
    ),
    "a kernel that is not symmetric": (
        lambda: alignment(ntk(MODEL, x=X, x2=X2), Y),
        "symmetric",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_a_remedy(case):
    assert_refused(*REFUSED[case])
