# SPDX-License-Identifier: Apache-2.0
"""Empirical and sampled Fisher matrices against stacked gradients and the exact matrix."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hesse import Risk, fisher_operator
from hesse.errors import DataError
from hesse.testing import check_operator, dense_jacobian
from hesse.testing.likelihoods import (
    CLASSES,
    dense_ggn_of,
    labels,
    logits_of,
    mlp,
    normal,
    row_gradients,
)

DOUBLE = torch.float64
MODES = ["auto", "traced-split", "retained-graph"]


def close(operator, exact):
    """Within 1e-8 of the dense matrix."""
    ours = operator.to_dense()
    assert (ours - exact).norm() <= 1e-8 * exact.norm()


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", ["mlp", "conv", "gpt", "dictionary"])
@pytest.mark.parametrize("per", ["row", "example"])
def test_empirical_is_the_second_moment_of_stacked_gradients(build, name, per):
    risk = build(name)
    exact = 0.0
    for coefficient, batch in risk.batches():
        g = row_gradients(risk, batch)
        counted = int(g.any(1).sum())
        if per == "example":
            inputs = batch.inputs["left"] if isinstance(batch.inputs, dict) else batch.inputs
            g = g.view(len(inputs), -1, g.shape[1]).sum(1)
        exact = exact + coefficient * g.T @ g / counted
    for mode in ("traced-split", "retained-graph"):
        close(fisher_operator(risk, risk.params, "empirical", per=per, mode=mode), exact)


def test_empirical_with_class_weights(build):
    """g_i g_i' of the likelihood with smoothing, times the weight of its Hessian."""
    w = torch.linspace(0.5, 2, CLASSES, dtype=DOUBLE)
    risk = build("mlp", sizes=(7,), weight_decay=0.0)
    batch = risk.data.first
    loss = nn.CrossEntropyLoss(w, label_smoothing=0.1)
    risk = Risk(risk.model, loss, (batch.inputs, batch.targets))
    y, n = batch.targets, sum(part.numel() for part in risk.params.values())
    exact = torch.zeros(n, n, dtype=DOUBLE)
    for i in range(7):

        def row(params, i=i):
            z = logits_of(risk, batch)(params)[i : i + 1]
            loss = F.cross_entropy(z, y[i : i + 1], w, label_smoothing=0.1, reduction="sum")
            return loss / (0.9 * w[y[i]] + 0.1 / CLASSES * w.sum())

        (g,) = dense_jacobian(row, risk.params)
        exact += (0.9 * w[y[i]] + 0.1 / CLASSES * w.sum()) / w[y].sum() * g.outer(g)
    close(fisher_operator(risk, risk.params, "empirical"), exact)


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", ["mlp", "gpt", "attention", "bernoulli", "poisson"])
@pytest.mark.parametrize("per", ["row", "example"])
def test_samples_converge_to_the_exact_matrix(build, name, per):
    risk = build(name)
    exact = dense_ggn_of(risk)
    errors = []
    for samples in (1, 400):
        fisher = fisher_operator(
            risk, risk.params, "sampled", samples=samples, per=per,
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        errors.append(float((fisher.to_dense() - exact).norm() / exact.norm()))
    assert errors[1] <= 0.2
    assert errors[1] <= 0.25 * errors[0]  # a twentieth, if all goes well


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("mode", MODES)
def test_draws_are_made_once(build, mode):
    risk = build("mlp")

    def make(seed):
        generator = torch.Generator().manual_seed(seed)
        return fisher_operator(
            risk, risk.params, "sampled", samples=2, generator=generator, mode=mode
        )

    one, same, other = make(0), make(0), make(1)
    dense = one.to_dense()
    close(same, dense)
    close(one, dense)
    assert (other.to_dense() - dense).norm() > 0.1 * dense.norm()
    moved = {name: part + 0.01 for name, part in risk.params.items()}
    near, again = one.at(moved), same.at(moved)
    close(near, again.to_dense())
    # The same numbers at a point so near give nearly the same draws.
    assert (near.to_dense() - dense).norm() < 0.3 * dense.norm()
    check_operator(one)


def test_a_shuffling_loader_has_no_draws_of_its_own():
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(normal(24, 4), labels(24)), 4, shuffle=True)
    risk = Risk(mlp().double(), nn.CrossEntropyLoss(), loader)
    exact, empirical = (fisher_operator(risk, risk.params, kind) for kind in ("exact", "empirical"))
    v = exact.domain.gaussian()
    for A in (exact, empirical):
        first = A @ v
        torch.testing.assert_close(A @ v, first)
    sampled = fisher_operator(risk, risk.params, "sampled")

    def products():
        return [sampled @ v for _ in range(3)]

    with pytest.raises(DataError, match="has its own draws"):
        products()
