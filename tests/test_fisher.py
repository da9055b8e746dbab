# SPDX-License-Identifier: Apache-2.0
"""The exact Fisher matrix against its dense definition, on many models; what a product costs."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hesse import Risk, Space, fisher_operator, ggn_operator, gradient_covariance_operator
from hesse.errors import FunctionError
from hesse.testing import check_operator
from hesse.testing.likelihoods import (
    CLASSES,
    LIKELIHOODS,
    OwnLoss,
    dense_ggn_of,
    labels,
    mlp,
    next_token_loss,
    normal,
)

DOUBLE = torch.float64
MODES = ["auto", "traced-split", "retained-graph"]


def close(operator, exact):
    """Within 1e-8 of the dense matrix."""
    ours = operator.to_dense()
    assert (ours - exact).norm() <= 1e-8 * exact.norm()


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_exact_is_the_gauss_newton_matrix_of_natural_parameters(build, name):
    risk = build(name)
    exact = dense_ggn_of(risk)
    close(fisher_operator(risk, risk.params, mode="traced-split"), exact)
    close(fisher_operator(risk, risk.params, mode="retained-graph"), exact)


@pytest.mark.parametrize("mode", MODES)
def test_weight_decay_and_frozen_parameters(build, mode):
    risk = build("mlp", frozen=True, weight_decay=0.3)
    space = Space.of(risk.params)
    n = space.n
    exact = dense_ggn_of(risk) + 0.3 * torch.eye(n, dtype=DOUBLE)
    fisher = fisher_operator(risk, risk.params, mode=mode)
    for _ in range(3):
        close(fisher, exact)
    v = fisher.domain.gaussian()
    assert float(fisher.curvature(v)) == pytest.approx(float(v @ exact @ v))
    check_operator(fisher)
    leaf = space.flatten(risk.params).clone().requires_grad_()
    value = risk(space.unflatten(leaf))
    torch.testing.assert_close(fisher.value, value.detach())
    torch.testing.assert_close(fisher.flat_gradient, torch.autograd.grad(value, leaf)[0])


@pytest.mark.slow
def test_a_model_that_computes_its_own_loss():
    torch.manual_seed(0)
    model, ids = OwnLoss().double(), labels(4, 3)
    own = Risk(model, lambda out, batch: out["loss"], [{"input_ids": ids, "labels": ids}])

    plain = Risk(model.gpt, next_token_loss, (ids, ids))
    exact = dense_ggn_of(plain)
    close(fisher_operator(own, own.params), exact)
    close(ggn_operator(own, own.params), exact)
    close(ggn_operator(own, own.params, mode="traced-split"), exact)
    both = [fisher_operator(risk, risk.params, "empirical") for risk in (own, plain)]
    close(both[0], both[1].to_dense())
    torch.testing.assert_close(
        ggn_operator(own, own.params).flat_gradient, ggn_operator(plain, plain.params).flat_gradient
    )


def test_a_model_whose_own_loss_has_a_penalty():
    class Penalised(OwnLoss):
        def forward(self, input_ids, labels):
            out = super().forward(input_ids, labels)
            return {**out, "loss": out["loss"] + 0.1 * out["logits"].square().mean()}

    ids = labels(4, 3)
    risk = Risk(
        Penalised().double(), lambda out, batch: out["loss"], [{"input_ids": ids, "labels": ids}]
    )
    for make in (fisher_operator, ggn_operator):
        with pytest.raises(FunctionError, match="another way than through its cross_entropy"):
            make(risk, risk.params) @ risk.params


@pytest.mark.parametrize(
    ("loss", "targets", "link"),
    [
        (nn.NLLLoss(), labels(8), lambda z: z.log_softmax(1)),
        (nn.BCELoss(), labels(8, CLASSES) % 2 + 0.0 * normal(8, CLASSES), torch.sigmoid),
        (nn.PoissonNLLLoss(log_input=False), labels(8, CLASSES).double(), torch.exp),
    ],
)
def test_parameters_that_are_not_natural(loss, targets, link):
    """The same distribution as with its natural parameters, so the same Fisher matrix."""
    natural = {
        nn.NLLLoss: nn.CrossEntropyLoss(),
        nn.BCELoss: nn.BCEWithLogitsLoss(),
        nn.PoissonNLLLoss: nn.PoissonNLLLoss(),
    }[type(loss)]
    torch.manual_seed(0)
    model, x = mlp().double(), normal(8, 4)
    linked = Risk(lambda p, x: link(torch.func.functional_call(model, p, (x,))), loss, (x, targets),
                  params={k: p.detach() for k, p in model.named_parameters()})  # fmt: skip
    plain = Risk(model, natural, (x, targets))
    exact, eps = dense_ggn_of(plain), 1e-7  # of PoissonNLLLoss
    ours = fisher_operator(linked, linked.params).to_dense()
    assert (ours - exact).norm() <= eps * exact.norm()


def test_a_gaussian_with_its_variance():
    torch.manual_seed(0)
    net, x = nn.Linear(3, 2).double(), normal(7, 3)

    def loss(z, y):
        return nn.GaussianNLLLoss()(z[:, :1], y, z[:, 1:].exp())

    risk = Risk(net, loss, (x, normal(7, 1)))
    exact = torch.zeros(8, 8, dtype=DOUBLE)
    at = torch.cat([part.reshape(-1) for part in risk.params.values()])
    for row in x:  # F in (mean, log variance) is diag(1 / v, 1 / 2)
        J = torch.autograd.functional.jacobian(
            lambda w, row=row: w[:6].view(2, 3) @ row + w[6:], at
        )
        v = (J @ at)[1].exp()
        exact += J.T @ torch.diag(torch.stack([1 / v, torch.tensor(0.5).double()])) @ J / 7
    close(fisher_operator(risk, risk.params), exact)


# -- Cost ---------------------------------------------------------------------


def flops(product):
    with FlopCounterMode(display=False) as counter:
        product()
    return counter.get_total_flops()


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", ["mlp", "conv", "gpt", "lstm"])
def test_a_product_costs_what_a_gauss_newton_product_does(build, name):
    risk = build(name, sizes=(16,))
    G = ggn_operator(risk, risk.params, mode="traced-split")
    v = G.domain.gaussian()
    operators = [
        fisher_operator(risk, risk.params, kind, mode="traced-split", per=per)
        for kind, per in (
            ("exact", "row"), ("sampled", "row"), ("empirical", "row"), ("empirical", "example"),
        )
    ]  # fmt: skip
    operators.append(gradient_covariance_operator(risk, risk.params, mode="traced-split"))
    for A in (G, *operators):
        A @ v
    expected = flops(lambda: G @ v)
    for A in operators:
        assert 0 < flops(lambda A=A: A @ v) <= 1.05 * expected
