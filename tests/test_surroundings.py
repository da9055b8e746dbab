# SPDX-License-Identifier: Apache-2.0
"""Contexts of the user around a public call do not reach the library's own arithmetic."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hesse
from hesse.surroundings import is_surrounded, set_aside, users_contexts

DOUBLE = torch.float64


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms": deterministic_algorithms,
    "FLOP counter": lambda: FlopCounterMode(display=False),
    "saved tensors on the CPU": torch.autograd.graph.save_on_cpu,
    "mutation on saved tensors": torch.autograd.graph.allow_mutation_on_saved_tensors,
}


def seeded():
    return torch.Generator().manual_seed(0)


def symmetric():
    Q, _ = torch.linalg.qr(torch.randn(30, 30, dtype=DOUBLE, generator=seeded()))
    A = (Q * torch.linspace(1.0, 4.0, 30, dtype=DOUBLE)) @ Q.T
    return ((A + A.T) / 2).float()


MATRIX = symmetric()
B = torch.linspace(-1.0, 1.0, 30)
X = torch.linspace(0.5, 1.5, 8, dtype=DOUBLE)


def quartic(x):
    return (x**4).sum() / 12 + (x[:-1] * x[1:]).sum() ** 2


def chain(x):
    return ((x[1:] - x[:-1] ** 2) ** 2).sum()


def risk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = [(torch.randn(9, 4, dtype=DOUBLE), torch.randint(0, 3, (9,))) for _ in range(2)]
    return hesse.Risk(model, nn.CrossEntropyLoss(), data, weight_decay=0.1)


RISK = risk()
INPUTS = torch.linspace(-1, 1, 8, dtype=DOUBLE).view(2, 4)
OUTPUTS = torch.linspace(-1, 1, 54, dtype=DOUBLE)


def products(operator):
    v = operator.domain.gaussian(seeded())
    operator.announce(1000)
    return torch.stack(
        [operator @ v, operator @ (2 * v), (operator @ torch.stack([v] * 4, 1)).T[0]]
    )


def dense():
    return hesse.dense_operator(MATRIX)


def density():
    return hesse.spectral_density(dense(), generator=seeded()).density


def counts(x):
    return x.exp() - (X - X.mean()).exp() * x


def both(x):
    return ((x["a"] * x["b"]) ** 2).sum()


def double_well(x):
    return x[0] ** 4 / 4 - x[0] ** 2 / 2 + 2 * x[1] ** 2


def slope_of_argmin():
    x = hesse.apps.argmin(lambda x, l: ((x - l) ** 2).sum() + (x**4).sum(), X, warm_start=False)
    with torch.inference_mode(False), torch.enable_grad():
        l = X.clone().requires_grad_()
        return torch.autograd.grad(x(l).sum(), l)[0]


CALLS = {
    "hvp": lambda: hesse.hvp(quartic, X, X),
    "hessian_operator": lambda: products(hesse.hessian_operator(quartic, X)),
    "hessian_operator of a leaf": lambda: products(
        hesse.hessian_operator(both, {"a": X, "b": X}, with_respect_to="a")
    ),
    "hessian of a risk": lambda: products(hesse.hessian_operator(RISK, RISK.params)),
    "ggn_operator": lambda: products(hesse.ggn_operator(RISK, RISK.params)),
    "fisher_operator": lambda: products(hesse.fisher_operator(RISK, RISK.params, "empirical")),
    "gradient_covariance_operator": lambda: products(
        hesse.gradient_covariance_operator(RISK, RISK.params)
    ),
    "ntk_operator": lambda: hesse.ntk_operator(RISK) @ OUTPUTS,
    "sparse_hessian_operator": lambda: hesse.sparse_hessian_operator(chain, X).to_dense(),
    "jacobian_operator": lambda: hesse.jacobian_operator(torch.tanh, X) @ X,
    "kfac_operator": lambda: products(hesse.kfac_operator(RISK, damping=0.1)),
    "ekfac_operator": lambda: products(hesse.ekfac_operator(RISK, generator=seeded())),
    "gradient": lambda: hesse.hessian_operator(RISK, RISK.params).flat_gradient,
    "eigsh": lambda: hesse.eigsh(dense(), 3, generator=seeded()).values,
    "lobpcg": lambda: hesse.eigsh(dense(), 2, method="lobpcg", generator=seeded()).values,
    "nystrom_operator": lambda: products(
        hesse.nystrom_operator(dense() @ dense(), 3, generator=seeded())
    ),
    "svds": lambda: hesse.svds(dense(), 2, generator=seeded()).S,
    **{
        f"solve by {method}": lambda method=method: hesse.solve(dense(), B, method=method).x
        for method in ("cg", "minres", "gmres", "lsmr", "direct")
    },
    "trace": lambda: hesse.trace(dense(), generator=seeded()).value,
    "diagonal": lambda: hesse.diagonal(dense(), generator=seeded()).value,
    "logdet": lambda: hesse.logdet(dense(), generator=seeded()).value,
    "norm": lambda: hesse.norm(dense(), generator=seeded()).value,
    "spectral_density": density,
    "matrix_function": lambda: hesse.matrix_function("sqrt", dense(), B).value,
    "minimize": lambda: hesse.minimize(quartic, X).x,
    "least_squares": lambda: hesse.least_squares(lambda x: x**2 - 2.0, X).x,
    "sparse_init_": lambda: hesse.sparse_init_(
        nn.Linear(30, 8, device="cpu", dtype=DOUBLE), generator=seeded()
    ).weight.detach(),
    "argmin": lambda: slope_of_argmin(),
    "influence": lambda: hesse.apps.influence(RISK, RISK.params, RISK, rtol=1e-9).scores,
    "self_influence": lambda: hesse.apps.self_influence(RISK, RISK.params, rtol=1e-9).scores,
    "prune": lambda: hesse.apps.prune(
        RISK, RISK.params, 0.5, damping=0.1, repair=hesse.apps.Repair(rtol=1e-9)
    ).params["0.weight"],
    "per_example": lambda: RISK.per_example.jvp(RISK.params, RISK.params),
    "gradients of examples": lambda: torch.cat(list(RISK.per_example.gradients(RISK.params))),
    "CurvatureTracker": lambda: hesse.apps.CurvatureTracker(RISK).step(RISK.params).sharpness,
    "landscape": lambda: hesse.apps.landscape(quartic, X, (X, X**2), 0.5, 3).values,
    "ntk": lambda: products(hesse.apps.ntk(RISK, trace=True, generator=seeded())),
    "linearised": lambda: (
        hesse.apps.linearised(torch.add, X).fit(X, X, ridge=0.5, generator=seeded()).change
    ),
    "standard_errors": lambda: hesse.apps.standard_errors(counts, X - X.mean()).covariance,
    "fisher_root_operator": lambda: hesse.fisher_root_operator(RISK).to_dense(),
    "laplace": lambda: hesse.apps.laplace(RISK).functional_variance(INPUTS),
    "modes": lambda: hesse.apps.modes(quartic, X, rigid="none").eigenvalues,
    "saddle": lambda: hesse.apps.saddle(double_well, X[:2] - 1.4, rigid="none").x,
    "response": lambda: (
        hesse.apps.response(lambda x, q: ((x - q) ** 2).sum() + (x**4).sum() * 0, X, X).derivative
    ),
    "hypergradient": lambda: (
        hesse.apps.hypergradient(
            lambda x, l: (x * l).sum(), lambda x, l: ((x - l**2) ** 2).sum(), X**2, X
        ).gradient
    ),
}
RIGHT = {}


@pytest.mark.some_cases(100)
@pytest.mark.fast_cases(53)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("call", CALLS)
def test_numbers_are_those_without_the_context(call, context):
    if call not in RIGHT:
        RIGHT[call] = CALLS[call]()
    with CONTEXTS[context]():
        got = CALLS[call]()
    right = torch.as_tensor(RIGHT[call])
    got = torch.as_tensor(got, device=right.device)
    assert got.dtype == right.dtype or call in ("trace", "logdet", "norm")
    tolerance = 1e-5 if right.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(got.to(right.dtype), right, rtol=tolerance, atol=tolerance)


def test_the_function_of_the_user_runs_in_the_contexts_of_the_user():
    seen = {}

    def f(x):
        y = torch.ones(2, 2) @ x[:2].outer(x[:2]).to(torch.float32)
        seen["dtype"] = y.dtype
        return (x**2).sum() + y.sum()

    with torch.autocast("cpu", torch.bfloat16):
        hesse.hvp(f, X, X)
    assert seen["dtype"] == torch.bfloat16
    hesse.hvp(f, X, X)
    assert seen["dtype"] == torch.float32


def test_the_contexts_come_back():
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert is_surrounded()
        with set_aside():
            assert not is_surrounded()
            assert torch.ones(1).device.type == "cpu"
            with users_contexts():
                assert is_surrounded()
                assert torch.ones(1).device.type == "meta"
        assert is_surrounded()
    assert not is_surrounded()


NESTED = """
import torch, hesse
from torch.func import grad, jvp
D = torch.float64
t = torch.linspace(-1, 1, 5, dtype=D)
d = lambda u: lambda s: jvp(u, (s,), (torch.ones_like(s),))[1]
g = lambda u: grad(lambda s: u(s).sum())
p = torch.tensor([0.3, 0.5, -0.7], dtype=D)
v = torch.ones(3, dtype=D)
nests = {"dd": lambda u: d(d(u)), "dg": lambda u: d(g(u)), "gd": lambda u: g(d(u))}
for name, nest in nests.items():
    def f(p):
        return (nest(lambda s: torch.tanh(p[0] * s.sin() + p[1] * s) * p[2])(t) ** 2).sum()
    kept, traced = hesse.hessian_operator(f, p, mode="retained-graph"), hesse.hessian_operator(f, p)
    traced.announce(1000)
    torch.testing.assert_close(traced @ v, kept @ v)
    print(name, flush=True)
"""


@pytest.mark.slow
def test_forward_mode_inside_another_derivative_does_not_end_the_process(fresh):
    done = fresh.run(NESTED)
    assert (done.returncode, done.stdout.split()) == (0, ["dd", "dg", "gd"]), done.stderr


@pytest.mark.parametrize("strain", [1e-3, 1e-5, 0.0])
def test_a_traced_product_is_that_of_the_graph(strain):
    def energy(x):
        F = x.view(-1, 3, 3)
        J = torch.linalg.det(F)
        return (0.5 * (F * F).sum((1, 2)) - torch.log(J) + 0.5 * torch.log(J) ** 2).sum()

    x = (torch.eye(3) + strain * torch.randn(4, 3, 3, generator=seeded())).reshape(-1)
    kept = hesse.hessian_operator(energy, x, mode="retained-graph")
    H = hesse.hessian_operator(energy, x)
    H.announce(1000)
    v = H.domain.gaussian(seeded())
    torch.testing.assert_close(H @ v, kept @ v, rtol=1e-5, atol=1e-5)
