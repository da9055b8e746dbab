# SPDX-License-Identifier: Apache-2.0
"""One safetensors file with tensors and, as JSON in its header, everything else."""

from __future__ import annotations

import json
import os
import stat
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hesse.memory.available import available_bytes

_KEY = "hesse"


class DamagedFile(Exception):
    """A file that is not what it should be; the message says what it is."""


class TensorFile:
    """A file to read: first the header, then, when that is right, the tensors.

    Args:
        path: of a file that exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._check_size()
        try:
            with safe_open(path, framework="pt") as file:  # checks sizes and offsets
                text = (file.metadata() or {}).get(_KEY)
        except (SafetensorError, OSError) as error:
            raise DamagedFile(f"a file that cannot be read: {error}") from error
        if text is None:
            raise DamagedFile("a safetensors file of something else")
        try:
            self.header: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedFile(f"a header that is no JSON: {error}") from error
        if not isinstance(self.header, dict):
            raise DamagedFile("a header that is no object")

    def _check_size(self) -> None:
        """Raise unless it is an ordinary file that fits into memory."""
        try:
            status = self._path.stat()
        except OSError as error:
            raise DamagedFile(f"a file that cannot be read: {error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFile("a folder, a device or a pipe")
        if status.st_size == 0:
            raise DamagedFile("an empty file")
        free = available_bytes(torch.device("cpu"))
        if 0.0 < free < status.st_size:
            raise DamagedFile(f"a file of {status.st_size:,} bytes, more than the memory has left")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name; raises if their bytes or the header are not those written."""
        try:
            with safe_open(self._path, framework="pt") as file:
                # Copies: kernels round differently where memory is aligned differently.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
            raise DamagedFile(f"tensors that cannot be read: {error}") from error
        header = {name: value for name, value in self.header.items() if name != "checksum"}
        if self.header.get("checksum") != _checksum(header, tensors):
            raise DamagedFile("a damaged file: its checksum is another one")
        return tensors


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a file in one step: at any moment there is the one before, or this one.

    Raises:
        OSError: it cannot be written; the file before is as it was. A folder, a device or a pipe
            is not replaced.
    """
    _check_kind(path)
    header = {**header, "checksum": _checksum(header, tensors)}
    part = _part(path)
    try:
        part.unlink(missing_ok=True)  # never write through a link
        save_file(tensors, part, metadata={_KEY: json.dumps(header)})
        _flush(part)
        os.replace(part, path)
        _flush(path.parent)
    except (SafetensorError, OSError) as error:
        _remove(part)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error


def check_place(path: Path) -> None:
    """Raise OSError unless a file can be written here; it leaves none."""
    if not path.absolute().parent.is_dir():
        raise OSError(f"no folder {path.parent}")
    _check_kind(path)
    part = _part(path)
    part.unlink(missing_ok=True)
    try:
        part.touch(exist_ok=False)
    except FileExistsError:  # another process has just begun to write it: so can this one
        return
    _remove(part)


def _check_kind(path: Path) -> None:
    """Raise unless there is nothing, or a file: root could rename a file to a device."""
    if path.exists() and not path.is_file():
        raise OSError("a folder, a device or a pipe")


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    """Of the header and the bytes, types and shapes of all tensors; no protection from intent."""
    total = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(data.data, total)
    return total


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
