# SPDX-License-Identifier: Apache-2.0
"""The passes over a traced graph, one at a time, and whose memory a product is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesse.curvature import hessian_operator
from hesse.tracing.backends import pooling
from hesse.tracing.backends.inductor import as_fx, can_compile, compile_program
from hesse.tracing.functionalize import trace
from hesse.tracing.passes.batched_matmul import merge_batched_matmuls
from hesse.tracing.passes.join_slices import join_slices
from hesse.tracing.passes.pooling import mask_before_pooling
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.program import Program, run
from hesse.tracing.vmap import batched
from hesse.vectors.inner_products import norm

DOUBLE = torch.float64
aten = torch.ops.aten


def draw(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def program_of(f, *tensors, passes=(simplify,)):
    """The program of f, traced on these tensors."""
    graph = trace(lambda: [f(*tensors)], tensors)
    for apply in passes:
        graph = apply(graph)
    return Program(graph, graph.nodes, graph.inputs, graph.outputs)


def functions(program):
    return {node.function for node in program.nodes}


def assert_close(a, b, tolerance=1e-13):
    assert a.shape == b.shape
    assert norm((a - b).flatten()) <= tolerance * norm(b.flatten())


def test_a_block_without_a_vmap_rule_prints_nothing_on_stderr(capfd):
    """Neither does one through an operation for which vmap has no rule."""

    def assigned(x):
        z = x.clone()
        z[0:2] = x[:2] ** 2
        return (z**2).sum()

    for f in (assigned, lambda x: (x.unfold(0, 3, 2) ** 3).sum()):
        x, block = draw(6), draw(6, 4, seed=1)
        H = hessian_operator(f, x, mode="traced-split")
        H @ block[:, 0]
        expected = hessian_operator(f, x, mode="retained-graph") @ block
        assert_close(H @ block, expected)
    assert capfd.readouterr().err == ""


# --------------------------------------------------------------------------------------------------
# Constant propagation


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * torch.ones_like(x),
        lambda x: torch.ones(()).to(x) * x,
        lambda x: x + torch.zeros_like(x),
        lambda x: x - torch.zeros(3, 1, dtype=DOUBLE).expand(3, 4),
        lambda x: x * (2 * torch.full((4,), 0.25, dtype=DOUBLE) * 2),
        lambda x: x**1 * x**0 / torch.exp(torch.zeros_like(x)),
    ],
)
def test_an_operation_that_changes_nothing_is_removed(f):
    x = draw(3, 4)
    program = program_of(f, x)
    assert program.nodes == []
    assert torch.equal(run(program, [x])[0], f(x))


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: x * torch.ones(3, 4, dtype=DOUBLE), draw(4)),  # another shape
        (lambda x: x * torch.ones((), dtype=DOUBLE), draw(4, 3, dtype=torch.float32).mT),
        (lambda x: x * torch.ones(4, dtype=DOUBLE), draw(4, dtype=torch.float32)),  # another dtype
        (lambda x: torch.zeros_like(x) - x, draw(4)),
        (lambda x: torch.ones_like(x) / x, draw(4)),
        (lambda x: x**0, torch.tensor([0.0, float("nan"), float("inf"), 2.0])),
        (lambda x: torch.add(x, torch.ones_like(x), alpha=0.0) * (x > 0), draw(4)),
        (
            lambda x: x * torch.full((4,), 1 / 3, dtype=torch.bfloat16),
            draw(4, dtype=torch.bfloat16),
        ),
    ],
)
def test_an_operation_that_changes_dtype_shape_or_value_stays(f, x):
    (ours,) = run(program_of(f, x), [x])
    assert torch.equal(ours, f(x))
    assert (ours.dtype, ours.stride()) == (f(x).dtype, f(x).stride())


def test_a_tensor_that_f_closes_over_is_not_treated_as_filled_with_one_number():
    ones, x = torch.ones(3, dtype=DOUBLE), draw(3)
    program = program_of(lambda x: x * ones, x)
    ones.fill_(2.0)
    assert torch.equal(run(program, [x])[0], 2 * x)


# --------------------------------------------------------------------------------------------------
# Zero-padded slices


@st.composite
def paddings(draw):
    """A number of entries, and some places among them: slices (i, j) and single entries i."""
    n = draw(st.integers(1, 7))
    entry = st.integers(0, n - 1)
    interval = st.tuples(st.integers(-n, n), st.integers(-n, n + 2))
    return n, draw(st.lists(st.one_of(entry, interval), min_size=1, max_size=6))


@pytest.mark.slow
@given(paddings(), st.integers(0, 1), st.booleans())
def test_joined_slices_are_the_sum_of_the_padded_ones(case, dim, other):
    n, places = case
    shape = [2, n] if dim else [n, 2]
    x = draw(*shape)

    def f(x):
        total = x if other else None
        for k, place in enumerate(places, start=1):
            if isinstance(place, int):
                padded = aten.select_backward(k * x.select(dim, place), shape, dim, place)
            else:
                inner = aten.slice(k * x, dim, *place)
                padded = aten.slice_backward(inner, shape, dim, *place, 1)
            total = padded if total is None else total + padded
        return total

    before = program_of(f, x)
    after = program_of(f, x, passes=(simplify, join_slices))
    (result,) = run(after, [x])
    assert_close(result, f(x))
    assert result.is_contiguous()
    assert torch.equal(after.replay(x)[0], result)
    assert after.bytes_per_node * len(after) <= before.bytes_per_node * len(before)


def test_slices_that_do_not_overlap_are_only_concatenated():
    x = draw(50, 3)

    def f(x):
        return sum(aten.select_backward(2.0 * x[i], [50, 3], 0, i) for i in range(50))

    program = program_of(f, x, passes=(simplify, join_slices))
    assert_close(run(program, [x])[0], 2 * x)
    assert aten.cat.default in functions(program)
    assert functions(program).isdisjoint([aten.select_backward.default, aten.add.Tensor])


def test_a_padded_slice_with_another_reader_stays():
    x = draw(6)

    def f(x):
        one = aten.slice_backward(x[:4], [6], 0, 0, 4, 1)
        return (one + aten.slice_backward(x[2:], [6], 0, 2, 6, 1)) * one

    program = program_of(f, x, passes=(simplify, join_slices))
    assert aten.slice_backward.default in functions(program)
    assert_close(run(program, [x])[0], f(x))


def test_rosenbrock_has_two_residuals_per_entry():
    def f(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    n, x = 1000, draw(1000)
    H = hessian_operator(f, x, mode="traced-split")
    exact = torch.diag(2 + 1200 * x**2)
    exact[-1, -1] = 0.0
    exact[range(n - 1), range(n - 1)] -= 400 * x[1:]
    exact[range(1, n), range(1, n)] += 200
    exact[range(n - 1), range(1, n)] = exact[range(1, n), range(n - 1)] = -400 * x[:-1]
    v = draw(n, seed=1)
    assert_close(H @ v, exact @ v)
    assert H.plan.residual_bytes is not None
    assert H.plan.residual_bytes <= 2 * n * x.itemsize


# --------------------------------------------------------------------------------------------------
# Matrix times vector


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda a, b: a @ b, [(5, 3), (3, 1)]),
        (lambda a, b: torch.addmm(b[:1], a, b[1:]), [(5, 3), (4, 1)]),
        (lambda a, b: torch.addmm(b, a, a[:4, :1]), [(5, 4), (5, 1)]),
        (lambda a, b: a @ b.mT, [(5, 3), (1, 3)]),
    ],
)
def test_inductor_gets_a_sum_for_a_matrix_times_a_column(f, shapes):
    tensors = [draw(*shape, seed=k) for k, shape in enumerate(shapes)]
    graph = as_fx(program_of(f, *tensors))
    targets = {node.target for node in graph.graph.nodes}
    assert targets.isdisjoint([aten.mm.default, aten.addmm.default])
    assert_close(graph(*tensors)[0], f(*tensors))


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda a, b: a @ b, [(5, 3), (3, 2)]),
        (lambda a, b: a.mT @ b, [(3, 5), (3, 1)]),  # what is added up is far apart
        (lambda a, b: torch.addmm(b, a, a[:4, :1], beta=2.0), [(5, 4), (5, 1)]),
    ],
)
def test_other_matrix_products_are_left_to_the_library(f, shapes):
    tensors = [draw(*shape, seed=k) for k, shape in enumerate(shapes)]
    graph = as_fx(program_of(f, *tensors))
    targets = {node.target for node in graph.graph.nodes}
    assert targets.intersection([aten.mm.default, aten.addmm.default])
    assert_close(graph(*tensors)[0], f(*tensors))


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda a, b: a.expand(3, 5, 4) @ b, [(5, 4), (3, 4, 1)]),
        (lambda a, b: a.expand(3, 5, 4) @ b.mT, [(5, 4), (3, 1, 4)]),
        (lambda a, b: b @ a.expand(3, 5, 4), [(5, 4), (3, 1, 5)]),
        (lambda a, b: b.mT @ a.mT.expand(3, 4, 5), [(5, 4), (3, 4, 1)]),
    ],
)
def test_a_batch_of_vectors_times_one_matrix_becomes_one_matrix_product(f, shapes):
    tensors = [draw(*shape, seed=k) for k, shape in enumerate(shapes)]
    program = program_of(f, *tensors, passes=(simplify, merge_batched_matmuls))
    assert aten.mm.default in functions(program)
    assert aten.bmm.default not in functions(program)
    assert_close(run(program, tensors)[0], f(*tensors))


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda a, b: a @ b, [(3, 5, 4), (3, 4, 1)]),  # a matrix for each
        (lambda a, b: a.expand(3, 5, 4) @ b, [(1, 5, 4), (3, 4, 1)]),
        (lambda a, b: a.expand(3, 5, 4) @ b, [(5, 4), (3, 4, 2)]),
    ],
)
def test_other_batched_matrix_products_stay(f, shapes):
    tensors = [draw(*shape, seed=k) for k, shape in enumerate(shapes)]
    program = program_of(f, *tensors, passes=(simplify, merge_batched_matmuls))
    assert aten.bmm.default in functions(program)
    assert_close(run(program, tensors)[0], f(*tensors))


# --------------------------------------------------------------------------------------------------
# Whose memory a product is


@pytest.mark.parametrize("mode", ["traced-split", "retained-graph"])
@pytest.mark.parametrize(
    "x",
    [
        draw(4),
        {"w": draw(4)},
        {"w": draw(2, 2), "b": draw(3)},
        {"w": draw(2).float(), "b": draw(3)},
    ],
)
def test_a_product_shares_no_memory_with_the_direction_or_other_products(mode, x):
    """H = I: the product could be the direction itself."""

    def f(x):
        leaves = x.values() if isinstance(x, dict) else [x]
        return torch.stack([0.5 * (leaf.double() ** 2).sum() for leaf in leaves]).sum()

    H = hessian_operator(f, x, mode=mode)
    v = draw(H.shape[0], seed=1)
    first, second = H @ v, H @ v
    expected = first.clone()
    second.fill_(7.0)
    v.neg_()
    assert torch.equal(first, expected)
    assert torch.equal(H @ v, -expected)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
def test_a_compiled_product_shares_no_memory_with_the_direction():
    x, v = draw(4), draw(4, seed=1)
    same = program_of(lambda x, v: v * torch.ones(4, dtype=torch.long), x, v)
    (product,) = run(compile_program(same, [x, v]), [x, v])
    expected = v.clone()
    v.zero_()
    assert torch.equal(product, expected)


@pytest.mark.parametrize("mode", ["traced-split", "retained-graph"])
def test_a_direction_may_be_strided_or_an_inference_tensor(mode):
    x = {"w": draw(2, 3).to(torch.bfloat16), "b": draw(3)}
    H = hessian_operator(lambda x: ((x["w"].double() @ x["b"]) ** 2).sum(), x, mode=mode)
    v = draw(9, seed=1)
    expected = H @ v
    assert torch.equal(H @ torch.stack([v, v], dim=1)[:, 0], expected)
    with torch.inference_mode():
        assert torch.equal(H @ v.clone(), expected)
        assert_close(H.matmat(torch.stack([v, 2 * v], dim=1))[:, 1], 2 * expected, 1e-2)


def test_a_view_of_a_removed_copy_keeps_its_place():
    def function(x):
        first, second = (1.0 * part for part in x.split(2))
        return torch.cat([first.detach().view(-1), second.detach().view(-1)]) / 0.3

    x = draw(4)
    assert_close(run(program_of(function, x), [x])[0], function(x))


def test_a_copy_of_a_conjugate_stays():
    def function(x):
        return torch.view_as_real(torch.complex(x, 2 * x).conj().resolve_conj())

    x = draw(4)
    assert_close(run(program_of(function, x), [x])[0], function(x))


# --------------------------------------------------------------------------------------------------
# Pooling


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 0)])
def test_masks_come_before_the_backward_pass_of_pooling(kernel, stride, padding):
    """Windows may overlap; entries that are equal, and zero, leave the choice to the pooling."""
    x, g = draw(2, 3, 6, 6), draw(2, 3, 6, 6, seed=1)
    x[0, 0] = 0.5

    def backward(x, g):
        y = x.clone().requires_grad_()
        z = torch.nn.functional.max_pool2d(y.relu(), kernel, stride, padding)
        return torch.autograd.grad(z, y, g[..., : z.shape[2], : z.shape[3]].contiguous())[0]

    program = program_of(backward, x, g, passes=(simplify, mask_before_pooling))
    (mask,) = (node for node in program.nodes if node.function is aten.threshold_backward.default)
    (pool,) = (node for node in program.nodes if "pool2d_with_indices_b" in str(node.function))
    assert program.nodes.index(mask) < program.nodes.index(pool)
    assert torch.equal(run(program, [x, g])[0], backward(x, g))


@pytest.mark.parametrize("settings", [(2,), (3, 2, 1), (3, 1, 1, 2)])
def test_a_program_pools_as_torch_does(settings):
    """Bit for bit, of equal entries and NaN too; several images do not fit into its cache."""
    x = draw(9, 8, 35, 33, dtype=torch.float32).relu()
    x[1, 2, 3] = float("nan")
    program = program_of(lambda x: torch.nn.functional.max_pool2d(x, *settings), x)
    (node,) = (n for n in program.nodes if n.function is aten.max_pool2d_with_indices.default)
    assert pooling.takes(node, program.metas)
    expected = node.function(x, *node.args[1:])
    for ours, theirs in zip(pooling.max_pool(x, *node.args[1:]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, check_stride=True)
    torch.testing.assert_close(run(program, [x])[0], expected[0], rtol=0, atol=0, equal_nan=True)


def test_a_block_of_directions_holds_no_copies_of_what_was_pooled():
    images, v = draw(3, 2, 4, 4), draw(5, 36)

    def f(w):
        hidden = torch.nn.functional.conv2d(images, w.view(2, 2, 3, 3), padding=1).relu()
        return torch.nn.functional.max_pool2d(hidden, 2).square().sum()

    w = draw(36, seed=2)
    H = hessian_operator(f, w, mode="traced-split")
    H @ v[0]
    (_, product), *_ = H.summand_products(v[0])
    block = batched(product.partition.tangents["product"], product.residuals, v)
    expected = hessian_operator(f, w, mode="retained-graph") @ v.T
    assert_close(run(block, [*product.residuals, v])[0].T, expected)
    pools = [node for node in block.nodes if "pool2d_with_indices_b" in str(node.function)]
    assert pools
    assert all(set(block.metas[node.args[1].index].stride) == {0} for node in pools)


def test_a_block_of_directions_convolves_without_an_input_that_is_not_read():
    """Torch would write an expanded one out; one entry of it stands for all of its shape."""
    x, v = draw(2, 2, 6, 6), draw(5, 2, 3, 6, 6)
    kernel = draw(3, 2, 3, 3, seed=1)

    def f(x, u):
        y = torch.nn.functional.conv2d(x, kernel, padding=1)
        return torch.autograd.grad(y, x, u)[0]

    program = program_of(f, x.requires_grad_(), v[0])
    block = batched(program, [x.detach()], v)
    (node,) = (n for n in block.nodes if n.function is aten.convolution_backward.default)
    assert block.metas[node.args[1].index].is_contiguous
    expected = torch.stack([f(x, u) for u in v])
    assert_close(run(block, [x.detach(), v])[0], expected)
