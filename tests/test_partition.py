# SPDX-License-Identifier: Apache-2.0
"""Partition of a graph into a primal program and tangent programs, with one or more directions."""

import pytest
import torch

from hesse.tracing.backends import onednn
from hesse.tracing.backends.inductor import as_fx
from hesse.tracing.functionalize import trace
from hesse.tracing.graph import UntraceableError
from hesse.tracing.partition import Tangent, partition
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.program import run
from hesse.tracing.vmap import batched

DOUBLE = torch.float64


def draw(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


INPUTS = draw(50, 3, seed=1)


def layer(w):
    """tanh of a linear layer, scaled by the square of its bias: 50 x 4 outputs of 4 x 4 numbers."""
    return torch.tanh(INPUTS @ w[:3] + w[3]) * w[3] ** 2


def jacobian_graph(w, v, u):
    """Inputs (w, v, u); outputs f(w), J v, J' u."""

    def outputs():
        value, product = torch.func.jvp(layer, (w,), (v,))[:2]
        vjp = torch.func.vjp(layer, w)[1]
        return [value, product, *vjp(u)]

    return simplify(trace(outputs, [w, v, u]))


def jacobian_partition(graph, **options):
    (_, v, u), (value, product, adjoint) = graph.inputs, graph.outputs
    tangents = {"product": Tangent([v], [product]), "adjoint": Tangent([u], [adjoint])}
    return partition(graph, [value], tangents, **options)


@pytest.fixture
def jacobian():
    return jacobian_graph(draw(4, 4), draw(4, 4, seed=2), draw(50, 4, seed=3))


@pytest.mark.parametrize("low_memory", [False, True])
def test_products_with_a_jacobian_and_its_adjoint(jacobian, low_memory):
    programs = jacobian_partition(jacobian, low_memory=low_memory)
    product, adjoint = programs.tangents["product"], programs.tangents["adjoint"]
    assert product.inputs[:-1] == adjoint.inputs[:-1] == programs.primal.outputs
    for seed in range(3):
        w, v, u = draw(4, 4, seed=seed + 10), draw(4, 4, seed=seed + 20), draw(50, 4, seed=seed)
        value, *residuals = run(programs.primal_and_gradient, [w])
        expected, jv = torch.func.jvp(layer, (w,), (v,))[:2]
        (ju,) = torch.func.vjp(layer, w)[1](u)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(run(product, [*residuals, v])[0], jv)
        torch.testing.assert_close(run(adjoint, [*residuals, u])[0], ju)
        assert torch.equal(torch.stack(run(programs.primal, [w])[:1]), torch.stack(residuals[:1]))


def test_a_primal_program_without_a_gradient():
    """J'u stands for a gradient: it is left out with the nodes that it alone needs."""
    w, fixed = draw(4, 4), draw(50, 4, seed=3)

    def outputs():
        value, vjp = torch.func.vjp(layer, w)
        return [value, *vjp(fixed), torch.func.jvp(layer, (w,), (direction,))[1]]

    direction = draw(4, 4, seed=2)
    graph = simplify(trace(outputs, [w, direction]))
    value, gradient, product = graph.outputs
    tangents = {"product": Tangent([graph.inputs[1]], [product])}
    programs = partition(graph, [value, gradient], tangents)
    light = programs.without_gradient(1)
    assert len(light) < len(programs.primal_and_gradient)
    value, _, *residuals = run(programs.primal_and_gradient, [w])
    for ours, theirs in zip(run(light, [w]), [value, *residuals], strict=True):
        assert torch.equal(ours, theirs)


def test_peak_memory_counts_the_larger_of_two_directions(jacobian):
    programs = jacobian_partition(jacobian)
    peaks = [program.peak_bytes() for program in programs.tangents.values()]
    assert programs.peak_bytes == programs.residual_bytes + max(peaks)


def test_a_tangent_program_takes_residuals_that_it_does_not_read(jacobian):
    """The sum of J v needs no residuals of `adjoint` alone: the list is that of all programs."""
    w, v, u = draw(4, 4), draw(4, 4, seed=2), draw(50, 4, seed=3)

    def outputs():
        return [w.sum(), 2.0 * v, torch.tanh(w) * torch.exp(w) * u[:4]]

    graph = simplify(trace(outputs, [w, v, u]))
    programs = jacobian_partition(graph)
    residuals = run(programs.primal, [w])
    product = programs.tangents["product"]
    assert len(residuals) == len(product.inputs) - 1 > 0
    assert {number for node in product.nodes for number in node.reads()} == {product.inputs[-1]}
    expected = 2.0 * v
    assert torch.equal(run(product, [*residuals, v])[0], expected)
    assert torch.equal(as_fx(product)(*residuals, v)[0], expected)
    block = torch.stack([v, u[:4]])
    assert torch.equal(run(batched(product, residuals, block), [*residuals, block])[0], 2.0 * block)
    (adjoint,) = run(programs.tangents["adjoint"], [*residuals, u])
    torch.testing.assert_close(adjoint, torch.tanh(w) * torch.exp(w) * u[:4])


def test_two_quantities_of_one_direction_share_it():
    x, v = draw(5), draw(5, seed=1)
    graph = simplify(trace(lambda: [x.sum(), x**3 * v, (x**3 * v) @ v], [x, v]))
    value, product, curvature = graph.outputs
    direction = graph.inputs[1:]
    tangents = {n: Tangent(direction, [k]) for n, k in (("hv", product), ("vhv", curvature))}
    programs = partition(graph, [value], tangents)
    residuals = run(programs.primal, [x])
    assert programs.peak_bytes == programs.residual_bytes + programs.tangents["hv"].peak_bytes()
    for name, expected in (("hv", x**3 * v), ("vhv", (x**3 * v) @ v)):
        torch.testing.assert_close(run(programs.tangents[name], [*residuals, v])[0], expected)


def test_a_dynamic_shape_is_checked_by_the_program_of_its_direction():
    w, v, u = draw(4), draw(4, seed=2), draw(4, seed=3)
    graph = simplify(trace(lambda: [w.sum(), 2.0 * v[w > 0], w * u], [w, v, u]))
    programs = jacobian_partition(graph)
    residuals = run(programs.primal, [w])
    product, adjoint = programs.tangents["product"], programs.tangents["adjoint"]
    assert torch.equal(run(product, [*residuals, v])[0], 2.0 * v[w > 0])
    assert any(node.guard is not None for node in product.nodes)
    assert all(node.guard is None for node in adjoint.nodes)
    assert torch.equal(run(adjoint, [*residuals, u])[0], w * u)


def test_quantities_and_branches_that_depend_on_a_foreign_direction_are_refused():
    w, v, u = draw(4), draw(4, seed=2), draw(4, seed=3)
    with pytest.raises(UntraceableError, match="product depends on the direction of another"):
        jacobian_partition(simplify(trace(lambda: [w.sum(), w * v * u, w * u], [w, v, u])))

    def outputs():
        sign = 1.0 if v.sum().item() > 0 else -1.0
        return [w.sum(), sign * w * v, w * u]

    with pytest.raises(UntraceableError, match="Python reads a number"):
        jacobian_partition(simplify(trace(outputs, [w, v, u])))


def test_without_measured_kernels_no_clock_is_read_and_onednn_is_not_used(monkeypatch):
    def measured():
        raise AssertionError("kernels were timed")

    w, v, u = (draw(300, 300, seed=seed, dtype=torch.float32) for seed in range(3))
    graph = simplify(trace(lambda: [w.sum(), w @ v, w.T @ u], [w, v, u]))
    monkeypatch.setattr(onednn, "is_faster_here", measured)
    programs = jacobian_partition(graph, measured_kernels=False)
    residuals = run(programs.primal, [w])
    product = programs.tangents["product"]
    assert torch.equal(run(product, [*residuals, v])[0], w @ v)
    assert torch.equal(as_fx(product)(*residuals, v)[0], w @ v)
    block = torch.stack([v, u])
    blocks = batched(product, residuals, block)
    assert not product.measured_kernels
    assert not blocks.measured_kernels
    run(blocks, [*residuals, block])
    assert product.peak_bytes() == w.nbytes
    assert not product.uses_onednn

    monkeypatch.setattr(onednn, "is_faster_here", lambda: True)
    assert jacobian_partition(graph).tangents["product"].uses_onednn
    assert not product.uses_onednn
