# SPDX-License-Identifier: Apache-2.0
"""`checkpoint=`: save the state of a long run; a run that was killed continues to the same bits.

One safetensors file holds the tensors and, as JSON in its header, everything else. It is written
under another name and renamed, so that at any moment there is either no file or a complete one. Its
header holds the run key (the arguments that must be the same) and a fingerprint of each operator,
which costs one product: a run never continues from the state of another one. The bits are the same
if those of the products are: name the `mode` of a Hessian, since "auto" depends on measured times.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hesse.errors import ArgumentError, Status
from hesse.operators.algebra import LinearOperator
from hesse.progress import FilePath, check_path

_PAUSE = 20  # after a save, the next one waits 20 times as long as that took
_FORMAT = 4

Fingerprint = tuple[float, float, float]


class Checkpoint:
    """The file of a run; without a path it does nothing.

    A state is an object whose fields (those of a dataclass, or those it names in `saved`) are
    tensors, generators, numbers, texts, statuses, lists of these, and states.

    Args:
        path: where; None saves nothing.
        A: the operator; its fingerprint takes one product.
        **run_key: what must be the same for a run to continue: texts, numbers, tensors, and further
            operators, each of which is recognised by its fingerprint as well.

    >>> import tempfile
    >>> from hesse.operators import diagonal_operator
    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Sum:
    ...     total: float = 0.0
    >>> A = diagonal_operator(torch.ones(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/run.safetensors"
    ...     Checkpoint(path, A, function="sum").save(Sum(1 / 3))
    ...     state = Sum()
    ...     Checkpoint(path, A, function="sum").resume(state), state
    (True, Sum(total=0.3333333333333333))
    """

    def __init__(self, path: FilePath, A: LinearOperator, **run_key: Any) -> None:
        self.path = check_path(path)
        self._device = A.device
        self._next_save = 0.0
        if self.path is None:
            return
        if not self.path.absolute().parent.is_dir():
            raise self._error("a file in a folder that exists", str(self.path.parent))
        operators = {k: v for k, v in run_key.items() if isinstance(v, LinearOperator)}
        self._run_key = {
            "format": _FORMAT,
            "shape": list(A.shape),
            "dtype": str(A.dtype),
            **{k: _as_json(v) for k, v in run_key.items() if k not in operators},
        }
        self._fingerprints = {
            name: _fingerprint(each) for name, each in {"A": A, **operators}.items()
        }

    def part(self, name: str) -> Checkpoint:
        """The checkpoint of one stage of a run, in a file of its own."""
        part = copy.copy(self)
        if self.path is not None:
            part.path = self.path.with_name(f"{self.path.name}.{name}")
        return part

    def resume(self, state: Any) -> bool:
        """Set the state to that of the file, if there is one; whether there was."""
        if self.path is None or not self.path.exists():
            return False
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("hesse", "null"))
                # Copies: kernels round differently where memory is aligned differently.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise self._error("a checkpoint of Hesse", str(error)) from error
        self._check_same_run(header)
        _restore(state, header["state"], tensors, self._device)
        return True

    def save(self, state: Any, *, now: bool = False) -> None:
        """Write the state, unless `now` is False and the last save was a short time ago.

        Saving takes at most a twentieth of the time of a run.
        """
        began = time.monotonic()
        if self.path is None or (began < self._next_save and not now):
            return
        tensors: dict[str, Tensor] = {}
        packed = _pack(state, "state", tensors)
        header = {
            "run_key": self._run_key,
            "operator_fingerprints": self._fingerprints,
            "state": packed,
        }
        part = self.path.with_name(self.path.name + ".part")
        save_file(tensors, part, metadata={"hesse": json.dumps(header)})
        _flush(part)
        os.replace(part, self.path)
        _flush(self.path.parent)
        ended = time.monotonic()
        self._next_save = ended + _PAUSE * (ended - began)

    def _check_same_run(self, header: Any) -> None:
        """Raise unless the header of a file is that of a run with this key and these operators."""
        if header is None or "run_key" not in header:
            got = "a safetensors file without the header of this version"
            raise self._error("a checkpoint of this version of Hesse", got)
        before, key = header["run_key"], self._run_key
        differing = [name for name in sorted({*before, *key}) if before.get(name) != key.get(name)]
        if differing:
            raise self._error(
                f"the state of a run with {', '.join(f'{k} = {key.get(k)}' for k in differing)}",
                ", ".join(f"{name} = {before.get(name)}" for name in differing),
            )
        prints = header["operator_fingerprints"]
        for name in sorted({*prints, *self._fingerprints}):
            self._check_same_operator(name, prints.get(name), self._fingerprints.get(name))

    def _check_same_operator(
        self, name: str, before: Fingerprint | None, now: Fingerprint | None
    ) -> None:
        """Raise unless two fingerprints agree up to rounding, or both are None: no operator."""
        none = (0.0, 0.0, 0.0)
        (norm, along, _), (norm_now, along_now, rtol) = before or none, now or none
        difference = max(abs(norm - norm_now), abs(along - along_now))
        if not difference <= rtol * max(norm, norm_now):
            raise self._error(
                f"the state of a run with this operator {name}",
                f"a product that differs by {difference:.3g}, of a norm of {norm:.3g}",
            )

    def _error(self, expected: str, got: str) -> ArgumentError:
        return ArgumentError(
            expected=f"checkpoint={str(self.path)!r} to be {expected}",
            got=got,
            remedy="Repeat the call with the same arguments and operator, or give another path.",
        )


def generator_for(generator: torch.Generator | None, path: FilePath) -> torch.Generator | None:
    """The generator; a new one if its state is to be saved and none was given."""
    check_path(path)
    if generator is not None or path is None:
        return generator
    return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))


def _fingerprint(A: LinearOperator) -> Fingerprint:
    """|A z| and z'A z for a fixed z with |z| = 1, and the rounding error to allow in them."""
    z = torch.cos(torch.arange(1, A.domain.n + 1, dtype=torch.float64) ** 2)
    z = (z / z.norm()).to(A.device, A.dtype)
    product = A._matvec(z)
    along = A.domain.inner(z, product) if A.shape[0] == A.shape[1] else 0.0
    return A.codomain.norm(product), along, torch.finfo(A.dtype).eps ** 0.5


def _as_json(value: Any) -> Any:
    """A value that JSON can hold; for a tensor the hash of its bytes."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(torch.uint8).numpy()
        return hashlib.sha256(data.tobytes()).hexdigest()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _fields(state: Any) -> list[str]:
    """The names of the fields of a state that are saved."""
    if hasattr(type(state), "saved"):
        return list(type(state).saved)
    return [field.name for field in fields(state)]


def _is_state(value: Any) -> bool:
    return hasattr(type(value), "saved") or is_dataclass(value)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; a tensor goes into `tensors`, and its name stands for it."""
    if isinstance(value, torch.Generator):
        tensors[name] = value.get_state()
        return {"tensor": name}
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Status):
        return {"status": value.name}
    if isinstance(value, (list, tuple)):
        return [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if _is_state(value):
        return {
            "fields": {
                field: _pack(getattr(value, field), f"{name}.{field}", tensors)
                for field in _fields(value)
            }
        }
    return value


def _restore(state: Any, packed: Any, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Set the fields of a state, and of the states in it, in place."""
    for field, value in packed["fields"].items():
        present = getattr(state, field)
        if isinstance(present, torch.Generator):
            present.set_state(tensors[value["tensor"]])
        elif _is_state(present):
            _restore(present, value, tensors, device)
        else:
            target = present.device if isinstance(present, Tensor) else device
            setattr(state, field, _unpacked(value, tensors, target))


def _unpacked(value: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors, device) for item in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]].to(device)
    if isinstance(value, dict) and "status" in value:
        return Status[value["status"]]
    return value


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
