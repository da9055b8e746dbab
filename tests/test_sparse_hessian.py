# SPDX-License-Identifier: Apache-2.0
"""Sparse Hessians against dense ones: patterns without a missing or an extra entry, values, use."""

from __future__ import annotations

import pickle
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hesse
from hesse import sparse_hessian_operator
from hesse.curvature import sparse_entries, sparse_structure
from hesse.errors import (
    ArgumentError,
    DerivativeError,
    NonFiniteError,
    OperatorError,
    ShapeError,
)
from hesse.testing import check_operator
from hesse.tracing.sparsity.terms import Arrays, Term

DOUBLE = torch.float64
LAPLACE = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=DOUBLE)[None, None]


def point(n, seed=0):
    return torch.rand(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) + 0.2


@cache  # f must not draw random numbers
def integers(high, *shape):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def bratu(u):
    side = round(len(u) ** 0.5)
    g = F.pad(u.view(side, side), (1, 1, 1, 1))
    squares = (g[1:, 1:-1] - g[:-1, 1:-1]).square().sum() + (
        g[1:-1, 1:] - g[1:-1, :-1]
    ).square().sum()
    return squares / 2 - 6.8 / (side + 1) ** 2 * u.exp().sum()


def surface(u):
    side = round(len(u) ** 0.5)
    g = F.pad(u.view(side, side), (1, 1, 1, 1))
    a, b = g[1:, 1:] - g[:-1, :-1], g[1:, :-1] - g[:-1, 1:]
    return torch.sqrt(1 + side**2 * (a * a + b * b) / 2).sum() / side**2


def arrow(x):
    return ((x[1:-1] - x[2:]) ** 4).sum() + (x[0] * x[1:] ** 2).sum()


def elements(x, m=12):
    i = integers(len(x), m, 3)
    return (x[i[:, 0]] * torch.sin(x[i[:, 1]]) * x[i[:, 2]]).sum() + (x**4).sum()


def by_scatter(x):
    """Node forces by index_add and scatter_add."""
    i, j = integers(len(x), 2, 10)
    forces = torch.zeros_like(x).index_add(0, i, x[j] ** 2)
    return (forces**2).sum() + (torch.zeros_like(x).scatter_add(0, j, x[i].sin()) ** 3).sum()


def triangles(x):
    """Linear finite elements: matrices of elements times their values."""
    stiffness = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]], dtype=DOUBLE)
    values = x[integers(len(x), 8, 3)]
    return (values * (values @ stiffness)).sum() + (values.prod(1) ** 2).sum()


def small_matrices(x):
    """A batch of 2 x 2 matrices that depend on x, times vectors that do."""
    blocks = x[:16].view(4, 2, 2)
    return (blocks @ x[4:12].view(4, 2, 1)).square().sum()


def sparse_matrix(x):
    """|D x|^4 with a constant matrix D that is mostly zero."""
    n = len(x)
    D = torch.eye(n, dtype=DOUBLE) - torch.diag(torch.ones(n - 2, dtype=DOUBLE), 2)
    return ((D @ x) ** 4).sum()


def constant(values):
    return torch.tensor(values, dtype=DOUBLE)


def convolved(x):
    kernel = constant([[[1.0, -2.0, 1.0], [0.0, 0.5, 0.0]], [[0.0, 0.0, 3.0], [1.0, 0.0, 0.0]]])
    y = F.conv1d(x[:16].view(1, 2, 8), kernel, padding=1)
    z = F.conv1d(x[:16].view(1, 4, 4), constant([[[1.0, 2.0]]] * 4), groups=4, stride=2)
    up = F.conv_transpose1d(x[:8].view(1, 2, 4), kernel, stride=2)
    return (y**3).sum() + (z**3).sum() + (up**3).sum()


def softened(x):
    return (x[:12].view(3, 4).softmax(1) * x[4:16].view(3, 4)).sum() + x[:6].logsumexp(0)


def cumulative(x):
    return (x.view(-1, 4).cumsum(1) ** 3).sum()


FUNCTIONS = {
    "rosenbrock": (rosenbrock, 9),
    "bratu": (bratu, 16),
    "minimal surface": (surface, 16),
    "arrow": (arrow, 9),
    "elements": (elements, 10),
    "scatter": (by_scatter, 9),
    "triangles": (triangles, 11),
    "small matrices": (small_matrices, 17),
    "sparse matrix": (sparse_matrix, 8),
    "convolutions": (convolved, 17),
    "softmax": (softened, 17),
    "cumsum": (cumulative, 12),
    "biharmonic": (
        lambda u: (F.conv2d(u.view(1, 1, 5, 5), LAPLACE, padding=1) ** 2).sum() + (u**4).sum(),
        25,
    ),
    "periodic": (lambda x: ((x - x.roll(1)) ** 4).sum() + (x * x.flip(0)).sum(), 7),
    "branches": (lambda x: torch.where(x > 0.6, x**3, x[0] * x**2).sum(), 6),
    "masked": (lambda x: (x * constant([1.0, 0.0] * 4) * x.roll(1)).square().sum(), 8),
    "replaced": (lambda x: (x.clone().index_put((torch.tensor([1]),), x[3:4] ** 2) ** 3).sum(), 5),
    "reflected": (
        lambda x: (F.pad(x.view(1, 1, -1), (2, 2), mode="reflect").diff() ** 4).sum(),
        7,
    ),
    "replicated": (
        lambda x: (F.pad(x.view(1, 3, 3), (1, 1, 1, 1), mode="replicate").diff() ** 3).sum(),
        9,
    ),
    "unfolded": (lambda x: (x.unfold(0, 3, 2).prod(1) ** 2).sum(), 9),
    "patches": (lambda x: F.unfold(x.view(1, 1, 4, 4), 2, stride=2).prod(1).exp().sum(), 16),
    "interpolated": (
        lambda x: (F.interpolate(x.view(1, 1, -1), scale_factor=2).diff() ** 4).sum(),
        6,
    ),
    "gathered": (lambda x: (x.view(3, 4).gather(1, integers(4, 3, 2)).prod(1) ** 2).sum(), 12),
    "means": (lambda x: (x.view(4, 3).mean(1) ** 3).sum() + (x.view(4, 3).sum(0) ** 3).sum(), 12),
    "triangle": (lambda x: (x.view(3, 3).tril() ** 3).sum(), 9),
    "a diagonal": (lambda x: (x.view(3, 3) ** 3).diagonal().sum(), 9),
    "every other link": (lambda x: (x[1:] * x[:-1] ** 2)[::2].sum(), 9),
    "a trace": (lambda x: (x.view(3, 3) ** 2).trace() * x[0], 9),
    "linear": (lambda x: (3 * x).sum() + x[0] ** 2, 5),
    "dense": (lambda x: x.norm() ** 4, 6),
}


# Both branches belong to the pattern, a difference of equal entries does, and where `trace` has its
# zeros is an index that is computed.
LARGER = {"branches", "interpolated", "a trace"}


def dense_of(f, x):
    return torch.autograd.functional.hessian(f, x)


# An operation of theirs has no rule for entries: they are found from products.
WITHOUT_PROGRAM = {"small matrices", "sparse matrix", "triangles", "convolutions", "biharmonic"}


@pytest.fixture
def without_programs(monkeypatch):
    monkeypatch.setattr(sparse_structure, "entry_programs", lambda *_: None)


@pytest.fixture
def whatever_they_cost(monkeypatch):
    """Programs of entries are used for small functions too."""
    monkeypatch.setattr(sparse_entries, "costs_less", lambda *_: True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pattern_and_values_are_those_of_the_dense_hessian(whatever_they_cost, name):
    S = check_hessians(name)
    assert (S.structure.programs is None) == (name in WITHOUT_PROGRAM | {"softmax"})


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
    assert S.num_products == products
    v = point(n, 3)
    torch.testing.assert_close(S @ v, hesse.hvp(f, point(n), v), rtol=1e-12, atol=1e-9)


def test_a_shuffled_numbering_is_found_out():
    order = torch.randperm(60**2, generator=torch.Generator().manual_seed(0))
    S = sparse_hessian_operator(lambda u: bratu(u[order]), point(60**2))
    assert S.num_products <= 7


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


def test_conformance_and_pickle():
    S = sparse_hessian_operator(rosenbrock, point(20))
    check_operator(S)
    copy = pickle.loads(pickle.dumps(S))
    assert torch.equal(copy.to_dense(), S.to_dense())
    assert torch.equal(copy.at(point(20, 1)).to_dense(), S.at(point(20, 1)).to_dense())


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


# --------------------------------------------------------------------------------------------------
# What the structure gives


def shifted(n=30, c=0.0):
    """A chain: positive definite for c = 0, indefinite for smaller c."""

    def f(x):
        return ((x[1:] - x[:-1]) ** 2).sum() / 2 + (c + 0.1) / 2 * (x**2).sum()

    return sparse_hessian_operator(f, torch.zeros(n, dtype=DOUBLE))


@pytest.mark.parametrize("c", [0.0, -0.6, -2.0])
def test_solutions_and_inertia_by_the_factors(c):
    S, b = shifted(c=c), point(30, 1)
    dense = S.to_dense()
    solution = hesse.solve(S, b)
    assert (solution.method, solution.converged, solution.products) == ("direct", True, 1)
    torch.testing.assert_close(solution.x, torch.linalg.solve(dense, b))
    values = torch.linalg.eigvalsh(dense)
    assert S.inertia == (int((values > 0).sum()), int((values < 0).sum()))
    sign, logabs = torch.linalg.slogdet(dense)
    torch.testing.assert_close(constant(S._logdet()), torch.stack([sign, logabs]))
    inverse = hesse.inverse_operator(S)
    torch.testing.assert_close(inverse.to_dense(), torch.linalg.inv(dense))
    check_operator(inverse)


def test_trace_diagonal_and_damping():
    S = shifted(c=-0.6)
    dense, b = S.to_dense(), point(30, 1)
    assert S._trace() == pytest.approx(float(dense.trace()))
    torch.testing.assert_close(S._diagonal(), dense.diagonal())
    d = hesse.diagonal_operator(point(30, 2))
    for A, expected in [
        (S + 2.0 * hesse.identity_operator(30), dense + 2 * torch.eye(30, dtype=DOUBLE)),
        (S + d, dense + d.to_dense()),
        (2.0 * S + d, 2 * dense + d.to_dense()),
    ]:
        solution = hesse.solve(A, b)
        assert (solution.method, solution.products) == ("direct", 1)
        torch.testing.assert_close(solution.x, torch.linalg.solve(expected, b))
    damped = hesse.solve(S, b, damping=2.0)
    assert damped.method == "direct"


def test_rows_are_exchanged_where_the_diagonal_is_zero():
    S = sparse_hessian_operator(lambda x: (x[:10] * x[10:] ** 2).sum(), point(20))
    S = S.at(torch.cat([torch.zeros(10, dtype=DOUBLE), point(10) + 1]))
    dense = S.to_dense()
    assert not dense.diagonal().any()
    torch.testing.assert_close(hesse.inverse_operator(S).to_dense(), torch.linalg.inv(dense))
    sign, logabs = torch.linalg.slogdet(dense)
    torch.testing.assert_close(constant(S._logdet()), torch.stack([sign, logabs]))
    with pytest.raises(OperatorError, match="not stable"):
        _ = S.inertia


def test_a_singular_matrix_has_no_inverse():
    S = sparse_hessian_operator(lambda x: ((x[1:] - x[:-1]) ** 2).sum(), point(12))
    assert S._inverse() is None
    assert S._logdet() is None
    with pytest.raises(OperatorError, match="singular"):
        _ = S.inertia
    b = S @ point(12, 1)
    assert hesse.solve(S, b).converged


def test_single_precision_is_factorised_in_double():
    S = sparse_hessian_operator(
        lambda x: ((x[1:] - x[:-1]) ** 2).sum() + 0.01 * (x**2).sum(), torch.ones(50)
    )
    b = torch.ones(50)
    x = hesse.solve(S, b, rtol=1e-4)
    assert x.method == "direct"
    torch.testing.assert_close(x.x, torch.linalg.solve(S.to_dense().double(), b.double()).float())


def test_the_matrix_for_scipy_is_a_copy():
    S = sparse_hessian_operator(rosenbrock, point(20))
    matrix = S.to_scipy()
    assert isinstance(matrix, sp.csr_array)
    np.testing.assert_array_equal(matrix.toarray(), S.to_dense().numpy())
    matrix.data[:] = 0.0
    assert S.to_dense().any()


def test_newton_on_bratu():
    u = torch.zeros(20**2, dtype=DOUBLE)
    S = sparse_hessian_operator(bratu, u)
    start = S.flat_gradient.norm()
    for _ in range(8):
        u = u - hesse.solve(S, S.flat_gradient).x
        S = S.at(u)
    assert S.flat_gradient.norm() < 1e-11 * start
    assert S.inertia.negative == 0


def test_what_is_printed():
    S = sparse_hessian_operator(bratu, point(30**2))
    lines = repr(S).splitlines()
    assert lines[0] == "SparseHessian(900 x 900, torch.float64)"
    assert "5 instead of 900" in repr(S)
    assert len(lines) < 16
    assert max(map(len, lines)) < 60
    assert "<table" in S._repr_html_()


# --------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda x: F.avg_pool2d(x.view(1, 1, 4, 4), 2).pow(3).sum(), r"avg_pool2d.* no rule"),
        (lambda x: torch.fft.rfft(x).abs().sum(), "view_as_complex.* no rule"),
    ],
)
def test_an_unknown_operation_is_named(f, name):
    with pytest.raises(DerivativeError, match=name) as error:
        sparse_hessian_operator(f, point(16))
    assert "pattern=" in str(error.value)
    assert "hesse.sparse_hessian_operator(f, x)" in str(error.value)


def test_a_pattern_that_is_given():
    def f(x):
        return (torch.linalg.solve(torch.eye(2, dtype=DOUBLE) + x.view(-1, 2, 2) ** 2,
                                   torch.ones(1, 2, 1, dtype=DOUBLE)) ** 2).sum()  # fmt: skip

    blocks = sp.block_diag([np.ones((4, 4))] * 3)
    x = point(12)
    S = sparse_hessian_operator(f, x, pattern=blocks)
    assert S.num_products == 4
    torch.testing.assert_close(S.to_dense(), dense_of(f, x))
    torch.testing.assert_close(S.at(point(12, 1)).to_dense(), dense_of(f, point(12, 1)))
    with pytest.raises(DerivativeError, match="entries outside of the pattern"):
        sparse_hessian_operator(f, x, pattern=np.eye(12))
    with pytest.raises(ShapeError, match="pattern of shape"):
        sparse_hessian_operator(f, x, pattern=np.eye(3))


def test_a_dense_hessian_is_refused_before_it_fills_the_memory():
    with pytest.raises(DerivativeError, match="sparse Hessian"):
        sparse_hessian_operator(lambda x: (x**2).sum() ** 2, torch.ones(20_000))


def test_what_cannot_be_traced_is_refused():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    with pytest.raises(DerivativeError, match="Square"):
        sparse_hessian_operator(lambda x: Square.apply(x).sum(), point(3))


def test_not_finite():
    with pytest.raises(NonFiniteError):
        sparse_hessian_operator(lambda x: (x.abs() ** 1.5).sum(), torch.zeros(3))


def test_choices():
    for wrong in ({"colouring": "rainbow"}, {"mode": "retained-graph"}):
        with pytest.raises(ArgumentError):
            sparse_hessian_operator(rosenbrock, point(3), **wrong)
