# SPDX-License-Identifier: Apache-2.0
"""Sparse Hessians from point to point: what is checked, what is seen to change, what is computed.

Products are compared at the 1st, 2nd, 4th, 8th ... point. Between these a program gives the entries
without any, and everything that may change has to show in its own outputs.
"""

from __future__ import annotations

import pytest
import torch

from hesse import sparse_hessian_operator
from hesse.curvature import sparse_entries
from hesse.engine.closeness import difference
from hesse.engine.validator import Validator
from hesse.errors import DerivativeError
from hesse.tracing.backends.inductor import can_compile
from hesse.tracing.compose import composed
from hesse.tracing.functionalize import trace
from hesse.tracing.program import Program
from tests.sparse_functions import at_the_fifth_point, dense_of, point, rosenbrock


@pytest.fixture(autouse=True)
def whatever_they_cost(monkeypatch):
    """Programs of entries are used for small functions too."""
    monkeypatch.setattr(sparse_entries, "costs_less", lambda *_: True)


def check(S, f, *points):
    for x in points:
        S = S.at(x)
        torch.testing.assert_close(S.to_dense(), dense_of(f, x), rtol=1e-11, atol=1e-11)
    return S


def test_a_tensor_that_f_closes_over_is_read_at_every_point():
    weights = point(7, 3) + 1

    def f(x):
        return ((x[1:] - x[:-1]) ** 2 / weights**2 + weights * x[1:] ** 3).sum()

    S = check(at_the_fifth_point(f), f, point(8, 5))
    with torch.no_grad():
        weights.mul_(2.0)
    check(S, f, point(8, 6))


def test_an_index_that_is_changed_in_place_changes_the_pattern():
    index = torch.tensor([0, 1])

    def f(x):
        return x[index].prod() ** 2 + (x**4).sum()

    S = at_the_fifth_point(f)
    index[1] = 3
    check(S, f, point(8, 5), point(8, 6))


def test_indices_from_x_change_the_pattern():
    def f(x):
        order = x.argsort()
        return ((x[order[1:]] - x[order[:-1]]) ** 4).sum()

    check(at_the_fifth_point(f), f, point(8, 5), point(8, 6).flip(0))


def test_another_branch_in_python_is_seen():
    def f(x):
        return (x[1:] * x[:-1]).square().sum() if x[0] > -1 else (x**4).sum()

    S = at_the_fifth_point(f)
    check(S, f, point(8, 5) - 10, point(8, 6), point(8, 7) - 10)


def test_a_number_that_f_reads_from_python_is_seen():
    scale = [1.0]

    def f(x):
        return scale[0] * rosenbrock(x)

    S = at_the_fifth_point(f)
    scale[0] = 3.0
    check(S, f, point(8, 5), point(8, 6))


def test_the_error_for_a_number_that_changes_at_every_point_names_a_tensor_to_write_to():
    scale = torch.ones((), dtype=torch.float64)

    def f(x):
        return scale * rosenbrock(x)

    S = sparse_hessian_operator(f, point(8, 0))
    for k in range(1, 10):
        scale.copy_(torch.tensor(1.0 + k))
        S = S.at(point(8, k))
    check(S, f, point(8, 9))
    rate = [1.0]

    def at_other_points(S):
        for k in range(1, 10):
            rate[0] = 1.0 + k
            S = S.at(point(8, k))

    S = sparse_hessian_operator(lambda x: rate[0] * rosenbrock(x), point(8, 0))
    with pytest.raises(DerivativeError, match=r"remedy: .*tensor\.copy_\(new\)"):
        at_other_points(S)


def test_f_is_called_once_for_the_entries_the_value_and_the_gradient():
    calls = []

    def f(x):
        calls.append(None)
        return rosenbrock(x)

    S = at_the_fifth_point(f)
    calls.clear()
    x = point(8, 5)
    S = S.at(x)
    value = S.value
    assert len(calls) == 1
    torch.testing.assert_close(value, rosenbrock(x))
    exact = torch.func.grad(rosenbrock)(x)
    torch.testing.assert_close(S.flat_gradient, exact)
    assert len(calls) == 1


def test_products_are_compared_at_the_second_fourth_eighth_point():
    S = sparse_hessian_operator(rosenbrock, point(8))
    counts = []
    for seed in range(1, 17):
        S = S.at(point(8, seed))
        ((_, at),) = S._H.evaluations()
        counts.append(at.entry.validator.num_verified)
    compared = [n + 2 for n in range(15) if counts[n] > (counts[n - 1] if n else 0)]
    assert compared == [2, 4, 8, 16]


@pytest.mark.parametrize("verified", [False, True])
def test_a_value_that_is_far_off_is_never_accepted(verified):
    validator = Validator(eps=1e-16, output_eps=1e-16, num_points=4)
    one, near, far = torch.tensor([[1.0], [1 + 1e-9], [1 + 1e-3]], dtype=torch.float64).unbind()
    assert validator.accepts([one], [one], verified=verified)
    assert validator.num_points == 4 + (not verified)
    assert validator.accepts([near], [one], verified=verified) == verified  # a product is due
    assert not validator.accepts([far], [one], verified=verified)
    assert validator.num_points == 4 + (not verified)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (1.5, 1.0, 0.5),
        (0.0, 0.0, 0.0),
        (1e300, -1e300, float("inf")),
        (float("inf"), float("inf"), 0.0),
        (float("nan"), float("inf"), 0.0),
        (1.0, float("inf"), float("inf")),
        (float("nan"), 1.0, float("inf")),
        (float("inf"), 1.0, float("inf")),
    ],
)
def test_the_difference_of_numbers(ours, theirs, expected):
    """As that of vectors, which it is one of."""
    numbers = [torch.tensor(x, dtype=torch.float64) for x in (ours, theirs)]
    assert difference(numbers[:1], numbers[1:]) == pytest.approx(expected)
    if abs(ours) != 1e300:  # whose square overflows
        pairs = [torch.stack([x, x]) for x in numbers]
        assert difference(pairs[:1], pairs[1:]) == pytest.approx(expected)


def test_composed_programs_give_the_outputs_of_all():
    x, scale = point(5), torch.tensor(2.0, dtype=torch.float64)

    def program(function, *inputs):
        graph = trace(lambda: function(*inputs), inputs)
        return Program(graph, graph.nodes, graph.inputs, graph.outputs)

    first = program(lambda x: [x.sum(), x.exp(), 3 * x], x)
    _, a, b = first(x)
    two = program(lambda a, b: [a * b, scale * a], a, b)
    three = program(lambda a, b: [a - b], a, b)
    whole = composed(first, 1, [two, three])
    scale.fill_(5.0)  # is read at every run
    y = point(5, 1)
    expected = [y.sum(), y.exp() * 3 * y, 5 * y.exp(), y.exp() - 3 * y]
    for ours, exact in zip(whole(y), expected, strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
def test_compiled_entries_are_those_of_the_dense_hessian():
    weights = point(7, 3) + 1

    def f(x):
        return (weights * (x[1:] - x[:-1] ** 2) ** 2).sum() + (x[1:] * x[:-1]).exp().sum()

    S = at_the_fifth_point(f, mode="compiled-split")
    ((_, at),) = S._H.evaluations()
    assert any("an evaluation takes" in note for note in at.entry.notes)
    S = check(S, f, point(8, 5))
    with torch.no_grad():
        weights.mul_(2.0)
    check(S, f, point(8, 6), point(8, 7), point(8, 8))


def test_without_a_compiler_the_error_says_so(monkeypatch):
    monkeypatch.setattr("hesse.engine.compiler.can_compile", lambda _: False)
    with pytest.raises(Exception, match="there is no C\\+\\+ compiler"):
        sparse_hessian_operator(rosenbrock, point(8), mode="compiled-split")
