# SPDX-License-Identifier: Apache-2.0
"""Exact diagonals of Gauss-Newton and Fisher matrices, against J'HJ by torch's Jacobians."""

import pickle
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import hesse
from hesse import Risk, fisher_operator, ggn_operator, gradient_covariance_operator
from hesse.curvature.diagonals import batch_squares, several_rows
from hesse.curvature.kronecker.row_products import add_products
from hesse.krylov.preconditioners import jacobi
from tests.diagonal_models import (
    DOUBLE,
    EXACT,
    MODELS,
    OwnLoss,
    V,
    build,
    definition,
    error,
    labels,
    mlp,
    randn,
    way,
)

# -- Gauss-Newton matrices -------------------------------------------------------------------------


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_diagonal_of_the_definition(name):
    risk = build(name, weight_decay=0.1)
    found = hesse.diagonal(ggn_operator(risk))
    assert error(found.value, definition(risk)) < EXACT
    assert not found.standard_error.any()
    assert found.about.startswith("exact, from ")


def test_the_interval_is_that_of_rounding():
    model, x, y = mlp(), randn(6, 4), torch.arange(6) % V
    exact = definition(Risk(model, F.cross_entropy, (x, y), weight_decay=0.1))
    risk = Risk(model.float(), F.cross_entropy, (x.float(), y), weight_decay=0.1)
    found = hesse.diagonal(ggn_operator(risk))
    assert found.value.dtype == torch.float32
    assert found.standard_error.shape == found.value.shape
    low, high = found.interval
    assert bool(((low <= exact) & (exact <= high)).all())
    width = 64 * torch.finfo(torch.float32).eps * found.value
    torch.testing.assert_close(high - low, width, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_products_of_rows_are_added_in_place(groups, dtype):
    left, right, total = randn(5, groups, 2), randn(5, groups, 4), randn(groups * 8)
    expected = total.view(groups, 2, 4) + 0.5 * torch.einsum("ngp,ngq->gpq", left, right)
    own = torch.cat([total, total]).to(dtype)
    add_products(own[groups * 8 :], left.to(dtype), right.to(dtype), 0.5)
    torch.testing.assert_close(
        own[groups * 8 :].double(), expected.reshape(-1), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(own[: groups * 8], total.to(dtype))


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_model_with_its_own_loss():
    torch.manual_seed(0)
    batches = [{"input_ids": labels(n, n + 1), "labels": labels(n, n + 1)} for n in (3, 4)]
    risk = Risk(OwnLoss().double(), lambda out, _: out["loss"], batches)
    for A in (ggn_operator(risk), fisher_operator(risk)):
        assert error(way(A).exact(), A.to_dense().diagonal()) < EXACT


# -- Fisher matrices -------------------------------------------------------------------------------

MATRICES = {
    "exact": fisher_operator,
    **{
        f"{kind}, of each {per}": partial(fisher_operator, kind=kind, per=per, samples=2)
        for kind in ("sampled", "empirical")
        for per in ("row", "example")
    },
    "second moments": gradient_covariance_operator,
    "covariance": partial(gradient_covariance_operator, centered=True),
}


@pytest.mark.some_cases(10)
@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["class weights, ignored", "gpt", "attention", "bernoulli"])
@pytest.mark.parametrize("kind", MATRICES)
def test_every_kind_of_fisher_matrix(name, kind):
    risk = build(name, sizes=(4, 3), weight_decay=0.1)
    A = MATRICES[kind](risk)
    exact = definition(risk) if kind == "exact" else A.to_dense().diagonal()
    assert error(way(A).exact(), exact) < EXACT
    assert way(A).num_vectors == 1 or kind not in ("second moments", "covariance")


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


@pytest.mark.slow
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


# -- Preconditioners -------------------------------------------------------------------------------


@pytest.mark.slow
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
