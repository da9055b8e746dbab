# SPDX-License-Identifier: Apache-2.0
"""`Reads`: what a function can notice shows, and of what may hide a change nothing is said."""

from __future__ import annotations

import dis
import functools
import math
import random
import time
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hesse.ad.reads import Reads

SCALE = 2.0


def twice(x):
    return 2 * x


class Plain:
    """An object with numbers, a tensor and methods."""

    offset = 1.0

    def __init__(self):
        self.scale, self.weights = 2.0, torch.ones(3)

    def energy(self, x):
        return self.scale * self.shifted(x).sum() + sum(w * self.offset for w in self.weights)

    def shifted(self, x):
        return x[1:] - self.offset

    def __call__(self, x):
        return self.energy(x)


class Slots:
    __slots__ = ("scale",)


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


# -- Functions of which nothing is known -----------------------------------------------------------


def counts():
    count = 0

    def f(x):
        nonlocal count
        count += 1
        return count * x.sum()

    return f


def remembers():
    seen = []

    def f(x):
        seen.append(1.0)
        return len(seen) * x.sum()

    return f


def writes_to_an_object():
    plain = Plain()

    def f(x):
        plain.scale = plain.scale + 1.0
        return x.sum()

    return f


def writes_to_a_global_name():
    names = {"__builtins__": __builtins__, "scale": 2.0}
    exec("def f(x):\n    global scale\n    scale += 1.0\n    return scale * x.sum()", names)
    return names["f"]


def writes_to_a_list():
    scale = [1.0]

    def f(x):
        scale[0] += 1.0
        return scale[0] * x.sum()

    return f


def takes_one_of_a_list():
    scales, k = [1.0, 2.0], 0
    return lambda x: scales[k] * x.sum()


def takes_an_attribute_by_name():
    plain = Plain()
    return lambda x: getattr(plain, "sca" + "le") * x.sum()


def takes_an_attribute_of_one_of_two():
    plain, other = Plain(), Plain()
    return lambda x: (plain if x.ndim else other).scale * x.sum()


def has_a_property():
    class Other:
        @property
        def scale(self):
            return random.random()

    other = Other()
    return lambda x: other.scale * x.sum()


def has_attributes_of_its_own_making():
    class Other:
        def __getattr__(self, name):
            return random.random()

    other = Other()
    return lambda x: other.scale * x.sum()


def has_slots():
    slots = Slots()
    slots.scale = 2.0
    return lambda x: slots.scale * x.sum()


def hands_on_an_object():
    plain = Plain()
    return lambda x: (lambda p: p.scale)(plain) * x.sum()


class Statistics:
    """An object that is called, with an attribute named as one of tensors."""

    def __init__(self):
        self.std = 2.0

    def __call__(self, x):
        return self.std * x.sum()


def hands_on_an_object_that_is_called():
    statistics = Statistics()
    return lambda x: (lambda s: s.std)(statistics) * statistics(x)


def hands_on_itself():
    class Itself(Statistics):
        def __call__(self, x):
            other = self
            return other.std * x.sum()

    return Itself()


def hands_on_itself_in_a_tuple():
    class Itself(Statistics):
        def __call__(*both):
            return both[0].std * both[1].sum()

    return Itself()


def goes_by_an_operator_of_an_object():
    class Scaled:
        def __call__(self, x):
            return x.sum()

        def __mul__(self, x):
            return random.random() * x

    scaled = Scaled()
    return lambda x: (scaled * x).sum()


def asks_an_object_for_its_length():
    class Long:
        def __call__(self, x):
            return x.sum()

        def __len__(self):
            return 3

    long = Long()
    return lambda x: len(long) * long(x)


def compares_objects():
    class Nothing:
        pass

    one, other = Nothing(), Nothing()
    return lambda x: (2 if one == other else 3) * x.sum()


def goes_by_an_operator_of_a_number():
    class Scale(float):
        __slots__ = ()

        def __mul__(self, x):
            return random.random() * x

    scale = Scale(2.0)
    return lambda x: (scale * x).sum()


def has_a_property_of_a_module():
    class Module(types.ModuleType):
        scale = property(lambda self: random.random())

    module = Module("module")
    vars(module)["scale"] = 2.0
    return lambda x: module.scale * x.sum()


def has_an_attribute():
    def f(x):
        return x.sum()

    f.scale = 2.0
    return f


def calls_a_cached_function():
    cached = functools.cache(lambda n: float(n))
    return lambda x: cached(3) * x.sum()


def goes_by_numpy():
    return lambda x: np.sqrt(2.0) * x.sum()


def holds_an_array():
    array = np.ones(3)
    return lambda x: (torch.as_tensor(array) * x).sum()


def draws_from_numpy():
    return lambda x: np.random.default_rng().random() * x.sum()


def draws_from_python():
    return lambda x: random.random() * x.sum()


def looks_at_the_clock():
    return lambda x: time.time() * x.sum()


def looks_at_entries_past_the_trace():
    return lambda x: sum(x.tolist()) * x.sum()


def looks_at_data():
    return lambda x: (x.data * x).sum()


def goes_over_to_numpy():
    return lambda x: float(x.detach().numpy().sum()) * x.sum()


def asks_whether_gradients_are_recorded():
    return lambda x: x.sum() if torch.is_grad_enabled() else 2 * x.sum()


def asks_whether_a_gradient_is_required():
    return lambda x: x.sum() if x.requires_grad else 2 * x.sum()


def asks_for_the_seed():
    return lambda x: torch.initial_seed() * x.sum()


def calls_a_module():
    layer = nn.Linear(3, 1)
    return lambda x: layer(x).sum()


def is_a_module():
    return nn.Linear(3, 1)


def imports():
    def f(x):
        from random import random

        return random() * x.sum()

    return f


def goes_by_a_context():
    def f(x):
        with torch.no_grad():
            scale = x.sum()
        return scale * x.sum()

    return f


def is_decorated():
    @functools.lru_cache
    def f(x):
        return x.sum()

    return f


def holds_a_generator():
    numbers = iter(range(100))
    return lambda x: sum(k for k in numbers) * x.sum()


def holds_a_sparse_matrix():
    matrix = torch.eye(3).to_sparse()
    return lambda x: (matrix @ x).sum()


UNKNOWN = [
    *(counts, remembers, writes_to_an_object, writes_to_a_global_name, writes_to_a_list),
    *(takes_one_of_a_list, takes_an_attribute_by_name, takes_an_attribute_of_one_of_two),
    *(has_a_property, has_attributes_of_its_own_making, has_slots, hands_on_an_object),
    *(has_an_attribute, calls_a_cached_function, goes_by_numpy, holds_an_array, draws_from_numpy),
    *(draws_from_python, looks_at_the_clock, looks_at_entries_past_the_trace, looks_at_data),
    *(goes_over_to_numpy, asks_whether_gradients_are_recorded, asks_for_the_seed, calls_a_module),
    *(asks_whether_a_gradient_is_required, is_a_module, imports, goes_by_a_context, is_decorated),
    *(holds_a_generator, holds_a_sparse_matrix, hands_on_an_object_that_is_called, hands_on_itself),
    *(hands_on_itself_in_a_tuple, goes_by_an_operator_of_an_object, compares_objects),
    *(asks_an_object_for_its_length, goes_by_an_operator_of_a_number, has_a_property_of_a_module),
]


@pytest.mark.parametrize("make", UNKNOWN, ids=lambda make: make.__name__)
def test_nothing_is_said_of_a_function_that_may_read_anything(make):
    f = make()
    f(torch.ones(3))
    assert Reads.of(f) is None


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
