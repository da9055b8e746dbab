# SPDX-License-Identifier: Apache-2.0
"""Fisher matrices where examples influence one another, of losses that are none, and at limits."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hesse
from hesse import Risk, Space, fisher_operator, ggn_operator, gradient_covariance_operator
from hesse.errors import ArgumentError, DataError, FunctionError, HesseError, NonFiniteError
from hesse.testing.likelihoods import CLASSES, labels, mlp, normal

DOUBLE = torch.float64


def classifier(*sizes):
    torch.manual_seed(0)
    model = mlp().double()
    return Risk(model, nn.CrossEntropyLoss(), [(normal(n, 4), labels(n)) for n in sizes])


def flat(tree):
    return torch.cat([part.reshape(-1) for part in tree.values()])


def dense_ggn(risk):
    return ggn_operator(risk, risk.params).to_dense()


def close(operator, exact):
    """Within 1e-8 of the dense matrix."""
    assert (operator.to_dense() - exact).norm() <= 1e-8 * exact.norm()


# -- Examples that influence one another -----------------------------------------------------------


class Normed(nn.Module):
    """Loops on the norm of the batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, x):
        size = float(x.norm())
        while size > 1.0:
            x, size = x / 2, size / 2
        return self.layer(x)


class BatchNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, x):
        z = self.layer(x)
        return F.batch_norm(z, None, None, training=True)


@pytest.mark.parametrize("model", [Normed, BatchNormed])
def test_examples_that_influence_one_another_are_refused(model):
    torch.manual_seed(0)
    risk = Risk(model().double(), nn.CrossEntropyLoss(), (normal(8, 4), labels(8)))
    for make in (
        lambda: fisher_operator(risk, risk.params, "empirical"),
        lambda: fisher_operator(risk, risk.params, "sampled", per="example"),
        lambda: gradient_covariance_operator(risk, risk.params),
    ):
        with pytest.raises(DataError, match="do not influence one another"):
            make()
    close(fisher_operator(risk, risk.params), dense_ggn(risk))


def pairs_of_torch(z, partners):
    """A contrastive loss: the target of an example is another place in the batch."""
    return F.cross_entropy(z @ z.T, partners)


def pairs_by_hand(z, partners):
    return -(z @ z.T).log_softmax(1)[torch.arange(len(z)), partners].mean()


@pytest.mark.parametrize("loss", [pairs_of_torch, pairs_by_hand])
def test_targets_that_are_places_in_the_batch_couple_its_examples(loss):
    """A slice of the batch has no loss at all."""
    torch.manual_seed(0)
    risk = Risk(nn.Linear(4, CLASSES).double(), loss, (normal(8, 4), torch.arange(8).flip(0)))
    G = ggn_operator(risk, risk.params)
    diagonal = hesse.diagonal(G)
    torch.testing.assert_close(diagonal.value, dense_ggn(risk).diagonal())
    for call in (
        lambda: risk.per_example.losses(risk.params),
        lambda: risk.weighted(torch.ones(8).double()),
        lambda: hesse.apps.self_influence(risk, damping=1.0),
    ):
        with pytest.raises(DataError, match="do not influence one another"):
            call()


class Masked(nn.Module):
    """A class that some examples may not have, as actions of an agent."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))

    def forward(self, x):
        forbidden = (x[:, :1] > 0) & (torch.arange(CLASSES) == 0)
        return self.layers(x).masked_fill(forbidden, -math.inf)


def test_logits_of_minus_infinity_do_not_couple_examples():
    torch.manual_seed(0)
    x, y = normal(9, 4), labels(9).clamp(min=1)
    risk = Risk(Masked().double(), nn.CrossEntropyLoss(), [(x[:5], y[:5]), (x[5:], y[5:])])
    params, space = risk.params, Space.of(risk.params)

    def one(v, i):
        z = torch.func.functional_call(risk.model, space.unflatten(v), (x[i : i + 1],))
        return F.cross_entropy(z, y[i : i + 1])

    def logits(v):
        z = torch.func.functional_call(risk.model, space.unflatten(v), (x,))
        return torch.where(z.isinf(), 0.0, z)

    v = space.flatten(params)
    gradients = torch.stack([torch.func.grad(one)(v, i) for i in range(9)])
    J, z = torch.func.jacrev(logits)(v), risk.model(x).detach()
    p = z.softmax(1)
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    exact = torch.einsum("nci,ncd,ndj->ij", J, H, J) / 9
    close(gradient_covariance_operator(risk, params), gradients.T @ gradients / 9)
    close(fisher_operator(risk, params, "empirical"), gradients.T @ gradients / 9)
    found = hesse.diagonal(ggn_operator(risk, params))
    assert "exact" in found.about
    torch.testing.assert_close(found.value, exact.diagonal())
    K = hesse.kfac_operator(risk, params, damping=0.1).to_dense()
    last = slice(-CLASSES, None)  # the block of a bias alone is exact
    torch.testing.assert_close(K[last, last] - 0.1 * torch.eye(CLASSES).double(), exact[last, last])


class Halves(nn.Module):
    """In single precision, where rounding depends on the size of the batch, then in double."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 64).float(), nn.Linear(64, CLASSES).double()

    def forward(self, x):
        size = torch.tensor(len(x) / 7, dtype=torch.float32)
        return self.second(torch.tanh(self.first(x) * size / size).double())


def test_rounding_of_a_coarser_dtype_within_the_model_does_not_couple_examples():
    torch.manual_seed(0)
    x, y = normal(33, 4).float(), labels(33)
    model = Halves()
    risk = Risk(model, nn.CrossEntropyLoss(), (x, y))
    z = model(x).detach()
    assert 0.0 < float((model(x[:11]).detach() - z[:11]).abs().max()) < 1e-6
    torch.testing.assert_close(
        risk.per_example.losses(risk.params), F.cross_entropy(z, y, reduction="none")
    )


@pytest.mark.parametrize("make", [hesse.kfac_operator, hesse.ekfac_operator])
@pytest.mark.parametrize("place", [0, 1])
def test_nan_is_named_before_it_is_taken_for_coupling_or_for_factors(make, place):
    torch.manual_seed(0)
    batches = [(normal(6, 4), labels(6)), (normal(6, 4), labels(6))]
    batches[place][0][3, 1] = math.nan
    risk = Risk(nn.Linear(4, CLASSES).double(), nn.CrossEntropyLoss(), batches)
    with pytest.raises(NonFiniteError, match="NaN"):
        make(risk, risk.params, damping=0.1)


@pytest.mark.parametrize("head", [1.0, 0.0])
def test_rows_are_found_where_time_comes_first(head):
    """A loss on (time * batch) rows; with a head of zeros all rows are alike."""

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, CLASSES)
            with torch.no_grad():
                self.b.weight.mul_(head)
                self.b.bias.mul_(head)

        def forward(self, x):  # (batch, time, 2) -> (time, batch, CLASSES)
            return self.b(torch.tanh(self.a(x.transpose(0, 1))))

    def loss(z, y):
        return F.cross_entropy(z.reshape(-1, CLASSES), y.t().reshape(-1))

    torch.manual_seed(0)
    model, x, y = TimeFirst().double(), normal(4, 2, 2), labels(4, 2)
    risk = Risk(model, loss, (x, y))
    vector, g = flat(risk.params), []
    for i in range(4):
        leaf = vector.clone().requires_grad_()
        out = torch.func.functional_call(
            model, Space.of(risk.params).unflatten(leaf), (x[i : i + 1],)
        )
        g.append(torch.autograd.grad(2 * loss(out, y[i : i + 1]), leaf)[0])
    g = torch.stack(g)
    close(fisher_operator(risk, risk.params, "empirical", per="example"), g.T @ g / 8)


# -- What is refused -------------------------------------------------------------------------------


def test_a_loss_that_is_no_likelihood_is_named():
    torch.manual_seed(0)
    model, x, y = mlp().double(), normal(6, 4), normal(6, CLASSES)
    for kind in ("exact", "sampled", "empirical"):
        risk = Risk(model, nn.SmoothL1Loss(), (x, y))
        with pytest.raises(FunctionError, match=r"SmoothL1Loss, in which none[\s\S]*likelihood="):
            fisher_operator(risk, risk.params, kind)

    def penalised(z, y):
        return F.mse_loss(z, y) + 0.1 * z.square().mean()

    risk = Risk(model, penalised, (x, y))
    with pytest.raises(FunctionError, match="penalised, which depends on the parameters by anoth"):
        fisher_operator(risk, risk.params)
    with pytest.raises(HesseError, match="Risk"):
        fisher_operator(lambda x: x.sum(), torch.ones(3))


def test_a_likelihood_that_is_given():
    torch.manual_seed(0)
    model, x, y = mlp().double(), normal(6, 4), labels(6)

    def hidden(z, y):
        return -z.log_softmax(1).gather(1, y[:, None]).mean()

    risk = Risk(model, hidden, (x, y))
    with pytest.raises(FunctionError, match="hidden, in which none"):
        fisher_operator(risk, risk.params)
    F_ = fisher_operator(risk, risk.params, likelihood=nn.CrossEntropyLoss())
    close(F_, dense_ggn(risk))
    with pytest.raises(ArgumentError, match="gradients on the first batch that differ"):
        fisher_operator(risk, risk.params, likelihood=nn.CrossEntropyLoss(reduction="sum"))
    with pytest.raises(ArgumentError, match="likelihood to be a function"):
        fisher_operator(risk, risk.params, likelihood="cross_entropy")


# -- Limits ---------------------------------------------------------------------------------------


def test_bfloat16():
    torch.manual_seed(0)
    x, y = torch.randn(32, 4), labels(32)
    half = Risk(mlp().bfloat16(), nn.CrossEntropyLoss(), (x.bfloat16(), y))
    wide = Risk(mlp().double(), nn.CrossEntropyLoss(), (x.bfloat16().double(), y))
    at = {name: part.double() for name, part in half.params.items()}
    for kind in ("exact", "empirical"):
        exact = fisher_operator(wide, at, kind).to_dense()
        ours = fisher_operator(half, half.params, kind).to_dense().double()
        assert (ours - exact).norm() <= 0.05 * exact.norm()


def test_memory_budget_cuts_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, CLASSES)).double()
    risk = Risk(model, nn.CrossEntropyLoss(), (normal(512, 20), labels(512)))
    exact = fisher_operator(risk, risk.params, "empirical")
    v = exact.domain.gaussian()
    for budget in ("900KB", "none"):
        small = fisher_operator(risk, risk.params, "empirical", memory_budget=budget)
        torch.testing.assert_close(small @ v, exact @ v)


def test_blocks_of_vectors():
    risk = classifier(5, 3)
    for kind in ("exact", "sampled", "empirical"):
        A = fisher_operator(risk, risk.params, kind, mode="traced-split")
        block = torch.randn(A.shape[0], 5, dtype=DOUBLE)
        torch.testing.assert_close(A @ block, A.to_dense() @ block)


def test_positive_semidefinite():
    risk = classifier(3)
    for kind in ("exact", "sampled", "empirical"):
        dense = fisher_operator(risk, risk.params, kind).to_dense()
        torch.testing.assert_close(dense, dense.T)
        values = torch.linalg.eigvalsh(dense)
        assert values.min() >= -1e-12
        # Three rows, each of rank CLASSES - 1 if exact, else of rank one.
        assert int((values > 1e-10).sum()) == 3 * (CLASSES - 1 if kind == "exact" else 1)


def test_all_targets_ignored_in_one_batch():
    torch.manual_seed(0)
    model, loss = mlp().double(), nn.CrossEntropyLoss(ignore_index=0)
    batches = [(normal(3, 4), torch.zeros(3).long()), (normal(4, 4), labels(4) % (CLASSES - 1) + 1)]
    risk, rest = Risk(model, loss, batches), Risk(model, loss, batches[1:])
    close(fisher_operator(risk, risk.params), dense_ggn(rest))
    close(
        fisher_operator(risk, risk.params, "empirical"),
        fisher_operator(rest, rest.params, "empirical").to_dense(),
    )
    assert math.isfinite(float(fisher_operator(risk, risk.params).value))
