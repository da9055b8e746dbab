"""Parameters that are cut over some ranks and replicated over others (HSDP), on two by two."""

import pytest

from tests import shards_hybrid as hybrid
from tests.ranks_faults import BAD
from tests.ranks_forked import together
from tests.ranks_pool import _plain, bits, close

pytestmark = pytest.mark.distributed
SIZE = 4
_METHODS = [
    *("products", "derivatives", "others", "cg", "eigsh", "block-cg", "xtrace", "low rank"),
    *("restrict", "block-jacobi", "pivoted-cholesky", "scipy"),
]


def test_a_model_of_fully_shard_gives_what_one_process_does():
    found = together(SIZE, hybrid.computed)
    close(found[0], _plain(hybrid.computed(None)))
    assert len({bits(answers) for answers in found}) == 1


def test_shards_give_what_one_process_does():
    found = together(SIZE, hybrid.audited, _METHODS)
    close(found[0], _plain(hybrid.audited(None, _METHODS)))
    assert len({bits(answers) for answers in found}) == 1


def test_jacobians_give_what_those_of_one_process_do():
    names = ["jacobian", "root", "kernel", "inputs", "lsmr"]
    found = together(SIZE, hybrid.outputs, names)
    close(found[0], _plain(hybrid.outputs(None, names)))
    assert len({bits(answers) for answers in found}) == 1


_APPLICATIONS = [
    ("examples", "per example"),
    ("statistics", "errors"),
    ("training", "landscape along"),
    ("kernels", "trace kernel"),
    ("bounds", "trust-cg"),
    ("pruning", "damage"),
    ("influence", "renormalised"),
    ("influence on examples", "on themselves"),
    ("posteriors", "full"),
]


def test_applications_give_what_one_process_does():
    found = together(SIZE, hybrid.applied, _APPLICATIONS)
    close(found[0], _plain(hybrid.applied(None, _APPLICATIONS)))
    assert len({bits(answers) for answers in found}) == 1


def test_vectors_are_gathered_and_sums_scattered_among_those_that_share_them():
    slots = 4 * SIZE  # by which all ranks agree on a step
    for (product, norm), width in together(SIZE, hybrid.sent):
        calls, numbers = product
        assert calls == {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
        assert numbers["all-gather"] == 2 * width
        assert numbers["reduce-scatter"] == 2 * (width + 1)
        assert numbers["all-reduce"] == slots + width + 1
        assert norm == [{"all-reduce": 1}, {"all-reduce": 2}]


def test_a_failure_on_one_rank_is_one_on_all():
    for rank, ((kind, text), goes_on) in enumerate(together(SIZE, hybrid.failed)):
        assert goes_on
        assert kind == ("KeyError" if rank == BAD else "RankError")
        assert rank == BAD or "rank 1" in text


def test_copies_of_the_parameters_that_differ_are_refused():
    for kind, text in together(SIZE, hybrid.differing):
        assert kind == "RankError"
        assert "another on rank 2 than on rank 0" in text


def test_one_of_the_copies_is_saved(tmp_path):
    for is_same, names in together(SIZE, hybrid.saved, str(tmp_path)):
        assert is_same
        assert names == ["rank-0-of-2", "rank-1-of-2", "run"]
