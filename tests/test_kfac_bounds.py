# SPDX-License-Identifier: Apache-2.0
"""EK-FAC is never farther from the blocks than K-FAC and has their trace; batches and losses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse import Risk, ekfac_operator, fisher_operator, ggn_operator, kfac_operator
from hesse.testing.factored import (
    CE,
    against_blocks,
    block_errors,
    classes,
    linear,
    mlp,
    token_loss,
)
from hesse.testing.likelihoods import normal

DOUBLE = torch.float64
EXACT = 1e-12


class Attention(nn.Module):
    def __init__(self, cross=False):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)
        self.cross = cross

    def forward(self, x):
        keys = x[:, :2] if self.cross else x
        return self.head(self.attention(x, keys, keys, need_weights=False)[0].mean(1))


class Recurrence(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Language(nn.Module):
    """A causal model with positions; its embedding may be its head."""

    def __init__(self, tied):
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        h = self.norm(self.words(tokens) + self.places(torch.arange(5)))
        weights = torch.softmax((h @ h.mT).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9), -1)
        return self.head(torch.tanh(self.mix(weights @ h)))


def tokens():
    words = torch.randint(0, 7, (6, 5))
    targets = words.roll(-1, 1)
    targets[:, -1] = -100
    return words, targets


BOUNDED = {
    "mlp": (mlp, CE, lambda: classes(30, 4)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.GELU(),
            nn.Conv2d(4, 3, 2, dilation=2, bias=False), nn.Flatten(2), nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        ), CE, lambda: classes(6, 2, 7, 7),
    ),
    "transposed convolution": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(6, 3),
        ), CE, lambda: classes(4, 4, 2, 2),
    ),
    "attention": (Attention, CE, lambda: classes(5, 6, 4)),
    "cross attention": (lambda: Attention(cross=True), CE, lambda: classes(5, 6, 4)),
    "lstm": (lambda: Recurrence(nn.LSTM), CE, lambda: classes(5, 4, 4)),
    "gru": (lambda: Recurrence(nn.GRU), CE, lambda: classes(5, 4, 4)),
    "language": (lambda: Language(tied=False), token_loss, tokens),
    "tied language": (lambda: Language(tied=True), token_loss, tokens),
}  # fmt: skip


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("case", BOUNDED)
def test_ekfac_is_never_farther_than_kfac_and_has_the_trace_of_the_block(case):
    model, loss, data = BOUNDED[case]
    weight = {"weight": lambda _, y: (y != -100).sum()} if "language" in case else {}
    risk = Risk(model().double().eval(), loss, [data()], **weight)
    G = ggn_operator(risk).to_dense()
    K, E = kfac_operator(risk), ekfac_operator(risk)
    assert not E.coverage.without_rule
    for kfac, ekfac in zip(against_blocks(K, G), against_blocks(E, G), strict=True):
        (name, ours, block), (_, corrected, _) = kfac, ekfac
        limit = (ours - block).norm() + 1e-12 * block.norm()
        assert (corrected - block).norm() <= limit, name
        torch.testing.assert_close(corrected.trace(), block.trace())
        torch.testing.assert_close(corrected, corrected.T)


def test_reduced_ekfac_has_the_trace_of_the_block_too():
    risk = Risk(Attention().double(), CE, classes(5, 6, 4))
    G = ggn_operator(risk).to_dense()
    for _, ours, block in against_blocks(ekfac_operator(risk, approximation="reduce"), G):
        torch.testing.assert_close(ours.trace(), block.trace())


# -- Batches, weights, losses ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ragged_batches_give_what_one_batch_gives(reduction, make):
    x, y = classes(30, 4)
    model, loss = mlp(), nn.CrossEntropyLoss(reduction=reduction)
    whole = make(Risk(model, loss, (x, y)))
    batches = [(x[:7], y[:7]), (x[7:11], y[7:11]), (x[11:], y[11:])]
    torch.testing.assert_close(make(Risk(model, loss, batches)).to_dense(), whole.to_dense())


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
def test_class_weights_and_ignored_targets(make):
    x, y = classes(30, 4)
    y[::5] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.2], dtype=DOUBLE))
    risk = Risk(mlp(), loss, [(x[:12], y[:12]), (x[12:], y[12:])])
    kept = y != -100
    same = Risk(risk.model, loss, (x[kept], y[kept]))
    torch.testing.assert_close(make(risk).to_dense(), make(same).to_dense())
    E, G = ekfac_operator(risk), ggn_operator(risk).to_dense()
    for _, ours, block in against_blocks(E, G):
        torch.testing.assert_close(ours.trace(), block.trace())


def test_padding_does_not_count_as_rows():
    """Places that the loss ignores, and that no other place looks at, do not change the factors."""
    model = linear(4, 5, 7)
    x, y = normal(6, 5, 4), torch.randint(0, 7, (6, 5))
    y[:, 3:] = -100
    padded = Risk(model, token_loss, (x, y))
    short = Risk(model, token_loss, (x[:, :3], y[:, :3]))
    torch.testing.assert_close(kfac_operator(padded).to_dense(), kfac_operator(short).to_dense())


def test_a_loss_that_is_no_known_likelihood_has_the_hessian_in_its_place():
    def log_cosh(outputs, targets):
        return torch.log(torch.cosh(outputs - targets)).mean()

    risk = Risk(mlp(), log_cosh, (normal(1, 4), normal(1, 3)))
    K = kfac_operator(risk)
    assert "Gauss-Newton" in repr(K)
    assert max(block_errors(K, ggn_operator(risk).to_dense()).values()) < EXACT


def test_it_is_of_the_fisher_matrix_where_that_is_not_the_ggn():
    model = nn.Sequential(mlp(), nn.LogSoftmax(-1))
    risk = Risk(model, nn.NLLLoss(), (normal(1, 4), torch.tensor([1])))
    found = block_errors(kfac_operator(risk), fisher_operator(risk).to_dense())
    assert max(found.values()) < EXACT


def test_the_variance_of_a_gaussian_is_an_output_too():
    class Gaussian(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.log_variance = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.mean(x), self.log_variance(x).exp()

    def loss(outputs, targets):
        return F.gaussian_nll_loss(outputs[0], targets, outputs[1])

    risk = Risk(Gaussian().double(), loss, (normal(1, 3), normal(1, 2)))
    found = block_errors(kfac_operator(risk), fisher_operator(risk).to_dense())
    assert max(found.values()) < EXACT


def test_the_empirical_matrix():
    risk = Risk(mlp(), CE, classes(25, 4))
    F_empirical = fisher_operator(risk, kind="empirical").to_dense()
    E = ekfac_operator(risk, fisher="empirical", samples=1)
    for _, ours, block in against_blocks(E, F_empirical):
        torch.testing.assert_close(ours.trace(), block.trace())
    one = Risk(risk.model, CE, classes(1, 4))
    found = block_errors(
        kfac_operator(one, fisher="empirical", samples=1),
        fisher_operator(one, kind="empirical").to_dense(),
    )
    assert max(found.values()) < EXACT


@pytest.mark.slow
def test_signs_estimate_the_exact_factors():
    risk = Risk(mlp(), CE, classes(10, 4))
    exact = kfac_operator(risk).to_dense()
    found = []
    for samples in (40, 4000):
        generator = torch.Generator().manual_seed(1)
        K = kfac_operator(risk, fisher="sampled", samples=samples, generator=generator)
        found.append(float((K.to_dense() - exact).norm() / exact.norm()))
    assert found[1] < 0.02
    assert 4 < found[0] / found[1] < 25  # the root of 100, within a factor of 2.5


def test_beyond_256_outputs_of_an_example_signs_are_drawn():
    risk = Risk(linear(3, 300), nn.MSELoss(), (normal(5, 3), normal(5, 300)))
    K = kfac_operator(risk, samples=2)
    assert "sampled Fisher, 2 vectors of random signs (the exact one takes more than 256)" in repr(
        K
    )
    again = kfac_operator(risk, samples=2, generator=torch.Generator().manual_seed(3))
    same = kfac_operator(risk, samples=2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.to_dense(), same.to_dense())
    assert not torch.equal(K.to_dense(), same.to_dense())
