"""Applications whose data, and parameters, several processes share: as in one process."""

from functools import cache

import pytest

from tests import apps_jobs as jobs
from tests import resumed_apps_jobs as resumed_jobs
from tests.outputs_jobs import SIZES
from tests.ranks_faults import BAD
from tests.ranks_pool import _plain, bits, close

pytestmark = pytest.mark.distributed


@cache
def _in_one_process(family):
    return _plain(jobs.answered(None, "one", family, list(jobs.APPS[family])))


def _check(pool, split, family, names, *, is_sharded):
    found = pool.run(jobs.answered, split, family, names, is_sharded, size=SIZES[split])
    close(found[0], {name: _in_one_process(family)[name] for name in names})
    assert len({bits(answers) for answers in found}) == 1


@pytest.mark.some_cases(9)
@pytest.mark.parametrize("split", ["one", "even", "ragged", "first empty"])
@pytest.mark.parametrize("family", [family for family in jobs.APPS if family != "bounds"])
def test_applications_give_what_they_do_in_one_process(pool, family, split):
    _check(pool, split, family, list(jobs.APPS[family]), is_sharded=False)


@pytest.mark.some_cases(8)
@pytest.mark.parametrize("split", ["even", "first empty", "empty"])
@pytest.mark.parametrize("family", jobs.SHARDED)
def test_those_of_sharded_parameters_do(pool, family, split):
    _check(pool, split, family, jobs.SHARDED[family], is_sharded=True)


def test_models_of_fsdp_are_taken(pool):
    found = pool.run(jobs.of_fsdp, size=2)
    close(found[0], _plain(jobs.of_fsdp(None)))
    assert bits(found[0]) == bits(found[1])


def test_an_error_on_one_rank_is_one_on_all(pool):
    for rank, (errors, value) in enumerate(pool.run(jobs.faults)):
        kinds = {name: kind for name, (kind, _) in errors.items()}
        assert kinds.pop("sets") == "RankError"  # each rank gave others
        assert kinds.pop("targets") in ("ShapeError", "RankError")  # too few in all
        own = {"queries": "KeyError", "labels": "ArgumentError"}
        own |= dict.fromkeys(("weights", "clusters"), "ShapeError")
        assert kinds == (own if rank == BAD else dict.fromkeys(own, "RankError"))
        assert value > 0.0  # and they go on


@pytest.mark.parametrize(
    ("names", "is_sharded"), [(resumed_jobs.WHOLE, False), (resumed_jobs.SHARDED, True)]
)
def test_runs_that_were_killed_go_on_to_the_same(pool, tmp_path, names, is_sharded):
    found = pool.run(resumed_jobs.resumed, tmp_path, names, is_sharded, size=2)
    assert bits(found[0]) == bits(found[1])
    for name, (whole, was_killed, resumed) in found[0].items():
        assert was_killed, name
        close(resumed, whole, (name,))
