# SPDX-License-Identifier: Apache-2.0
"""Faults in models, losses and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesse
from tools.faults.fault import Happened, Seen, error_of, fault, marked
from tools.faults.scenarios.calls import randn

_MODELS, _DATA = "Models", "Data"
_INPUTS, _TARGETS = randn(64, 6), randn(64, 3, seed=1)


def network(*middle: nn.Module) -> nn.Module:
    """A small network, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), *middle, nn.Linear(16, 3)).double()


def batches(size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """The data in batches."""
    return list(zip(_INPUTS.split(size), _TARGETS.split(size), strict=True))


def product(model: nn.Module, data: Any, loss: Any = None, times: int = 1) -> Tensor:
    """A Hessian-vector product of a risk, the last of several."""
    H = _hessian(model, data, loss)
    v = randn(H.shape[0], seed=5)
    return [H @ v for _ in range(times)][-1]


def _hessian(model: nn.Module, data: Any, loss: Any = None) -> Any:
    risk = hesse.Risk(model, nn.MSELoss() if loss is None else loss, data)
    return hesse.hessian_operator(risk, risk.params)


def _expected(inputs: Tensor = _INPUTS, targets: Tensor = _TARGETS) -> Tensor:
    return product(network().eval(), (inputs.clone(), targets.clone()))


_TRAIN: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "batch normalisation": lambda: nn.BatchNorm1d(16),
}
for _what, _layer in _TRAIN.items():

    @fault(_MODELS, f"train mode with {_what}", "Risk(model, loss, data)")
    def train_mode(layer: Any = _layer) -> Seen:
        """A model that is in train mode."""
        Happened.now()
        return Seen(product(network(layer()).train(), batches()), _expected(), 1e-10)


@fault(_MODELS, "dropout by torch.rand in forward", "Risk(model, loss, data)")
def hidden_dropout() -> Seen:
    """A layer that draws whatever the mode."""

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            Happened.now()
            return x * (torch.rand_like(x) > 0.5)

    return Seen(product(network(Noise()), batches()), _expected(), 1e-10)


@fault(_MODELS, "a layer whose buffer changes with every call", "Risk(model, loss, data)")
def counting_buffer() -> Seen:
    """State that a forward pass writes to."""

    class Count(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            Happened.now()
            self.calls += 1
            return x * self.calls

    model = network(Count())
    got = product(model, batches(), times=4)
    return Seen(got, product(network(), batches()), 1e-10)


@fault(_MODELS, "all parameters frozen", "Risk(model, loss, data)")
def frozen() -> Seen:
    """Nothing requires a gradient."""
    Happened.now()
    model = network().requires_grad_(False)
    return Seen(product(model, batches()), _expected(), 1e-10)


@fault(_MODELS, "integer parameters", "Risk(model, loss, data)")
def integer_parameters() -> Seen:
    """A parameter that is no real number."""
    Happened.now()
    model = network()
    model.register_parameter("count", nn.Parameter(torch.ones(2).long(), requires_grad=False))
    return Seen(product(model, batches()), _expected(), 1e-10)


@fault(_MODELS, "parameters trained between products", "hessian_operator(risk, params) @ v")
def parameters_move() -> Seen:
    """The operator is that of the point it was made at."""
    model = network()
    H = _hessian(model, batches())
    v = randn(H.shape[0], seed=5)
    expected = H @ v
    products = []
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                Happened.now()
                p.add_(0.1 * torch.ones_like(p))
        products.append(H @ v)
    return Seen(torch.stack(products), torch.stack([expected] * 5), 1e-10)


@fault(_MODELS, "a parameter replaced between products", "hessian_operator(risk, params) @ v")
def parameter_replaced() -> Seen:
    """A layer gets another tensor."""
    model = network()
    H = _hessian(model, batches())
    v = randn(H.shape[0], seed=5)
    expected = H @ v
    Happened.now()
    model[0].weight = nn.Parameter(torch.zeros(16, 6, dtype=torch.float64))
    return Seen(torch.stack([H @ v, H @ v]), torch.stack([expected] * 2), 1e-10)


@fault(_DATA, "data written to between products", "hessian_operator(risk, params) @ v")
def data_move() -> Seen:
    """Products follow the data."""
    inputs, model = _INPUTS.clone(), network()
    H = _hessian(model, (inputs, _TARGETS))
    v = randn(H.shape[0], seed=5)
    products, expected = [], []
    for k in range(5):
        products.append(H @ v)
        expected.append(_expected(inputs))
        Happened.now()
        inputs.copy_(randn(64, 6, seed=10 + k))
    return Seen(torch.stack(products), torch.stack(expected), 1e-8)


@fault(_DATA, "data written to by NumPy between products", "hessian_operator(risk, params) @ v")
def data_written_by_numpy() -> Seen:
    """A write that torch does not count; noticed at the next look at the bits."""
    inputs, model = _INPUTS.clone(), network()
    H = _hessian(model, (inputs, _TARGETS))
    v = randn(H.shape[0], seed=5)
    for _ in range(1500):
        _ = H @ v
    Happened.now()
    inputs.numpy()[3] = 5.0
    error = error_of(lambda: [H @ v for _ in range(3000)])
    return Seen(H @ v, _expected(inputs), 1e-8, error=error)


class _Loader:
    """Batches by a function of the number of the sweep."""

    def __init__(self, sweep: Callable[[int], list[Any]]) -> None:
        self._sweep, self._count = sweep, 0

    def __iter__(self) -> Iterator[Any]:
        self._count += 1
        if self._count > 3:
            Happened.now()
        return iter(self._sweep(self._count))


_SWEEPS: dict[str, Callable[[int], list[Any]]] = {
    "gives other data after some sweeps": lambda k: batches() if k < 4 else [
        (x + 1, y) for x, y in batches()],
    "loses a batch after some sweeps": lambda k: batches() if k < 4 else batches()[:-1],
    "repeats a batch after some sweeps": lambda k: batches() if k < 4 else [
        *batches(), batches()[0]],
    "is empty after some sweeps": lambda k: batches() if k < 4 else [],
    "re-pairs inputs and targets": lambda k: batches() if k < 4 else [
        (x, y.roll(1, 0)) for x, y in batches()],
    "shuffles": lambda k: batches()[k % 4 :] + batches()[: k % 4],
    "gives None after some sweeps": lambda k: batches() if k < 4 else [None] * 4,
    "gives other dtypes after some sweeps": lambda k: batches() if k < 4 else [
        (x.float(), y) for x, y in batches()],
}  # fmt: skip
for _what, _sweep in _SWEEPS.items():

    @fault(_DATA, f"a loader that {_what}", "hessian_operator(risk, params) @ v")
    def changing_loader(sweep: Any = _sweep) -> Seen:
        """What comes from a loader is not what came before."""
        got = product(network(), _Loader(sweep), times=8)
        return Seen(got, _expected(), 1e-6)


@fault(_DATA, "a generator, exhausted after one sweep", "Risk(model, loss, data)")
def exhausted() -> Seen:
    """A generator instead of a list."""
    Happened.now()
    return Seen(product(network(), (batch for batch in batches()), times=4), _expected(), 1e-8)


@fault(_DATA, "an empty list", "Risk(model, loss, data)")
def no_data() -> Seen:
    """No batches."""
    Happened.now()
    return Seen(product(network(), []), _expected(), 1e-8)


@fault(_DATA, "NaN in one target of a later batch", "hessian_operator(risk, params) @ v")
def nan_target() -> Seen:
    """A missing value in the data: the Hessian of a square loss at NaN."""
    Happened.now()
    data = [(x.clone(), y.clone()) for x, y in batches()]
    data[2][1][3, 1] = float("nan")
    return Seen(product(network(), data), _expected(), 1e-8)


@fault(_DATA, "a loader that raises in its second sweep", "hessian_operator(risk, params) @ v")
def raising_loader() -> Seen:
    """The error of the loader reaches the caller; the next product is right."""
    calls: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            calls.append(1)
            for number, batch in enumerate(batches()):
                if len(calls) == 4 and number == 2:
                    Happened.now()
                    raise marked(OSError("the disk is gone"))
                yield batch

    H = _hessian(network(), Loader())
    v = randn(H.shape[0], seed=5)
    errors = [error_of(lambda: H @ v) for _ in range(6)]
    return Seen(H @ v, _expected(), 1e-8, error=next(filter(None, errors), None))


@fault(_DATA, "workers of a DataLoader, forked", "hessian_operator(risk, params) @ v", slow=True)
def workers() -> Seen:
    """Data that come from processes that are forked at every sweep."""
    Happened.now()
    data = TensorDataset(_INPUTS, _TARGETS)
    loader = DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="fork")
    return Seen(product(network(), loader, times=3), _expected(), 1e-8)


@fault(_DATA, "a worker of a DataLoader that is killed", "hessian_operator(risk, params) @ v",
       slow=True)  # fmt: skip
def killed_worker() -> Seen:
    """A process that is killed for memory, say."""
    import os
    import signal

    class Killed(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            if index == 40 and os.path.exists("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    data = Killed(_INPUTS, _TARGETS)
    loader = DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="fork")
    H = _hessian(network(), loader)
    v = randn(H.shape[0], seed=5)
    _ = H @ v
    with open("kill", "w"):
        Happened.now()
    error = error_of(lambda: H @ v)
    says = ("exited unexpectedly", "is killed by signal")
    if any(words in str(error) for words in says) or isinstance(error, ConnectionError):
        # Which of the three comes first differs from run to run.
        error = marked(RuntimeError("a worker of the DataLoader exited unexpectedly"))
    os.remove("kill")
    return Seen(H @ v, _expected(), 1e-8, error=error)
