# SPDX-License-Identifier: Apache-2.0
"""Exact diagonals of Gauss-Newton and Fisher matrices, against J'HJ by torch's Jacobians."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

import hesse
from hesse import Risk, fisher_operator, ggn_operator, gradient_covariance_operator
from hesse.curvature.diagonals import batch_squares, several_rows
from hesse.errors import DataError, NonFiniteError, Status
from hesse.estimators import computed
from hesse.krylov.preconditioners import jacobi

DOUBLE = torch.float64
EXACT = 1e-12
V = 5  # classes and tokens


def randn(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def labels(*shape):
    return torch.randint(0, V, shape)


def padded(*shape):
    y = labels(*shape)
    y[0, -2:] = -100
    return y


def mlp(inputs=4, outputs=V):
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


class TinyGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(V, 4), nn.Parameter(torch.randn(9, 4))
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.places[: tokens.shape[1]]
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x @ self.embedding.weight.T


class Sequences(nn.Module):
    """A layer of torch over sequences, and a linear one."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, V)

    def forward(self, x):
        inputs = (x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else (x,)
        return self.head(self.layer(*inputs)[0])


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, V)

    def forward(self, left, right, **_):
        return {"logits": self.b(torch.tanh(self.a(left) + right))}


class Normed(nn.Module):
    """A convolution of one dimension, GroupNorm, BatchNorm in eval mode, and a mean."""

    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution
        self.norms = nn.Sequential(nn.GroupNorm(2, 6), nn.BatchNorm1d(6))
        self.head = nn.Linear(6, V)

    def forward(self, x):
        return self.head(torch.tanh(self.norms(self.convolution(x))).mean(-1))


class OwnLoss(nn.Module):
    """A model that computes its own loss, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.gpt = TinyGPT()

    def forward(self, input_ids, labels):
        logits = self.gpt(input_ids)
        return {"loss": F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1))}


def flattened(z, y):
    return F.cross_entropy(z.reshape(-1, V), y.reshape(-1))


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2, stride=2),
        nn.Tanh(), nn.Flatten(), nn.Linear(16, V),
    )  # fmt: skip


def tokens_that_count(inputs, targets):
    return float((targets != -100).sum())


WEIGHTS = torch.linspace(0.5, 2.0, V, dtype=DOUBLE)
CE = nn.CrossEntropyLoss

# name -> (model, loss, n -> a batch of n examples)
MODELS = {
    "mlp": (mlp, CE(), lambda n: (randn(n, 4), labels(n))),
    "class weights, ignored": (
        mlp, CE(WEIGHTS, ignore_index=1, label_smoothing=0.1),
        lambda n: (randn(n, 4), torch.arange(n) % V),
    ),
    "grouped convolutions": (conv_net, CE(), lambda n: (randn(n, 2, 6, 6), labels(n))),
    "strided": (
        lambda: Normed(nn.Conv1d(4, 6, 3, stride=2, dilation=2)), CE(),
        lambda n: (randn(n, 4, 9), labels(n)),
    ),
    "transposed": (
        lambda: Normed(nn.ConvTranspose1d(4, 6, 3, stride=2)), CE(),
        lambda n: (randn(n, 4, 5), labels(n)),
    ),
    "gpt": (TinyGPT, flattened, lambda n: (labels(n, n), padded(n, n))),
    "lstm": (
        lambda: Sequences(nn.LSTM(3, 3, batch_first=True), 3), flattened,
        lambda n: (randn(n, n, 3), labels(n, n)),
    ),
    "gru": (
        lambda: Sequences(nn.GRU(3, 3, batch_first=True), 3), nn.MSELoss(),
        lambda n: (randn(n, 2, 3), randn(n, 2, V)),
    ),
    "attention": (
        lambda: Sequences(nn.MultiheadAttention(4, 2, batch_first=True), 4), flattened,
        lambda n: (randn(n, 3, 4), labels(n, 3)),
    ),
    "dictionary": (
        Dictionary, lambda z, y: F.cross_entropy(z["logits"], y["y"]),
        lambda n: {"left": randn(n, 3), "right": randn(n, 4), "y": labels(n)},
    ),
    "bernoulli": (
        mlp, nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        lambda n: (randn(n, 4), randn(n, V).sign() / 2 + 0.5),
    ),
    "no likelihood": (
        mlp, lambda z, y: F.cross_entropy(z, y) + 0.3 * (z**4).mean(),
        lambda n: (randn(n, 4), labels(n)),
    ),
    "no natural parameters": (
        mlp, lambda z, y: F.cross_entropy(3.0 * torch.tanh(z), y),
        lambda n: (randn(n, 4), labels(n)),
    ),
    "not convex": (
        mlp, lambda z, y: (z * y * z[:, :1].cos()).sum(1).mean(),
        lambda n: (randn(n, 4), randn(n, V)),
    ),
}  # fmt: skip


def build(name, sizes=(4, 3), frozen=False, **options):
    model, loss, batch = MODELS[name]
    torch.manual_seed(0)
    model = model().double().eval()
    if frozen:
        next(model.parameters()).requires_grad_(False)
    torch.manual_seed(1)
    if name == "gpt":
        options |= {"weight": tokens_that_count}
    if name == "class weights, ignored":
        options |= {"weight": lambda x, y: float(torch.where(y == 1, 0.0, WEIGHTS[y]).sum())}
    return Risk(model, loss, [batch(n) for n in sizes], **options)


def flat(tree):
    return torch.cat([part.reshape(-1) for part in tree.values()])


def definition(risk, params=None):
    """The diagonal of the Gauss-Newton matrix: sum_b c_b J'HJ + the weight decay."""
    params = risk.params if params is None else params
    names, leaves = zip(*params.items(), strict=True)
    sizes = [leaf.numel() for leaf in leaves]
    free = [not isinstance(p, nn.Parameter) or p.requires_grad for p in leaves]
    cold = torch.cat([torch.full((n,), float(f), dtype=DOUBLE) for n, f in zip(sizes, free)])  # noqa: B905
    vector = flat({name: leaf.detach() for name, leaf in params.items()})
    total = risk.weight_decay * cold
    for coefficient, batch in risk.batches():

        def outputs(vector, batch=batch):
            parts = zip(names, leaves, vector.split(sizes), strict=True)
            params = {name: part.view_as(leaf) for name, leaf, part in parts}
            z = risk.outputs(params, batch)
            return z["logits"] if isinstance(z, dict) else z

        def loss(z, batch=batch):
            given = {"logits": z} if isinstance(batch.targets, dict) else z
            return risk.loss_of(batch).loss(given)

        z = outputs(vector)
        J = jacobian(outputs, vector).reshape(z.numel(), -1)
        H = hessian(loss, z.detach()).reshape(z.numel(), -1)
        total += coefficient * cold * (J * (H @ J)).sum(0)
    return total


def error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def way(A):
    found = A._computed_diagonal()
    assert found is not None
    return found


# -- Gauss-Newton matrices -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_diagonal_of_the_definition(name):
    risk = build(name, weight_decay=0.1)
    found = hesse.diagonal(ggn_operator(risk))
    assert error(found.value, definition(risk)) < EXACT
    assert not found.standard_error.any()
    assert found.about.startswith("exact, from ")


@pytest.mark.parametrize("name", ["mlp", "gpt", "lstm"])
def test_frozen_parameters_have_none(name):
    risk = build(name, frozen=True, weight_decay=0.1)
    params = dict(risk.model.named_parameters())
    found = way(ggn_operator(risk, params)).exact()
    assert error(found, definition(risk, params)) < EXACT
    first = next(iter(params.values())).numel()
    assert not found[:first].any()
    assert found[first:].all()
    left_out = way(ggn_operator(risk)).exact()
    torch.testing.assert_close(left_out, found[first:])


def test_a_single_batch_of_one_example():
    risk = build("lstm", sizes=(1,))
    assert error(way(ggn_operator(risk)).exact(), definition(risk)) < EXACT


@pytest.mark.parametrize("pairs", [0, 1 << 23])
def test_every_way_to_add_up_rows(monkeypatch, pairs):
    monkeypatch.setattr(batch_squares, "_PAIRS", pairs)
    monkeypatch.setattr(several_rows, "_CHUNK", 30)
    for name in ("lstm", "not convex"):
        risk = build(name, sizes=(3, 2))
        assert error(way(ggn_operator(risk)).exact(), definition(risk)) < EXACT


def test_programs_of_several_vectors_at_once():
    A = ggn_operator(build("grouped convolutions", sizes=(4,)))
    exact = definition(build("grouped convolutions", sizes=(4,)))
    for _ in range(3):  # one vector at a time, then several
        assert error(way(A).exact(), exact) < EXACT


def test_another_point_and_a_copy():
    risk = build("mlp")
    A = ggn_operator(risk)
    before = way(A).exact()
    B = A.at({name: p + 0.3 * torch.randn_like(p) for name, p in risk.params.items()})
    assert error(way(B).exact(), B.to_dense().diagonal()) < EXACT
    assert error(way(B).exact(), before) > 0.01
    torch.testing.assert_close(way(pickle.loads(pickle.dumps(A))).exact(), before)


def test_weighted_and_chosen_examples():
    risk = build("mlp", sizes=(6,))
    for other in (risk.weighted(torch.rand(6, dtype=DOUBLE)), risk.subset([0, 2, 2, 5])):
        M = [gradient_covariance_operator(other, centered=centered) for centered in (False, True)]
        for A in (ggn_operator(other), fisher_operator(other, kind="empirical"), *M):
            assert error(way(A).exact(), A.to_dense().diagonal()) < EXACT


def test_microbatches_of_a_memory_budget():
    risk = build("mlp", sizes=(64,))
    A = ggn_operator(risk, memory_budget="400KB")
    assert error(way(A).exact(), definition(risk)) < EXACT


def test_float32_and_bfloat16():
    exact = way(ggn_operator(build("mlp", sizes=(7,)))).exact()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        risk = build("mlp", sizes=(7,))
        model, (_, batch) = risk.model.to(dtype), next(risk.batches())
        other = Risk(model, nn.CrossEntropyLoss(), (batch.inputs.to(dtype), batch.targets))
        assert error(way(ggn_operator(other)).exact().double(), exact) < tolerance


def test_a_model_with_its_own_loss():
    torch.manual_seed(0)
    batches = [{"input_ids": labels(n, n + 1), "labels": labels(n, n + 1)} for n in (3, 4)]
    risk = Risk(OwnLoss().double(), lambda out, _: out["loss"], batches)
    for A in (ggn_operator(risk), fisher_operator(risk)):
        assert error(way(A).exact(), A.to_dense().diagonal()) < EXACT


# -- Fisher matrices -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["class weights, ignored", "gpt", "attention", "bernoulli"])
def test_every_kind_of_fisher_matrix(name):
    risk = build(name, sizes=(4, 3), weight_decay=0.1)
    assert error(way(fisher_operator(risk)).exact(), definition(risk)) < EXACT
    for kind in ("sampled", "empirical"):
        for per in ("row", "example"):
            A = fisher_operator(risk, kind=kind, per=per, samples=2)
            assert error(way(A).exact(), A.to_dense().diagonal()) < EXACT
    for centered in (False, True):
        M = gradient_covariance_operator(risk, centered=centered)
        assert error(way(M).exact(), M.to_dense().diagonal()) < EXACT
        assert way(M).num_vectors == 1


def test_fisher_matrices_that_are_no_gauss_newton_matrices():
    torch.manual_seed(0)
    x, y = randn(6, 4), randn(6, 1)

    def gaussian(z, y):
        return F.gaussian_nll_loss(z[:, :1], y, z[:, 1:].exp())

    risk = Risk(mlp(outputs=2), gaussian, (x, y))
    for A in (ggn_operator(risk), fisher_operator(risk)):
        assert error(way(A).exact(), A.to_dense().diagonal()) < EXACT
    rates = Risk(
        nn.Sequential(mlp(), nn.Softplus()), nn.PoissonNLLLoss(log_input=False), (x, labels(6, V))
    )
    assert error(way(ggn_operator(rates)).exact(), definition(rates)) < EXACT


# -- Expressions -----------------------------------------------------------------------------------


def test_expressions_have_the_diagonals_of_their_parts():
    risk = build("mlp")
    G, n = ggn_operator(risk), sum(p.numel() for p in risk.params.values())
    D = hesse.diagonal_operator(torch.linspace(1.0, 2.0, n, dtype=DOUBLE))
    I = hesse.identity_operator(n, DOUBLE)
    for A in (
        G + 0.5 * I, 2.0 * G - 0.1 * I, D @ G @ D, D @ (G + I), G + fisher_operator(risk),
        (G + I).block("0"), G.block("*.weight"), hesse.block_diagonal_operator([G, D]),
    ):  # fmt: skip
        found = hesse.diagonal(A)
        assert error(found.value, A.to_dense().diagonal()) < EXACT
        assert found.products in (1, 2)  # four vectors, or twice as many
        samples = torch.stack(way(A).samples(100, torch.Generator().manual_seed(0)))
        assert error(samples.mean(0), found.value) < 0.1


def test_other_operators_have_no_way():
    risk = build("mlp")
    H = hesse.hessian_operator(risk)
    for A in (H, ggn_operator(risk) + H, ggn_operator(risk) @ ggn_operator(risk)):
        assert A._computed_diagonal() is None
    A = H + hesse.identity_operator(H.shape[0], DOUBLE)
    found = hesse.diagonal(A, rtol=0.01)
    assert found.about == ""
    assert error(found.value, A.to_dense().diagonal()) < 0.05


# -- Parameters without a rule ---------------------------------------------------------------------


def test_parameters_without_a_rule_are_taken_example_by_example_and_named():
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, V)).double()
    batches = [(randn(n, 4), labels(n)) for n in (4, 3)]
    risk = Risk(model, nn.CrossEntropyLoss(), batches)
    found = hesse.diagonal(ggn_operator(risk))
    assert error(found.value, definition(risk)) < EXACT
    assert "example by example: 0.parametrizations.weight.original0" in found.about
    assert "2.weight" not in found.about


class Shared(nn.Module):
    """Rows that all examples share, and a number that Python reads."""

    def __init__(self, reads):
        super().__init__()
        self.places, self.inner = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 4)
        self.outer, self.reads = nn.Linear(4, V), reads

    def forward(self, x):
        shared = torch.tanh(self.inner(self.places)).sum(0)
        if self.reads:
            shared = shared * float(np.tanh(shared.detach().numpy()).sum() > -1e9)
        return self.outer(torch.tanh(x * shared))


def test_rows_that_several_examples_share():
    torch.manual_seed(0)
    risk = Risk(Shared(False).double(), nn.CrossEntropyLoss(), (randn(5, 4), labels(5)))
    found = hesse.diagonal(ggn_operator(risk))
    assert error(found.value, definition(risk)) < EXACT
    assert "example by example: places, inner.weight, inner.bias" in found.about


def test_a_model_that_cannot_be_traced(monkeypatch):
    from hesse.curvature.diagonals import visits as module

    def refuse(*_, **__):
        raise module.UntraceableError("an operation")

    monkeypatch.setattr(module.FactorPrograms, "enter", refuse)
    risk = build("gpt", frozen=True)
    params = dict(risk.model.named_parameters())
    found = hesse.diagonal(ggn_operator(risk, params))
    assert error(found.value, definition(risk, params)) < EXACT
    assert "as the model cannot be traced" in found.about


class Centred(nn.Module):
    """Subtracts the mean over the batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, V)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.tanh(h - h.mean(0)))


def test_examples_that_influence_one_another_are_taken_by_products():
    torch.manual_seed(0)
    risk = Risk(Centred().double(), nn.CrossEntropyLoss(), (randn(6, 4), labels(6)))
    for A in (ggn_operator(risk), fisher_operator(risk)):
        assert A._computed_diagonal() is None
        found = hesse.diagonal(A, rtol=0.01)
        assert error(found.value, A.to_dense().diagonal()) < 0.05
        assert found.about == ""
    mixed = Risk(mlp(), lambda z, y: (z @ z.T).logsumexp(1).mean(), (randn(6, 4), labels(6)))
    assert ggn_operator(mixed)._computed_diagonal() is None


def test_examples_that_do_so_in_a_later_batch_are_refused():
    torch.manual_seed(0)
    batches = [(randn(n, 4), labels(n)) for n in (1, 5)]
    risk = Risk(Centred().double(), nn.CrossEntropyLoss(), batches)
    with pytest.raises(DataError, match="other outputs for an example alone"):
        hesse.diagonal(ggn_operator(risk))


# -- Samples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param("gpt", marks=pytest.mark.slow), "not convex", "lstm"]
)
def test_samples_are_unbiased(name):
    risk = build(name, sizes=(3, 2))
    operators = [ggn_operator(risk)]
    if name == "gpt":
        operators += [
            fisher_operator(risk, kind=kind, per=per, samples=3)
            for kind in ("sampled", "empirical")
            for per in ("row", "example")
        ]
    for A in operators:
        runs = 200
        samples = torch.stack(way(A).samples(runs, torch.Generator().manual_seed(0)))
        exact = A.to_dense().diagonal()
        deviation = samples.std(0) / runs**0.5 + 1e-12 * exact.abs().max()
        # Some 100 entries at five standard deviations: 6 in 10^5 tests would fail by chance.
        assert float(((samples.mean(0) - exact) / deviation).abs().max()) < 5.0


def test_many_outputs_are_sampled_with_a_standard_error():
    torch.manual_seed(0)
    risk = Risk(nn.Linear(4, 400).double(), nn.CrossEntropyLoss(), (randn(7, 4), labels(7)))
    A = ggn_operator(risk)
    exact = A.to_dense().diagonal()
    generator = torch.Generator().manual_seed(0)
    found = hesse.diagonal(A, rtol=0.1, generator=generator)
    assert (found.products, found.status) == (16, Status.CONVERGED)
    assert found.about == "64 vectors at the outputs of random signs, of 399 for the exact one"
    size = float(found.standard_error.norm() / exact.norm())
    assert 0.001 < size < 0.1
    assert error(found.value, exact) < 2 * size
    low, high = found.interval
    assert float(((low <= exact) & (exact <= high)).double().mean()) > 0.9
    # All vectors, once they are fewer than the tolerance needs.
    found = hesse.diagonal(A, rtol=1e-4, generator=generator)
    assert found.about == "exact, from 399 vectors at the outputs"
    assert error(found.value, exact) < EXACT
    assert found.products == 16 + 100


def test_a_limit_of_products_is_kept(monkeypatch):
    A = ggn_operator(build("gpt"))  # 16 vectors, 4 products
    found = hesse.diagonal(A, max_products=3, generator=torch.Generator().manual_seed(0))
    assert (found.products, found.status) == (3, Status.MAX_PRODUCTS)
    assert "12 vectors" in found.about
    assert error(found.value, A.to_dense().diagonal()) < 0.5
    monkeypatch.setattr(computed, "MOST_VECTORS", 3)
    seen = []
    hesse.diagonal(A, rtol=0.3, callback=lambda estimate: seen.append(estimate.products))
    assert seen[-1] >= 16


def test_other_methods_take_products():
    A = ggn_operator(build("gpt"))
    found = hesse.diagonal(A, method="hutchinson", rtol=0.0, max_products=20)
    assert found.about == ""
    assert found.products == 20


def test_a_diagonal_that_is_not_finite():
    risk = build("mlp")
    A = ggn_operator(risk, {name: 1e200 * p for name, p in risk.params.items()})
    assert torch.isfinite(hesse.diagonal(A).value).all()  # the units saturate
    nan = {name: p.detach() * float("nan") for name, p in risk.params.items()}
    with pytest.raises((NonFiniteError, DataError)):
        hesse.diagonal(ggn_operator(risk, nan))


# -- Preconditioners -------------------------------------------------------------------------------


def test_jacobi_takes_the_exact_diagonal_where_that_costs_no_more():
    risk = build("gpt")
    G = ggn_operator(risk)
    A = G + 0.1 * hesse.identity_operator(G.shape[0], DOUBLE)
    exact = A.to_dense().diagonal()
    M = jacobi(A)
    assert error(1.0 / M._diagonal(), exact) < EXACT
    assert M.products == 4  # 16 vectors, as many as the longer batch has
    few = jacobi(A, probes=3, generator=torch.Generator().manual_seed(0))
    assert few.products == 3
    assert 1e-6 < error(1.0 / few._diagonal(), exact) < 1.0
    assert hesse.solve(A, G.flat_gradient, "cg", preconditioner="jacobi").converged


# -- Cost ------------------------------------------------------------------------------------------


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("batches", [1, 2])
def test_it_takes_1_7_gradients_for_ten_classes(batches):
    layers = []
    for i, o in pairwise((196, 64, 32, 10)):
        layers += [nn.Linear(i, o), nn.ReLU()]
    model, loss = nn.Sequential(*layers[:-1]), nn.CrossEntropyLoss()
    x, y = torch.randn(64, 196), torch.randint(0, 10, (64,))
    parts = list(zip(x.chunk(batches), y.chunk(batches), strict=True))
    A = ggn_operator(Risk(model, loss, parts))
    for _ in range(5):  # the model is run at uses 1, 2, 4, 8
        hesse.diagonal(A)
    gradient = flops(lambda: loss(model(x), y).backward())
    assert flops(lambda: hesse.diagonal(A)) < 1.7 * gradient
    E = gradient_covariance_operator(Risk(model, loss, parts))
    for _ in range(5):
        hesse.diagonal(E)
    assert flops(lambda: hesse.diagonal(E)) < 1.2 * gradient


def test_few_rows_and_many_vectors_take_few_operations():
    A = ggn_operator(build("lstm", sizes=(6,)))
    for _ in range(4):
        way(A).exact()
    few = flops(lambda: way(A).exact())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_squares, "_PAIRS", 0)
        many = flops(lambda: way(A).exact())
    assert few < 0.7 * many


def test_programs_leave_out_weight_gradients_of_convolutions():
    A = ggn_operator(build("grouped convolutions", sizes=(4,)))
    before = way(A)
    visit = next(iter(before._visits(A.domain.zeros())))
    nodes = visit.point.program.partition.tangents["g"].nodes
    convolutions = [
        node for node in nodes if node.function is torch.ops.aten.convolution_backward.default
    ]
    assert [list(node.args[-1]) for node in convolutions] == [[True, False, False]]
