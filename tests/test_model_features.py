# SPDX-License-Identifier: Apache-2.0
"""Features of models that need care: each product is that of a plain twin, or refused helpfully."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hesse
from hesse.errors import DerivativeError, FunctionError, HesseError, RandomnessError
from tests.feature_networks import (
    DOUBLE,
    MODES,
    V,
    X,
    assert_close,
    assert_like,
    data,
    direction,
    near,
    net,
    net_with,
    operator,
    risk_of,
)

# --------------------------------------------------------------------------------------------------
# Control flow, state, layouts


class Branches(nn.Module):
    """As many layers as the inputs ask for, and one activation or another."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        hidden = self.net[0](x)
        activation = torch.sin if hidden.sum() > 0 else torch.tanh
        for _ in range(int(x.abs().sum()) % 3 + 1):
            hidden = activation(hidden)
        return self.net[2](hidden)


def test_control_flow_on_values():
    for mode in MODES:
        risk = risk_of(Branches())
        flipped = {name: -2 * p for name, p in risk.params.items()}
        v = direction(risk)
        for r, x in [(risk, risk.params), (risk, flipped), (risk.on(data(2)), near(risk.params))]:
            assert_close(operator(r, x, mode) @ v, hesse.hvp(r, x, v))


def power(x):
    return (x**4).sum() if x[0] > 0 else (x**3).sum()


@pytest.mark.parametrize("mode", ["auto", "traced-split"])
def test_an_operator_stays_right_when_another_point_needs_another_program(mode):
    H = operator(power, -X, mode)
    first = H @ V
    assert_close(H.at(X) @ V, 6 * X * V)
    assert_close(H @ V, first)


def test_a_strided_direction():
    def f(x):
        return (torch.fft.irfft(torch.view_as_complex(x)) ** 3).sum()

    H = operator(f, X.view(2, 2), "traced-split")
    product, strided = H @ V, torch.stack([V, X], dim=1)[:, 0]
    assert_close(H @ strided, product)


def test_a_sparse_constant():
    ring = torch.eye(5, dtype=DOUBLE) + torch.eye(5, dtype=DOUBLE).roll(1, 0)
    constant = ring.to_sparse()
    sparse = net_with(lambda x: torch.sparse.mm(constant, torch.tanh(x)))
    assert_like(sparse, net_with(lambda x: ring @ torch.tanh(x)), modes=["auto", "retained-graph"])
    risk = risk_of(sparse)
    with pytest.raises(DerivativeError, match=r"a tensor of layout torch\.sparse_coo"):
        operator(risk, risk.params, "traced-split") @ direction(risk)


SPARSE_GRADIENTS = {
    "hvp": lambda risk: hesse.hvp(risk, risk.params, direction(risk)),
    "ggn": lambda risk: hesse.ggn_operator(risk) @ direction(risk),
    "diagonal": lambda risk: hesse.diagonal(hesse.ggn_operator(risk)),
    "ntk": lambda risk: hesse.ntk_operator(risk) @ torch.ones(12, dtype=DOUBLE),
    "per example": lambda risk: (
        hesse.jacobian_operator(risk.per_example, risk.params).T @ torch.ones(4, dtype=DOUBLE)
    ),
    "kfac": lambda risk: hesse.kfac_operator(risk),
}


@pytest.mark.parametrize("verb", SPARSE_GRADIENTS)
def test_an_embedding_with_sparse_gradients_is_refused_with_its_remedy(verb):
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), net()).double()
    tokens = torch.tensor([0, 1, 1, 4])
    risk = hesse.Risk(model, nn.CrossEntropyLoss(), (tokens, tokens % 3))
    with pytest.raises(HesseError, match="sparse=False"):
        SPARSE_GRADIENTS[verb](risk)


class Counting(nn.Module):
    """A model that counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.net = net()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.net(x)


def test_a_model_that_changes_a_buffer():
    model = Counting()
    assert_like(model, net())
    assert float(model.calls) == 0.0


class Remembering(nn.Module):
    """A model that counts its calls where nobody sees it."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = net(), [torch.zeros(())]

    def forward(self, x):
        self.calls[0] += 1
        return self.net(x)


def test_a_model_that_changes_a_tensor_of_its_own():
    assert_like(Remembering(), net(), modes=["auto", "retained-graph"])
    risk = risk_of(Remembering())
    with pytest.raises(DerivativeError, match="changes a tensor in place that it did not make"):
        operator(risk, risk.params, "traced-split") @ direction(risk)


@pytest.mark.parametrize("make", [hesse.hessian_operator, hesse.ggn_operator])
def test_a_refusal_names_the_mode_that_was_asked_for(make):
    risk = risk_of(Remembering())
    with pytest.raises(HesseError, match="in mode 'traced-split'"):
        make(risk, risk.params, mode="traced-split") @ direction(risk)


@pytest.mark.parametrize("mode", MODES)
def test_marks_for_the_profiler_are_no_operations(mode):
    """What `record_function` returns cannot be compared with what it returned before."""
    plain = net()

    def marked(params, inputs):
        with torch.profiler.record_function("forward"):
            return torch.func.functional_call(plain, params, inputs)

    risk = hesse.Risk(marked, nn.CrossEntropyLoss(), data(), params=risk_of(plain).params)
    v, there = direction(risk), near(risk.params)
    for make in (hesse.ggn_operator, hesse.kfac_operator):
        G = make(risk, risk.params, **({"mode": mode} if make is hesse.ggn_operator else {}))
        assert_close(G.at(there) @ v, make(risk_of(plain), there) @ v)


def test_hooks_are_part_of_the_model():
    model, twin = net(), net_with(lambda x: 2 * torch.tanh(x))
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    assert_like(model, twin)


def test_a_frozen_part():
    model, twin = net(), net()
    model[0].requires_grad_(False)
    risk, plain = risk_of(model), risk_of(twin)
    v = direction(risk)
    whole = torch.cat([torch.zeros(30, dtype=DOUBLE), v])
    for mode in MODES:
        expected = (operator(plain, plain.params, mode) @ whole)[30:]
        assert_close(operator(risk, risk.params, mode) @ v, expected)


# --------------------------------------------------------------------------------------------------
# Compiled models


COMPILED = {
    "wrapped": torch.compile,
    "in place": lambda model: model.compile() or model,
    "a part": lambda model: setattr(model, "net", torch.compile(model.net)) or model,
}


class Wrapped(nn.Module):
    """A module of our own: torch compiles its forward."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return torch.sin(self.net(x))


def products(risk):
    """The product by each of the ways there are."""
    x, v = risk.params, direction(risk)
    return {
        "hvp": lambda: hesse.hvp(risk, x, v),
        "traced-split": lambda: hesse.hessian_operator(risk, x, mode="traced-split") @ v,
        "retained-graph": lambda: hesse.hessian_operator(risk, x, mode="retained-graph") @ v,
        "gauss-newton": lambda: hesse.ggn_operator(risk, x) @ v,
    }


BY = pytest.mark.parametrize("by", ["traced-split", "hvp", "retained-graph", "gauss-newton"])


@pytest.mark.slow
@BY
@pytest.mark.parametrize("way", COMPILED)
def test_a_compiled_model_is_taken_as_it_was_written(way, by):
    torch.compiler.reset()
    ours, plain = products(risk_of(COMPILED[way](Wrapped()))), products(risk_of(Wrapped()))
    assert_close(ours[by](), plain[by]())


# --------------------------------------------------------------------------------------------------
# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_with_single_precision_vectors(dtype):
    model = net().to(dtype)
    inputs, targets = data()
    risk = hesse.Risk(model, nn.CrossEntropyLoss(), (inputs.to(dtype), targets))
    twin = risk_of(copy.deepcopy(model).double())
    v = direction(twin)
    expected = hesse.hvp(twin, twin.params, v)
    H = hesse.hessian_operator(risk, risk.params)
    for product in (hesse.hvp(risk, risk.params, v.float()), H @ v.float()):
        assert product.dtype == torch.float32
        assert_close(product.double(), expected, 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = net().float()

    def outputs(params, inputs):
        with torch.autocast("cpu", dtype=dtype):
            return torch.func.functional_call(model, params, (inputs.float(),)).float()

    twin = risk_of(net())
    params = {name: p.float() for name, p in twin.params.items()}
    risk = hesse.Risk(outputs, nn.CrossEntropyLoss(), data(), params=params)
    v = direction(twin)
    expected = hesse.hvp(twin, twin.params, v)
    for mode in ("auto", "retained-graph"):
        product = operator(risk, params, mode) @ v.float()
        assert_close(product.double(), expected, 0.05)
    if dtype == torch.float16:  # a program in bfloat16 does not repeat its product closely enough
        assert_close((operator(risk, params, "traced-split") @ v.float()).double(), expected, 0.05)


# --------------------------------------------------------------------------------------------------
# What has no exact product


REFUSED = {
    "detached": (lambda x: (x.detach() ** 3).sum(), r"look for \.detach\(\)"),
    "read out": (lambda x: torch.tensor((x**3).sum().item()), r"\.item\(\)"),
    "by numpy": (lambda x: torch.from_numpy(x.detach().numpy() ** 3).sum(), r"\.detach\(\)"),
    "without gradients": (torch.no_grad()(lambda x: (x**3).sum()), "no_grad"),
    "argmax": (lambda x: (x**3).argmax().double(), "differentiable operations"),
    "an integer": (lambda x: (x**3).argmax(), "dtype torch.int64"),
    "complex": (lambda x: torch.fft.fft(x).sum(), "dtype torch.complex128"),
    "no scalar": (lambda x: x**3, r"with \.sum\(\) or \.mean\(\)"),
    "a tuple": (lambda x: ((x**3).sum(), x), "rather than .* a tuple"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFUSED)
def test_a_function_that_has_no_derivative_is_refused(name, mode):
    f, words = REFUSED[name]
    with pytest.raises(FunctionError, match=words):
        hesse.hvp(f, X, V)
    with pytest.raises(FunctionError, match=words):
        operator(f, X, mode) @ V


RANDOM = {
    "dropout": lambda x: F.dropout(x**3, 0.5).sum(),
    "noise": lambda x: (x**3 * torch.rand(4)).sum(),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_refused(name):
    for mode in ("auto", "retained-graph", "traced-split"):
        with pytest.raises(RandomnessError, match="set dropout to 0"):
            operator(RANDOM[name], X, mode) @ V


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.1), nn.BatchNorm1d(6), nn.AlphaDropout(0.1)], ids=type
)
def test_a_model_in_train_mode_is_refused_by_the_name_of_its_module(layer):
    model = nn.Sequential(net()[0], layer.double(), net()[2])
    with pytest.raises(RandomnessError, match=rf"'1' \({type(layer).__name__}\) in train mode"):
        risk_of(model)
    with pytest.raises(RandomnessError, match=r"Call model\.eval\(\) first"):
        risk_of(model)
    risk_of(model.eval())


def test_random_numbers_outside_a_module_are_refused():
    with pytest.raises(RandomnessError, match=r"Call model\.eval\(\), set dropout to 0"):
        risk_of(net_with(lambda x: F.dropout(x, 0.5)))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused_with_its_remedy():
    with pytest.raises(HesseError, match=r"torch\.jit"):
        risk_of(torch.jit.script(net()))
