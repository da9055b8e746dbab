# SPDX-License-Identifier: Apache-2.0
"""Models of many architectures, unedited, with their losses and data."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as by

from tests.model_data import (
    VOCABULARY,
    WIDTH,
    Case,
    cross_entropy,
    images,
    labelled,
    next_tokens,
    own_loss,
    pictures,
    queries,
    sequences,
    squares,
    text,
    times,
    wide_sequences,
)

# --------------------------------------------------------------------------------------------------
# Models of `transformers`

BLOCKS = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


def transformer(name, **config):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # or one that was built for another torch
        sys.modules["torchvision"] = None
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, name)
    return kind(kind.config_class(**config, bos_token_id=0, eos_token_id=0))


def gpt2():
    sizes = {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    return transformer("GPT2LMHeadModel", **sizes)


def llama():
    return transformer("LlamaForCausalLM", **BLOCKS, num_key_value_heads=1)


def mixtral():
    # torch has no grouped product in float64.
    sizes = {"num_key_value_heads": 1, "num_local_experts": 3, "experts_implementation": "eager"}
    return transformer("MixtralForCausalLM", **BLOCKS, **sizes)


def mamba():
    return transformer(
        "MambaForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH, state_size=3,
        num_hidden_layers=2, time_step_rank=2,
    )  # fmt: skip


def bert():
    return transformer("BertForMaskedLM", **BLOCKS, max_position_embeddings=8)


def vit():
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
    return transformer("ViTForImageClassification", **BLOCKS, **sizes)


# --------------------------------------------------------------------------------------------------
# Models of our own, written as people write them


class BasicBlock(nn.Module):
    """As in a ResNet: BatchNorm, activations in place, the input added in place."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def resnet():
    stem = [nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model = nn.Sequential(*stem, BasicBlock(4), BasicBlock(4), *end)
    model(torch.randn(20, 2, 6, 6))  # running statistics unlike 0 and 1
    return model


class Tied(nn.Module):
    """A language model with one matrix as embedding and as output."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY)
        self.output.weight = self.embedding.weight

    def forward(self, ids):
        return self.output(torch.tanh(self.body(self.embedding(ids))))


class InPlace(nn.Module):
    """Everything that is written in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        z = self.first(x)
        z[..., 0] = z[..., 1] - z[..., 2]
        z += x
        z[:, 1:].mul_(2.0)
        z.sigmoid_()
        result = torch.zeros_like(x)
        for t in range(x.shape[1]):
            result[:, t] = self.second(z[:, : t + 1].mean(1)).relu_()
        return result


class Spectral(nn.Module):
    """A filter in Fourier space: complex numbers on the way."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(WIDTH // 2 + 1, 2))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(self.filter)).tanh()


class Slopes(nn.Module):
    """u'' + sin t: a network differentiated in its inputs, by `torch.autograd.grad`."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, t):
        t = t.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.u(t).sum(), t, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), t, create_graph=True)
        return curvature + torch.sin(t)


class SlopesByFunc(Slopes):
    """The same, by `torch.func`."""

    def forward(self, t):
        def u(s):
            return self.u(s).squeeze()

        slope = torch.func.jacrev(torch.func.grad(u))
        return torch.func.vmap(slope)(t).reshape(-1, 1) + torch.sin(t)


class Forces(nn.Module):
    """The slope of an energy with a norm in it, as in networks for molecules."""

    def __init__(self, norm):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(WIDTH, 6), norm(6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -slope


def constrained(parametrization):
    layers = [parametrization(nn.Linear(WIDTH, WIDTH)) for _ in range(2)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1])


def two_ways(kind):
    return kind(WIDTH, WIDTH, num_layers=2, bidirectional=True, batch_first=True)


def encoder():
    return nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True)


MODELS = {
    "gpt2": lambda: Case(gpt2(), cross_entropy, text),
    "llama": lambda: Case(llama(), cross_entropy, text, rounds=True),
    "mixtral": lambda: Case(mixtral(), cross_entropy, text, rounds=True),
    "mamba": lambda: Case(mamba(), cross_entropy, text, rounds=True),
    "bert": lambda: Case(bert(), cross_entropy, text),
    "vit": lambda: Case(vit(), cross_entropy, images),
    "gpt2, own loss": lambda: Case(gpt2(), own_loss, labelled(text), rounds=True),
    "llama, own loss": lambda: Case(llama(), own_loss, labelled(text), rounds=True),
    "bert, own loss": lambda: Case(bert(), own_loss, labelled(text)),
    "vit, own loss": lambda: Case(vit(), own_loss, labelled(images)),
    "attention": lambda: Case(nn.MultiheadAttention(WIDTH, 2, batch_first=True), squares, queries),
    "encoder": lambda: Case(encoder(), squares, sequences),
    "resnet": lambda: Case(resnet(), cross_entropy, pictures),
    "rnn": lambda: Case(nn.RNN(WIDTH, WIDTH, batch_first=True), squares, sequences),
    "gru": lambda: Case(nn.GRU(WIDTH, WIDTH, batch_first=True), squares, sequences),
    "lstm": lambda: Case(nn.LSTM(WIDTH, WIDTH, batch_first=True), squares, sequences),
    "lstm, two ways": lambda: Case(two_ways(nn.LSTM), squares, wide_sequences),
    "gru, two ways": lambda: Case(two_ways(nn.GRU), squares, wide_sequences),
    "tied": lambda: Case(Tied(), cross_entropy, next_tokens),
    "in place": lambda: Case(InPlace(), squares, sequences),
    "spectral": lambda: Case(Spectral(), squares, sequences),
    "spectral norm": lambda: Case(constrained(by.spectral_norm), squares, sequences),
    "orthogonal": lambda: Case(constrained(by.orthogonal), squares, sequences),
    "weight norm": lambda: Case(constrained(by.weight_norm), squares, sequences),
    "slopes by autograd": lambda: Case(Slopes(), squares, times),
    "slopes by torch.func": lambda: Case(SlopesByFunc(), squares, times),
    "forces, rms norm": lambda: Case(Forces(nn.RMSNorm), squares, sequences),
    "forces, layer norm": lambda: Case(Forces(nn.LayerNorm), squares, sequences),
}
OWN_LOSS = [name for name in MODELS if "own loss" in name]
