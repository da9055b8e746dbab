# SPDX-License-Identifier: Apache-2.0
"""Exact products of unedited models: whatever a model is made of, Hesse takes it as it is."""

import copy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import functional
from torch.nn import functional as F
from torch.nn.utils import parametrizations as by
from torch.overrides import TorchFunctionMode

import hesse

VOCABULARY, LENGTH, WIDTH = 11, 5, 8


@dataclass
class Case:
    """A model in eval mode and float64, the loss of its `head`, and batches of data.

    `rounds`: the model computes something in float32 whatever its dtype, and is compared less
    strictly with an oracle that does not.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    batch: Callable[[torch.Generator], tuple[Any, Any]]
    rounds: bool = False

    def __post_init__(self):
        self.model.double().eval()
        self.x = {name: p.detach() for name, p in self.model.named_parameters()}
        self.near = {name: 1.05 * p + 0.01 for name, p in self.x.items()}
        self.sizes = [p.numel() for p in self.x.values()]
        self.tolerance = 1e-5 if self.rounds else 1e-8

    def data(self, seed):
        return self.batch(torch.Generator().manual_seed(seed))

    def outputs(self, params, inputs):
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
        return torch.func.functional_call(self.model, params, args, kwargs)

    def f(self, seed):
        inputs, targets = self.data(seed)
        return lambda params: self.loss(self.outputs(params, inputs), targets)

    def risk(self, seed):
        return hesse.Risk(self.model, self.loss, self.data(seed))

    def gradient(self, seed, x):
        """The flat gradient by plain autograd, of a copy of the model with the parameters x."""
        model, (inputs, targets) = copy.deepcopy(self.model), self.data(seed)
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            parameter.data = x[name]
        outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        return flat_gradient(self.loss(outputs, targets), list(parameters.values()))

    def product(self, seed, x, v):
        """H v: the slope of the gradient along v."""
        with self.exactly():
            return slope(lambda t: self.gradient(seed, self.moved(x, v, t)), 1e-4 / float(v.norm()))

    def gauss_newton_product(self, v):
        """J' H_L J v: J v is the slope of what the loss is of, the rest plain autograd."""
        inputs, targets = self.data(0)

        def z(x):
            return head(self.outputs(x, inputs))

        with self.exactly():
            Jv = slope(lambda t: z(self.moved(self.x, v, t)), 3e-4 / float(v.norm()))
            leaves = {name: leaf.clone().requires_grad_() for name, leaf in self.x.items()}
            outputs = z(leaves)
            _, HJv = functional.hvp(lambda z: self.loss(z, targets), outputs.detach(), Jv)
            return flat_gradient(outputs, list(leaves.values()), HJv)

    def moved(self, x, v, t):
        """x + t v, as a tree."""
        parts = zip(x.items(), v.split(self.sizes), strict=True)
        return {name: leaf + t * part.view_as(leaf) for (name, leaf), part in parts}

    def exactly(self):
        return NoFloat32() if self.rounds else nullcontext()


class NoFloat32(TorchFunctionMode):
    """Within it, a model that casts to float32 casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wide(argument):
            return torch.float64 if argument is torch.float32 else argument

        func = Tensor.double if func is Tensor.float else func
        kwargs = {key: wide(argument) for key, argument in (kwargs or {}).items()}
        return func(*map(wide, args), **kwargs)


def flat_gradient(outputs, leaves, weights=None):
    parts = torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def slope(path, h):
    """The derivative at 0 by a central difference, with its first error term removed."""
    near, far = ((path(t) - path(-t)).detach() / (2 * t) for t in (h, 2 * h))
    return (4 * near - far) / 3


def direction(x, seed=0):
    n = sum(leaf.numel() for leaf in x.values())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64)


def assert_close(a, b, tolerance):
    assert a.shape == b.shape
    assert float((a - b).norm()) <= tolerance * float(b.norm())


# --------------------------------------------------------------------------------------------------
# Losses and data


def head(outputs):
    """What the loss is of, in the outputs of whichever model."""
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs[0] if isinstance(outputs, tuple) else outputs


def cross_entropy(outputs, targets):
    logits = head(outputs)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.flatten())


def squares(outputs, targets):
    return F.mse_loss(head(outputs), targets)


def own_loss(outputs, targets):
    return outputs.loss


def numbers(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tokens(generator):
    """No token 0: it is padding to BERT, whose gradient torch leaves out: then it is none of f."""
    return torch.randint(1, VOCABULARY, (2, LENGTH), generator=generator)


def text(generator):
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[0, -1] = 0
    return {"input_ids": tokens(generator), "attention_mask": mask}, tokens(generator)


def images(generator):
    return {"pixel_values": numbers(generator, 3, 1, 8, 8)}, torch.tensor([0, 2, 1])


def labelled(batch):
    """The same batch, with the targets given to the model, which computes the loss itself."""

    def with_labels(generator):
        inputs, targets = batch(generator)
        return {**inputs, "labels": targets}, targets

    return with_labels


def next_tokens(generator):
    return tokens(generator), tokens(generator)


def pictures(generator):
    return numbers(generator, 3, 2, 6, 6), torch.tensor([0, 2, 1])


def sequences(generator, width=WIDTH):
    return numbers(generator, 3, LENGTH, WIDTH), numbers(generator, 3, LENGTH, width)


def wide_sequences(generator):
    return sequences(generator, 2 * WIDTH)


def queries(generator):
    x, y = sequences(generator)
    return {"query": x, "key": x, "value": x + 1}, y


def times(generator):
    return numbers(generator, 7, 1), numbers(generator, 7, 1)


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

# --------------------------------------------------------------------------------------------------
# What holds for all of them


@cache
def case_of(name):
    """The model, from one seed: nothing that is done with it may change it."""
    torch.manual_seed(0)
    return MODELS[name]()


@cache
def expected(name, seed, point):
    """The gradient and the product with one direction, by plain autograd."""
    case = case_of(name)
    x = getattr(case, point)
    return case.gradient(seed, x), case.product(seed, x, direction(case.x))


@pytest.mark.parametrize("name", MODELS)
def test_one_product_of_a_function_and_of_a_risk(name):
    case = case_of(name)
    v = direction(case.x)
    product = hesse.hvp(case.f(0), case.x, v)
    assert_close(product, expected(name, 0, "x")[1], case.tolerance)
    assert_close(hesse.hvp(case.risk(0), case.x, v), product, 1e-12)


@pytest.mark.parametrize("mode", ["auto", "retained-graph", "traced-split"])
@pytest.mark.parametrize("name", MODELS)
def test_an_operator_at_two_points_and_on_new_data(name, mode):
    case = case_of(name)
    risk, v = case.risk(0), direction(case.x)
    H = hesse.hessian_operator(risk, case.x, mode=mode)
    columns = [direction(case.x, seed) for seed in range(3)]
    singles = torch.stack([H @ column for column in columns], dim=1)
    assert_close(H @ torch.stack(columns, dim=1), singles, 1e-10)
    for operator, point, seed in [
        (H, "x", 0),
        (H.at(case.near), "near", 0),
        (hesse.hessian_operator(risk.on(case.data(1)), case.x, mode=mode), "x", 1),
    ]:
        gradient, product = expected(name, seed, point)
        assert_close(operator @ v, product, case.tolerance)
        assert_close(operator.flat_gradient, gradient, 1e-2 * case.tolerance)
    assert H.mode == mode or mode == "auto"


@pytest.mark.parametrize("name", [name for name in MODELS if name not in OWN_LOSS])
def test_gauss_newton(name):
    case = case_of(name)
    risk, v = case.risk(0), direction(case.x)
    product = case.gauss_newton_product(v)
    for mode in ("auto", "traced-split"):
        G = hesse.ggn_operator(risk, case.x, mode=mode)
        assert_close(G @ v, product, 1e-2 * case.tolerance)


@pytest.mark.parametrize("name", OWN_LOSS)
def test_the_gauss_newton_matrix_of_a_model_that_returns_its_loss(name):
    """It is that of the likelihood which the model calls, a Fisher matrix."""
    case = case_of(name)
    v = direction(case.x)
    G = hesse.ggn_operator(case.risk(0), case.x)
    F = hesse.fisher_operator(case.risk(0), case.x)
    assert_close(G @ v, F @ v, 10 * case.tolerance)
