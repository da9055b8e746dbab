# SPDX-License-Identifier: Apache-2.0
"""In which dimension of the outputs the examples are, and outputs of which that cannot be said."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse import Risk, diagonal, fisher_operator, gradient_covariance_operator
from hesse.errors import DataError

DOUBLE = {"dtype": torch.float64}
X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


class TimeFirst(nn.Module):
    """Sequences (examples, time, 2) to outputs (time, examples), or (time, examples, 1)."""

    def __init__(self, keeps):
        super().__init__()
        self.linear, self.keeps = nn.Linear(2, 1, **DOUBLE), keeps

    def forward(self, x):
        outputs = self.linear(x).transpose(0, 1)
        return outputs if self.keeps else outputs[..., 0]


def time_first(keeps):
    """A risk whose first batch has one example, and the gradients of its examples."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(n, 3, 2, generator=generator, **DOUBLE), torch.randn(n, 3, **DOUBLE))
        for n in (1, 3, 1)
    ]
    model = TimeFirst(keeps)

    def loss(outputs, targets):
        return F.mse_loss(outputs, targets.T[..., None] if keeps else targets.T)

    risk = Risk(model, loss, batches)
    leaves = list(model.parameters())
    rows = []
    for x, y in batches:
        for i in range(len(x)):
            gradient = torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]), leaves)
            rows.append(torch.cat([part.flatten() for part in gradient]))
    return risk, torch.stack(rows)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_first_batch_may_have_one_example_whose_place_it_does_not_tell(keeps):
    risk, gradients = time_first(keeps)
    ours = torch.cat(list(risk.per_example.gradients(risk.params)))
    torch.testing.assert_close(ours, gradients)


def test_the_covariance_of_gradients_after_a_batch_of_one_example():
    risk, gradients = time_first(keeps=True)
    C = gradient_covariance_operator(risk, risk.params)
    torch.testing.assert_close(C.to_dense(), gradients.T @ gradients / 5)
    F_each = fisher_operator(risk, risk.params, "exact")
    torch.testing.assert_close(diagonal(F_each).value, F_each.to_dense().diagonal())


@pytest.mark.parametrize(
    "make",
    [
        lambda risk: gradient_covariance_operator(risk, risk.params),
        lambda risk: fisher_operator(risk, risk.params, "empirical"),
    ],
)
def test_rows_that_hold_several_examples_are_refused(make):
    risk, _ = time_first(keeps=False)
    with pytest.raises(DataError, match="last dimension counts examples"):
        make(risk)


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x).squeeze()


@pytest.mark.parametrize("sizes", [[1], [4, 1]])
def test_a_model_that_squeezes_a_single_example_is_told_so(sizes):
    risk = Risk(
        Squeezed(),
        lambda outputs, targets: F.mse_loss(outputs, targets.squeeze()),
        [(X[:n], X[:n, 0]) for n in sizes],
    )
    with pytest.raises(DataError, match=r"squeeze\(-1\)"):
        risk.per_example.losses(risk.params)
