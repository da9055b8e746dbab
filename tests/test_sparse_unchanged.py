# SPDX-License-Identifier: Apache-2.0
"""Sparse Hessians of a function that is not called at every point, because nothing in it changed.

What does change has to show at the very next point, where no product is compared.
"""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import hesse
from hesse import sparse_hessian_operator
from hesse.curvature import sparse_entries
from hesse.engine.point import Point
from hesse.errors import HesseError, NonFiniteError
from hesse.tracing.backends.inductor import can_compile
from tests.sparse_functions import (
    DOUBLE,
    FUNCTIONS,
    WITHOUT_PROGRAM,
    at_the_fifth_point,
    dense_of,
    point,
    rosenbrock,
)

compiled = pytest.param(
    "compiled-split",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler"),
    ],
)


@pytest.fixture(autouse=True)
def whatever_they_cost(monkeypatch):
    """Programs of entries are used for small functions too."""
    monkeypatch.setattr(sparse_entries, "costs_less", lambda *_: True)


@pytest.fixture
def calls(monkeypatch):
    """The points at which a function was called for its value."""
    found, evaluate = [], Point.evaluate

    def counted(point):
        found.append(point)
        return evaluate(point)

    monkeypatch.setattr(Point, "evaluate", counted)
    return found


def check(S, f, *seeds, n=8):
    for seed in seeds:
        x = point(n, seed)
        S = S.at(x)
        torch.testing.assert_close(S.to_dense(), dense_of(f, x), rtol=1e-11, atol=1e-11)
    return S


def chain(x, weights):
    return (weights * (x[1:] - x[:-1] ** 2) ** 2 + torch.exp(x[1:] * x[:-1])).sum()


# -- Functions that stay ---------------------------------------------------------------------------


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in WITHOUT_PROGRAM])
def test_entries_are_right_at_points_where_f_is_not_called(name):
    f, n = FUNCTIONS[name]
    S = sparse_hessian_operator(f, point(n))
    check(S, f, *range(1, 8), n=n)


def test_f_is_called_where_products_are_compared_and_for_its_value(calls):
    S = sparse_hessian_operator(rosenbrock, point(8))
    called = []
    for seed in range(1, 17):
        calls.clear()
        S = S.at(point(8, seed))
        called.append(bool(calls))
    assert [k + 2 for k, was in enumerate(called) if was] == [2, 4, 8, 16]
    S = S.at(point(8, 17))
    calls.clear()
    x = point(8, 17)
    torch.testing.assert_close(S.value, rosenbrock(x), rtol=0.0, atol=0.0)
    torch.testing.assert_close(S.flat_gradient, torch.func.grad(rosenbrock)(x))
    assert len(calls) == 1


@pytest.mark.parametrize("mode", ["auto", compiled])
def test_a_tensor_that_is_written_to_is_looked_at_once(calls, mode):
    weights, scale = point(7, 3) + 1, torch.ones((), dtype=DOUBLE)

    def f(x):
        return scale * chain(x, weights)

    S = at_the_fifth_point(f, mode=mode)
    calls.clear()
    S = check(S, f, 5)
    assert not calls
    weights.mul_(2.0)
    scale.fill_(3.0)
    S = check(S, f, 6)
    assert len(calls) == 1
    S = check(S, f, 7)
    S = S.at(point(8, 8))
    calls.clear()
    check(S, f, *range(9, 14))
    assert not calls


@pytest.mark.parametrize("mode", ["auto", compiled])
def test_writes_are_read_by_the_next_run(mode):
    """Also those that torch does not count, to tensors that are no factors by themselves."""
    shifts = [torch.ones(size, dtype=DOUBLE) for size in ((), (1,), (7,))]

    def f(x):
        a, b, c = shifts
        return ((x[1:] - x[:-1] + a) ** 4).sum() + ((x + b) ** 3).sum() + chain(x + b, c + 1)

    shifts = tuple(shifts)
    S = check(at_the_fifth_point(f, mode=mode), f, 5)
    for shift in shifts:
        shift.numpy()[...] += 1.0
        S = check(S, f, 6, 7)
        shift.add_(1.0)
        S = check(S, f, 8, 9)


# -- Functions that change -------------------------------------------------------------------------


class Box:
    def __init__(self):
        self.scale = 1.0

    def energy(self, x):
        return self.scale * rosenbrock(x)


def a_number_of_the_closure():
    scale = 1.0

    def change():
        nonlocal scale
        scale = 3.0

    return lambda x: scale * rosenbrock(x), change


def a_number_in_a_list_that_is_handed_on():
    scale = [1.0]
    return lambda x: sum(scale) * rosenbrock(x), lambda: scale.append(2.0)


def a_number_in_an_array():
    scale = np.ones(1)
    return lambda x: float(scale[0]) * rosenbrock(x), lambda: scale.fill(3.0)


def a_number_of_an_object():
    box = Box()
    return box.energy, lambda: setattr(box, "scale", 3.0)


def a_number_of_a_module():
    module = types.ModuleType("constants")
    module.scale = 1.0
    return lambda x: module.scale * rosenbrock(x), lambda: setattr(module, "scale", 3.0)


def a_default():
    def f(x, scale=1.0):
        return scale * rosenbrock(x)

    return f, lambda: setattr(f, "__defaults__", (3.0,))


def a_function():
    def inner(x):
        return rosenbrock(x)

    def change():
        nonlocal inner
        inner = lambda x: (x**4).sum()  # noqa: E731

    return lambda x: inner(x), change


def a_tensor():
    weights = point(7, 3) + 1

    def change():
        nonlocal weights
        weights = point(7, 4) + 1

    return lambda x: chain(x, weights), change


def the_data_of_a_tensor():
    weights = torch.nn.Parameter(point(7, 3) + 1, requires_grad=False)

    def change():
        weights.data = point(7, 4) + 1

    return lambda x: chain(x, weights), change


def the_strides_of_a_tensor():
    weights = point(16, 3).view(4, 4) + 1
    return lambda x: (weights * x.view(4, 4) ** 3).sum(), weights.t_


def an_index():
    index = torch.tensor([0, 1])
    return lambda x: x[index].prod() ** 2 + (x**4).sum(), lambda: index.copy_(torch.tensor([0, 3]))


def a_number_that_changes_nothing_at_the_next_point():
    """So that the value there is right by chance: beyond it the function is another."""
    bound = 10.0

    def f(x):
        return rosenbrock(x) + ((x > bound) * x**4).sum()

    def change():
        nonlocal bound
        bound = 0.9

    return f, change


CHANGES = [
    *(a_number_of_the_closure, a_number_in_a_list_that_is_handed_on, a_number_in_an_array),
    *(a_number_of_an_object, a_number_of_a_module, a_default, a_function, a_tensor),
    *(the_data_of_a_tensor, the_strides_of_a_tensor, an_index),
    a_number_that_changes_nothing_at_the_next_point,
]


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_a_change_between_points_is_seen(make):
    see_a_change(make, "auto")


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.parametrize("make", [a_number_of_the_closure, the_data_of_a_tensor, an_index])
def test_a_change_between_points_is_seen_by_a_compiled_program(make):
    see_a_change(make, "compiled-split")


def see_a_change(make, mode):
    f, change = make()
    n = 16 if make is the_strides_of_a_tensor else 8
    S = check(at_the_fifth_point(f, n, mode=mode), f, 5, n=n)
    before = S.to_dense().clone()
    change()
    S.at(0.5 * point(n, 6))
    S = check(S, f, *range(7, 13), n=n)
    assert not torch.equal(S.to_dense(), before)


def test_a_function_that_draws_numbers_is_refused():
    generator = np.random.default_rng(0)

    def f(x):
        return generator.random() * rosenbrock(x)

    with pytest.raises(HesseError):
        at_the_fifth_point(f)
    with pytest.raises(HesseError):
        at_the_fifth_point(lambda x: (torch.rand(8, dtype=DOUBLE) * x**2).sum())


def test_a_function_that_begins_to_draw_is_refused():
    generator, scale = np.random.default_rng(0), [1.0]

    def f(x):
        return (scale[0] if scale[0] == 1.0 else generator.random()) * rosenbrock(x)

    S = at_the_fifth_point(f)
    scale[0] = 0.0
    with pytest.raises(HesseError):
        check(S, f, 5)


@pytest.mark.parametrize("read", ["bool", "float", "item", "data", "tolist", "numpy", "sort"])
def test_what_python_reads_of_x_is_read_at_every_point(read):
    reads = {
        "bool": lambda x: 2.0 if x.detach()[0] > 0 else 3.0,
        "float": lambda x: float(x.detach()[0]),
        "item": lambda x: x.detach()[0].item(),
        "data": lambda x: x.data[0],
        "tolist": lambda x: x.detach().tolist()[0],
        "numpy": lambda x: float(x.detach().numpy()[0]),
        "sort": lambda x: x.detach().sort().values[0],
    }
    factor = reads[read]

    def f(x):
        return factor(x) * rosenbrock(x[1:]) + x[0] ** 3

    S = sparse_hessian_operator(f, point(8) - 10.0)
    for seed in range(1, 8):
        x = point(8, seed) + (-10.0 if seed < 5 else 10.0)
        try:
            S = S.at(x)
        except HesseError:
            return
        expected = torch.autograd.functional.hessian(f, x)
        torch.testing.assert_close(S.to_dense(), expected, rtol=1e-11, atol=1e-11)


def test_a_mode_of_the_users_is_asked_at_every_point(calls):
    class Doubling(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            return 2.0 * result if func is torch.exp else result

    weights = point(7, 3) + 1

    def f(x):
        return chain(x, weights)

    S = at_the_fifth_point(f)
    x = point(8, 5)
    with Doubling():
        torch.testing.assert_close(S.at(x).to_dense(), dense_of(f, x), rtol=1e-11, atol=1e-11)
    check(S, f, 6, 7)


def test_another_default_dtype_has_programs_of_its_own():
    def f(x):
        return (torch.full((7,), 0.1) * (x[1:] - x[:-1]) ** 4).sum()

    S = check(at_the_fifth_point(f), f, 5)
    torch.set_default_dtype(DOUBLE)
    try:
        check(S, f, 6, 7)
    finally:
        torch.set_default_dtype(torch.float32)


def test_entries_that_are_not_finite_are_refused():
    def f(x):
        return (x[1:] * x[:-1]).sum() + x.sqrt().sum() + (x**3).sum()

    S = at_the_fifth_point(f)
    x = point(8, 5)
    x[3] = 0.0
    with pytest.raises(NonFiniteError):
        S.at(x)
    check(S, f, 6)


def test_a_hessian_by_several_functions_of_one_pattern():
    """Two operators of functions that share code but no closure."""
    makes = [lambda w: lambda x: chain(x, w)] * 2
    fs = [make(point(7, k) + 1) for k, make in enumerate(makes)]
    S = [at_the_fifth_point(f) for f in fs]
    for f, one in zip(fs, S, strict=True):
        check(one, f, 5, 6)


def test_newtons_method_takes_the_same_steps_as_with_dense_hessians():
    weights = point(7, 3) + 1

    def f(x):
        return chain(x, weights) + (x**4).sum()

    x, S = point(8), None
    y = x.clone()
    for _ in range(8):
        S = sparse_hessian_operator(f, x) if S is None else S.at(x)
        x = x - hesse.solve(S, S.flat_gradient).x
        y = y - torch.linalg.solve(dense_of(f, y), torch.func.grad(f)(y))
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
