"""Vectors that are cut over processes: as one process, the products counted, alike in failure."""

import pytest
import torch

import hesse
from hesse.krylov.preconditioners import block_jacobi
from hesse.vectors.cuts import Cut
from hesse.vectors.shards import Shards
from tests import fake_ranks
from tests import shards_faults as faults
from tests import shards_fsdp as fsdp
from tests import shards_jobs as jobs
from tests.ranks_faults import BAD
from tests.ranks_pool import _plain, bits, close, examples, vector, whole

distributed = pytest.mark.distributed


# -- As one process --------------------------------------------------------------------------------

# All layouts and numbers of ranks: the products. All methods: where every kind of part occurs.
_ALL = {("ragged", 3): jobs.AUDIT, ("few", 2): jobs.AUDIT | jobs.EXACT}
_SOME = [
    *("products", "derivatives", "cg", "xtrace"),
    *("restrict", "block-jacobi", "pivoted-cholesky", "scipy"),
]


@distributed
@pytest.mark.parametrize(
    ("layout", "size"),
    [(layout, size) for size in (1, 2, 3) for layout in ("even", "ragged", "empty")] + [("few", 2)],
)
def test_shards_give_what_one_process_does(pool, layout, size):
    names = list(_ALL.get((layout, size), _SOME))
    found = pool.run(jobs.audited, layout, names, size=size)
    close(found[0], _plain(jobs.audited(None, layout, names)))
    assert len({bits(answers) for answers in found}) == 1


@distributed
@pytest.mark.parametrize("size", [2, 3])
def test_random_vectors_are_parts_of_one_stream_whatever_the_number_of_ranks(pool, size):
    one = pool.run(jobs.drawn, size=1)[0]
    assert one["normal"].std() == pytest.approx(1.0, abs=0.02)
    assert set(one["signs"]) == {-1.0, 1.0}
    for found in pool.run(jobs.drawn, size=size):
        assert bits(found) == bits(one)


@distributed
def test_leaves_may_be_cut_along_any_dimension(pool):
    H = hesse.hessian_operator(whole())
    normal = H.domain.gaussian(torch.Generator().manual_seed(3))
    M = block_jacobi(H, 5, probes=2, generator=torch.Generator().manual_seed(3))
    answers = pool.run(faults.turned)
    assert len({bits(found["random"]) for found in answers}) == 1
    for found in answers:
        close(found["product"], (H @ vector()).numpy())
        close(found["drawn"], normal.numpy())
        close(found["restricted"], H.restrict(faults.FEW).to_dense().numpy())
        close(found["by blocks"], (M @ vector()).numpy())
        close(found["by scipy"], (H @ jobs.columns(H.shape[0])).numpy())


# -- FSDP2 -----------------------------------------------------------------------------------------


@distributed
@pytest.mark.parametrize(("size", "at_once"), [(2, True), (3, False)])
def test_modules_of_fully_shard_are_taken_and_trained_on(pool, size, at_once):
    with_hesse = pool.run(fsdp.trained, at_once, True, size=size)
    without = pool.run(fsdp.trained, at_once, False, size=size)
    for (first, second, _), (first_alone, second_alone, _) in zip(with_hesse, without, strict=True):
        assert bits(first) == bits(first_alone)
        assert bits(second) == bits(second_alone)
    first, _, found = with_hesse[0]
    close(found, _plain(fsdp.in_one_process(first, examples())))


@distributed
def test_frozen_parameters_of_fully_shard_are_gathered(pool):
    found = pool.run(fsdp.half_frozen, size=2)
    close(found[0], _plain(fsdp.half_frozen(None)))
    assert bits(found[0]) == bits(found[1])


@distributed
def test_those_that_have_changed_and_missing_ones_are_named(pool):
    for (_, missing), (same, _), (kind, after) in pool.run(fsdp.changed, size=2):
        assert same == "none"
        assert "params without '2.bias'" in missing
        assert kind in ("StructureError", "RankError")
        assert "another '0.weight'" in after


@distributed
def test_modules_that_are_sharded_otherwise_are_refused(pool):
    found = pool.run(fsdp.refusals)
    texts = [text for _, text in found[0].values()]
    for words, text in zip(("group=mesh", "tensor parallelism"), texts, strict=True):
        assert words in text
    assert all(kind.endswith("Error") for each in found for kind, _ in each.values())


# -- Communication ---------------------------------------------------------------------------------


@distributed
@pytest.mark.parametrize("size", [1, 3])
def test_a_product_is_one_gather_and_one_scatter(pool, size):
    for found, width in pool.run(faults.traffic, size=size):
        both = {"all-gather": 1, "reduce-scatter": 1}
        for name, k in {"product": 1, "block": 5, "gradient": 0}.items():
            calls, numbers = found[name]
            assert calls == both
            assert numbers["all-gather"] == size * (k * width + 2)
            assert numbers["reduce-scatter"] == size * (max(k, 1) * width + 1)
        for name in ("norm", "inner", "gram"):
            assert found[name][0] == {"all-reduce": 1}
        assert found["blocks"][0] == ({"all-reduce": 1} if size > 1 else {})
        assert found["restricted"][0] == {**both, "all-reduce": 1}
        assert found["restricted"][1]["all-reduce"] == len(faults.FEW)


@distributed
def test_what_is_sent_does_not_grow_in_number_with_the_ranks():
    (few, _), (found, width) = (fake_ranks.counts(size) for size in (8, 1024))
    calls, numbers = found["product"]
    assert calls == {"all-gather": 1, "reduce-scatter": 1}
    assert numbers == {"all-gather": 1024 * (width + 2), "reduce-scatter": 1024 * (width + 1)}
    assert found["cg"][0] == few["cg"][0]


@distributed
def test_a_step_takes_two_reductions(pool):
    for found in pool.run(faults.reductions, size=2):
        assert set(found.values()) == {20}, found


# -- Faults ----------------------------------------------------------------------------------------


@distributed
@pytest.mark.parametrize("fault", ["error", "nan"])
def test_a_failure_on_one_rank_is_one_on_all(pool, fault):
    for rank, ((kind, text), goes_on) in enumerate(pool.run(faults.in_a_product, fault)):
        assert goes_on
        other = "KeyError" if rank == BAD else "RankError"
        assert kind == ("NonFiniteError" if fault == "nan" else other)
        if rank != BAD:
            assert "rank 1" in text


@distributed
def test_a_rank_may_show_what_there_is_alone(pool):
    (calls, texts), *_ = pool.run(faults.shown)
    assert calls == {}
    solution, low_rank, _ = texts
    assert "sharded tensor of shape (" in solution
    assert ", here a tensor of shape (" in solution
    assert low_rank.startswith("(LowRank[4] + D)")


@distributed
def test_a_call_that_a_rank_leaves_out_is_missed(pool):
    found = pool.run(faults.a_missing_call)
    assert [kind for kind, _ in found] == ["RankError", "none", "RankError"]


@distributed
@pytest.mark.parametrize(("how", "status"), [("callback", "STOPPED"), ("late", "MAX_SECONDS")])
def test_ranks_end_a_run_together(pool, how, status):
    found = pool.run(faults.ended, how)
    assert found[0] == found[1] == found[2]
    assert found[0][0] == status


@distributed
def test_what_is_not_done_with_shards_is_refused(pool):
    for refusals in pool.run(faults.refusals):
        for name, (kind, text) in refusals.items():
            assert kind.endswith("Error"), name
            assert "remedy" in text, name


# -- Without processes -----------------------------------------------------------------------------


class _Mesh:
    def __init__(self, size):
        self.size = lambda axis: size


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_what_is_packed_on_each_rank_is_assembled_and_distributed(size):
    cuts = (Cut(torch.Size([5, 3]), 0, size), Cut(torch.Size([2, 4, 3]), 1, size),
            Cut(torch.Size([1]), 0, size))  # fmt: skip
    ranks = [Shards(_Mesh(size), rank, cuts) for rank in range(size)]
    k, n = 2, ranks[0].n
    whole = torch.arange(k * n, dtype=torch.float64).view(k, n)
    rows = [torch.stack([s.take(lambda a, b, v=v: v[a:b]) for v in whole]) for s in ranks]
    assert sum(part.shape[1] for part in rows) == n
    table = torch.stack([s.pack(part) for s, part in zip(ranks, rows, strict=True)])
    assert table.shape == (size, k * ranks[0].width)
    assert torch.equal(ranks[0].assemble(table, k), whole)
    ranks[0].distribute(whole, table.zero_())
    for s, part, row in zip(ranks, rows, table, strict=True):
        assert torch.equal(s.unpack(row, k), part)
