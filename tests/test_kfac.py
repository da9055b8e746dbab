# SPDX-License-Identifier: Apache-2.0
"""K-FAC and EK-FAC against the blocks of the GGN, where they must be equal or near."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse import Risk, ekfac_operator, fisher_operator, ggn_operator, kfac_operator

DOUBLE = torch.float64
EXACT = 1e-12


def normal(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def linear(*widths, bias=False):
    layers = [nn.Linear(i, o, bias=bias) for i, o in pairwise(widths)]
    return nn.Sequential(*layers).double()


def entries(block, n):
    """Where a block lies in a flat vector, in its own order."""
    return block.place.take(torch.arange(n))


def pairs(K, G):
    """(name, block of K, block of the dense matrix G) for all blocks."""
    dense = K.to_dense()
    for block in K.blocks:
        index = entries(block, len(G))
        yield block.names[0], dense[index][:, index], G[index][:, index]


def errors(K, G):
    return {
        name: float((ours - theirs).norm() / theirs.norm())
        for name, ours, theirs in pairs(K, G)
        if theirs.norm() > 0
    }


def assert_block_diagonal(K):
    """All of K outside of its blocks is zero."""
    dense = K.to_dense()
    for block in K.blocks:
        index = entries(block, len(dense))
        dense[index[:, None], index] = 0.0
    assert not dense.any()


class MeanOverTokens(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).mean(1)


def mlp():
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(inplace=True), nn.LayerNorm(6),
        nn.Linear(6, 3),
    ).double()  # fmt: skip


# -- Where it is exact -----------------------------------------------------------------------------


EXACT_CASES = {
    "deep linear": (lambda: linear(4, 5, 3), nn.MSELoss(), (40, 4), (40, 3), "expand"),
    "deep linear with biases": (
        lambda: linear(4, 5, 3, bias=True), nn.MSELoss(), (40, 4), (40, 3), "expand",
    ),
    "tokens": (lambda: linear(4, 5, 3), nn.MSELoss(), (9, 6, 4), (9, 6, 3), "expand"),
    "sums": (lambda: linear(4, 5, 3), nn.MSELoss(reduction="sum"), (9, 4), (9, 3), "expand"),
    "mean over tokens": (
        lambda: MeanOverTokens(linear(4, 5, 3)), nn.MSELoss(), (10, 6, 4), (10, 3), "reduce",
    ),
    "mean over tokens, biases": (
        lambda: MeanOverTokens(linear(4, 5, 3, bias=True)),
        nn.MSELoss(), (10, 6, 4), (10, 3), "reduce",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
@pytest.mark.parametrize("case", EXACT_CASES)
def test_it_is_the_block_of_the_ggn_of_a_deep_linear_network(case, make):
    model, loss, x, y, approximation = EXACT_CASES[case]
    risk = Risk(model(), loss, (normal(*x), normal(*y)))
    K = make(risk, approximation=approximation)
    found = errors(K, ggn_operator(risk).to_dense())
    assert len(found) == 2
    assert max(found.values()) < EXACT
    assert_block_diagonal(K)


def test_expand_is_not_exact_where_reduce_is():
    model = MeanOverTokens(linear(4, 5, 3))
    risk = Risk(model, nn.MSELoss(), (normal(10, 6, 4), normal(10, 3)))
    G = ggn_operator(risk).to_dense()
    assert min(errors(kfac_operator(risk), G).values()) > 0.1


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
@pytest.mark.parametrize(
    ("model", "x", "loss", "target"),
    [
        (mlp, (1, 4), nn.CrossEntropyLoss(), torch.tensor([1])),
        (mlp, (1, 4), nn.BCEWithLogitsLoss(), torch.tensor([[1.0, 0.0, 0.3]], dtype=DOUBLE)),
        (mlp, (1, 4), nn.CrossEntropyLoss(label_smoothing=0.1), torch.tensor([2])),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)),
            (1, 4, 3, 3), nn.CrossEntropyLoss(), torch.tensor([0]),
        ),
        (
            lambda: nn.Sequential(nn.Conv1d(2, 3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)),
            (1, 2, 4), nn.CrossEntropyLoss(), torch.tensor([0]),
        ),
        (
            lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)),
            (1, 2, 2, 2, 2), nn.CrossEntropyLoss(), torch.tensor([0]),
        ),
    ],
)  # fmt: skip
def test_it_is_exact_for_one_example_without_sharing(model, x, loss, target, make):
    risk = Risk(model().double(), loss, (normal(*x), target))
    assert max(errors(make(risk), ggn_operator(risk).to_dense()).values()) < EXACT


def test_the_last_layer_is_exact_for_squared_error():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    risk = Risk(model, nn.MSELoss(), (normal(30, 3), normal(30, 2)))
    found = errors(kfac_operator(risk), ggn_operator(risk).to_dense())
    assert found["2.weight"] < EXACT
    assert found["0.weight"] > 1e-3


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
def test_a_grouped_convolution_is_exact_in_the_blocks_of_its_groups(make):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Tanh(), nn.Flatten())
    risk = Risk(model.double(), nn.CrossEntropyLoss(), (normal(1, 4, 3, 3), torch.tensor([1])))
    K, G = make(risk).to_dense(), ggn_operator(risk).to_dense()
    half = len(G) // 2
    own = torch.block_diag(G[:half, :half], G[half:, half:])
    assert (K - own).norm() < EXACT * own.norm()
    assert (K - G).norm() > 0.1 * G.norm()


def test_biases_and_norms_without_a_weight_are_exact():
    class Shifts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(4, 5, bias=False), nn.LayerNorm(5)
            self.rms, self.batch = nn.RMSNorm(5), nn.BatchNorm1d(5)
            self.group = nn.GroupNorm(1, 5)
            self.temperature = nn.Parameter(torch.tensor(0.3))

        def forward(self, x):
            h = self.group(self.batch(self.rms(self.norm(self.first(x)))[:, :, None]))[:, :, 0]
            return torch.tanh(h) * self.temperature.exp()

    model = Shifts().double().eval()
    model.batch.running_var.fill_(0.7)
    risk = Risk(model, nn.CrossEntropyLoss(), (normal(20, 4), torch.randint(0, 5, (20,))))
    found = errors(kfac_operator(risk), ggn_operator(risk).to_dense())
    assert len(found) >= 7
    assert max(error for name, error in found.items() if name != "first.weight") < EXACT


# -- Several uses ----------------------------------------------------------------------------------


def by_partial_traces(uses):
    """The Kronecker product for sum_k V_k x W_k, by its definition with partial traces."""
    total = sum(V.trace() * W.trace() for V, W in uses)
    left = sum(W.trace() * V for V, W in uses)
    right = sum(V.trace() * W for V, W in uses)
    return torch.kron(left, right) / total


def test_a_tied_weight_has_the_partial_traces_of_its_uses():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(normal(4, 2))

        def forward(self, x):
            return torch.tanh(x @ self.W) @ self.W.T

    x, model = normal(15, 4), Tied()
    K = kfac_operator(Risk(model, nn.MSELoss(), (x, normal(15, 4)))).to_dense()
    W = model.W.detach()
    h, H = torch.tanh(x @ W), 2.0 / (15 * 4)  # the Hessian of the loss is a multiple of I
    S_first = torch.zeros(2, 2, dtype=DOUBLE)
    for c in range(4):
        g = W[c] * (1 - h**2)
        S_first += H * g.T @ g
    first = (x.T @ x / 15, S_first)
    second = (H * 15 * torch.eye(4, dtype=DOUBLE), h.T @ h / 15)
    expected = by_partial_traces([first, second])
    torch.testing.assert_close(K, expected)


def test_the_recurrent_weight_has_the_partial_traces_of_its_steps():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.U, self.W = nn.Parameter(normal(3, 2)), nn.Parameter(normal(3, 3) / 2)

        def forward(self, x):
            h = x.new_zeros(len(x), 3)
            for t in range(x.shape[1]):
                h = torch.tanh(F.linear(x[:, t], self.U) + F.linear(h, self.W))
            return h

    x, model = normal(8, 3, 2), Recurrent()
    risk = Risk(model, nn.MSELoss(), (x, normal(8, 3)))
    K = kfac_operator(risk).block("W").to_dense()
    h, hs, s = torch.zeros(8, 3, dtype=DOUBLE), [], []
    W = model.W.detach()
    for t in range(3):
        hs.append(h)
        s.append((F.linear(x[:, t], model.U) + F.linear(h, W)).detach().requires_grad_())
        h = torch.tanh(s[-1]).detach()
    uses = []
    for t in range(1, 3):  # the first step multiplies W by zero: no derivative
        state = s[t]
        out = torch.tanh(state)
        for later in range(t + 1, 3):
            out = torch.tanh(F.linear(x[:, later], model.U.detach()) + F.linear(out, W))
        S = torch.zeros(3, 3, dtype=DOUBLE)
        for c in range(3):
            (g,) = torch.autograd.grad(out[:, c].sum(), state, retain_graph=True)
            S += 2.0 / (8 * 3) * g.T @ g
        uses.append((S, hs[t].T @ hs[t] / 8))
    torch.testing.assert_close(K, by_partial_traces(uses))


# -- Bounds ----------------------------------------------------------------------------------------


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


def language_loss(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)


def tokens():
    words = torch.randint(0, 7, (6, 5))
    targets = words.roll(-1, 1)
    targets[:, -1] = -100
    return words, targets


def classes(*shape):
    return normal(*shape), torch.randint(0, 3, shape[:1])


CE = nn.CrossEntropyLoss()
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
    "language": (lambda: Language(tied=False), language_loss, tokens),
    "tied language": (lambda: Language(tied=True), language_loss, tokens),
}  # fmt: skip


@pytest.mark.parametrize("case", BOUNDED)
def test_ekfac_is_never_farther_than_kfac_and_has_the_trace_of_the_block(case):
    model, loss, data = BOUNDED[case]
    weight = {"weight": lambda _, y: (y != -100).sum()} if "language" in case else {}
    risk = Risk(model().double().eval(), loss, [data()], **weight)
    G = ggn_operator(risk).to_dense()
    K, E = kfac_operator(risk), ekfac_operator(risk)
    assert not E.coverage.without_rule
    for kfac, ekfac in zip(pairs(K, G), pairs(E, G), strict=True):
        (name, ours, block), (_, corrected, _) = kfac, ekfac
        limit = (ours - block).norm() + 1e-12 * block.norm()
        assert (corrected - block).norm() <= limit, name
        torch.testing.assert_close(corrected.trace(), block.trace())
        torch.testing.assert_close(corrected, corrected.T)


def test_reduced_ekfac_has_the_trace_of_the_block_too():
    risk = Risk(Attention().double(), CE, classes(5, 6, 4))
    G = ggn_operator(risk).to_dense()
    for _, ours, block in pairs(ekfac_operator(risk, approximation="reduce"), G):
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
    for _, ours, block in pairs(E, G):
        torch.testing.assert_close(ours.trace(), block.trace())


def test_padding_does_not_count_as_rows():
    """Places that the loss ignores, and that no other place looks at, do not change the factors."""
    model = linear(4, 5, 7)
    x, y = normal(6, 5, 4), torch.randint(0, 7, (6, 5))
    y[:, 3:] = -100
    padded = Risk(model, language_loss, (x, y))
    short = Risk(model, language_loss, (x[:, :3], y[:, :3]))
    torch.testing.assert_close(kfac_operator(padded).to_dense(), kfac_operator(short).to_dense())


def test_a_loss_that_is_no_known_likelihood_has_the_hessian_in_its_place():
    def log_cosh(outputs, targets):
        return torch.log(torch.cosh(outputs - targets)).mean()

    risk = Risk(mlp(), log_cosh, (normal(1, 4), normal(1, 3)))
    K = kfac_operator(risk)
    assert "Gauss-Newton" in repr(K)
    assert max(errors(K, ggn_operator(risk).to_dense()).values()) < EXACT


def test_it_is_of_the_fisher_matrix_where_that_is_not_the_ggn():
    model = nn.Sequential(mlp(), nn.LogSoftmax(-1))
    risk = Risk(model, nn.NLLLoss(), (normal(1, 4), torch.tensor([1])))
    found = errors(kfac_operator(risk), fisher_operator(risk).to_dense())
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
    found = errors(kfac_operator(risk), fisher_operator(risk).to_dense())
    assert max(found.values()) < EXACT


def test_the_empirical_matrix():
    risk = Risk(mlp(), CE, classes(25, 4))
    F_empirical = fisher_operator(risk, kind="empirical").to_dense()
    E = ekfac_operator(risk, fisher="empirical", samples=1)
    for _, ours, block in pairs(E, F_empirical):
        torch.testing.assert_close(ours.trace(), block.trace())
    one = Risk(risk.model, CE, classes(1, 4))
    found = errors(
        kfac_operator(one, fisher="empirical", samples=1),
        fisher_operator(one, kind="empirical").to_dense(),
    )
    assert max(found.values()) < EXACT


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


# -- Forms of models and data ----------------------------------------------------------------------


def test_low_precision_models_have_factors_in_float32():
    model, (x, y) = mlp(), classes(40, 4)
    exact = kfac_operator(Risk(model, CE, (x, y))).to_dense().float()
    low = Risk(model.to(torch.bfloat16), CE, (x.bfloat16(), y))
    for make in (kfac_operator, ekfac_operator):
        K = make(low)
        assert K.dtype == torch.float32
        assert not K.coverage.without_rule
        trace = float(K.to_dense().trace())
        assert trace == pytest.approx(float(exact.trace()), rel=0.1)
    K = kfac_operator(low).to_dense()
    assert (K - exact).norm() < 0.1 * exact.norm()


def test_inputs_by_name_and_a_loss_inside_the_model():
    class OwnLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, left, right, labels):
            logits = torch.tanh(self.a(left)) + self.b(right)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    batch = {"left": normal(12, 3), "right": normal(12, 2), "labels": torch.randint(0, 4, (12,))}
    risk = Risk(OwnLoss().double(), lambda out, _: out["loss"], [batch])
    E, G = ekfac_operator(risk), ggn_operator(risk).to_dense()
    assert not E.coverage.without_rule
    for _, ours, block in pairs(E, G):
        torch.testing.assert_close(ours.trace(), block.trace())


def test_outputs_in_which_time_comes_first():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 4), nn.Linear(4, 5)

        def forward(self, x):  # (batch, time, 3) -> (time, batch, 5)
            return self.head(self.cell(x.transpose(0, 1))[0])

    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.T.flatten())

    data = normal(6, 4, 3), torch.randint(0, 5, (6, 4))
    risk = Risk(TimeFirst().double(), loss, [data])
    E, G = ekfac_operator(risk), ggn_operator(risk).to_dense()
    for _, ours, block in pairs(E, G):
        torch.testing.assert_close(ours.trace(), block.trace())


def test_a_model_that_cannot_be_traced_is_refused():
    from hesse.errors import FunctionError

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x + torch.poisson(x.abs() * 0.0))

    risk = Risk(Random(), nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 2)))
    with pytest.raises(FunctionError, match="can be traced"):
        kfac_operator(risk)


def test_example_weights():
    x, y = classes(12, 4)
    weights = torch.rand(12, dtype=DOUBLE)
    risk = Risk(mlp(), CE, (x, y)).weighted(weights)
    E, G = ekfac_operator(risk), ggn_operator(risk).to_dense()
    for _, ours, block in pairs(E, G):
        torch.testing.assert_close(ours.trace(), block.trace())
