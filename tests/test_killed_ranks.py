"""A rank that is killed at any moment: on as many ranks the run goes on to the same bits."""

import random

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
