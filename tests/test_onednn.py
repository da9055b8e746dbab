# SPDX-License-Identifier: Apache-2.0
"""Large float32 matrix products by oneDNN, where that is faster: the same products."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hesse.curvature import hessian_operator
from hesse.memory.peak import PeakMemory
from hesse.tracing.backends import onednn
from hesse.tracing.backends.inductor import as_fx
from hesse.tracing.functionalize import trace
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.program import Program, run
from hesse.vectors.inner_products import norm

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no such operation"
)


@pytest.fixture
def faster(monkeypatch):
    """As on a processor on which oneDNN is faster."""
    monkeypatch.setattr(onednn, "is_faster_here", lambda: True)


def matrix(rows, columns, layout, generator):
    """A random matrix; `layout`: of rows, of columns, or a part of a larger one."""
    if layout == "columns":
        return torch.randn(columns, rows, generator=generator).t()
    if layout == "part":
        return torch.randn(rows, columns + 3, generator=generator)[:, 1 : columns + 1]
    return torch.randn(rows, columns, generator=generator)


SIZES = st.integers(1, 40)
LAYOUTS = st.sampled_from(["rows", "columns", "part"])


@given(SIZES, SIZES, SIZES, LAYOUTS, LAYOUTS, st.sampled_from(["mm", "addmm", "addmm.out"]))
def test_kernels_by_onednn_against_float64(m, k, n, left, right, form):
    generator = torch.Generator().manual_seed(0)
    a, b = matrix(m, k, left, generator), matrix(k, n, right, generator)
    c = torch.randn(m, n, generator=generator)
    expected = a.double() @ b.double() + (0 if form == "mm" else c.double())
    if form == "mm":
        product = onednn.kernel(torch.ops.aten.mm.default)(a, b)
    elif form == "addmm":
        product = onednn.kernel(torch.ops.aten.addmm.default)(c, a, b)
    else:
        product = onednn.kernel(torch.ops.aten.addmm.out)(c, a, b, out=c)
        assert product is c
    assert product.is_contiguous()
    assert norm(product.double() - expected) <= 1e-6 * norm(expected) + 1e-6


def test_nan_and_inf_stay_in_their_row_and_column():
    a, b = torch.randn(30, 50), torch.randn(50, 20)
    a[3, 4], b[7, 5] = float("nan"), float("inf")
    bad = ~torch.isfinite(onednn.kernel(torch.ops.aten.mm.default)(a, b))
    expected = torch.zeros(30, 20, dtype=torch.bool)
    expected[3], expected[:, 5] = True, True
    assert torch.equal(bad, expected)


def program_of(f, *inputs, **options):
    with torch.no_grad():
        graph = simplify(trace(lambda: [f(*inputs)], list(inputs)))
    return Program(graph, graph.nodes, graph.inputs, graph.outputs, **options)


LARGE = torch.randn(300, 200)


@pytest.mark.parametrize(
    ("f", "inputs", "expected"),
    [
        (torch.mm, (LARGE, LARGE.t().contiguous()), True),
        (torch.mm, (LARGE.t().contiguous(), LARGE), True),
        (lambda a, b: torch.addmm(a[:, 0], a, b), (torch.randn(200, 200), LARGE.t()), None),
        (torch.mm, (LARGE[:30], LARGE.t().contiguous()), False),  # small
        (torch.mm, (LARGE.double(), LARGE.t().contiguous().double()), False),
        (torch.mm, (LARGE.bfloat16(), LARGE.t().contiguous().bfloat16()), False),
        (torch.mm, (torch.randn(9000, 500), torch.randn(500, 1)), False),  # a vector
        (lambda a, b: torch.addmm(b, a, a.t(), beta=2.0), (LARGE, torch.randn(300, 300)), False),
    ],
)
def test_onednn_is_used_for_large_products_in_float32(faster, f, inputs, expected):
    if expected is None:
        inputs, expected = (LARGE, LARGE.t().contiguous()), True
    program = program_of(f, *(part.clone() for part in inputs))
    assert program.uses_onednn == expected
    (product,) = run(program, list(inputs))
    exact = f(*(part.double() for part in inputs))
    assert norm(product.double() - exact) <= 2 * torch.finfo(product.dtype).eps ** 0.9 * norm(exact)


def test_onednn_can_be_switched_off(faster, monkeypatch):
    program = program_of(torch.mm, LARGE, LARGE.t().contiguous())
    assert program.uses_onednn
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not program.uses_onednn


def test_the_measurement_is_not_counted_and_draws_no_random_numbers():
    onednn.is_faster_here.cache_clear()
    before = torch.random.get_rng_state()
    with FlopCounterMode(display=False) as counter, PeakMemory() as memory:
        answer = onednn.is_faster_here()
    assert counter.get_total_flops() == 0
    assert memory.peak == 0
    assert torch.equal(before, torch.random.get_rng_state())
    assert answer in (True, False)


def test_the_measurement_does_not_depend_on_the_default_dtype(monkeypatch):
    """The products compared are right, and in float32, whatever torch makes by default."""
    monkeypatch.setattr(onednn, "_RATIO", 1e9)
    torch.set_default_dtype(torch.float64)
    try:
        assert onednn.measure() is True
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_torch_without_the_operation_does_not_use_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "_mm", lambda a, b: torch.ops.mkldnn._no_such_thing(a, b))
    assert onednn.measure() is False


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(160, 256), nn.Tanh(), nn.Linear(256, 160))
    inputs = torch.randn(256, 160)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def f(leaves):
        outputs = torch.func.functional_call(model, leaves, (inputs.to(leaves["0.bias"]),))
        return (outputs - inputs).square().mean()

    return f, params, torch.randn(sum(p.numel() for p in params.values()))


def test_a_prepared_product_is_that_of_float64(faster, network):
    f, params, v = network
    H = hessian_operator(f, params, mode="traced-split")
    double = {name: p.double() for name, p in params.items()}
    expected = hessian_operator(f, double, mode="reverse-over-reverse") @ v.double()
    assert norm((H @ v).double() - expected) <= 1e-6 * norm(expected)


def test_flop_counts_are_the_same_with_onednn(monkeypatch, network):
    f, params, v = network
    counts = []
    for is_faster in (True, False):
        monkeypatch.setattr(onednn, "is_faster_here", lambda answer=is_faster: answer)
        H = hessian_operator(f, params, mode="traced-split")
        H @ v
        with FlopCounterMode(display=False) as counter:
            H @ v
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_inductor_gets_an_operation_of_hesse(faster):
    def f(a, b, c):
        return torch.addmm(c, a, b).tanh()

    inputs = LARGE, LARGE.t().contiguous(), torch.randn(300, 300)
    program = program_of(f, *inputs)
    graph = as_fx(program)
    assert onednn.compiled_mm in {node.target for node in graph.graph.nodes}
    assert torch.allclose(graph(*inputs)[0], f(*inputs), atol=1e-4)


def test_the_peak_includes_scratch_memory(faster):
    """The predicted peak is not less than the measured one."""

    def f(a, b):
        return (a.t() @ b) + (b.t() @ a)

    inputs = [torch.randn(200, 300), torch.randn(200, 300)]
    program = program_of(f, *inputs)
    run(program, inputs)
    with PeakMemory() as memory:
        run(program, inputs)
    peak = program.peak_bytes()
    assert memory.peak <= peak <= memory.peak + 2 * inputs[0].nbytes
