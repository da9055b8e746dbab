"""Risks that several processes share: as one process, alike on all ranks, alike in failure."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import hesse
from tests import ranks_faults as faults
from tests import ranks_jobs as jobs
from tests.ranks_forked import printed
from tests.ranks_pool import (
    EXAMPLES,
    SIZE,
    SPLITS,
    _plain,
    bits,
    close,
    examples,
    risk,
    vector,
    whole,
)

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parent.parent
SIZES = {split: len(sizes) for split, sizes in SPLITS.items()}


@pytest.fixture(scope="module")
def expected():
    return _plain(jobs.answers(whole()))


# -- As one process --------------------------------------------------------------------------------


@pytest.mark.some_cases(60)
@pytest.mark.parametrize("name", [*jobs.MATRICES, *jobs.OTHERS])
@pytest.mark.parametrize("split", [split for split in SPLITS if SIZES[split] <= SIZE])
def test_ranks_compute_what_one_process_does(pool, expected, split, name):
    found = pool.run(jobs.of_shared, split, {}, [name], size=SIZES[split])
    close(found[0], {name: expected[name]})
    # matrix_function and others return floats made of the same bits.
    assert len({bits(answers) for answers in found}) == 1


@pytest.mark.parametrize("options", jobs.LOSSES)
def test_sums_and_weighted_means_do(pool, options):
    names = [*jobs.MATRICES, "value"]
    found = pool.run(jobs.of_shared, "empty", jobs.LOSSES[options], names)
    close(found[0], _plain(jobs.answers(whole(**jobs.LOSSES[options]), names)))


def test_weights_of_examples_do(pool):
    there = whole().weighted(jobs.weights())
    wanted = {name: answer(there) for name, answer in jobs.WEIGHTED.items()}
    close(pool.run(jobs.of_weighted, "empty")[0], _plain(wanted))


@pytest.mark.parametrize("how", ["a part", "derived"])
def test_parts_of_models_that_send_messages_send_none(pool, how):
    """Ranks with other numbers of batches would wait for one another."""
    close(pool.run(jobs.of_wrapped, how)[0], _plain(jobs.of_wrapped(None, how)))


def test_drawn_targets_have_the_expectation_of_the_exact_matrix(pool):
    found = pool.run(jobs.sampled, 400)
    by_row, by_example, exact = found[1]
    for F in (by_row, by_example):
        assert 0.0 < numpy.linalg.norm(F - exact) < 0.1 * numpy.linalg.norm(exact)
    assert bits(found[0]) == bits(found[2])


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_dry_run_is_of_the_slowest_rank_and_of_the_fullest(pool, is_sharded):
    found = pool.run(jobs.planned, is_sharded)
    assert found[0] == found[1] == found[2]
    run, shown = found[0]
    parts = [hesse.plan(risk(batch), curvature="ggn") for batch in jobs.first_batches()]
    assert (run["n"], run["ranks"], run["batches"], run["kept"]) == (len(vector()), 3, 3, 3)
    # The last rank has one batch, the first has two, and the second has messages alone.
    assert (run["product_seconds"], run["gradient_seconds"], run["sent_seconds"]) == (6.0, 6.0, 3.0)
    assert run["flops"] == 2 * parts[0].flops + parts[1].flops
    assert run["kept_bytes"] == 2 * parts[0].kept_bytes + parts[1].kept_bytes
    most = 6 * 4 + 6 + 1 * 16 + 1 if is_sharded else len(vector())  # of the rows of four tensors
    assert run["vector_bytes"] == 8 * most
    assert run["peak_bytes"] >= max(part.peak_bytes for part in parts)
    assert "of 3 ranks" in shown
    assert "messages take 3 s of a product" in shown


# -- Communication ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("split", ["one", "even", "ragged", "empty"])
def test_a_product_is_one_reduction_whatever_the_batches(pool, split, kind):
    p, n = SIZES[split], len(vector())
    slots = 4 * p
    for traffic in pool.run(jobs.traffic, split, kind, size=p):
        numbers = [n + slots, 5 * n + slots, n + slots, 1 + slots]
        assert traffic == [[{"all-reduce": 1}, {"all-reduce": count}] for count in numbers]


# -- Faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_a_failure_on_one_rank_is_one_on_all(pool, fault):
    found = pool.run(faults.in_a_product, fault)
    for rank, ((kind, text), goes_on) in enumerate(found):
        assert goes_on
        if fault == "nan":
            assert kind == "NonFiniteError"
        elif rank == faults.BAD:
            assert kind == type(faults.FAULTS[fault]).__name__
        else:
            assert kind == "RankError"
        if rank != faults.BAD:
            assert "rank 1" in text


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (faults.other_vectors, "another on rank 2 than on rank 0"),
        (faults.other_quantities, "another on rank 1 than on rank 0"),
        (faults.other_operators, "ranks at different steps"),
        (faults.other_settings, "the same weight_decay"),
        (faults.other_parameters, "the same params on all ranks"),
    ],
)
def test_ranks_that_differ_are_told_so(pool, job, words):
    for kind, text in pool.run(job):
        assert kind == "RankError"
        assert words in text


def test_a_model_that_has_other_constants_on_a_rank_is_refused(pool):
    for errors in pool.run(faults.other_constants):
        assert errors.pop("num_batches_tracked") == ["none", ""]
        for name, (kind, text) in errors.items():
            assert kind == "RankError", name
            assert "the same buffers and frozen parameters" in text


def test_a_call_that_a_rank_leaves_out_is_missed(pool):
    found = pool.run(faults.a_missing_call)
    assert [kind for kind, _ in found] == ["RankError", "none", "RankError"]
    assert "an answer from every rank" in found[0][1]


@pytest.mark.parametrize(("fault", "kind"), [("classes", "FunctionError"), ("form", "DataError")])
def test_wrong_data_of_one_rank_are_refused_on_all(pool, fault, kind):
    found = pool.run(faults.at_construction, fault)
    assert [found[0][0], found[1][0], found[2][0]] == ["RankError", kind, "RankError"]
    assert "rank 1" in found[0][1]


def test_a_group_of_others_is_refused(pool):
    found = pool.run(faults.outside)
    assert found[0] == [["none", ""], ["none", ""]]
    for kind, text in [*found[1], *found[2]]:
        assert kind == "ArgumentError"
        assert "of which this one is one" in text


def test_no_data_on_any_rank_are_refused(pool):
    for kind, text in pool.run(faults.at_construction, "no data"):
        assert kind == "DataError"
        assert "at least one batch" in text


def test_global_generators_that_are_alike_stay_alike(pool):
    first, *others = pool.run(faults.drawn_after)
    for numbers in others:
        assert bits(numbers) == bits(first)


def test_the_same_data_on_two_ranks_are_warned_of(pool):
    for messages in pool.run(faults.same_data, size=2):
        assert [message.split(":")[0] for message in messages] == [
            "ranks 0 and 1 begin with the same batch"
        ]


def test_a_sampler_that_pads_is_refused(pool):
    found = pool.run(faults.padded, EXAMPLES)
    assert "gives 24 for 23 examples" in found[0][0][1]
    assert [kind for (kind, _), _ in found] == ["ArgumentError", "RankError", "RankError"]


def test_a_sampler_that_does_not_is_taken(pool):
    x, y = examples()
    wanted = hesse.hessian_operator(risk((x[:21], y[:21]))) @ vector()
    for (kind, _), product in pool.run(faults.padded, 21):
        assert kind == "none"
        close(product, wanted.numpy())


def test_what_is_not_summed_over_ranks_is_refused(pool):
    for refusals in pool.run(faults.refusals):
        for name, (kind, text) in refusals.items():
            assert kind == "ArgumentError", name
            assert "risk.local" in text, name


# -- The end of a run ------------------------------------------------------------------------------

_STATUS = {
    "callback": "STOPPED",
    "late": "MAX_SECONDS",
    "a little late": "MAX_SECONDS",
    "SIGINT": "INTERRUPTED",
    "SIGTERM": "INTERRUPTED",
}
_ENDS = [
    *((function, how) for function in ("eigsh", "cg", "trace", "minimize") for how in _STATUS),
    *(("function", how) for how in ("callback", "late")),
]


@pytest.mark.parametrize(("function", "how"), _ENDS)
def test_ranks_end_a_run_together(pool, function, how):
    found = pool.run(faults.ended, how, function)
    assert found[0] == found[1] == found[2]
    status, products, handlers_are_restored = found[0]
    assert status == _STATUS[how]
    assert products > 0
    assert handlers_are_restored


@pytest.mark.parametrize("is_sharded", [False, True])
def test_an_error_of_a_callback_on_one_rank_is_one_on_all(pool, is_sharded):
    for rank, (errors, goes_on) in enumerate(pool.run(faults.in_a_callback, is_sharded)):
        assert goes_on
        for name, (kind, text) in errors.items():
            assert kind == ("KeyError" if rank == faults.BAD else "RankError"), name
            assert rank == faults.BAD or "on rank 1" in text, name


def test_a_trial_point_outside_the_domain_of_one_rank_is_rejected_on_all(pool):
    wanted = _plain(faults.minimised_rate())
    assert wanted[-1]  # f raised at a trial point
    for found in pool.run(faults.minimised_rate, size=2):
        close(found, wanted)


def test_a_run_resumes_on_all_ranks_to_the_same_bits(pool, tmp_path):
    for status, before, after, undisturbed, same, there in pool.run(faults.resumed, tmp_path):
        assert status == "STOPPED"
        assert before < after
        assert after == undisturbed
        assert same
        assert there


def test_a_checkpoint_that_only_one_rank_sees_is_refused(pool, tmp_path):
    for kind, text in pool.run(faults.other_checkpoints, tmp_path):
        assert kind == "RankError"
        assert "checkpoint=" in text


def test_a_checkpoint_that_only_one_rank_is_given_is_refused(pool, tmp_path):
    for errors, _ in pool.run(faults.lone_checkpoints, tmp_path):
        for name, (kind, text) in errors.items():
            assert kind == "RankError", name
            assert "the same checkpoint=, a path or None" in text, name


def test_a_callback_of_one_rank_alone_decides_nothing_there_alone(pool):
    """Unless somebody looks at a run, small matrices are decomposed."""
    found = pool.run(faults.lone_callbacks)
    assert len({bits(answers[:2]) for answers in found}) == 1
    assert [calls > 0 for *_, calls in found] == [True, False, False]


def test_other_limits_of_products_are_refused(pool):
    for kind, text in pool.run(faults.lone_limits):
        assert kind == "RankError"
        assert "50, 51, 52" in text


# -- Without processes -----------------------------------------------------------------------------


def test_a_group_needs_processes():
    with pytest.raises(hesse.HesseError, match="torchrun"):
        risk(examples(), group=object())


def _example(number, folder):
    """A script of the documentation."""
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    path = folder / "script.py"
    path.write_text(page.split("```python\n")[number].split("```", 1)[0], encoding="utf-8")
    return path


def test_an_example_of_the_documentation_runs_under_torchrun(tmp_path):
    """That with workers, which the processes of a pool may not have."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = _example(2, tmp_path)
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trace: ") == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "tensor(["), (3, "0.weight"), (4, "Shard"), (5, "losses: [1."), (6, "rows: 50 of 100")],
)
def test_the_examples_of_the_documentation_run(tmp_path, number, words):
    first, second = printed(2, _example(number, tmp_path))
    assert words in first
    assert second == ""
