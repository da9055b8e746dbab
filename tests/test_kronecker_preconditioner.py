# SPDX-License-Identifier: Apache-2.0
"""The preconditioner of HessianFree: EK-FAC, averaged over steps; and roots by Lanczos."""

import pytest
import torch
from torch import nn

from hesse.ad.double_backward import twice_differentiable
from hesse.ad.loss import LossHessian
from hesse.curvature import ekfac_operator, ggn_operator
from hesse.curvature.kronecker.roots import root_times
from hesse.krylov import solve
from hesse.operators import identity_operator
from hesse.optimize import HessianFree
from hesse.optimize.kronecker_preconditioner import KroneckerPreconditioner
from hesse.risk.risk import Risk

DOUBLE = torch.float64


def problem(**options):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(30, 3, dtype=DOUBLE), torch.randn(30, 2, dtype=DOUBLE)
    return Risk(model, nn.MSELoss(), (x, y), **options)


def preconditioner(risk):
    return KroneckerPreconditioner(risk, ggn_operator(risk).domain)


def test_it_is_the_inverse_of_ekfac():
    risk = problem(weight_decay=0.02)
    kronecker = preconditioner(risk)
    assert kronecker.is_empty
    kronecker.refresh(risk, risk.params, seed=0, past=0.0)
    blocks = kronecker.blocks
    E = ekfac_operator(risk, fisher="sampled", samples=1)
    assert [block.names for block in blocks] == [block.names for block in E.blocks]
    inverse = kronecker(0.1).to_dense()
    index = blocks[0].place.take(torch.arange(len(inverse)))
    P, Q = (side.entries[0] for side in blocks[0].basis)
    basis = torch.kron(P, Q)
    expected = basis @ torch.diag(1 / (blocks[0].d.flatten() + 0.12)) @ basis.T
    torch.testing.assert_close(inverse[index][:, index], expected)


def test_factors_are_averaged_over_steps_and_the_diagonal_is_new():
    risk = problem()
    one, two, both = (preconditioner(risk) for _ in range(3))
    one.refresh(risk, risk.params, seed=1, past=0.0)
    two.refresh(risk, risk.params, seed=2, past=0.0)
    both.refresh(risk, risk.params, seed=1, past=0.0)
    both.refresh(risk, risk.params, seed=2, past=0.25)
    for a, b, c in zip(one.blocks, two.blocks, both.blocks, strict=True):
        expected = 0.25 * a.left.entries + 0.75 * b.left.entries
        torch.testing.assert_close(c.left.entries, expected)
        torch.testing.assert_close(c.d.sum(), b.d.sum())  # the trace of the last estimate


def test_it_is_the_same_after_it_was_stored():
    risk = problem()
    kronecker, other = preconditioner(risk), preconditioner(risk)
    kronecker.refresh(risk, risk.params, seed=0, past=0.0)
    other.load(kronecker.stored())
    assert not other.is_empty
    assert other.stored().keys() == kronecker.stored().keys()
    other.ready(risk.params)
    assert torch.equal(other(0.1).to_dense(), kronecker(0.1).to_dense())


def test_a_model_that_cannot_be_traced_is_trained_without(square):
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(torch.poisson(x.abs() * 0.0) + square(x))

    risk = Risk(Squares(), nn.MSELoss(), (torch.randn(20, 3), torch.randn(20, 2)))
    optimizer = HessianFree(risk, mode="retained-graph")
    with pytest.warns(UserWarning, match="no preconditioner: it needs a model"):
        losses = [float(optimizer.step())]
    losses += [float(optimizer.step()) for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.MSELoss(), torch.zeros(4, 3, dtype=DOUBLE)),
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, 2, 1])),
        (nn.BCEWithLogitsLoss(), torch.ones(4, 3, dtype=DOUBLE)),
    ],
)
def test_the_root_by_lanczos_has_the_covariance_of_the_loss_hessian(loss, targets):
    z = torch.randn(4, 3, dtype=DOUBLE)
    H = torch.autograd.functional.hessian(lambda outputs: loss(outputs, targets), z)
    H = H.reshape(12, 12)
    # The summed losses of many copies of z have H for each of them: so many samples a run.
    copies, runs, generator = 200, 50, torch.Generator().manual_seed(0)
    many, all_targets = torch.cat([z] * copies).requires_grad_(), torch.cat([targets] * copies)
    with twice_differentiable():
        summed = LossHessian(many, lambda outputs: copies * loss(outputs, all_targets))

    def signs():
        return [(torch.randint(0, 2, many.shape, generator=generator) * 2 - 1).to(many)]

    U = torch.cat([root_times(summed, signs())[0] for _ in range(runs)]).view(copies * runs, 12)
    # Monte Carlo: sqrt((n + 1) / samples) = 3.6% for H = I; the rest for the root of ten steps
    assert (U.T @ U / len(U) - H).norm() <= 0.05 * H.norm()


def test_it_shortens_conjugate_gradients():
    x = torch.randn(300, 10, dtype=DOUBLE) * torch.logspace(0, 2, 10, dtype=DOUBLE)
    model = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 10)).double()
    risk = Risk(model, nn.MSELoss(), (x, x))
    kronecker, G = preconditioner(risk), ggn_operator(risk)
    kronecker.refresh(risk, risk.params, seed=0, past=0.0)
    A, b = G + 1e-3 * identity_operator(G.shape[0]), torch.randn(G.shape[0], dtype=DOUBLE)
    plain = solve(A, b, "cg", rtol=1e-6, max_iterations=5000)
    better = solve(A, b, "cg", rtol=1e-6, max_iterations=5000, preconditioner=kronecker(1e-3))
    assert better.converged
    assert better.iterations < 0.67 * plain.iterations


def test_refreshing_traces_once_for_all_points():
    risk = problem()
    kronecker = preconditioner(risk)
    for seed in range(3):
        params = {name: p + 0.1 * seed for name, p in risk.params.items()}
        kronecker.refresh(risk, params, seed=seed, past=0.5 if seed else 0.0)
    assert kronecker.traces == 1


class Counted(nn.Sequential):
    """A model that counts its forward passes."""

    passes = 0

    def forward(self, x):
        self.passes += 1
        return super().forward(x)


def test_most_refreshments_take_no_forward_pass_and_find_the_same_factors():
    model = Counted(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = torch.randn(30, 3, dtype=DOUBLE), torch.randn(30, 2, dtype=DOUBLE)
    risk = Risk(model, nn.MSELoss(), data)
    kronecker, passes = preconditioner(risk), []
    for seed in range(8):
        moved = {name: p + 0.1 * seed for name, p in risk.params.items()}
        before = model.passes
        kronecker.refresh(risk, moved, seed=seed, past=0.0)
        passes.append(model.passes - before)
    # outputs of the program are compared with those of the model each time the points have doubled
    assert passes.count(0) >= 4
    assert max(passes[1:]) == 1
    fresh = preconditioner(risk)
    fresh.refresh(risk, moved, seed=seed, past=0.0)
    for ours, right in zip(kronecker.blocks, fresh.blocks, strict=True):
        torch.testing.assert_close(ours.left.entries, right.left.entries)
        torch.testing.assert_close(ours.right.entries, right.right.entries)


def test_bases_that_are_refreshed_tend_to_the_eigenvectors():
    risk = problem()
    kronecker = preconditioner(risk)
    kronecker.refresh(risk, risk.params, seed=0, past=0.0)
    off = []
    for _ in range(31):  # the same new factors every time
        kronecker.refresh(risk, risk.params, seed=1, past=0.0)
        rotated = []
        for block in kronecker.blocks:
            for side, basis in zip((block.left, block.right), block.basis, strict=True):
                P = basis.entries
                torch.testing.assert_close(P.mT @ P, torch.eye(side.size, dtype=DOUBLE)[None])
                rotated.append(P.mT @ side.entries @ P)
        off.append(sum(float((R - R.diagonal(0, 1, 2).diag_embed()).norm()) for R in rotated))
    assert off[-1] < 0.03 * off[0]
