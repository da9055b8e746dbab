# SPDX-License-Identifier: Apache-2.0
"""Colourings by their definitions, entries from products, and factorisations against dense ones."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.operators.sparse import factorisation, greedy
from hesse.operators.sparse.colouring import colour
from hesse.operators.sparse.operator import SparseOperator
from hesse.operators.sparse.picture import picture
from hesse.operators.sparse.recovery import Compression
from hesse.testing import check_operator
from hesse.vectors.space import Space

COLOURINGS = ["auto", "distance-2", "star", "acyclic"]


def symmetric(n, density, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    A = sp.random_array((n, n), density=density, random_state=rng, data_sampler=rng.standard_normal)
    A = (A + A.T + shift * sp.eye_array(n)).tocsr()
    A.sort_indices()
    return A


graphs = st.builds(symmetric, st.integers(1, 30), st.floats(0, 0.4), st.integers(0, 10**6))


def neighbours(A):
    dense = A.toarray() != 0
    np.fill_diagonal(dense, False)
    return [set(np.flatnonzero(row).tolist()) for row in dense]


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_no_two_of_a_colour_within_two_steps(A):
    around = neighbours(A)
    c = greedy.distance_2([*map(list, around)], range(len(around)))
    for v, near in enumerate(around):
        assert len({c[v], *(c[w] for w in near)}) == len(near) + 1


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_every_path_of_four_has_three_colours(A):
    c, around = colour(A, "star").colours, neighbours(A)
    for w, near in enumerate(around):
        for x in near:
            assert c[w] != c[x]
            for v in near - {x}:
                for y in around[x] - {w, v}:
                    assert len({c[v], c[w], c[x], c[y]}) > 2


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(graphs)
def test_two_colours_make_trees(A):
    found, around = colour(A, "acyclic"), neighbours(A)
    c = found.colours
    for one, two in combinations(range(found.count), 2):
        chosen = np.flatnonzero((c == one) | (c == two))
        part = A[chosen][:, chosen]
        part.setdiag(0)
        part.eliminate_zeros()
        trees, _ = sp.csgraph.connected_components(part, directed=False)
        assert part.nnz // 2 == len(chosen) - trees
    assert all(c[v] != c[w] for v, near in enumerate(around) for w in near)


@pytest.mark.parametrize("method", COLOURINGS)
@settings(max_examples=40, deadline=None)
@given(A=graphs)
def test_entries_come_back_from_products(method, A):
    packed = Compression(A.astype(bool), method)
    assert packed.fewest <= packed.colouring.count
    products = packed.seeds(torch.float64) @ torch.tensor(A.toarray())
    np.testing.assert_allclose(packed.entries(products).numpy(), A.data, atol=1e-12)


def test_hubs_get_colours_of_their_own():
    n = 200
    arrow = sp.lil_array((n, n))
    arrow[[0, 5], :], arrow[:, [0, 5]] = 1, 1
    arrow.setdiag(1)
    arrow.setdiag(1, 1)
    arrow.setdiag(1, -1)
    for method in COLOURINGS:
        found = colour(arrow.tocsr(), method)
        assert (found.hubs, found.count <= 5) == (2, True)
        assert (found.colours == found.colours[5]).sum() == 1


def test_a_large_graph_is_coloured_by_the_method_that_is_better_on_a_part():
    side = 150  # more vertices than are compared
    line = sp.diags_array([1.0, 1.0], offsets=[-1, 1], shape=(side, side))
    grid = sp.kron(line, sp.eye_array(side)) + sp.kron(sp.eye_array(side), line)
    order = np.random.default_rng(0).permutation(side**2)
    for A in (grid.tocsr(), grid.tocsr()[order][:, order]):
        assert colour(A).count <= 6


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["qdldl", "symmetric_superlu", "pivoted_superlu"])
@pytest.mark.parametrize("shift", [0.0, 1.0, 20.0])
def test_factors_against_dense_ones(method, shift):
    if method == "qdldl":
        pytest.importorskip("qdldl")
    A = symmetric(40, 0.1, 3, shift + 1e-3)
    found = getattr(factorisation, method)(sp.csc_array(A))
    dense = A.toarray()
    b = np.random.default_rng(0).standard_normal((40, 3))
    for right in (b, b[:, 0]):
        np.testing.assert_allclose(found.solve(right), np.linalg.solve(dense, right), rtol=1e-6)
    sign, logabs = np.linalg.slogdet(dense)
    assert found.sign == sign
    assert found.logabs == pytest.approx(logabs)
    if method != "pivoted_superlu":
        values = np.linalg.eigvalsh(dense)
        assert found.inertia == ((values > 0).sum(), (values < 0).sum())
    else:
        assert found.inertia is None


def test_no_factors_of_a_singular_matrix():
    assert factorisation.factorise(sp.csr_array(np.ones((3, 3)))) is None
    assert factorisation.factorise(sp.csr_array((3, 3))) is None


def test_an_unstable_factorisation_is_not_taken():
    A = sp.csr_array(np.array([[1e-18, 1.0], [1.0, 1.0]]))
    found = factorisation.factorise(A)
    np.testing.assert_allclose(found.solve(np.array([1.0, 2.0])), [1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_of_a_matrix(dtype):
    space = Space.of({"a": torch.zeros(2, 3, dtype=dtype), "b": torch.zeros(4, dtype=dtype)})
    A = symmetric(10, 0.3, 0, 5.0).astype(str(dtype).removeprefix("torch."))
    S = SparseOperator(space, A)
    check_operator(S)
    check_operator(S._inverse())
    np.testing.assert_array_equal(S.to_dense().numpy(), A.toarray())
    block = S.block("a")
    np.testing.assert_array_equal(block.to_dense().numpy(), A.toarray()[:6, :6])
    check_operator(block)
    assert block._inverse() is not None


def test_a_picture_of_every_size():
    for n in (1, 3, 4, 33, 1000):
        lines = picture(sp.eye_array(n, format="csr"))
        assert len(lines) == min(8, -(-n // 4))
        assert len({len(line) for line in lines}) == 1
