"""In-place operations in f: the traced graph has none, and gives the same product."""

import pytest
import torch

from hesse import hessian_operator
from hesse.tracing.functionalize import trace
from hesse.tracing.operations import writes

DOUBLE = torch.float64
aten = torch.ops.aten


def fresh(y):
    return y.sin().mul_(2.0).add_(y).tanh_().sum()


def mixed_dtypes(y):
    return (y.float() ** 2).add_(y).double().pow(2).sum()


def a_view(y):
    z = 1.5 * y
    z[1:].mul_(y[0])
    return z.pow(2).sum()


def seen_by_a_view(y):
    z = y * y
    first = z[:3]
    z.mul_(y)
    return (first * y[:3]).sum() + z.sum()


def seen_by_a_later_view(y):
    z = (y * y).mul_(y)
    first = z[:3]
    z.add_(y**4)
    return (first * y[:3]).sum()


def parts(y):
    left, right = torch.cat([y, y * y]).chunk(2)
    return (left.clone().sigmoid_() * right.tanh()).sum()


def unsafe_parts(y):
    left, right = torch.unsafe_chunk(torch.stack([y, y * y], 1), 2, 1)
    return (left.sigmoid_() * right.tanh_()).sum()


def an_argument(y):
    z = y.clone()
    z.mul_(y)
    z.div_(3.0)
    return z.pow(3).sum()


CASES = [
    *(fresh, mixed_dtypes, a_view, seen_by_a_view, seen_by_a_later_view, parts),
    *(unsafe_parts, an_argument),
]


@pytest.mark.parametrize("f", CASES, ids=lambda f: f.__name__)
def test_products_of_functions_with_in_place_operations(f):
    generator = torch.Generator().manual_seed(0)
    x, v = torch.rand(2, 6, generator=generator, dtype=DOUBLE)
    H = hessian_operator(f, x, mode="traced-split")
    exact = torch.autograd.functional.hessian(f, x)
    tolerance = 1e-5 if f is mixed_dtypes else 1e-10
    for direction in (v, x):
        torch.testing.assert_close(H @ direction, exact @ direction, rtol=tolerance, atol=tolerance)


def test_a_traced_graph_writes_to_no_tensor():
    x = torch.rand(6, dtype=DOUBLE)
    for f in CASES:
        graph = trace(lambda f=f: [f(x)], [x])
        assert not any(writes(node.function) for node in graph.nodes), f.__name__
