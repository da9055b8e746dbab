"""A rank that is killed at any moment: on as many ranks the run goes on to the same bits."""

import os
import random
import subprocess
import sys

import pytest

from tests import ranks_killed as killed
from tests.ranks_forked import together

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
CASES = {f"{run}, {kind}": (run, kind) for run, kind in killed.CASES}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Of each run and rank the bits at the end, and the number of its events."""
    folder = str(tmp_path_factory.mktemp("undisturbed"))
    ranks = together(killed.SIZE, killed.finished, killed.CASES, folder)
    return {case: [found[k] for found in ranks] for k, case in enumerate(killed.CASES)}


@pytest.mark.parametrize("name", CASES)
def test_a_run_whose_rank_was_killed_goes_on(undisturbed, tmp_path, thorough, name):
    """With --thorough it is killed at 20 moments."""
    case = CASES[name]
    wanted = undisturbed[case]
    assert wanted[0][0] == wanted[1][0]
    draw = random.Random(name)
    for number in range(20 if thorough else 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        victim = draw.randrange(killed.SIZE)
        at = draw.randint(1, wanted[victim][1])
        found = together(killed.SIZE, killed.killed, case, str(folder), victim, at)
        assert found[victim] is None
        assert found[1 - victim] in ("RankError", "none")  # none: all but the files was done
        for (resumed,) in together(killed.SIZE, killed.finished, [case], str(folder)):
            assert resumed[0] == wanted[0][0]


def test_torchrun_starts_a_run_again_that_goes_on(tmp_path):
    """With the command of docs/distributed.md: torch's store is not that of the ended processes."""
    whole = _under_torchrun(tmp_path / "whole", 0, 0)
    again = _under_torchrun(tmp_path / "again", 12, 1)
    assert {bits for _, bits in again} == {bits for _, bits in whole}
    assert len({bits for _, bits in whole}) == 1
    assert max(calls for calls, _ in again) < max(calls for calls, _ in whole)


def _under_torchrun(path, at, restarts):
    """Of each rank the calls of its callback in the process that ended well, and the bits."""
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts"]
    script = ["-m", "tests.ranks_restarted", str(at), str(path)]
    done = subprocess.run(
        [sys.executable, "-m", *run, str(restarts), *script],
        env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 2
    return [(int(calls), bits) for _, calls, bits in lines]
