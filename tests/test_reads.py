# SPDX-License-Identifier: Apache-2.0
"""`Reads`: what a function can notice of a change shows."""

from __future__ import annotations

import dis
import functools
import math
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hesse.ad.reads import Reads
from tests.read_objects import Plain, Statistics

SCALE = 2.0


def twice(x):
    return 2 * x


def test_numbers_and_functions_in_all_places_are_found():
    h, weights, table, names = 0.5, torch.ones(3), {"a": 1.0, "b": [2.0]}, ("sum", 3)
    box = types.SimpleNamespace(scale=3.0, inner=types.SimpleNamespace(scale=4.0))

    def inner(x, power=2):
        return twice(x) ** power / h

    def f(x, *, mode="replicate"):
        padded = F.pad(x[None], (1, 1), mode=mode)[0]
        parts, g = [weights * inner(part) for part in (x, -x)], lambda part: part.sum()
        total = sum(g(part) for part in parts) + math.sqrt(2.0) * box.inner.scale
        for k in range(names[1]):
            total = total + torch.where(x > k, x, box.scale).sum() * table["b"][0]
        return total + padded.sum() + SCALE * table["a"]

    reads = Reads.of(f)
    assert reads is not None
    assert reads.are_as_found
    values = [value for *_, value in reads.places]
    for expected in (h, 1.0, 2.0, 3.0, 4.0, SCALE, twice, inner, F.pad, torch.where, math.sqrt):
        assert any(value is expected or value == expected for value in values
                   if not isinstance(value, torch.Tensor))  # fmt: skip
    assert [tensor is weights for tensor in reads.tensors] == [True]


# -- Changes that are seen -------------------------------------------------------------------------


def in_a_cell():
    scale = 2.0

    def change():
        nonlocal scale
        scale = 3.0

    return lambda x: scale * x.sum(), change


def in_a_cell_of_an_inner_function():
    scale = 2.0

    def change():
        nonlocal scale
        scale = 3.0

    return lambda x: sum((lambda k: k * scale * x.sum())(k) for k in range(2)), change


def that_is_removed_from_a_cell():
    scale = 2.0

    def change():
        nonlocal scale
        del scale

    return lambda x: scale * x.sum(), change


def in_a_global_name():
    names = {"__builtins__": __builtins__, "scale": 2.0}
    exec("def f(x): return scale * x.sum()", names)
    return names["f"], lambda: names.update(scale=3.0)


def that_is_removed_from_global_names():
    names = {"__builtins__": __builtins__, "scale": 2.0}
    exec("def f(x): return scale * x.sum()", names)
    return names["f"], lambda: names.pop("scale")


def of_a_builtin_name():
    names = {"__builtins__": __builtins__}
    exec("def f(x): return abs(x).sum()", names)
    return names["f"], lambda: names.update(abs=lambda x: x)


def in_a_module():
    module = types.ModuleType("constants")
    module.scale = 2.0

    def change():
        module.scale = 3.0

    return lambda x: module.scale * x.sum(), change


def in_a_list():
    scale = [2.0]
    return lambda x: scale[0] * x.sum(), lambda: scale.__setitem__(0, 3.0)


def in_a_list_that_gets_shorter():
    scale = [2.0, 3.0]
    return lambda x: scale[1] * x.sum(), scale.pop


def in_a_dict_of_dicts():
    scale = {"a": {"b": 2.0}}
    return lambda x: scale["a"]["b"] * x.sum(), lambda: scale["a"].update(b=3.0)


def of_an_object():
    plain = Plain()
    return lambda x: plain.scale * x.sum(), lambda: setattr(plain, "scale", 3.0)


def of_an_object_by_its_method():
    plain = Plain()
    return plain.energy, lambda: setattr(plain, "scale", 3.0)


def of_an_object_that_is_called():
    plain = Plain()
    return plain, lambda: setattr(plain, "scale", 3.0)


def of_an_object_over_that_of_its_class():
    plain = Plain()
    return plain.energy, lambda: setattr(plain, "offset", 3.0)


def of_a_method_of_an_object():
    plain = Plain()
    return plain.energy, lambda: setattr(plain, "shifted", twice)


def of_a_tensor_of_an_object():
    plain = Plain()
    return plain.energy, lambda: setattr(plain, "weights", torch.zeros(3))


def of_a_method_of_a_class():
    class Other(Plain):
        pass

    def change():
        Other.shifted = twice

    return Other().energy, change


def of_a_default():
    def f(x, scale=2.0):
        return scale * x.sum()

    return f, lambda: setattr(f, "__defaults__", (3.0,))


def of_a_default_by_name():
    def f(x, *, scale=2.0):
        return scale * x.sum()

    return f, lambda: f.__kwdefaults__.update(scale=3.0)


def of_the_code():
    def f(x):
        return x.sum()

    return f, lambda: setattr(f, "__code__", twice.__code__)


def of_the_code_of_a_function_in_it():
    def g(x):
        return x.sum()

    return lambda x: g(x), lambda: setattr(g, "__code__", twice.__code__)


def of_a_function_in_it():
    def g(x):
        return x.sum()

    def change():
        nonlocal g
        g = twice

    return lambda x: g(x), change


def of_a_function_in_a_partial():
    scale = {"scale": 2.0}
    f = functools.partial(lambda x, scale: scale * x.sum(), **scale)
    return f, lambda: f.keywords.update(scale=3.0)


def that_is_new_in_a_partial():
    f = functools.partial(lambda x, scale=2.0, power=2: scale * x.pow(power).sum(), power=3)
    return f, lambda: f.keywords.update(scale=3.0)


def of_the_class_of_an_object():
    class Other(Plain):
        def __call__(self, x):
            return x.exp().sum()

    f = Plain()
    return f, lambda: setattr(f, "__class__", Other)


def of_the_class_of_an_object_in_a_cell():
    f, change = of_the_class_of_an_object()
    return lambda x: 2 * f(x), change


def of_a_function_of_torch():
    module = types.ModuleType("torch_like")
    module.nn = types.ModuleType("nn")
    module.nn.softplus = F.softplus

    def change():
        module.nn.softplus = torch.exp

    return lambda x: module.nn.softplus(x).sum(), change


def of_a_tensor():
    weights = torch.ones(3)

    def change():
        nonlocal weights
        weights = torch.zeros(3)

    return lambda x: (weights * x).sum(), change


def of_the_strides_of_a_tensor():
    weights = torch.rand(3, 3)
    return lambda x: (weights @ x).sum(), weights.t_


def of_the_strides_of_its_data():
    weights = nn.Parameter(torch.rand(3, 3))

    def change():
        weights.data = weights.data.T

    return lambda x: (weights @ x).sum(), change


def of_an_attribute_of_a_tensor():
    weights = torch.rand(3)
    return lambda x: weights.sum() * x.sum(), lambda: setattr(weights, "sum", lambda: 1.0)


CHANGES = [
    *(in_a_cell, in_a_cell_of_an_inner_function, that_is_removed_from_a_cell, in_a_global_name),
    *(that_is_removed_from_global_names, of_a_builtin_name, in_a_module, in_a_list),
    *(in_a_list_that_gets_shorter, in_a_dict_of_dicts, of_an_object, of_an_object_by_its_method),
    *(of_an_object_that_is_called, of_an_object_over_that_of_its_class, of_a_method_of_an_object),
    *(of_a_tensor_of_an_object, of_a_method_of_a_class, of_a_default, of_a_default_by_name),
    *(of_the_code, of_the_code_of_a_function_in_it, of_a_function_in_it, of_a_tensor),
    *(that_is_new_in_a_partial, of_the_class_of_an_object, of_the_class_of_an_object_in_a_cell),
    *(of_a_function_in_a_partial, of_a_function_of_torch, of_the_strides_of_a_tensor),
    *(of_the_strides_of_its_data, of_an_attribute_of_a_tensor),
]


def test_a_method_of_tensors_that_is_replaced_is_seen(monkeypatch):
    reads = Reads.of(lambda x: x.lgamma().sum())
    assert reads is not None
    assert reads.are_as_found
    monkeypatch.setattr(torch.Tensor, "lgamma", torch.Tensor.exp)
    assert not reads.are_as_found


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_a_change_is_seen(make):
    f, change = make()
    f(torch.ones(3)) if make is not of_an_object else None
    reads = Reads.of(f)
    assert reads is not None
    assert reads.are_as_found
    change()
    assert not reads.are_as_found
    again = Reads.of(f)
    assert again is None or again.are_as_found


def test_other_ways_of_python_to_load_a_variable_are_known(monkeypatch):
    """Python 3.14 has LOAD_FAST_BORROW: an object's own attributes are read in it as well."""
    instructions = dis.get_instructions

    def renamed(code):
        for found in instructions(code):
            is_load = found.opname == "LOAD_FAST"
            yield found._replace(opname="LOAD_FAST_BORROW") if is_load else found

    monkeypatch.setattr(dis, "get_instructions", renamed)
    f = Statistics()
    reads = Reads.of(f)
    assert reads is not None
    f.std = 4.0
    assert not reads.are_as_found
