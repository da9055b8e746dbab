# SPDX-License-Identifier: Apache-2.0
"""Test problems made of neural networks: one for each kind of layer that needs care."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.testing.problems import Problem


def _seeded(build: Callable[[], Any], dtype: torch.dtype, seed: int = 0) -> Any:
    """A module built from a seed, in eval mode; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build().to(dtype).eval()


def _data(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _network(
    name: str, module: nn.Module, loss: Callable[[Any], Tensor], *inputs: Tensor
) -> Problem:
    """loss(module(*inputs)) as a function of the module's parameters."""
    params = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def f(params: dict[str, Tensor]) -> Tensor:
        return loss(torch.func.functional_call(module, params, inputs))

    return Problem(name, f, params)


def mlp(activation: str = "Tanh", dtype: torch.dtype = torch.float64) -> Problem:
    """Regression by a network 3-4-2 with the activation of this name in torch.nn."""
    net = _seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), getattr(nn, activation)(), nn.Linear(4, 2)), dtype
    )
    targets = _data(5, 2, dtype=dtype, seed=2)
    name = f"mlp_{activation.lower()}"
    return _network(name, net, lambda z: F.mse_loss(z, targets), _data(5, 3, dtype=dtype))


def classifier(dtype: torch.dtype = torch.float64) -> Problem:
    """Cross-entropy of a network 3-4-3 with a LayerNorm."""
    net = _seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)), dtype
    )
    targets = torch.tensor([0, 1, 2, 1, 0])
    return _network(
        "classifier", net, lambda z: F.cross_entropy(z, targets), _data(5, 3, dtype=dtype)
    )


def conv_net(dtype: torch.dtype = torch.float64) -> Problem:
    """Convolution, BatchNorm with running statistics, pooling, and a linear layer."""

    def build() -> nn.Module:
        net = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.GELU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(8, 2),
        )  # fmt: skip
        net(torch.randn(10, 1, 4, 4))  # running statistics unlike 0 and 1
        return net

    targets = torch.tensor([0, 1, 1])
    net, images = _seeded(build, dtype), _data(3, 1, 4, 4, dtype=dtype)
    return _network("conv_net", net, lambda z: F.cross_entropy(z, targets), images)


def attention(dtype: torch.dtype = torch.float64) -> Problem:
    """Causal `scaled_dot_product_attention` with two heads, as in a GPT."""
    x, width = _data(2, 3, 4, dtype=dtype), 4

    def f(params: dict[str, Tensor]) -> Tensor:
        q, k, v = (x @ params["qkv"].T).view(2, 3, 3, 2, 2).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return (heads.transpose(1, 2).reshape(2, 3, width) @ params["out"].T).pow(2).mean()

    params = {
        "qkv": _data(3 * width, width, dtype=dtype, seed=3),
        "out": 0.5 * _data(width, width, dtype=dtype, seed=4),
    }
    return Problem("attention", f, params)


def multihead_attention(dtype: torch.dtype = torch.float64) -> Problem:
    """`nn.MultiheadAttention` on one sequence."""
    net = _seeded(lambda: nn.MultiheadAttention(4, 2, batch_first=True), dtype)
    x = _data(1, 3, 4, dtype=dtype)
    params = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def f(params: dict[str, Tensor]) -> Tensor:
        z, _ = torch.func.functional_call(net, params, (x, x, x), {"need_weights": False})
        return (z - x).pow(2).mean()

    return Problem("multihead_attention", f, params)


def recurrent(kind: str = "LSTM", dtype: torch.dtype = torch.float64) -> Problem:
    """`nn.LSTM` or `nn.GRU` over four steps."""
    net = _seeded(lambda: getattr(nn, kind)(2, 2, batch_first=True), dtype)
    x, targets = _data(3, 4, 2, dtype=dtype), _data(3, 4, 2, dtype=dtype, seed=2)
    return _network(kind.lower(), net, lambda z: F.mse_loss(z[0], targets), x)


def pinn(dtype: torch.dtype = torch.float64) -> Problem:
    """-u'' = sin t, u(0) = 0, with u a network: f itself differentiates u, by `torch.func`."""
    net = _seeded(lambda: nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)), dtype)
    times = torch.linspace(0, 3, 7, dtype=dtype)
    params = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def f(params: dict[str, Tensor]) -> Tensor:
        def u(t: Tensor) -> Tensor:
            return torch.func.functional_call(net, params, (t.view(1, 1),)).squeeze()

        curvature = torch.func.vmap(torch.func.grad(torch.func.grad(u)))(times)
        return ((curvature + torch.sin(times)) ** 2).mean() + u(times[0]) ** 2

    return Problem("pinn", f, params)


def pinn_autograd(dtype: torch.dtype = torch.float64) -> Problem:
    """The same equation, with u differentiated by `torch.autograd.grad` as PINN codes do."""
    net = _seeded(lambda: nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)), dtype)
    times = torch.linspace(0, 3, 7, dtype=dtype).view(-1, 1)

    def loss(params: dict[str, Tensor]) -> Tensor:
        t = times.clone().requires_grad_()
        u = torch.func.functional_call(net, params, (t,))
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), t, create_graph=True)
        return ((curvature + torch.sin(t)) ** 2).mean() + u[0, 0] ** 2

    params = {name: parameter.detach() for name, parameter in net.named_parameters()}
    return Problem("pinn_autograd", loss, params)


def tied_autoencoder(dtype: torch.dtype = torch.float64) -> Problem:
    """tanh(x W) W' + b: one matrix used twice."""
    x = _data(6, 4, dtype=dtype)
    params = {"W": _data(4, 2, dtype=dtype, seed=3), "b": _data(4, dtype=dtype, seed=4)}

    def f(params: dict[str, Tensor]) -> Tensor:
        z = torch.tanh(x @ params["W"]) @ params["W"].T + params["b"]
        return F.mse_loss(z, x)

    return Problem("tied_autoencoder", f, params)


def embedding(dtype: torch.dtype = torch.float64) -> Problem:
    """Next-token loss with an embedding; one token comes twice, one never."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(5, 3), nn.RMSNorm(3), nn.Linear(3, 5))

    tokens, targets = torch.tensor([[0, 1, 1, 3]]), torch.tensor([[1, 1, 3, 2]])
    net = _seeded(build, dtype)
    return _network("embedding", net, lambda z: F.cross_entropy(z[0], targets[0]), tokens)
