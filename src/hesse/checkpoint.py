# SPDX-License-Identifier: Apache-2.0
"""`checkpoint=`: the state of a long run in a file; a killed run goes on from it to the same bits.

One safetensors file holds the tensors and, as JSON in its header, the numbers. It is written beside
and put in place by a rename, so that at any moment there is either no file or a whole one. It says
which question it belongs to, and operators are recognised by a product each: a run never goes on
with the state of another one. The bits are the same if those of the products are: of a Hessian name
the `mode`, since "auto" goes by the clock.
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
from hesse.vectors.inner_products import norm

_SHARE = 20  # saving takes at most 1/20 of the time
_FORMAT = 3

FilePath = str | os.PathLike | None
Mark = tuple[float, float, float]


class Checkpoint:
    """The file of a run, or nothing at all if there is no path.

    A state is an object whose fields (those of a dataclass, or those it names in `saved`) are
    tensors, generators, numbers, texts, statuses, lists of these, and states.

    Args:
        path: where; None saves nothing.
        A: the operator, of which one product is taken to recognise it.
        **question: what must be the same for a run to go on: texts, numbers, tensors, and further
            operators, of each of which a product is taken as well.

    >>> import tempfile
    >>> from hesse.operators import diagonal_operator
    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Sum:
    ...     total: float = 0.0
    >>> A = diagonal_operator(torch.ones(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = folder + "/run.safetensors"
    ...     Checkpoint(path, A, call="sum").save(Sum(1 / 3))
    ...     state = Sum()
    ...     Checkpoint(path, A, call="sum").resume(state), state
    (True, Sum(total=0.3333333333333333))
    """

    def __init__(self, path: FilePath, A: LinearOperator, **question: Any) -> None:
        _check_path(path)
        self.path = None if path is None else Path(path)
        self._device = A.device
        self._due, self._question = 0.0, {}
        if self.path is not None:
            operators = {k: v for k, v in question.items() if isinstance(v, LinearOperator)}
            if not self.path.absolute().parent.is_dir():
                raise self._another("a file in a folder that exists", str(self.path.parent))
            self._question = {
                "format": _FORMAT,
                "shape": list(A.shape),
                "dtype": str(A.dtype),
                **{k: _recognisable(v) for k, v in question.items() if k not in operators},
            }
            self._marks = {name: _mark(each) for name, each in {"A": A, **operators}.items()}

    def part(self, name: str) -> Checkpoint:
        """The file of one part of a run that has several."""
        part = copy.copy(self)
        if self.path is not None:
            part.path = self.path.with_name(f"{self.path.name}.{name}")
        return part

    def resume(self, state: Any) -> bool:
        """Set the state to what the file holds; whether there was a file."""
        if self.path is None or not self.path.exists():
            return False
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("hesse", "null"))
                # Copies: kernels round differently where memory is aligned differently.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise self._another("a checkpoint of Hesse", str(error)) from error
        self._check(header)
        _restore(state, header["state"], tensors, self._device)
        return True

    def save(self, state: Any, *, now: bool = False) -> None:
        """Write the state: at once, or if saving has not yet had its share of the time."""
        began = time.monotonic()
        if self.path is None or (began < self._due and not now):
            return
        tensors: dict[str, Tensor] = {}
        packed = _pack(state, "state", tensors)
        header = {"question": self._question, "operators": self._marks, "state": packed}
        part = self.path.with_name(self.path.name + ".part")
        save_file(tensors, part, metadata={"hesse": json.dumps(header)})
        _flush(part)
        os.replace(part, self.path)
        _flush(self.path.parent)
        ended = time.monotonic()
        self._due = ended + _SHARE * (ended - began)

    def _check(self, header: Any) -> None:
        if header is None:
            raise self._another("a checkpoint of Hesse", "a safetensors file without its header")
        was = header["question"]
        names = sorted({*was, *self._question})
        other = [name for name in names if was.get(name) != self._question.get(name)]
        if other:
            raise self._another(
                ", ".join(f"{name} = {self._question.get(name)}" for name in other),
                ", ".join(f"{name} = {was.get(name)}" for name in other),
            )
        for name in sorted({*header["operators"], *self._marks}):
            self._check_mark(name, header["operators"].get(name), self._marks.get(name))

    def _check_mark(self, name: str, was: Mark | None, mark: Mark | None) -> None:
        """Raise unless both products of an operator agree, or there is no such operator in both."""
        (size, along, _), (now, along_now, rounding) = (m or (0.0, 0.0, 0.0) for m in (was, mark))
        offset = max(abs(size - now), abs(along - along_now))
        if not offset <= rounding * max(size, now):
            raise self._another(
                f"the state of a run with this operator {name}",
                f"a product that differs by {offset:.3g}, of a size of {size:.3g}",
            )

    def _another(self, expected: str, got: str) -> ArgumentError:
        return ArgumentError(
            f"checkpoint={str(self.path)!r}",
            expected=expected,
            got=got,
            remedy="Ask the same of the same operator, or give another path.",
        )


def generator_for(generator: torch.Generator | None, path: FilePath) -> torch.Generator | None:
    """The generator; where its state is to be saved and none was given, one of its own."""
    _check_path(path)
    if generator is not None or path is None:
        return generator
    return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))


def _check_path(path: FilePath) -> None:
    if not isinstance(path, FilePath):
        raise ArgumentError(
            f"checkpoint={path!r}",
            expected="the path of a file: a text or a pathlib.Path",
            got=f"a {type(path).__name__}",
            remedy="Leave it out for no checkpoint.",
        )


def _mark(A: LinearOperator) -> Mark:
    """|A z| and z'A z for a fixed z with |z| = 1, and how far they may be off by rounding."""
    z = torch.cos(torch.arange(1, A.shape[1] + 1, dtype=torch.float64) ** 2)
    z = (z / norm(z)).to(A.device, A.dtype)
    product = A._matvec(z)
    along = A.domain.inner(z, product) if A.shape[0] == A.shape[1] else 0.0
    return norm(product), along, torch.finfo(A.dtype).eps ** 0.5


def _recognisable(value: Any) -> Any:
    """A value that JSON can hold; a tensor by the hash of its bytes."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(torch.uint8).numpy()
        return hashlib.sha256(data.tobytes()).hexdigest()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _names(state: Any) -> list[str]:
    if hasattr(type(state), "saved"):
        return list(type(state).saved)
    return [field.name for field in fields(state)]


def _is_state(value: Any) -> bool:
    return hasattr(type(value), "saved") or is_dataclass(value)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, in which a tensor is a name."""
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
                for field in _names(value)
            }
        }
    return value


def _restore(state: Any, packed: Any, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Set the fields of a state in place, those of states in it likewise."""
    for field, value in packed["fields"].items():
        present = getattr(state, field)
        if isinstance(present, torch.Generator):
            present.set_state(tensors[value["tensor"]])
        elif _is_state(present):
            _restore(present, value, tensors, device)
        else:
            home = present.device if isinstance(present, Tensor) else device
            setattr(state, field, _unpacked(value, tensors, home))


def _unpacked(value: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors, device) for item in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]].to(device)
    if isinstance(value, dict) and "status" in value:
        return Status[value["status"]]
    return value


def _flush(path: Path) -> None:
    """Have what was written on the disk itself before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
