# SPDX-License-Identifier: Apache-2.0
"""`Reads`: nothing is said of a function that may hide a change."""

from __future__ import annotations

import functools
import random
import time
import types

import numpy as np
import pytest
import torch
from torch import nn

from hesse.ad.reads import Reads
from tests.read_objects import Plain, Statistics


class Slots:
    __slots__ = ("scale",)


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
