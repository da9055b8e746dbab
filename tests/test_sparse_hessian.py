# SPDX-License-Identifier: Apache-2.0
"""Sparse Hessians against dense ones: patterns without a missing or an extra entry, values, use."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hesse
from hesse import sparse_hessian_operator
from hesse.curvature import sparse_entries, sparse_structure
from hesse.testing import check_operator
from hesse.tracing.sparsity.runs import runs
from hesse.tracing.sparsity.terms import Arrays, Term, picked
from tests.sparse_functions import (
    DOUBLE,
    FUNCTIONS,
    LARGER,
    WITHOUT_PROGRAM,
    arrow,
    bratu,
    constant,
    dense_of,
    integers,
    point,
    rosenbrock,
    surface,
)


@pytest.fixture
def without_programs(monkeypatch):
    monkeypatch.setattr(sparse_structure, "entry_programs", lambda *_: None)


@pytest.fixture
def whatever_they_cost(monkeypatch):
    """Programs of entries are used for small functions too."""
    monkeypatch.setattr(sparse_entries, "costs_less", lambda *_: True)


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_pattern_and_values_are_those_of_the_dense_hessian(whatever_they_cost, name):
    S = check_hessians(name)
    assert (S.structure.programs is None) == (name in WITHOUT_PROGRAM | {"softmax"})


@pytest.mark.some_cases(40)
@pytest.mark.fast_cases(12)
@pytest.mark.parametrize("colouring", ["auto", "distance-2", "star", "acyclic"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_from_products_are_those_of_the_dense_hessian(without_programs, name, colouring):
    check_hessians(name, colouring)


def check_hessians(name, colouring="auto"):
    f, n = FUNCTIONS[name]
    x = point(n)
    S = sparse_hessian_operator(f, x, colouring=colouring)
    # A random point, away from which no entry is zero by chance.
    there = sum(dense_of(f, point(n, seed)) != 0 for seed in range(3))
    pattern = S.structure.compression.pattern.toarray()
    if name in LARGER:
        assert (pattern >= (there > 0).numpy()).all()
    else:
        np.testing.assert_array_equal(pattern, (there > 0).numpy())
    expected = dense_of(f, x)
    for H in (S, S.at(point(n, 5)).at(x)):
        torch.testing.assert_close(H.to_dense(), expected, rtol=1e-12, atol=1e-12)
    moved = S.at(point(n, 7))
    torch.testing.assert_close(moved.to_dense(), dense_of(f, point(n, 7)), rtol=1e-12, atol=1e-12)
    assert torch.equal(S.to_dense(), S.to_dense().T)
    return S


@pytest.mark.parametrize(
    ("f", "n", "products"),
    [(rosenbrock, 5000, 3), (bratu, 70**2, 5), (surface, 70**2, 9), (arrow, 5000, 4)],
)
def test_the_number_of_products(f, n, products):
    S = sparse_hessian_operator(f, point(n))
    assert "colouring" not in vars(S.structure.compression)  # a program gives the entries
    assert S.num_products == products >= S.cost
    v = point(n, 3)
    torch.testing.assert_close(S @ v, hesse.hvp(f, point(n), v), rtol=1e-12, atol=1e-9)


def test_a_shuffled_numbering_is_found_out():
    order = torch.randperm(60**2, generator=torch.Generator().manual_seed(0))
    S = sparse_hessian_operator(lambda u: bratu(u[order]), point(60**2))
    assert S.num_products <= 7


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(2, 14), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_random_elements(n, m, size, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, n, (m, size), generator=generator)
    weights = torch.rand(m, size, dtype=DOUBLE, generator=generator) + 0.5

    def f(x):
        return ((weights * x[index]).sum(1) ** 4).sum()

    x = point(n, seed)
    S = sparse_hessian_operator(f, x)
    expected = dense_of(f, x)
    np.testing.assert_array_equal(S.structure.compression.pattern.toarray(), expected.numpy() != 0)
    torch.testing.assert_close(S.to_dense(), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(0, 10**6))
def test_random_grids(rows, columns, reach, seed):
    kernel = torch.rand(1, 1, reach, reach, generator=torch.Generator().manual_seed(seed)).double()
    kernel = kernel * (kernel > 0.4)

    def f(u):
        grid = F.pad(u.view(1, 1, rows, columns), (reach, 0, reach, 0))
        return (F.conv2d(grid, kernel) ** 4).sum() + (u**3).sum()

    x = point(rows * columns, seed)
    S = sparse_hessian_operator(f, x)
    expected = dense_of(f, x)
    np.testing.assert_array_equal(
        S.structure.compression.pattern.toarray(),
        (expected.numpy() != 0) | np.eye(len(x), dtype=bool),
    )
    torch.testing.assert_close(S.to_dense(), expected, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# Points, trees, models


def test_a_pattern_with_indices_from_x_is_local_and_found_again():
    def f(x):
        order = x.argsort()
        return ((x[order[1:]] - x[order[:-1]]) ** 4).sum()

    S = sparse_hessian_operator(f, constant([3.0, 1.0, 2.0, 5.0]))
    assert S.is_local
    assert "of this point" in repr(S)
    for x in (constant([3.0, 1.0, 2.0, 5.0]), constant([1.0, 7.0, 2.0, 3.0])):
        torch.testing.assert_close(S.at(x).to_dense(), dense_of(f, x))


def test_an_index_that_is_changed_in_place_changes_the_pattern():
    index = torch.tensor([0, 1])

    def f(x):
        return x[index].prod() ** 2

    x = point(4)
    S = sparse_hessian_operator(f, x)
    assert not S.is_local
    index[1] = 3
    torch.testing.assert_close(S.at(x).to_dense(), dense_of(f, x))


@pytest.mark.parametrize("mode", ["program", "products"])
def test_what_f_closes_over_may_change(mode, request):
    request.getfixturevalue("whatever_they_cost" if mode == "program" else "without_programs")
    weights, x = point(9, 3), point(10)

    def f(x):
        return ((x[1:] - x[:-1]) ** 2 / weights**2 + weights * x[1:] ** 3).sum()

    S = sparse_hessian_operator(f, x)
    before = S.to_dense().clone()
    with torch.no_grad():
        weights.mul_(2.0)
    torch.testing.assert_close(S.at(x).to_dense(), dense_of(f, x), rtol=1e-12, atol=1e-12)
    assert torch.equal(S.to_dense(), before)


def test_masks_hide_what_is_not_finite():
    """0 times infinity is NaN, but a mask and a branch leave it out."""
    arrays = Arrays()
    rows, factors = arrays.count(3), torch.tensor([1.0, float("inf"), float("nan")])
    terms = [Term(1.0, factors, rows, rows, rows), Term(1.0, None, None, rows, rows)]
    mask = torch.tensor([True, False, False])
    for term in arrays.times(terms, mask, (3,), torch.float32):
        assert term.factors is not None
        assert term.factors.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "numbers",
    [
        np.arange(50),
        np.arange(3, 40),
        np.array([7]),
        np.array([0, 1, 1, 2]),
        np.array([1, 1, 2, 2]),
        np.array([2, 1, 0]),
        (3 + 7 * np.arange(6)[:, None] + np.arange(5)).ravel(),
        (np.arange(30)[:, None] + np.arange(20)).ravel(),
        (1 + 24 * np.arange(2)[:, None, None] + 5 * np.arange(3)[:, None] + np.arange(4)).ravel(),
        (20 * np.arange(2)[:, None, None] + np.arange(3)[:, None] + np.arange(17)).ravel(),
        (2 * np.arange(3)[:, None] + 3 * np.arange(8)).ravel(),
        np.r_[0:17, 20:37, 41:58] % 50,
    ],
    ids=str,
)
@pytest.mark.parametrize("offset", [0, 5])
def test_entries_of_a_grid_are_picked_by_slices(numbers, offset):
    tensor = point(60)[offset:][:50]
    assert torch.equal(picked(tensor, numbers.astype(np.int32)), tensor[torch.from_numpy(numbers)])


CHAINS = {
    "one term": lambda x: ((x[1:] ** 2 + x[:-1] ** 2) ** 2).sum() - 4 * x[:-1].sum(),
    "terms of three": lambda x: (x[2:] * x[1:-1] * x[:-2]).exp().sum() + (x[3:] * x[:-3]).sum(),
    "every other one": lambda x: ((x[1::2] - x[::2] ** 2) ** 2).sum() + (x[2::2] * x[1:-1:2]).sum(),
    "an arrow": lambda x: (4 * (x * x - x[0]) ** 2).sum() + (x[1:] * x[:-1]).cos().sum(),
    "two hubs": lambda x: ((x[1:] - x[:-1]) ** 4).sum() + (x[0] * x[1:] ** 3 * x[-1]).sum(),
    "a reversed chain": lambda x: (x.flip(0) ** 2 * x.roll(1)).sum() + (x**3).sum(),
    "a shuffled chain": lambda x: (x[SHUFFLED][1:] ** 2 * x[SHUFFLED][:-1] ** 2).sum(),
}
SHUFFLED = torch.randperm(40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CHAINS)
def test_chains(whatever_they_cost, name):
    f = CHAINS[name]
    S = sparse_hessian_operator(f, point(40))
    assert S.structure.programs is not None
    for seed in range(4):
        S = S.at(point(40, seed))
        expected = dense_of(f, point(40, seed))
        torch.testing.assert_close(S.to_dense(), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_runs_reach_every_place_as_the_targets_say(count, num_groups, seed):
    random = np.random.default_rng(seed)
    targets = [
        np.sort(random.permutation(count + 1)[: random.integers(1, count + 2)])
        for _ in range(num_groups)
    ]
    found = runs(targets, count)
    assert found is not None
    reached = [set() for _ in range(count)]
    for run in found:
        for k, start in run.starts.items():
            for place, number in zip(
                run.places, range(start, start + len(run.places)), strict=True
            ):
                reached[place].add((k, number))
    expected = [set() for _ in range(count)]
    for k, group in enumerate(targets):
        for number, place in enumerate(group):
            if place < count:
                expected[place].add((k, number))
    assert reached == expected
    assert sorted(p for run in found for p in run.places) == [
        p for p in range(count) if expected[p]
    ]
    assert runs([np.array([0, 0])], 1) is None


def space(u):
    """An energy over a grid in space, with nonlinear terms between neighbours."""
    g = F.pad(u.view(5, 6, 18), (1, 1, 1, 1, 1, 1))
    d = [g.diff(dim=k).square() for k in range(3)]
    gradients = d[0][:, 1:, 1:] + d[1][1:, :, 1:] + d[2][1:, 1:, :]
    return (1 + gradients).sqrt().sum() + (u**4).sum() + (u[1:] * u[:-1]).cosh().sum()


@pytest.mark.slow
def test_a_grid_in_space(whatever_they_cost):
    S = sparse_hessian_operator(space, point(540))
    assert S.structure.programs is not None
    for seed in range(4):
        x = point(540, seed)
        S = S.at(x)
        torch.testing.assert_close(S.to_dense(), dense_of(space, x), rtol=1e-12, atol=1e-12)


def test_constant_entries_are_not_shared_by_points():
    def f(x):
        return (x[1:] * x[:-1]).sum() + x[0] * x.sum()

    S = sparse_hessian_operator(f, point(5))
    assert S.structure.programs is not None
    moved = S.at(point(5, 1))
    moved.matrix.data[:] = 7.0
    for H in (S, S.at(point(5, 2))):
        torch.testing.assert_close(H.to_dense(), dense_of(f, point(5)))


def test_a_branch_in_python():
    def f(x):
        return (x[1:] * x[:-1]).square().sum() if x.sum() > 3 else (x**4).sum()

    S = sparse_hessian_operator(f, point(6) + 1)
    x = 0.1 * point(6)
    torch.testing.assert_close(S.at(x).to_dense(), dense_of(f, x))


@pytest.mark.parametrize("mode", ["program", "products"])
def test_a_tree_in_single_precision(mode, request):
    request.getfixturevalue("whatever_they_cost" if mode == "program" else "without_programs")

    def f(x):
        return (x["a"][:, 1:] * x["a"][:, :-1]).sum() + (x["b"] ** 3).sum() * x["a"][0, 0]

    x = {"a": torch.rand(2, 3), "b": torch.rand(2)}
    S = sparse_hessian_operator(f, x)
    H = hesse.hessian_operator(f, x)
    assert S.dtype == torch.float32
    torch.testing.assert_close(S.to_dense(), H.to_dense())
    torch.testing.assert_close(S.gradient, H.gradient)
    torch.testing.assert_close(S.value, H.value)
    torch.testing.assert_close(S @ x, H @ x)
    check_operator(S)


@pytest.mark.parametrize("mode", ["program", "products"])
def test_the_parameters_of_a_small_model(mode, request):
    request.getfixturevalue("whatever_they_cost" if mode == "program" else "without_programs")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 2), nn.Flatten(), nn.Linear(4, 1)).double()
    batches = [(integers(6, k, 2), point(k)[:, None]) for k in (3, 4)]
    risk = hesse.Risk(model, nn.MSELoss(), batches, weight_decay=0.1)
    S, H = (make(risk, risk.params) for make in (sparse_hessian_operator, hesse.hessian_operator))
    torch.testing.assert_close(S.to_dense(), H.to_dense(), rtol=1e-12, atol=1e-12)
    assert S.matrix.nnz < 17**2 - 20  # two words that never meet do not interact
    torch.testing.assert_close(S.at(risk.params).to_dense(), H.to_dense(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["program", "products"])
def test_a_frozen_leaf_has_empty_rows(mode, request):
    request.getfixturevalue("whatever_they_cost" if mode == "program" else "without_programs")
    x = {
        "a": nn.Parameter(point(3), requires_grad=False),
        "b": nn.Parameter(point(4)),
    }

    def f(x):
        return (x["b"][1:] * x["a"] * x["b"][:-1]).square().sum()

    S, H = (make(f, x) for make in (sparse_hessian_operator, hesse.hessian_operator))
    torch.testing.assert_close(S.to_dense(), H.to_dense())
    assert not S.to_dense()[:3].any()


def test_a_leaf_without_entries_has_no_rows(whatever_they_cost):
    """It adds nothing to the terms of a product, where another factor waits for it."""
    x = {"a": point(4), "b": torch.zeros(0, dtype=DOUBLE)}
    S = sparse_hessian_operator(lambda x: (x["a"] ** 3).sum() + x["b"].square().sum(), x)
    torch.testing.assert_close(S.to_dense(), torch.diag(6 * x["a"]))


def test_conformance_and_pickle():
    S = sparse_hessian_operator(rosenbrock, point(20))
    check_operator(S)
    copy = pickle.loads(pickle.dumps(S))
    assert torch.equal(copy.to_dense(), S.to_dense())
    assert torch.equal(copy.at(point(20, 1)).to_dense(), S.at(point(20, 1)).to_dense())


@pytest.mark.slow
def test_compiled_products_are_the_same():
    x = point(50)
    S = sparse_hessian_operator(rosenbrock, x, mode="compiled-split")
    torch.testing.assert_close(S.to_dense(), dense_of(rosenbrock, x), rtol=1e-12, atol=1e-9)


def test_evaluations_take_a_product_a_colour_and_no_trace():
    calls = []

    def f(x):
        calls.append(None)
        return rosenbrock(x)

    S = sparse_hessian_operator(f, point(40))
    for seed in range(8):
        S = S.at(point(40, seed))
    calls.clear()
    S = S.at(point(40, 9))
    assert len(calls) == 1  # the value, with which the program is compared
    torch.testing.assert_close(S.to_dense(), dense_of(rosenbrock, point(40, 9)))
