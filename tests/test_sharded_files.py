"""Checkpoints of runs with sharded vectors: on as many ranks to the same bits, else to rounding."""

import json
import math
from pathlib import Path

import pytest

from hesse.saving.sharded_file import Parts
from hesse.saving.tensor_file import DamagedFile
from tests import shards_files as files
from tests.ranks_faults import BAD
from tests.ranks_pool import SIZE, bits, close

pytestmark = pytest.mark.distributed
RUNS = list(files.RUNS)


@pytest.fixture(scope="module")
def undisturbed(pool):
    return {size: pool.run(files.finished, None, RUNS, size=size) for size in (2, 3)}


@pytest.mark.parametrize(
    ("before", "after", "names", "turned"),
    [
        (2, 2, RUNS, False),
        (2, 3, ["eigsh", "trace", "lbfgs"], False),
        (3, 2, ["eigsh", "cg"], False),
        (2, 2, ["minres"], True),
    ],
)
def test_a_run_that_was_killed_goes_on(pool, tmp_path, undisturbed, before, after, names, turned):
    assert pool.run(files.killed, str(tmp_path), names, size=before) == [0] * before
    found = pool.run(files.finished, str(tmp_path), names, turned, size=after)
    for name in names:
        wanted, all_steps = undisturbed[after][0][name]
        for numbers, steps in (each[name] for each in found):
            assert steps <= all_steps - 2
            close(numbers, wanted)
            if before == after and not turned:
                assert bits(numbers) == bits(wanted)
    assert len({bits(each) for each in found}) == 1


@pytest.mark.parametrize("fault", ["part", "manifest"])
def test_a_save_that_fails_leaves_the_one_before(pool, tmp_path, fault):
    for before, after, names in pool.run(files.interrupted, str(tmp_path), fault):
        assert before == [1, True]
        assert after == [3, True]
        assert names == ["run", *(f"run.save-3.rank-{rank}-of-{SIZE}" for rank in range(SIZE))]


def test_a_damaged_part_is_an_error_on_all_ranks(pool, tmp_path):
    for rank, errors in enumerate(pool.run(files.damaged, str(tmp_path))):
        assert errors.pop("right")[0] == "none"
        for (kind, text), words in zip(errors.values(), ("another save", "No such"), strict=True):
            assert kind == ("ArgumentError" if rank == BAD else "RankError")
            assert words in text


def test_the_files_of_another_run_are_refused(pool, tmp_path):
    found = pool.run(files.others, str(tmp_path))
    words = {
        "vector": "this vector b",
        "no vector": "b = a vector",
        "operator": "this operator A",
        "whole": "sharded vectors",
        "no folder": "that exists",
    }
    for name, (kind, text) in found[0].items():
        assert kind == "ArgumentError", name
        assert words[name] in text
    for errors in found[1:]:
        assert {kind for kind, _ in errors.values()} == {"RankError"}


_PARTS = {"save": 1, "cuts": [[[2, 3], 0], [[4], 0]], "checksums": [7, 8], "dims": {"x": -1}}


def test_a_manifest_names_parts():
    parts = Parts.of_json(_PARTS, 10)
    assert Parts.of_json(json.loads(json.dumps(parts.to_json())), 10) == parts
    assert parts.path(Path("there/run"), 1) == Path("there/run.save-1.rank-1-of-2")


@pytest.mark.parametrize(
    "change",
    [
        {"save": "one"},
        {"save": math.inf},
        {"cuts": []},
        {"cuts": [[[], 0]]},
        {"cuts": [[[2, 3], 2], [[4], 0]]},
        {"cuts": [[[5, 3], 0]]},
        {"cuts": [[[-2, -3], 0], [[4], 0]]},
        {"cuts": [[[10**30], 0]]},
        {"checksums": []},
        {"checksums": 7},
        {"dims": {"x": 1}},
        {"dims": ["x"]},
    ],
)
def test_a_manifest_of_something_else_is_damaged(change):
    with pytest.raises(DamagedFile):
        Parts.of_json({**_PARTS, **change}, 10)
    with pytest.raises(DamagedFile):
        Parts.of_json([_PARTS], 10)
