# SPDX-License-Identifier: Apache-2.0
"""What the source of a case may call. A standalone script has a copy of what it uses."""

from __future__ import annotations

import contextlib

import torch
import torch.utils.checkpoint
import torch.utils.flop_counter
from torch import nn
from torch.nn import functional as F


def numbers(seed, *shape, kind="normal", dtype=torch.float64):
    """A tensor of random numbers; all are numbers of float32 too."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    if kind == "integers":
        values = values.round()
    elif kind == "zeros":
        values = 0 * values
    elif kind == "positive":
        values = values.abs() + 0.5
    elif kind == "strided":
        values = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)[..., ::2]
    elif kind == "transposed":
        values = torch.randn(shape[::-1], generator=generator).permute(*reversed(range(len(shape))))
    return values.to(dtype)


def rnn_cell(x, w, u):
    """A recurrent layer over the rows of x; its last state."""
    state = x.new_zeros(u.shape[1])
    for row in x.reshape(-1, x.shape[-1]):
        state = torch.tanh(w @ row + u @ state)
    return state


def gru_cell(x, w, u):
    """A gated recurrent unit over the rows of x; its last state."""
    state = x.new_zeros(1, u.shape[1])
    for row in x.reshape(-1, 1, x.shape[-1]):
        state = torch.gru_cell(row, state, w, u)
    return state


def lstm_cell(x, w, u):
    """Long short-term memory over the rows of x; its last state and cell."""
    state = cell = x.new_zeros(1, u.shape[1])
    for row in x.reshape(-1, 1, x.shape[-1]):
        state, cell = torch.lstm_cell(row, (state, cell), w, u)
    return torch.cat([state, cell])


def weight_normed(x, direction, length):
    """A linear layer whose weight has rows of a given length."""
    return F.linear(x, length * direction / direction.norm(dim=1, keepdim=True))


def mixture(x, gate):
    """Two functions of x, weighted by a gate."""
    weights = (x @ gate.mT).softmax(-1)
    return weights[..., :1] * x.sin() + weights[..., 1:] * x**2


def inner_gradient(x):
    """A gradient that f takes itself."""
    with torch.enable_grad():
        t = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad((t.sin() * t).sum(), t, create_graph=True)[0]


def inner_hessian(x):
    """A product with a Hessian that f takes itself."""
    with torch.enable_grad():
        t = x if x.requires_grad else x.clone().requires_grad_()
        g = torch.autograd.grad((t.sin() * t.sum()).sum(), t, create_graph=True)[0]
        return torch.autograd.grad(g.sum(), t, create_graph=True)[0]


def fixed_point(x):
    """A few steps of an iteration, as many as it takes."""
    state = x.new_zeros(x.shape)
    for _ in range(20):
        new = torch.tanh(0.3 * state + x)
        if float((new - state).detach().abs().max()) < 1e-2:
            break
        state = new
    return state


def no_gradient_part(x):
    """A constant that is computed under no_grad, piecewise constant in x."""
    with torch.no_grad():
        mask = (x > 0).to(x.dtype)
    return mask * x**2 + (1 - mask) * x.sin()


class Squared(torch.autograd.Function):
    """x^2, with a backward pass that torch differentiates."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, *grads):
        return 2 * ctx.saved_tensors[0] * grads[0]


class SquaredOnce(torch.autograd.Function):
    """x^2, with a backward pass that torch does not differentiate."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        return 2 * ctx.saved_tensors[0] * grads[0]


def squared(x):
    """x^2."""
    return Squared.apply(x)


def squared_once(x):
    """x^2."""
    return SquaredOnce.apply(x)


class WrongCosine(torch.autograd.Function):
    """cos x, the factor 2 in whose derivative is wrong."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx, *grads):
        return -2 * ctx.saved_tensors[0].sin() * grads[0]


class PlantedSine(torch.autograd.Function):
    """sin x, with a right backward pass whose own derivative is wrong."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, *grads):
        return WrongCosine.apply(ctx.saved_tensors[0]) * grads[0]


def planted(x):
    """sin x, a fault that the tests of the fuzzer plant."""
    return PlantedSine.apply(x)


class Last(nn.Module):
    """The first output of a recurrent layer, at the last step."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]


class Attend(nn.Module):
    """Self-attention."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Residual(nn.Module):
    """x + layer(x)."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


class Pool(nn.Module):
    """The mean over the positions of a sequence."""

    def forward(self, x):
        return x.mean(1)


class Twice(nn.Module):
    """A layer that is applied twice."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer(x).tanh())


class Named(nn.Module):
    """A model that takes its input by name."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features, labels=None):
        return self.layers(features)


class Two(nn.Module):
    """A model of two inputs."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, one, two):
        return self.layers(one * two.cos())


def batches_of(inputs, targets, sizes, form):
    """The data of a risk in batches of these sizes, in one of the forms that it takes."""
    labels = "labels" if form == "dicts" else None
    pairs = list(zip(split(inputs, sizes), split(targets, sizes), strict=True))
    if form == "pair":
        return pairs[0]
    if form == "dicts":
        return [{"features": x, labels: y} for x, y in pairs]
    if form == "keywords":
        return [({"features": x}, y) for x, y in pairs]
    if form == "loader":
        return torch.utils.data.DataLoader(pairs, batch_size=None)
    if form == "data set":
        data = torch.utils.data.TensorDataset(inputs, targets)
        return torch.utils.data.DataLoader(data, batch_size=sizes[0])
    if form == "iterator":
        return iter(pairs)
    if form == "tuple":
        return tuple(pairs)
    return pairs


def split(data, sizes):
    """The rows of a tensor, or of each tensor of a tuple, in parts of these sizes."""
    if isinstance(data, tuple):
        return list(zip(*(part.split(sizes) for part in data), strict=True))
    return data.split(sizes)


def called(model, x, inputs, form):
    """The outputs of a model with parameters x, by torch alone."""
    kwargs = {"features": inputs} if form in ("dicts", "keywords") else {}
    args = () if kwargs else inputs if isinstance(inputs, tuple) else (inputs,)
    return torch.func.functional_call(model, x, args, kwargs)


@contextlib.contextmanager
def default_dtype(dtype):
    """A default dtype for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic_algorithms():
    """Deterministic algorithms for a while."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
