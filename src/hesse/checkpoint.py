# SPDX-License-Identifier: Apache-2.0
"""`checkpoint=`: save the state of a long run; a run that was killed continues to the same bits.

One safetensors file holds the tensors and, as JSON in its header, everything else. It is written
under another name and renamed, so that at any moment there is either no file or a complete one. Its
header holds the run key (the arguments that must be the same) and a fingerprint of each operator,
which costs one product: a run never continues from the state of another one. A checksum tells a
damaged file. The bits are the same if those of the products are: name the `mode` of a Hessian,
since "auto" depends on measured times.

Where several ranks share a run, the first writes and all read the same file. Where they share
vectors, each has a file for its own parts beside it, see `hesse.saving.sharded_file`.

A file that cannot be written (a full disk) does not end a run: it warns once and tries again later.
"""

from __future__ import annotations

import copy
import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.errors import ArgumentError
from hesse.operators.algebra import LinearOperator
from hesse.progress import FilePath, check_path
from hesse.ranks import RankError, alike, check_same_checkpoint
from hesse.saving import fingerprints
from hesse.saving.fingerprints import Fingerprint
from hesse.saving.sharded_file import ShardedFile, read_state
from hesse.saving.state import pack, restore
from hesse.saving.tensor_file import DamagedFile, Header, check_place, write
from hesse.vectors.rank_rows import RankRows
from hesse.vectors.raw import raw_bytes
from hesse.vectors.space import Space

_PAUSE = 20  # after a save, the next one waits 20 times as long as that took
_FORMAT = 7
_LONGEST = 100  # characters of what a message says of a file
_VECTOR = "a vector"  # in a run key, of a vector that is recognised by its fingerprint


class Checkpoint:
    """The file of a run; without a path it does nothing.

    It saves states in the sense of `hesse.saving.state`.

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
        self._device, self._space, self._ranks = A.device, A.domain, A.domain.ranks
        self._writes = self._ranks is None or self._ranks.rank == 0
        self._next_save, self._has_warned = 0.0, False
        self._parts: ShardedFile | None = None
        check_same_checkpoint(self._ranks, self.path)
        if self.path is None:
            return
        _check_of_parameters(A)
        if A.domain.shards is not None:
            self._parts = ShardedFile(A.domain)
        with alike(self._ranks):
            self._check_place(self.path)
        self._fingerprints: dict[str, Fingerprint] = {}
        self._run_key: dict[str, Any] = {
            "format": _FORMAT,
            "shape": list(A.shape),
            "dtype": str(A.dtype),
        }
        self._demand({"A": A, **run_key})

    def _demand(self, run_key: dict[str, Any]) -> None:
        """These too must be the same for a run to continue."""
        self._fingerprints = self._fingerprints | self._fingerprints_of(run_key)
        self._run_key = self._run_key | {
            k: _VECTOR if k in self._fingerprints else _as_json(v)
            for k, v in run_key.items()
            if not isinstance(v, LinearOperator)
        }

    def _fingerprints_of(self, run_key: dict[str, Any]) -> dict[str, Fingerprint]:
        """Of operators, and of vectors that are sharded: the bytes of a part depend on the cuts."""
        found = {}
        for name, value in run_key.items():
            if isinstance(value, LinearOperator):
                found[name] = fingerprints.of_operator(value)
            elif self._parts is not None and isinstance(value, Tensor):
                found[name] = fingerprints.of_vector(self._space, value)
        return found

    def _check_place(self, path: Path) -> None:
        """Raise unless the file can be written by the process that does."""
        try:
            if self._writes:
                check_place(path)
            if self._parts is not None:
                self._parts.check_place(path)
        except OSError as error:
            raise self._error(
                "a file that can be written, in a folder that exists", str(error)
            ) from error

    def part(self, name: str, **run_key: Any) -> Checkpoint:
        """The checkpoint of one stage of a run, in a file of its own, with a key of its own."""
        part = copy.copy(self)
        if self.path is not None:
            part.path = self.path.with_name(f"{self.path.name}.{name}")
            part._parts = copy.copy(self._parts)
            part._demand(run_key)
        return part

    def resume(self, state: Any) -> bool:
        """Set the state to that of the file, if there is one; whether there was."""
        if self.path is None or not self._exists(self.path):
            return False
        with alike(self._ranks):
            try:
                header, tensors = read_state(self.path, self._check_same_run, self._space)
                restore(state, header.get("state"), tensors, self._device)
            except DamagedFile as error:
                raise self._error("a checkpoint of Hesse", str(error)) from error
        if self._parts is not None:
            self._parts.continue_from(header)
        return True

    def _exists(self, path: Path) -> bool:
        """Whether there is a file; the same one on all ranks."""
        size = -1
        with suppress(OSError):  # such as of a folder that this rank may not look into
            size = path.stat().st_size
        if self._ranks is not None:
            self._ranks.check_same(
                f"file checkpoint={str(path)!r}", size, "Give a path where all ranks see one file."
            )
        return size >= 0

    def save(self, state: Any, *, now: bool = False) -> None:
        """Write the state, unless `now` is False and the last save was a short time ago.

        Saving takes at most a twentieth of the time of a run.
        """
        if self.path is None or not (now or self._is_due()):
            return
        began = time.monotonic()
        try:
            self._write(self.path, state)
        except (OSError, MemoryError, torch.OutOfMemoryError, RankError) as error:
            self._warn_once(error)
        ended = time.monotonic()
        self._next_save = ended + _PAUSE * (ended - began)

    def _is_due(self) -> bool:
        """Whether the time has come; for all ranks alike, by the clock of the first."""
        is_due = time.monotonic() >= self._next_save
        return is_due if self._parts is None else self._parts.is_due(is_due)

    def _write(self, path: Path, state: Any) -> None:
        def packed() -> tuple[Header, dict[str, Tensor]]:
            tensors: dict[str, Tensor] = {}
            header = {
                "run_key": self._run_key,
                "fingerprints": self._fingerprints,
                "state": pack(state, "state", tensors),
            }
            return header, tensors

        if self._parts is not None:
            self._parts.write(path, packed)
        elif self._writes:
            write(path, *packed())

    def _warn_once(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"checkpoint={str(self.path)!r} could not be written ({error}). The run goes on, "
                "and tries again; the file is that of the last save, if there was one."
            )

    def _check_same_run(self, header: Any) -> None:
        """Raise unless the header of a file is that of a run with this key and these operators."""
        before, prints = header.get("run_key"), header.get("fingerprints")
        if not (isinstance(before, dict) and isinstance(prints, dict)):
            raise DamagedFile("a header without a run key")
        key = self._run_key
        if before.get("format") != _FORMAT:
            raise self._error(
                f"a checkpoint of this version of Hesse, of format {_FORMAT}",
                f"one of format {_brief(before.get('format'))}",
            )
        if ("parts" in header) != (self._parts is not None):
            kinds = [f"the state of a run with {kind} vectors" for kind in ("whole", "sharded")]
            raise self._error(*(kinds if self._parts is None else reversed(kinds)))
        differing = [name for name in sorted({*before, *key}) if before.get(name) != key.get(name)]
        if differing:
            raise self._error(
                f"the state of a run with {', '.join(f'{k} = {key.get(k)}' for k in differing)}",
                ", ".join(f"{name} = {_brief(before.get(name))}" for name in differing),
            )
        for name in sorted({*prints, *self._fingerprints}):
            self._check_prints(name, prints.get(name), self._fingerprints.get(name))

    def _check_prints(self, name: str, before: Fingerprint | None, now: Fingerprint | None) -> None:
        """Raise unless two fingerprints agree up to rounding; None is that of nothing."""
        none = (0.0, 0.0, 0.0)
        try:
            norm, along, _ = map(float, before or none)
        except (TypeError, ValueError) as error:
            raise DamagedFile("a header whose fingerprints are no numbers") from error
        norm_now, along_now, rtol = now or none
        difference = max(abs(norm - norm_now), abs(along - along_now))
        if not difference <= rtol * max(norm, norm_now):
            is_vector = self._run_key.get(name) == _VECTOR
            raise self._error(
                f"the state of a run with this {'vector' if is_vector else 'operator'} {name}",
                f"{'one' if is_vector else 'a product'} that differs by {difference:.3g}, "
                f"of a norm of {norm:.3g}",
            )

    def _error(self, expected: str, got: str) -> ArgumentError:
        return ArgumentError(
            expected=f"checkpoint={str(self.path)!r} to be {expected}",
            got=got,
            remedy="Repeat the call with the same arguments and operator, or give another path.",
        )


def generator_for(
    generator: torch.Generator | None, path: FilePath, space: Space
) -> torch.Generator | None:
    """The generator; a new one if its state is to be saved and none was given.

    Ranks that share the vectors of the space have one in common.
    """
    check_path(path)
    if generator is None and space.ranks is not None:
        return space.ranks.generator
    if generator is not None or path is None:
        return generator
    return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))


def same_generator(generator: torch.Generator | None, path: FilePath) -> torch.Generator | None:
    """The generator; with a checkpoint and none given, one that begins alike in every call.

    For what a resumed run makes again before it continues, such as a preconditioner.
    """
    check_path(path)
    if generator is not None or path is None:
        return generator
    return torch.Generator().manual_seed(0)


def _check_of_parameters(A: LinearOperator) -> None:
    """Raise where each process has the outputs of its own data: they are not in the file."""
    if any(isinstance(space.shards, RankRows) for space in (A.domain, A.codomain)):
        raise ArgumentError(
            expected="no checkpoint= of a run with vectors of outputs that ranks share",
            got=A._title(),
            remedy="Leave it out; or take an operator on the parameters, such as J.T @ J.",
        )


def digest(tensor: Tensor) -> str:
    """The hash of the bytes of a tensor."""
    return hashlib.sha256(raw_bytes(tensor.cpu()).numpy().tobytes()).hexdigest()


def _as_json(value: Any) -> Any:
    """A value that JSON can hold; for a tensor the hash of its bytes."""
    if isinstance(value, Tensor):
        return digest(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _brief(value: Any) -> str:
    """A value of a file in a few words."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
