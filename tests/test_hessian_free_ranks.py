"""`HessianFree`, K-FAC and EK-FAC over processes: as one process, alike on all ranks."""

import pytest

from tests import hessian_free_jobs as jobs
from tests.ranks_pool import _plain, bits, close

pytestmark = pytest.mark.distributed


# -- As one process --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [("replicated", "ekfac"), *(("fsdp", name) for name in jobs.OPTIONS)]
)
def test_steps_are_those_of_one_process(pool, kind, name):
    found = pool.run(jobs.steps, kind, name, 3)
    close(found[0], _plain(jobs.steps(None, None, name, 3)))
    assert len({bits(answers) for answers in found}) == 1


@pytest.mark.parametrize(
    ("split", "kind"), [("ragged", "shards"), ("empty", "replicated"), ("first empty", "shards")]
)
def test_factors_are_those_of_one_process(pool, split, kind):
    found = pool.run(jobs.factored, split, kind, size=len(jobs.SPLITS[split]))
    close(found[0], _plain(jobs.factored(None, split, kind)))
    assert len({bits(answers) for answers in found}) == 1


def test_factors_are_added_up_by_one_reduction(pool):
    for kfac, ekfac in pool.run(jobs.sent_by_factors):
        (calls, numbers, entries, _), (more, larger, _, diagonals) = kfac, ekfac
        small = 200  # checks, and the counts of rows
        assert entries <= numbers["all-reduce"] <= entries + small
        assert larger["all-reduce"] <= entries + diagonals + 2 * small
        assert more["all-reduce"] <= calls["all-reduce"] + 2


# -- Going on --------------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_state(pool):
    for is_same, kinds in pool.run(jobs.resumed):
        assert is_same
        assert kinds == {"DTensor"}


def test_fsdp_trains_on_after_it(pool):
    found = pool.run(jobs.trained_on)
    before, after = found[0]
    close(after, _plain(jobs.trained_alone(before)))
    assert len({bits(answers) for answers in found}) == 1


def test_a_step_to_where_one_rank_has_no_gradient_is_taken_back_on_all(pool):
    found = pool.run(jobs.taken_back)
    assert len({bits(answers) for answers in found}) == 1
    first, second, third, fourth = found[0]
    assert first > 0.8
    assert second < 0.5
    assert 0.7 < third < 0.9
    assert fourth == pytest.approx(0.8, abs=0.05)


# -- Alike on all ranks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "status", "error"),
    [
        ("late", "MAX_SECONDS", "none"),
        ("products", "MAX_PRODUCTS", "none"),
        ("SIGINT", "INTERRUPTED", "KeyboardInterrupt"),
        ("late SIGINT", "INTERRUPTED", "KeyboardInterrupt"),
    ],
)
def test_ranks_end_a_run_together(pool, how, status, error):
    found = pool.run(jobs.ended, how)
    assert found[0] == found[1] == found[2]
    assert found[0][:2] == [status, error]
    taken, changed = found[0][2], found[0][4]
    assert changed == (taken > 0) == (how in ("products", "late SIGINT"))


def test_a_model_that_one_rank_cannot_trace_has_no_factors_on_any(pool):
    found = pool.run(jobs.without_factors)
    assert found[0][0] == ["no preconditioner: "]
    assert len({bits(answers) for answers in found}) == 1


def test_parameters_that_one_rank_changed_are_an_error_on_all(pool):
    for kind, text in pool.run(jobs.moved):
        assert kind == "RankError"
        assert "the same params on all ranks" in text


def test_ranks_that_use_their_parameters_otherwise_go_on_without_factors(pool):
    found = pool.run(jobs.otherwise)
    (message,), _ = found[0]
    assert message.startswith("no preconditioner: it needs the same form of the factors")
    assert len({bits(answers) for answers in found}) == 1


@pytest.mark.parametrize("grows", [False, True])
def test_a_step_in_which_one_rank_cannot_read_its_data_is_an_error_on_all(pool, grows):
    found = pool.run(jobs.unread, grows)
    assert [kind for (kind, _), _ in found] == ["RankError", "OSError", "RankError"]
    assert "rank 1: OSError: the disk is gone" in found[0][0][1]
    assert len({bits(loss) for _, loss in found}) == 1
