# SPDX-License-Identifier: Apache-2.0
"""Scalar factors are folded, and the numbers stay what they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesse.tracing.functionalize import trace
from hesse.tracing.graph import replay_node
from hesse.tracing.operations import is_view
from hesse.tracing.passes.scalar_factors import fold_scalar_factors
from hesse.tracing.passes.simplify import simplify

DOUBLE = torch.float64


def draw(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def folded(f, *tensors):
    """The results of f after the pass, and the operations that are no views."""
    graph = simplify(trace(lambda: f(*tensors), list(tensors)))
    nodes = fold_scalar_factors(graph.nodes, graph.outputs, graph.metas)
    values = dict(zip(graph.inputs, tensors, strict=True)) | graph.constants
    for node in nodes:
        replay_node(node, values)
    calls = [str(node.function).split(".")[1] for node in nodes if not is_view(node.function)]
    assert all(graph.metas[n].shape == values[n].shape for node in nodes for n in node.makes())
    assert all(graph.metas[n].stride == values[n].stride() for node in nodes for n in node.makes())
    return [values[number] for number in graph.outputs], calls


FOLDED = {
    "signs": (lambda x, y: [-((-x) * y) + y], ["mul", "add"]),
    "powers that came down": (lambda x, y: [3.0 * (2.0 * (x * y))], ["mul", "mul"]),
    "a difference": (lambda x, y: [x + -y], ["add"]),
    "a multiple that is added": (lambda x, y: [x + 2.5 * y], ["add"]),
    "a multiple that is subtracted": (lambda x, y: [x - y / 4.0], ["add"]),
    "minus a sum": (lambda x, y: [(-x - y) * -y], ["add", "mul"]),
    "through a view": (lambda x, y: [x[1:] + (-y)[:-1]], ["add"]),
    "equal multiples": (lambda x, y: [(3.0 * x + 3.0 * y) / 3.0 * y], ["add", "mul"]),
    "an output that is a multiple": (lambda x, y: [-x, (-x) * y], ["neg", "mul"]),
    "a part of an expanded tensor": (
        lambda x, y: [x[:, None] * y + y[:, None].expand(5, 5) / 5.0],
        ["mul", "add"],
    ),
    "a factor of one": (lambda x, y: [2.0 * (x / 2.0) + y], ["add"]),
}
KEPT = {
    "a matrix product and a sum": (
        lambda x, y: [-x[:, None] + x[:, None] @ y[None]],
        ["neg", "mm", "add"],
    ),
    "expanded tensors alone": (
        lambda x, y: [x[:, None].expand(5, 5) / 5.0 + y.expand(5, 5) / 3.0],
        ["div", "div", "add"],
    ),
    "an expanded tensor that is viewed": (
        lambda x, y: [((x[:, None].expand(5, 5) / 5.0) * 5.0).view(25)],
        ["div", "mul"],
    ),
    "zero": (lambda x, y: [0.0 * (2.0 * x) + y], ["mul", "mul", "add"]),
    "factors that overflow": (lambda x, y: [1e200 * (1e-200 * x)], ["mul", "mul"]),
    "integers": (lambda x, y: [-(2 * x.to(torch.int64))], ["_to_copy", "mul", "neg"]),
    "an operation that is not linear": (lambda x, y: [(-x).exp()], ["neg", "exp"]),
}


@pytest.mark.parametrize(("f", "calls"), (FOLDED | KEPT).values(), ids=FOLDED | KEPT)
def test_operations_that_are_left(f, calls):
    x, y = draw(5), draw(5, seed=1)
    results, left = folded(f, x, y)
    assert sorted(left) == sorted(calls)
    for result, expected in zip(results, f(x, y), strict=True):
        assert torch.allclose(result, expected, rtol=1e-14, atol=1e-14)


OPERATIONS = {
    "negate": lambda x, y, c: -x,
    "scale": lambda x, y, c: c * x,
    "divide": lambda x, y, c: x / c,
    "add": lambda x, y, c: torch.add(x, y, alpha=c),
    "subtract": lambda x, y, c: x - y,
    "multiply": lambda x, y, c: x * y,
    "transpose": lambda x, y, c: x.t().contiguous(),
    "slice": lambda x, y, c: torch.cat([x[1:], x[:1]]),
    "flatten": lambda x, y, c: x.reshape(-1).view(4, 4),
    "broadcast": lambda x, y, c: x + y[0],
    "expand": lambda x, y, c: y[:, :1].expand(4, 4) / c,
    "expand, and add": lambda x, y, c: x + y[:1].expand(4, 4) * c,
    "matrix product": lambda x, y, c: x @ y,
    "tanh": lambda x, y, c: torch.tanh(x),
    "sum": lambda x, y, c: x.sum(0, keepdim=True).expand(4, 4),
}
steps = st.lists(
    st.tuples(
        st.sampled_from(sorted(OPERATIONS)),
        *(st.integers(0, 30), st.integers(0, 30)),
        st.sampled_from([-1.0, 2.0, -0.5, 3.0, -7.0, 0.1]),
    ),
    min_size=2,
    max_size=14,
)


@pytest.mark.slow
@given(steps, st.sampled_from([DOUBLE, torch.float32]))
def test_programs_compute_the_same_in_no_more_passes(chosen, dtype):
    def f(x, y):
        values = [x, y]
        for name, one, two, c in chosen:
            operands = values[one % len(values)], values[two % len(values)]
            made = OPERATIONS[name](*operands, c)
            values.append(made if made.detach().abs().max() < 1e3 else made.tanh())
        return [values[-1], values[len(values) // 2] * 1.0]

    x, y = draw(4, 4, dtype=dtype) / 2, draw(4, 4, seed=1, dtype=dtype) / 2
    graph = simplify(trace(lambda: f(x, y), [x, y]))
    before = [node for node in graph.nodes if not is_view(node.function)]
    results, left = folded(f, x, y)
    assert len(left) <= len(before)
    for result, expected in zip(results, f(x, y), strict=True):
        size = 1e3 * torch.finfo(dtype).eps
        assert torch.allclose(result, expected, rtol=size, atol=size)
