# SPDX-License-Identifier: Apache-2.0
"""Faults in exact diagonals, and in the files of K-FAC."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hesse
from hesse.saving import tensor_file
from tools.faults.fault import Happened, Injected, Seen, error_of, fault
from tools.faults.scenarios.calls import definite, randn
from tools.faults.scenarios.files import DAMAGES
from tools.faults.scenarios.models import batches, network

_DIAGONALS, _FILES = "Exact diagonals", "Files of operators"


def _ggn(data: Any = None, model: nn.Module | None = None) -> Any:
    model = network() if model is None else model
    risk = hesse.Risk(model, nn.MSELoss(), batches() if data is None else data)
    return hesse.ggn_operator(risk, risk.params)


_MEASURES: dict[str, Callable[[Any], Tensor]] = {
    "diagonal(G)": lambda G: hesse.diagonal(G).value,
    "trace(G)": lambda G: torch.as_tensor(hesse.trace(G).value),
}


@fault(_DIAGONALS, "NaN in an example of a later batch", _MEASURES)
def nan_example(measure: Callable[[Any], Tensor]) -> Seen:
    """A missing value among the inputs."""
    Happened.now()
    data = [(x.clone(), y.clone()) for x, y in batches()]
    data[2][0][3, 1] = math.nan
    return Seen(measure(_ggn(data)), measure(_ggn()), 1e-10)


class _Loader:
    """Batches; when it is told to, something else happens once at the third."""

    def __init__(self, happens: Callable[[Any], Any]) -> None:
        self.happens, self.is_due = happens, False

    def __iter__(self) -> Any:
        for number, batch in enumerate(batches()):
            if self.is_due and number == 2:
                self.is_due = False
                Happened.now()
                yield self.happens(batch)
            else:
                yield batch


def _raise(batch: Any) -> Any:
    raise Injected("the disk is gone")


_SWEEPS: dict[str, Callable[[Any], Any]] = {
    "raises": _raise,
    "gives other examples": lambda batch: (batch[0].flip(0) * 2, batch[1]),
    "gives a smaller batch": lambda batch: (batch[0][:5], batch[1][:5]),
}
for _what, _happens in _SWEEPS.items():

    @fault(_DIAGONALS, f"a loader that {_what} in a later sweep", _MEASURES)
    def loader(measure: Callable[[Any], Tensor], happens: Any = _happens) -> Seen:
        """The data of the diagonal are not those that the risk was made of."""
        sweeps = _Loader(happens)
        G = _ggn(sweeps)
        sweeps.is_due = True
        results: list[Tensor] = []
        error = error_of(lambda: results.append(measure(G)))
        right = measure(_ggn())
        return Seen(results[0] if results else measure(G), right, 1e-10, error=error)


@fault(_DIAGONALS, "a layer that draws random numbers", _MEASURES)
def random_layer(measure: Callable[[Any], Tensor]) -> Seen:
    """Dropout by torch.rand."""

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            Happened.now()
            return x * (torch.rand_like(x) > 0.5)

    return Seen(measure(_ggn(model=network(Noise()))), measure(_ggn()), 1e-10)


@fault(_DIAGONALS, "examples that depend on one another", _MEASURES)
def coupled(measure: Callable[[Any], Tensor]) -> Seen:
    """A layer that subtracts the mean of the batch: no sum over single examples."""

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            Happened.now()
            return x - x.mean(0)

    G = _ggn(batches(64), network(Centred()))
    dense = G.to_dense()
    right = dense.diagonal() if measure is _MEASURES["diagonal(G)"] else dense.trace()
    return Seen(measure(G), right, 0.01)  # by samples, to the default tolerance


@fault(_DIAGONALS, "fewer products than the diagonal takes", "diagonal(G, max_products=1)")
def few_products() -> Seen:
    """A limit that is too low."""
    Happened.now()
    found = hesse.diagonal(_ggn(), max_products=1)
    return Seen(found.value, hesse.diagonal(_ggn()).value, 1e-10, status=found.status)


# -- Files -----------------------------------------------------------------------------------------


def _kfac() -> Any:
    risk = hesse.Risk(network(), nn.MSELoss(), batches())
    return hesse.kfac_operator(risk, damping=0.1)


def _product(K: Any) -> Tensor:
    return K @ randn(K.shape[0], seed=5)


def _newer(data: bytes) -> bytes:
    assert b"kfac 2" in data
    return data.replace(b"kfac 2", b"kfac 3")


for _what, _damage in {**DAMAGES, "of a newer version": _newer}.items():

    @fault(_FILES, f"a file that is {_what}", "load_kfac")
    def damaged(damage: Any = _damage) -> Seen:
        """Refused."""
        K = _kfac()
        K.save("operator")
        Path("operator").write_bytes(damage(Path("operator").read_bytes()))
        Happened.now()
        return Seen(_product(hesse.load_kfac("operator")), _product(K))


_FOREIGN: dict[str, Callable[[], Any]] = {
    "a safetensors file of a model": lambda: save_file({"weight": torch.ones(3)}, "operator"),
    "a pickle": lambda: torch.save({"weight": torch.ones(3)}, "operator"),
    "a checkpoint of eigsh": lambda: hesse.eigsh(definite(), 2, checkpoint="operator"),
    "no file": lambda: None,
    "a folder": lambda: os.mkdir("operator"),
}
for _what, _make in _FOREIGN.items():

    @fault(_FILES, f"{_what} instead of a saved operator", "load_kfac")
    def foreign(make: Any = _make) -> Seen:
        """Refused."""
        make()
        Happened.now()
        return Seen(_product(hesse.load_kfac("operator")), _product(_kfac()))


_PLACES = {"a folder that does not exist": "no/folder/operator", "/dev/full": "/dev/full"}


@fault(
    _FILES, "nothing can be written", {f"K.save, {what}": path for what, path in _PLACES.items()}
)
def unwritable(path: str) -> Seen:
    """Refused, and the operator is as before."""
    K = _kfac()
    os.mkfifo("pipe")
    before = _product(K)
    Happened.now()
    error = error_of(lambda: K.save(path))
    is_left = stat.S_ISFIFO(os.stat("pipe").st_mode)
    return Seen([_product(K), float(error is not None), float(is_left)], [before, 1.0, 1.0],
                error=error)  # fmt: skip


@fault(_FILES, "a disk that is full", "K.save over an older file")
def full_disk() -> Seen:
    """The older file stays whole."""
    K = _kfac()
    K.save("operator")

    def full(*arguments: Any, **options: Any) -> None:
        Happened.now()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tensor_file.save_file = full
    error = error_of(lambda: K.save("operator"))
    return Seen(_product(hesse.load_kfac("operator")), _product(K), error=error)
