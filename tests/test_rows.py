# SPDX-License-Identifier: Apache-2.0
"""Rows of long vectors: what is in them, whatever the memory is made of."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hesse.memory.peak import PeakMemory
from hesse.vectors import rows

LONG = 3_000_000  # so that the rows below span several large pages


@pytest.mark.parametrize("n", [1, 5, 4096, 4097, 100_003])
@pytest.mark.parametrize("k", [1, 3])
def test_transposed_columns(n: int, k: int) -> None:
    block = torch.arange(n * k, dtype=torch.float64).view(n, k)
    got = rows.transposed(block)
    assert got.is_contiguous()
    assert torch.equal(got, block.T)


def test_rows_that_are_rows_are_not_copied() -> None:
    block = torch.randn(3, 10_000).T
    assert rows.transposed(block).data_ptr() == block.data_ptr()


def test_stacked_lets_go_of_each_vector() -> None:
    alive: list[weakref.ref] = []

    def vectors() -> Iterator[Tensor]:
        for i in range(4):
            assert not any(vector() is not None for vector in alive[:-1])
            v = torch.full((10,), float(i))
            alive.append(weakref.ref(v))
            yield v
            del v

    got = rows.stacked(4, vectors())
    assert torch.equal(got, torch.arange(4.0)[:, None].expand(4, 10))


def test_memory_of_large_pages_is_counted_and_given_back() -> None:
    with PeakMemory() as memory:
        long = rows.empty_rows(2, LONG, dtype=torch.float32)
        assert memory.current == long.nbytes
        del long
        assert memory.current == 0


@pytest.mark.parametrize("madvise", [None, lambda *_: -1], ids=["no such call", "refused"])
def test_a_system_without_large_pages(monkeypatch: pytest.MonkeyPatch, madvise: object) -> None:
    monkeypatch.setattr(rows, "_madvise", lambda: madvise)
    long = rows.empty_rows(2, LONG, dtype=torch.float32)
    long[1] = 7.0
    assert float(long[1].sum()) == 7.0 * LONG


def test_only_whole_pages_within_the_memory_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        rows, "_madvise", lambda: lambda address, size, _: asked.append((address, size))
    )
    long = rows.empty_rows(2, LONG, dtype=torch.float32)
    rows.empty_rows(2, 100, dtype=torch.float32)
    ((address, size),) = asked
    page = 1 << 21
    assert address % page == size % page == 0
    assert long.data_ptr() <= address < long.data_ptr() + page
    assert address + size <= long.data_ptr() + long.nbytes < address + size + page


@pytest.mark.parametrize("width", [1, 3, 7, 100])
def test_columns_of_several_blocks_are_those_of_the_whole(width: int) -> None:
    whole = torch.arange(50.0).view(5, 10)
    pieces = list(rows.columns([whole[:2], whole[2:3], whole[3:]], width))
    assert all(piece.shape[1] <= width for piece in pieces)
    assert torch.equal(torch.cat(pieces, dim=1), whole)
