# SPDX-License-Identifier: Apache-2.0
"""Files with tensors that several processes write, read and leave unfinished."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch

from hesse.saving.tensor_file import DamagedFile, check_place, read, write


def written(path, k):
    write(path, {"k": k}, {"x": torch.full((1_000,), float(k))})


def test_a_file_that_is_replaced_while_it_is_read_is_read_anew(tmp_path):
    path, seen = tmp_path / "run", []
    written(path, 0)

    def check(header):
        seen.append(header["k"])
        if len(seen) < 3:
            written(path, len(seen))

    header, tensors = read(path, check)
    assert seen == [0, 1, 2]
    assert header["k"] == 2
    assert tensors["x"].eq(2.0).all()


def test_a_damaged_file_that_stays_is_refused(tmp_path):
    path = tmp_path / "run"
    written(path, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match="checksum"):
        read(path, lambda header: None)


def test_many_writers_leave_no_moment_without_a_complete_file(tmp_path):
    path = tmp_path / "run"
    written(path, 0)

    def write_often():
        for k in range(150):
            written(path, k)

    writers = [multiprocessing.get_context("fork").Process(target=write_often) for _ in range(2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        header, tensors = read(path, lambda header: None)
        assert tensors["x"].eq(header["k"]).all()
        reads += 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads
    assert list(tmp_path.iterdir()) == [path]


def test_unfinished_files_of_dead_processes_are_removed_and_no_others(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    child.join()
    dead = tmp_path / f"run[1].{child.pid}-1.part"
    kept = [tmp_path / f"run[1].{os.getppid()}-1.part", tmp_path / "run[1].mine.part"]
    for file in (dead, *kept):
        file.write_bytes(b"")
    check_place(tmp_path / "run[1]")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
