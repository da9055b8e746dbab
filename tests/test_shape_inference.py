"""Shape inference gives the metas that torch gives."""

import itertools
import sys

import pytest
import torch

from hesse.tracing.graph import TensorMeta, Value
from hesse.tracing.shape_inference import infer_meta

aten = torch.ops.aten

LAYOUTS = [
    torch.empty(4, 6),
    torch.empty(6, 4).T,
    torch.empty(4, 1).expand(4, 6),
    torch.empty(8, 12)[::2, ::2],
    torch.empty(4, 0),
    torch.empty(1, 6),
    torch.empty(4, 6, dtype=torch.float64),
]


def check(function, tensors, *args):
    """function(*args) on these tensors, with values in their places in `args`."""
    metas = dict(enumerate(map(TensorMeta.of, tensors)))
    expected = function(*torch.utils._pytree.tree_map(_tensor_of(tensors), list(args)))
    found = infer_meta(function, args, metas)
    assert (found.shape, found.dtype, found.device) == (
        tuple(expected.shape), expected.dtype, expected.device
    )  # fmt: skip
    assert found.offset == 0
    if expected.numel() > 0:
        assert found.stride == expected.stride()


def _tensor_of(tensors):
    return lambda leaf: tensors[leaf.index] if isinstance(leaf, Value) else leaf


@pytest.mark.parametrize("tensor", LAYOUTS, ids=lambda t: f"{tuple(t.shape)}{t.stride()}")
def test_metas_of_views_and_of_new_zeros(tensor):
    for dim in (0, 1, -1):
        if tensor.shape[dim]:
            check(aten.select.int, [tensor], Value(0), dim, 0)
    for dim in (0, 1, 2, -1):
        check(aten.unsqueeze.default, [tensor], Value(0), dim)
    check(aten.t.default, [tensor], Value(0))
    for first, last in ((0, 3), (1, 100), (-2, 9), (3, 1), (0, sys.maxsize)):
        check(aten.slice.Tensor, [tensor], Value(0), 0, first, last)
    check(aten.new_zeros.default, [tensor], Value(0), [2, 3, 5])


@pytest.mark.parametrize(("a", "b"), list(itertools.product(LAYOUTS[:6], repeat=2)))
def test_metas_of_sums_products_and_concatenations(a, b):
    if a.shape[0] == b.shape[0]:
        check(aten.cat.default, [a, b], [Value(0), Value(1)], 1)
    if a.shape == b.shape:
        check(aten.add.Tensor, [a, b], Value(0), Value(1))
        check(aten.mm.default, [a, b.T], Value(0), Value(1))


def test_an_operation_without_a_rule_is_left_to_torch():
    check(aten.mul.Tensor, [LAYOUTS[0], LAYOUTS[5]], Value(0), Value(1))
    check(aten.cat.default, [LAYOUTS[0], LAYOUTS[6]], [Value(0), Value(1)], 0)
    images = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    check(aten.cat.default, [images, images], [Value(0), Value(1)], 0)


CELLS = "m = torch.nn.LSTM(3, 4); z = torch.randn(5, 2, 3); f = lambda p: "
CELLS += "torch.func.functional_call(m, p, (z,))[0].pow(2).sum(); x = dict(m.named_parameters())"
FUNCTIONS = {
    "sums": "x = torch.rand(50); f = lambda y: ((1 - y[:-1])**2 + (y[1:] - y[:-1]**2)**2).sum()",
    "means": "x = torch.rand(9, 5); f = lambda W: torch.tanh(torch.ones(7, 9) @ W).pow(2).mean()",
    "cells": CELLS,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_tracing_imports_no_compiler(name, fresh):
    """The first trace of a process would wait a second for it."""
    code = (
        f"import sys, torch; from hesse import hessian_operator; {FUNCTIONS[name]};"
        "H = hessian_operator(f, x, mode='traced-split'); H @ torch.ones(H.shape[0]);"
        "print({'sympy', 'torch._dynamo'} & set(sys.modules))"
    )
    done = fresh.run(code)
    assert done.stdout.strip() == "set()", done.stderr
