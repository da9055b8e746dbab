"""Jacobians whose rows several processes share, and what is made of them: as in one process."""

import pytest

from tests import outputs_faults as faults
from tests import outputs_jobs as jobs
from tests.outputs_posteriors import POSTERIORS, posteriors
from tests.ranks_faults import BAD, FAULTS
from tests.ranks_pool import SIZE, _plain, bits, close

pytestmark = pytest.mark.distributed


def _in_one_process(names, **options):
    return _plain(jobs.answered(None, "one", names, **options))


@pytest.fixture(scope="module")
def expected():
    return _in_one_process(list(jobs.JACOBIANS))


# -- As one process --------------------------------------------------------------------------------


@pytest.mark.some_cases(3 * len(jobs.JACOBIANS))
@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("split", [split for split in jobs.SPLITS if jobs.SIZES[split] <= SIZE])
@pytest.mark.parametrize("name", jobs.JACOBIANS)
def test_jacobians_give_what_those_of_one_process_do(pool, expected, name, split, is_sharded):
    found = pool.run(jobs.answered, split, [name], is_sharded, size=jobs.SIZES[split])
    close(found[0], {name: expected[name]})
    assert len({bits(answers) for answers in found}) == 1


@pytest.mark.parametrize("split", ["one", "ragged", "empty", "first empty"])
def test_fits_are_those_of_one_process(pool, split):
    names = list(jobs.FITS)
    wanted = _in_one_process(names, loss="squares")
    found = pool.run(jobs.answered, split, names, False, "squares", size=jobs.SIZES[split])
    close(found[0], wanted)
    assert len({bits(answers) for answers in found}) == 1


@pytest.mark.parametrize("split", ["ragged", "empty"])
def test_fits_of_sharded_parameters_are_too(pool, split):
    names = list(jobs.FITS)
    found = pool.run(jobs.answered, split, names, True, "squares", size=jobs.SIZES[split])
    close(found[0], _in_one_process(names, loss="squares"))
    assert len({bits(answers) for answers in found}) == 1


@pytest.mark.parametrize("split", ["one", "even", "ragged", "empty", "first empty"])
def test_diagonals_are_exact(pool, split):
    names = list(jobs.DIAGONALS)
    found = pool.run(jobs.answered, split, names, size=jobs.SIZES[split])
    close(found[0], _in_one_process(names))
    assert len({bits(answers) for answers in found}) == 1


@pytest.mark.parametrize(
    ("split", "loss", "is_sharded"),
    [("ragged", "classes", True), ("first empty", "classes", False), ("empty", "squares", False)],
)
def test_posteriors_are_those_of_one_process(pool, split, loss, is_sharded):
    names = [name for name in POSTERIORS if loss == "classes" or name != "last layer"]
    wanted = _plain(posteriors(None, "one", loss, names))
    found = pool.run(posteriors, split, loss, names, is_sharded, size=jobs.SIZES[split])
    close(found[0], wanted)
    assert len({bits(answers) for answers in found}) == 1


# -- Communication ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["one", "even", "ragged", "empty"])
def test_a_jacobian_sends_nothing_and_its_adjoint_one_sum(pool, split):
    p = jobs.SIZES[split]
    for found, n in pool.run(jobs.traffic, split, False, size=p):
        agreement = {"product": 0, "block": 0}
        sums = {"adjoint": n, "adjoint of a block": 5 * n, "root": n}
        for name, numbers in {**agreement, **sums}.items():
            assert found[name] == [{"all-reduce": 1}, {"all-reduce": numbers + 4 * p}], name
        for name, numbers in {"norm": 1, "inner": 2}.items():
            assert found[name][0] == {"all-reduce": 1}
            assert found[name][1]["all-reduce"] in (numbers, numbers * p)


@pytest.mark.parametrize("split", ["one", "ragged"])
def test_of_sharded_parameters_it_is_one_gather_and_one_scatter(pool, split):
    p = jobs.SIZES[split]
    for found, width in pool.run(jobs.traffic, split, True, size=p):
        for name, k in {"product": 1, "block": 5}.items():
            numbers = {"all-gather": p * (k * width + 2), "all-reduce": 4 * p}
            assert found[name] == [dict.fromkeys(numbers, 1), numbers], name
        for name, k in {"adjoint": 1, "adjoint of a block": 5, "root": 1}.items():
            numbers = {"all-gather": 2 * p, "reduce-scatter": p * (k * width + 1)}
            assert found[name] == [dict.fromkeys(numbers, 1), numbers], name


# -- Faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("is_adjoint", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_on_one_rank_is_one_on_all(pool, fault, is_adjoint, is_sharded):
    found = pool.run(faults.in_a_product, fault, is_adjoint, is_sharded)
    for rank, ((kind, text), goes_on) in enumerate(found):
        assert goes_on
        if fault == "nan":
            assert kind == "NonFiniteError"
        else:
            assert kind == (type(FAULTS[fault]).__name__ if rank == BAD else "RankError")
        if rank != BAD:
            assert "rank 1" in text


def test_ranks_that_differ_are_told_so(pool):
    for kind, text in pool.run(faults.other_vectors):
        assert kind == "RankError"
        assert "another on rank 2 than on rank 0" in text


def test_a_rank_without_data_shows_what_the_others_do(pool):
    shown = pool.run(faults.named, size=3)
    for J, R, at in shown:
        assert J.startswith("Jacobian of 3 ranks(")
        assert at.startswith("Jacobian of 3 ranks(")
        assert R.startswith("FisherRoot of 3 ranks(")


def test_outputs_that_do_not_fit_together_are_refused(pool):
    kinds = [kind for kind, _ in pool.run(faults.other_outputs)]
    assert kinds == ["RankError", "ShapeError", "RankError"]


def test_a_step_outside_the_domain_of_one_rank_is_rejected_on_all(pool):
    wanted = _plain(faults.rejected(None))
    assert [fit[-1] for fit in wanted] == [True, True]  # the model raised at a trial point
    for found in pool.run(faults.rejected, size=2):
        close(found, wanted)


@pytest.mark.parametrize(("method", "is_sharded"), [("svd", False), ("svd", True), ("lsmr", True)])
def test_a_fit_resumes_on_all_ranks_to_the_same_bits(pool, tmp_path, method, is_sharded):
    for status, before, after, undisturbed, same in pool.run(
        faults.stopped_and_resumed, tmp_path, method, is_sharded
    ):
        assert status == "STOPPED"
        assert before < after == undisturbed
        assert same


def test_what_is_not_done_with_outputs_is_refused(pool):
    for refusals in pool.run(faults.refusals):
        for name, (kind, text) in refusals.items():
            assert kind.endswith("Error"), name
            assert "remedy" in text, name
