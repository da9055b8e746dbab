# SPDX-License-Identifier: Apache-2.0
"""Exact diagonals where a rule is missing or examples couple, and sampled ones."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import hesse
from hesse import Risk, fisher_operator, ggn_operator
from hesse.errors import DataError, NonFiniteError, Status
from hesse.estimators import computed
from tests.diagonal_models import EXACT, V, build, definition, error, labels, mlp, randn, way

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


def test_so_they_are_after_a_batch_of_one():
    torch.manual_seed(0)
    batches = [(randn(n, 4), labels(n)) for n in (1, 5)]
    A = ggn_operator(Risk(Centred().double(), nn.CrossEntropyLoss(), batches))
    found = hesse.diagonal(A)
    assert error(found.value, A.to_dense().diagonal()) < EXACT
    assert found.about == ""


class CentredIfLarge(Centred):
    """Does so in large batches."""

    def forward(self, x):
        return super().forward(x) if len(x) > 3 else self.b(torch.tanh(self.a(x)))


def test_examples_that_do_so_in_a_later_batch_are_refused():
    torch.manual_seed(0)
    batches = [(randn(n, 4), labels(n)) for n in (2, 5)]
    risk = Risk(CentredIfLarge().double(), nn.CrossEntropyLoss(), batches)
    with pytest.raises(DataError, match="other outputs for an example alone"):
        hesse.diagonal(ggn_operator(risk))


# -- Samples ---------------------------------------------------------------------------------------


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "name", [pytest.param("gpt", marks=pytest.mark.slow), "not convex", "lstm"]
)
def test_samples_are_unbiased(name, thorough):
    risk = build(name, sizes=(3, 2))
    operators = [ggn_operator(risk)]
    if name == "gpt":
        kinds = [("sampled", "row"), ("empirical", "example")]
        if thorough:
            kinds += [("sampled", "example"), ("empirical", "row")]
        operators += [fisher_operator(risk, kind=k, per=per, samples=3) for k, per in kinds]
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


@pytest.mark.slow
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
