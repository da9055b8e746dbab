# SPDX-License-Identifier: Apache-2.0
"""Which parameters of which architectures have a rule, and that what has none is named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hesse
from hesse import Risk, ekfac_operator, ggn_operator, kfac_operator

DOUBLE = torch.float64
WORDS = 9


def normal(*shape):
    return torch.randn(*shape, dtype=DOUBLE)


def classes(*shape):
    return normal(*shape), torch.randint(0, 3, shape[:1])


def language_loss(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def sentences():
    words = torch.randint(0, WORDS, (3, 6))
    return words, words.roll(-1, 1)


class Conv1D(nn.Module):
    """A linear layer that keeps its weight as (in, out), as in GPT-2."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(
            *x.shape[:-1], -1
        )


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 4), nn.Embedding(6, 4)
        self.norm1, self.qkv, self.out = nn.LayerNorm(4), Conv1D(4, 12), Conv1D(4, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(4), Conv1D(4, 8), Conv1D(8, 4)

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(6))
        q, k, v = (
            part.unflatten(-1, (2, 2)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(4, -1)
        )
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x @ self.words.weight.T


class Llama(nn.Module):
    """Grouped queries, gated units, RMSNorm, no biases."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, 4), nn.RMSNorm(4)
        self.q, self.k, self.v = (nn.Linear(4, n, bias=False) for n in (4, 2, 2))
        self.o, self.gate, self.up = (nn.Linear(4, n, bias=False) for n in (4, 6, 6))
        self.down, self.head = nn.Linear(6, 4, bias=False), nn.Linear(4, WORDS, bias=False)

    def forward(self, tokens):
        x = self.words(tokens)
        h = self.norm(x)
        q, k, v = self.q(h).unflatten(-1, (2, 2)), self.k(h), self.v(h)
        q, k, v = q.transpose(1, 2), *(part[:, None].expand(-1, 2, -1, -1) for part in (k, v))
        x = x + self.o(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


class BERT(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.kinds = nn.Embedding(WORDS, 4, padding_idx=0), nn.Embedding(2, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)
        self.head = nn.Linear(4, WORDS)

    def forward(self, tokens):
        return self.head(self.layer(self.words(tokens) + self.kinds(torch.zeros_like(tokens))))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.places = nn.Parameter(torch.randn(1, 5, 4))
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True, norm_first=True)
        self.scale, self.head = nn.Parameter(0.1 * torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(x), -1, -1), h], dim=1) + self.places
        return self.head((h + self.scale * self.layer(h))[:, 0])


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.shortcut, self.relu = nn.Conv2d(4, 6, 1, 2, bias=False), nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.max_pool2d(self.relu(self.norm(self.first(x))), 2)
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        h += self.shortcut(x)
        return self.head(self.relu(h).mean((2, 3)))


class Routed(nn.Module):
    """Each token goes to the best of three experts, as in Mixtral."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        rows = x.flatten(0, 1)
        weights = self.gate(rows).softmax(-1)
        best, out = weights.argmax(-1), torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            (chosen,) = torch.where(best == number)
            out.index_add_(0, chosen, expert(rows[chosen]) * weights[chosen, number, None])
        return self.head((rows + out).view_as(x).mean(1))


class Stacked(nn.Module):
    """Experts in one tensor, taken by a batched product."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(4, 2), nn.Parameter(torch.randn(2, 4, 5))
        self.down, self.head = nn.Parameter(torch.randn(2, 5, 4)), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.bmm(torch.tanh(torch.bmm(x.expand(2, -1, -1), self.up)), self.down)
        return self.head((self.gate(x).softmax(-1).T[..., None] * h).sum(0))


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 3)
        self.lstm = nn.LSTM(3, 3, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(6, WORDS)

    def forward(self, tokens):
        return self.head(self.lstm(self.words(tokens))[0])


CE = nn.CrossEntropyLoss()
MODELS = {
    "gpt": (GPT, language_loss, sentences),
    "llama": (Llama, language_loss, sentences),
    "bert": (BERT, language_loss, sentences),
    "lstm": (LSTM, language_loss, sentences),
    "vit": (ViT, CE, lambda: classes(4, 3, 8, 8)),
    "resnet": (ResNet, CE, lambda: classes(4, 3, 8, 8)),
    "routed experts": (Routed, CE, lambda: classes(4, 3, 4)),
    "stacked experts": (Stacked, CE, lambda: classes(6, 4)),
}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_an_unedited_model_has_a_rule(name):
    model, loss, data = MODELS[name]
    risk = Risk(model().double().eval(), loss, [data()])
    E, G = ekfac_operator(risk), ggn_operator(risk).to_dense()
    assert not E.coverage.without_rule
    assert E.coverage.fraction == 1.0
    index = torch.cat([block.place.take(torch.arange(len(G))) for block in E.blocks])
    assert torch.equal(index.sort().values, torch.arange(len(G)))  # each entry once
    dense = E.to_dense()
    for block in E.blocks:
        own = block.place.take(torch.arange(len(G)))
        traces = [float(matrix[own, own].sum()) for matrix in (dense, G)]
        assert traces[0] == pytest.approx(traces[1], rel=1e-9, abs=1e-14), block.names


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="torch has no grouped product")
@pytest.mark.filterwarnings("ignore")
def test_experts_by_a_grouped_product():
    """As experts of transformers: rows are sorted by expert, one product for all."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts, self.head = nn.Parameter(torch.randn(3, 4, 8) / 2), nn.Linear(8, 3)

        def forward(self, x):
            best = x[:, :3].argmax(-1)
            order = best.argsort(stable=True)
            ends = torch.bincount(best, minlength=3).cumsum(0).to(torch.int32)
            h = torch._grouped_mm(x[order], self.experts, ends)
            return self.head(torch.tanh(h))[order.argsort()]

    model, (x, y) = Grouped(), (torch.randn(12, 4), torch.randint(0, 3, (12,)))
    x[0, 0] = x[1, 1] = x[2, 2] = 9.0  # each expert has a row
    risk = Risk(model, CE, (x, y))
    E, K = ekfac_operator(risk), kfac_operator(risk)
    assert E.coverage.blocks[0].form == "3 of 4 x 8"
    G = ggn_operator(risk).block("experts").to_dense()
    best = x[:, :3].argmax(-1)
    for e in range(3):
        own = slice(32 * e, 32 * (e + 1))
        ours, block = E.block("experts").to_dense()[own, own], G[own, own]
        torch.testing.assert_close(ours.trace(), block.trace(), rtol=1e-4, atol=1e-6)
        A = x[best == e].T @ x[best == e] / (best == e).sum()
        kfac = K.block("experts").to_dense()[own, own].reshape(4, 8, 4, 8)
        S = kfac[0, :, 0, :] / A[0, 0]
        torch.testing.assert_close(torch.kron(A, S), kfac.reshape(32, 32), rtol=1e-4, atol=1e-6)


def test_the_table_says_what_each_block_is():
    risk = Risk(GPT().double(), language_loss, [sentences()])
    K = kfac_operator(risk)
    table = {row.parameters: (row.form, row.rule) for row in K.coverage.blocks}
    assert table[("words.weight",)] == ("9 x 4", "mm + embedding")
    assert table[("places.weight",)] == ("diag 6 x 4", "embedding")
    assert table[("qkv.weight", "qkv.bias")] == ("5 x 12", "mm")
    assert table[("norm1.weight",)] == ("dense 4", "sum")
    assert "qkv.weight, bias" in repr(K)
    assert repr(K).count("\n") < 20
    assert "norm2.weight" in repr(K.coverage)
    assert "<table>" in K.coverage._repr_html_()


@pytest.mark.slow
def test_parameters_without_a_rule_are_named_and_have_the_right_mean():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)
    ).double()
    risk = Risk(model, CE, classes(8, 4))
    K = kfac_operator(risk, fisher="sampled", samples=3000)
    names = [f"0.parametrizations.weight.original{k}" for k in (0, 1)]
    assert K.coverage.without_rule == names
    assert f"no rule, c I: {names[0]}, {names[1]}" in repr(K)
    assert 0 < K.coverage.fraction < 1
    G = ggn_operator(risk)
    for name in names:
        block = K.block(name).to_dense()
        assert torch.equal(block, block[0, 0] * torch.eye(len(block), dtype=DOUBLE))
        assert float(block.trace()) == pytest.approx(
            float(G.block(name).to_dense().trace()), rel=0.1
        )


def test_weights_that_only_a_constant_reaches_mix_examples_and_are_named():
    class Table(nn.Module):
        """Position vectors by a small network, the same for all examples."""

        def __init__(self):
            super().__init__()
            self.make, self.head = nn.Linear(1, 4), nn.Linear(4, 3)

        def forward(self, x):
            places = torch.tanh(self.make(torch.arange(x.shape[1], dtype=DOUBLE)[:, None]))
            return self.head(torch.tanh(x + places).mean(1))

    risk = Risk(Table().double(), CE, classes(5, 3, 4))
    E = ekfac_operator(risk)
    assert E.coverage.without_rule == ["make.weight", "make.bias"]
    rules = {row.rule for row in E.coverage.blocks if row.form == "c I"}
    assert rules == {"no rule for rows that depend on several examples"}


def test_frozen_and_unused_parameters_are_zero():
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(2, 2)}).double()
    model.used.bias.requires_grad_(False)
    model.forward = lambda x: model.used(x)
    risk = Risk(model, CE, classes(6, 4), weight_decay=0.5)
    params = dict(model.named_parameters())
    K = kfac_operator(risk, params)
    table = {row.parameters: (row.form, row.rule) for row in K.coverage.blocks}
    assert table[("used.bias",)] == ("0", "frozen")
    assert table[("unused.weight",)] == ("0", "not used")
    G, dense = ggn_operator(risk, params), K.to_dense()
    for name in ("used.bias", "unused.weight"):
        torch.testing.assert_close(K.block(name).to_dense(), G.block(name).to_dense())
    assert torch.isfinite(dense).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
def test_large_factors_and_large_rows_are_kept_as_diagonals(make, monkeypatch):
    from hesse.curvature.kronecker import moments

    monkeypatch.setattr(moments, "MOST_DENSE", 8)
    monkeypatch.setattr(moments, "MOST_ROWS", 3)
    risk = Risk(GPT().double(), language_loss, [sentences()])
    K, G = make(risk, damping=0.01), ggn_operator(risk).to_dense()
    forms = {row.parameters[0]: row.form for row in K.coverage.blocks}
    assert forms["words.weight"] == "diag 9 x 4"
    assert forms["qkv.weight"] == "5 x diag 12"
    assert forms["norm1.weight"] == "diagonal 4"
    dense = K.to_dense()
    own = K.blocks[2].place.take(torch.arange(len(G)))
    assert K.blocks[2].names == ("norm1.weight",)
    expected = torch.diag(G[own, own] + 0.01)
    torch.testing.assert_close(dense[own][:, own], expected)
    inverse = hesse.inverse_operator(K).to_dense()
    torch.testing.assert_close(inverse @ dense, torch.eye(len(G), dtype=DOUBLE))
    if make is ekfac_operator:
        assert float(dense.trace() - 0.01 * len(G)) == pytest.approx(float(G.trace()))
