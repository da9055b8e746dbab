# SPDX-License-Identifier: Apache-2.0
"""The second moment and the covariance of gradients against those of single examples."""

import pytest
import torch

from hesse import Space, fisher_operator, gradient_covariance_operator
from hesse.testing.likelihoods import (
    LIKELIHOODS,
)

DOUBLE = torch.float64


def close(operator, exact):
    """Within 1e-8 of the dense matrix."""
    ours = operator.to_dense()
    assert (ours - exact).norm() <= 1e-8 * exact.norm()


@pytest.mark.some_cases(9)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("centered", [False, True])
def test_covariance_is_that_of_example_gradients(build, name, centered):
    risk = build(name, weight_decay=0.2)
    space, gradients, weights = Space.of(risk.params), [], []
    for _, batch in risk.batches():
        inputs, targets = batch.inputs, batch.targets
        number = len(inputs["left"] if isinstance(inputs, dict) else inputs)
        for i in range(number):
            if isinstance(inputs, dict):
                one = {key: part[i : i + 1] for key, part in inputs.items()}
                single = (one, one)
            else:
                single = inputs[i : i + 1], targets[i : i + 1]
            x = space.flatten(risk.params).clone().requires_grad_()
            single_risk = risk.unchecked_on([single[0] if isinstance(inputs, dict) else single])
            parts = next(iter(single_risk.batches()))[1]
            loss = risk.loss_of_batch(space.unflatten(x), parts)
            gradients.append(torch.autograd.grad(loss, x)[0])
            weights.append(parts.weight if risk.averages else 1.0)
    g, w = torch.stack(gradients), torch.tensor(weights, dtype=DOUBLE)
    w = w / w.sum()
    exact = g.T @ (w[:, None] * g)
    if centered:
        exact -= (w @ g).outer(w @ g)
    M = gradient_covariance_operator(risk, risk.params, centered=centered)
    close(M, exact)
    close(M, exact)
    assert torch.linalg.eigvalsh(M.to_dense()).min() >= -1e-10 * exact.norm()


def test_covariance_and_empirical_fisher_agree_for_unweighted_cross_entropy(build):
    risk = build("mlp")
    close(
        fisher_operator(risk, risk.params, "empirical"),
        gradient_covariance_operator(risk, risk.params).to_dense(),
    )
