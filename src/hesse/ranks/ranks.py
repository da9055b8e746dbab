# SPDX-License-Identifier: Apache-2.0
"""`Ranks`: the processes of a group of torch.distributed, which take every step together.

All communication of Hesse between processes is here: sums over ranks, in which every rank also says
what went wrong with it, and the agreement that follows. All ranks then return the same bits, or
raise an error at the same step.
"""

from __future__ import annotations

import atexit
import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.errors import ArgumentError, DerivativeError, HesseError, NonFiniteError
from hesse.progress import agree_to_end, share_run, wish_to_end
from hesse.ranks import groups
from hesse.ranks.errors import SEE, RankError
from hesse.ranks.slots import WIDTH, Fault, Slots, checksum, step_number
from hesse.result import OneLine

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(minutes=10)
_LONGEST = 400  # bytes of the message of another rank


class Ranks(OneLine):
    """The processes that share the data of a risk.

    Args:
        group: a process group of `torch.distributed`, or a `DeviceMesh` of one dimension or of all
            processes. Of all, Hesse makes a group of its own: its messages do not meet the user's.
        timeout: how long to wait for another rank before an error, a `datetime.timedelta`; of a
            group that has not all processes its own counts.
    """

    def __init__(self, group: Any, timeout: datetime.timedelta = _TIMEOUT) -> None:
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            raise ArgumentError(
                expected="torch.distributed to be initialised",
                got="no process group",
                remedy="Start with torchrun, and call torch.distributed.init_process_group first.",
            )
        self._dist = dist
        self._key = groups.process_group(group), timeout
        groups.make(self._key)
        self.rank: int = dist.get_rank(self._group)
        self.size: int = dist.get_world_size(self._group)
        self._steps = 0
        self.generator = torch.Generator().manual_seed(self._seed_of_first())

    def __repr__(self) -> str:
        return f"rank {self.rank} of {self.size}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranks) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self

    # -- Sums --------------------------------------------------------------------------------------

    def sum_of(
        self, compute: Callable[[], Tensor], like: Tensor, v: Tensor | None = None
    ) -> Tensor:
        """The sum over ranks of what compute() gives, in the shape of `like`.

        One all-reduce of that many numbers and four for each rank. `v`: what is multiplied, which
        must be the same on all ranks.

        Raises:
            RankError: compute() failed on a rank, or ranks take different steps or vectors.
            NonFiniteError: NaN or Inf on a rank made it fail.
        """
        size, error, part = like.numel(), None, None
        dtype = torch.promote_types(like.dtype, torch.float32)
        share_run(self)
        try:
            part = compute()
        except Exception as raised:
            error = raised
        buffer = torch.empty(size + WIDTH * self.size, dtype=dtype, device=like.device)
        if part is None:
            buffer[:size] = 0.0
        else:
            buffer[:size] = part.reshape(-1)
        self._exchange(buffer, size, error, checksum(v), wish_to_end())
        return buffer[:size].view(like.shape).to(like.dtype)

    def gather_step(self, row: Tensor, sharers: Ranks) -> Tensor:
        """The rows of some ranks, shape (ranks, len(row)), as a step that all take together.

        One all-gather of the rows and two numbers for each. If these are not all ranks, of the
        rows, which must be the same in all such groups, and an all-reduce of some numbers.
        """
        share_run(self)
        if sharers.size < self.size:
            rows = sharers.gather_rows(row)
            self._say(None, checksum(rows), wish_to_end())
            return rows
        said = row.new_tensor([step_number(self._steps), wish_to_end()])
        rows = self.gather_rows(torch.cat([row, said]))
        self._steps += 1
        steps, wishes = (rows[:, i].round().long().tolist() for i in (-2, -1))
        self._check_steps(steps)
        _end(wishes)
        return rows[:, :-2]

    def share_out(
        self,
        width: int,
        like: Tensor,
        compute: Callable[[Tensor], None],
        sharers: Ranks,
        holders: Sequence[Ranks],
    ) -> Tensor:
        """This rank's part of a sum over ranks: what compute(parts) writes, its row of the sum.

        One reduce-scatter of the parts and one number for each, and an all-reduce for holders.

        Args:
            width: the length of a part.
            like: a tensor of the dtype and device of the parts.
            compute: writes the parts of the sharers, shape (sharers, width).
            sharers: the ranks that have the parts of one sum.
            holders: groups of ranks that have the same part.

        Raises:
            RankError, NonFiniteError: compute() failed on a rank.
        """
        parts, error = like.new_empty(sharers.size, width + 1), None
        try:
            compute(parts[:, :-1])
            parts[:, -1] = 0.0
        except Exception as raised:
            error = raised
            parts.zero_()
            parts[:, -1] = 1.0
        part = sharers._scatter_sum(parts)
        for ranks in holders:
            ranks._reduce(part)
        if float(part[-1]) > 0.0:
            faults = [int(row[0]) for row in self.gather(int(Fault.of(error)))]
            rank = next(rank for rank, fault in enumerate(faults) if fault)
            self._raise(rank, Fault(faults[rank]), error)
        return part[:-1]

    def each(self, compute: Callable[[], T], v: Tensor | None = None) -> T:
        """What compute() gives on this rank, as a step that all take together.

        One all-reduce of four numbers for each rank. `v` and errors: as of `sum_of`.
        """
        share_run(self)
        with self._saying(checksum(v), wish_to_end):
            return compute()

    def total(self, part: Tensor) -> Tensor:
        """The sum over ranks of a tensor; one all-reduce of its size."""
        whole = part.to(self._device, copy=True, memory_format=torch.contiguous_format)
        self._reduce(whole)
        return whole.to(part.device)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """If the block raises an error on some ranks, all of them raise one at its end."""
        with self._saying():
            yield

    @contextmanager
    def _saying(self, vector: int = 0, wish: Callable[[], int] = int) -> Iterator[None]:
        """Tell the others at the end of a block whether it failed, and what else goes with it."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self._say(error, vector, wish())

    def meet(self) -> None:
        """Learn whether a rank wants to end the run; one all-reduce of some numbers."""
        share_run(self)
        self._say(None, 0, wish_to_end())

    def _say(self, *said: Any) -> None:
        """Tell the others what goes with every result, where there is no result."""
        slots = torch.empty(WIDTH * self.size, dtype=torch.float64, device=self._device)
        self._exchange(slots, 0, *said)

    def together(self, compute: Callable[[], T]) -> T:
        """compute(), which may fail on some ranks: all of them then raise."""
        with self.alike():
            return compute()

    def gather(self, *numbers: float) -> list[list[float]]:
        """The numbers of every rank, on every rank."""
        table = torch.zeros(self.size, len(numbers), dtype=torch.float64, device=self._device)
        table[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        self._reduce(table)
        return table.tolist()

    def concatenated(self, rows: Tensor) -> Tensor:
        """The rows of every rank, in the order of the ranks, on every rank: (total, ...).

        Ranks may have different numbers of rows, or none; what a row is, is the same on all.
        """
        counts = [int(count) for (count,) in self.gather(len(rows))]
        cell = rows.new_zeros(max(counts), *rows.shape[1:], device=self._device)
        cell[: len(rows)] = rows.detach()
        cells = self.gather_rows(cell.view(-1)).view(self.size, *cell.shape)
        parts = [cell[:count] for cell, count in zip(cells, counts, strict=True)]
        return torch.cat(parts).to(rows.device)

    def tell(self, rank: int, what: T) -> T:
        """What a rank says, on every rank: any object that can be pickled."""
        said = [what]
        with _answering():
            self._dist.broadcast_object_list(said, group=self._group, group_src=rank)
        return said[0]

    def check_are(self, mesh: Any) -> None:
        """Raise unless these are the processes of a `DeviceMesh`, in its order."""
        members = self._dist.get_process_group_ranks
        ours = members(self._group)
        theirs = members(mesh.get_group()) if mesh.ndim == 1 else mesh.mesh.flatten().tolist()
        if ours != theirs:
            raise ArgumentError(
                expected=f"tensors that are sharded over the processes of the group, {ours}",
                got=f"a mesh of {theirs}",
                remedy="Give hesse.Risk the mesh of the parameters: group=mesh.",
            )

    def along(self, mesh: Any, axis: int) -> Ranks:
        """Those along a dimension of a mesh of all, in which this rank is."""
        return self if mesh.ndim == 1 else _part(mesh.get_group(axis), self._key[1])

    def check_same(self, what: str, code: float, remedy: str) -> None:
        """Raise on all ranks unless the code of something is the same on all."""
        codes = [row[0] for row in self.gather(code)]
        different = [rank for rank, code in enumerate(codes) if code != codes[0]]
        if different:
            raise RankError(
                expected=f"the same {what} on all ranks",
                got=f"another on rank {different[0]} than on rank 0",
                remedy=remedy,
            )

    # -- What the ranks said -----------------------------------------------------------------------

    def _exchange(
        self, buffer: Tensor, size: int, error: Exception | None, vector: int = 0, wish: int = 0
    ) -> None:
        """Sum a buffer over the ranks, with what each says behind its first `size` numbers."""
        said = (vector, step_number(self._steps), int(Fault.of(error)), wish)
        buffer[size:] = Slots.of(self.rank, self.size, said, buffer)
        self._reduce(buffer)
        self._steps += 1
        self._agree(Slots(buffer[size:].view(self.size, WIDTH).cpu()), error)

    def _agree(self, slots: Slots, error: Exception | None) -> None:
        failed = [rank for rank, fault in enumerate(slots.faults) if fault]
        if failed:
            self._raise(failed[0], Fault(slots.faults[failed[0]]), error)
        self._check_steps(slots.steps)
        if len(set(slots.vectors)) > 1:
            other = next(r for r, c in enumerate(slots.vectors) if c != slots.vectors[0])
            raise RankError(
                expected="the same vector on all ranks",
                got=f"another on rank {other} than on rank 0",
                remedy="Draw it with a generator of the same seed on all ranks, or broadcast it.",
            )
        _end(slots.wishes)

    @staticmethod
    def _check_steps(steps: list[int]) -> None:
        if len(set(steps)) > 1:
            raise RankError(
                expected="all ranks to make the same calls of Hesse, in the same order",
                got=f"ranks at different steps, {steps}",
                remedy="Call Hesse on every rank, and let no rank decide by its own clock or data.",
            )

    def _raise(self, rank: int, fault: Fault, error: Exception | None) -> None:
        """The error of this rank, if it is the one; elsewhere an error of its kind that says it."""
        text = self._text_of(rank, error)
        if rank == self.rank and error is not None:
            raise error
        if fault is Fault.NOT_FINITE:
            raise NonFiniteError(
                expected=f"a finite result on rank {rank}", got=text, remedy=SEE
            ) from error
        kind = DerivativeError if fault is Fault.DERIVATIVE else RankError
        failure = kind(expected="a result on every rank", got=f"on rank {rank}: {text}", remedy=SEE)
        if isinstance(failure, RankError):
            failure.is_outside_domain = fault is Fault.DOMAIN
            failure.is_unsuitable = fault is Fault.UNSUITABLE
        raise failure from error

    def _text_of(self, rank: int, error: Exception | None) -> str:
        """What the error of a rank says, in a few words, on all ranks."""
        room = torch.zeros(_LONGEST, dtype=torch.uint8, device=self._device)
        if rank == self.rank and error is not None:
            known = isinstance(error, HesseError)
            text = error.got if known else f"{type(error).__name__}: {error}"
            code = text.encode()[:_LONGEST]
            room[: len(code)] = torch.frombuffer(bytearray(code), dtype=torch.uint8)
        self._reduce(room)
        return bytes(room.tolist()).rstrip(b"\0").decode(errors="replace")

    # -- torch.distributed -------------------------------------------------------------------------

    def _reduce(self, tensor: Tensor) -> None:
        with _answering():
            self._dist.all_reduce(tensor, group=self._group)

    def gather_rows(self, row: Tensor) -> Tensor:
        """The rows of all ranks, shape (ranks, len(row))."""
        rows = row.new_empty(self.size, len(row))
        with _answering():
            self._dist.all_gather_single(rows.view(-1), row, group=self._group)
        return rows

    def _scatter_sum(self, parts: Tensor) -> Tensor:
        """The part of this rank of the sum over ranks of (ranks, width) parts."""
        part = parts.new_empty(parts.shape[1])
        with _answering():
            self._dist.reduce_scatter_single(part, parts.view(-1), group=self._group)
        return part

    @property
    def _group(self) -> Any:
        return groups.of(self._key)

    @property
    def _device(self) -> torch.device:
        backend = str(self._dist.get_backend(self._group))
        on_gpu = "nccl" in backend and "gloo" not in backend
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def _seed_of_first(self) -> int:
        """A seed that rank 0 drew from torch's global generator.

        The others draw as well: generators that were alike on all ranks stay so.
        """
        seed = float(torch.randint(2**48, ()))
        return int(self.gather(seed)[0][0])


@contextmanager
def _answering() -> Iterator[None]:
    """The errors of torch for a rank that does not answer, as ours."""
    try:
        yield
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise RankError(
            expected="an answer from every rank",
            got=f"{type(error).__name__}: {first}",
            remedy="A rank has ended, or took too long. Started again, as torchrun --max-restarts "
            "does, a run with checkpoint= goes on: see Runs that go on in docs/distributed.md.",
        ) from error


def _end(wishes: list[int]) -> None:
    """End the runs that a rank wants to end; raise where a callback on one of them failed."""
    if agree_to_end(wishes):
        failed = [rank for rank, wish in enumerate(wishes) if wish == max(wishes)]
        raise RankError(
            expected="a callback= that returns on every rank",
            got=f"one that raised an error on rank {failed[0]}",
            remedy=SEE,
        )


def alike(ranks: Ranks | None) -> AbstractContextManager[None]:
    """Within it, an error on one rank is one on all; nothing where there is one process."""
    return nullcontext() if ranks is None else ranks.alike()


@lru_cache(maxsize=16)
def _part(group: Any, timeout: datetime.timedelta) -> Ranks:
    """The ranks of a part of a group."""
    return Ranks(group, timeout)


atexit.register(_part.cache_clear)
