# SPDX-License-Identifier: Apache-2.0
"""A state as JSON and tensors, and back into a state of the same fields and types.

A state is an object whose fields (those of a dataclass, or those it names in `saved`) are tensors,
generators, numbers, texts, statuses, lists of these, and states. Where counts say how much memory
is taken later, its property `is_consistent` says whether they fit the tensors.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.saving.tensor_file import DamagedFile

_LARGEST = 2**53  # of the integers that a state counts with


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
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
        return [pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if _is_state(value):
        return {
            "fields": {
                field: pack(getattr(value, field), f"{name}.{field}", tensors)
                for field in _fields(value)
            }
        }
    return value


def restore(state: Any, packed: Any, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Set the fields of a state, and of the states in it, in place.

    Raises:
        DamagedFile: what is packed is no such state.
    """
    try:
        _restore(state, packed, tensors, device)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFile(f"a state that does not fit: {error}") from error


def _restore(state: Any, packed: Any, tensors: dict[str, Tensor], device: torch.device) -> None:
    names, found = _fields(state), _entry(packed, "fields", dict)
    if sorted(found) != sorted(names):
        raise DamagedFile(f"a state with the fields {', '.join(map(str, sorted(found)))}")
    for field in names:
        value, present = found[field], getattr(state, field)
        if isinstance(present, torch.Generator):
            present.set_state(_tensor(value, tensors))
        elif _is_state(present):
            _restore(present, value, tensors, device)
        else:
            target = present.device if isinstance(present, Tensor) else device
            unpacked = _unpacked(value, tensors, target)
            _check_kind(field, unpacked, present, _annotation(state, field))
            setattr(state, field, unpacked)
    if not getattr(state, "is_consistent", True):
        raise DamagedFile("a state whose counts and tensors do not belong together")


def _unpacked(value: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors, device) for item in value]
    if isinstance(value, dict) and "tensor" in value:
        return _tensor(value, tensors).to(device)
    if isinstance(value, dict):
        return Status[_entry(value, "status", str)]
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise DamagedFile(f"a number of {len(str(value))} digits")
    return value


def _tensor(value: Any, tensors: dict[str, Tensor]) -> Tensor:
    return tensors[_entry(value, "tensor", str)]


def _entry(value: Any, name: str, kind: type) -> Any:
    """The only entry of an object, of this name and type."""
    if isinstance(value, dict) and list(value) == [name] and isinstance(value[name], kind):
        return value[name]
    raise DamagedFile(f"a state in which {name!r} is not where it should be")


def _check_kind(field: str, value: Any, present: Any, annotation: str) -> None:
    """Raise unless a value may take the place of the one that is there."""
    if present is None:  # it stands for what is to come
        is_alike = "Tensor" not in annotation or isinstance(value, Tensor | None)
    elif isinstance(present, Tensor):
        is_alike = isinstance(value, Tensor)
        if is_alike and present.numel() > 0:  # else it stands for one that is to come
            is_alike = (value.dtype, value.ndim) == (present.dtype, present.ndim)
    elif isinstance(present, float):  # or zero, to which tensors will be added
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        takes_tensors = annotation == "Any" or "Tensor" in annotation
        is_alike = is_number or (takes_tensors and isinstance(value, Tensor))
    elif isinstance(present, (list, tuple)):
        is_alike = isinstance(value, list)
    else:
        is_alike = type(value) is type(present)
    if not is_alike:
        raise DamagedFile(f"a state whose {field} is of another kind")


def _annotation(state: Any, field: str) -> str:
    """The type that a dataclass gives a field."""
    declared = getattr(type(state), "__dataclass_fields__", {}).get(field)
    return "" if declared is None else str(declared.type)


def _fields(state: Any) -> list[str]:
    """The names of the fields of a state that are saved."""
    if hasattr(type(state), "saved"):
        return list(type(state).saved)
    return [field.name for field in fields(state)]


def _is_state(value: Any) -> bool:
    return hasattr(type(value), "saved") or is_dataclass(value)
