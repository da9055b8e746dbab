# SPDX-License-Identifier: Apache-2.0
"""One safetensors file with tensors and, as JSON in its header, everything else."""

from __future__ import annotations

import glob
import json
import os
import stat
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hesse.memory.available import available_bytes
from hesse.vectors.raw import raw_bytes

_KEY = "hesse"

Header = dict[str, Any]


class DamagedFile(Exception):
    """A file that is not what it should be; the message says what it is."""


def read(path: Path, check: Callable[[Header], None]) -> tuple[Header, dict[str, Tensor]]:
    """The header and the tensors of a file that exists.

    Args:
        path: of the file.
        check: raises unless the header is the one wanted; the tensors are not read before.

    Raises:
        DamagedFile: it is not what `write` has written.
    """
    while True:
        before = _identity(path)
        try:
            header = _header(path)
            check(header)
            return header, _tensors(path, header)
        except DamagedFile:
            if _identity(path) == before:
                raise
            # Another process has replaced it between the header and the tensors.


def _header(path: Path) -> Header:
    """What is not in the tensors; raises unless the file is an ordinary one, with room for it."""
    _check_size(path)
    try:
        with safe_open(path, framework="pt") as file:  # checks sizes and offsets
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"a file that cannot be read: {error}") from error
    if text is None:
        raise DamagedFile("a safetensors file of something else")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"a header that is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise DamagedFile("a header that is no object")
    return header


def _tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """The tensors by name; raises if their bytes or the header are not those written."""
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: kernels round differently where memory is aligned differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise DamagedFile(f"tensors that cannot be read: {error}") from error
    written = {name: value for name, value in header.items() if name != "checksum"}
    if header.get("checksum") != _checksum(written, tensors):
        raise DamagedFile("a damaged file: its checksum is another one")
    return tensors


def _check_size(path: Path) -> None:
    """Raise unless it is an ordinary file that fits into memory."""
    try:
        status = path.stat()
    except OSError as error:
        raise DamagedFile(f"a file that cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFile("a folder, a device or a pipe")
    if status.st_size == 0:
        raise DamagedFile("an empty file")
    free = available_bytes(torch.device("cpu"))
    if 0.0 < free < status.st_size:
        raise DamagedFile(f"a file of {status.st_size:,} bytes, more than the memory has left")


def _identity(path: Path) -> tuple[int, ...]:
    """Another one after every `write`; () where there is nothing."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def write(path: Path, header: Header, tensors: dict[str, Tensor]) -> int:
    """Write a file in one step: at any moment there is the one before, or this one; its checksum.

    That holds for several processes that write it too: each has an unfinished file of its own.

    Raises:
        OSError: it cannot be written; the file before is as it was. A folder, a device or a pipe
            is not replaced.
    """
    _check_kind(path)
    checksum = _checksum(header, tensors)
    header = {**header, "checksum": checksum}
    part = _part(path)
    try:
        part.unlink(missing_ok=True)  # never write through a link
        save_file(tensors, part, metadata={_KEY: json.dumps(header)})
        _flush(part)
        os.replace(part, path)
        _flush(path.parent)
    except (SafetensorError, OSError) as error:
        remove(part)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    return checksum


def check_place(path: Path) -> None:
    """Raise OSError unless a file can be written here; it leaves none.

    It removes the unfinished files of processes that were killed as they wrote.
    """
    if not path.absolute().parent.is_dir():
        raise OSError(f"no folder {path.parent}")
    _check_kind(path)
    for part in path.parent.glob(glob.escape(path.name) + ".*.part"):
        if not _is_alive(part.suffixes[-2][1:]):
            remove(part)
    part = _part(path)
    part.unlink(missing_ok=True)
    part.touch(exist_ok=False)
    remove(part)


def _check_kind(path: Path) -> None:
    """Raise unless there is nothing, or a file: root could rename a file to a device."""
    if path.exists() and not path.is_file():
        raise OSError("a folder, a device or a pipe")


def _checksum(header: Header, tensors: dict[str, Tensor]) -> int:
    """Of the header and the bytes, types and shapes of all tensors; no protection from intent."""
    total = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        data = raw_bytes(tensor).numpy()
        total = zlib.crc32(data.data, total)
    return total


def _part(path: Path) -> Path:
    """The unfinished file of this thread."""
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")


def _is_alive(writer: str) -> bool:
    """Whether the process of "pid-thread" runs; True for other texts."""
    pid, _, thread = writer.partition("-")
    if not (pid.isdecimal() and thread.isdecimal()):
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else; no such number
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file if there is one, and that is allowed."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
