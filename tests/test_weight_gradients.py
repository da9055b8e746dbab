# SPDX-License-Identifier: Apache-2.0
"""The gradient of a convolution's weight inside a product: the fast form gives the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hesse.curvature import ggn_operator, hessian_operator
from hesse.risk.risk import Risk
from hesse.tracing.functionalize import retrace, trace
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.passes.weight_gradients import rewrite_weight_gradients
from hesse.tracing.program import Program, run
from hesse.vectors.inner_products import norm

aten = torch.ops.aten
DOUBLE = torch.float64
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def two_convolutions(size, channels, kernel, *, dims=2, images=3, width=2, **geometry):
    """f of the weights and a bias: a convolution, tanh, one of 1 x 1; and a point."""
    groups = geometry.get("groups", 1)
    batch, convolve = draw(images, channels, *[size] * dims), CONVOLVE[dims]
    x = {
        "first": draw(width * groups, channels // groups, *[kernel] * dims, seed=1),
        "bias": draw(width * groups, seed=2),
        "second": draw(3, width * groups, *[1] * dims, seed=3),
    }

    def f(leaves):
        z = convolve(batch, leaves["first"], leaves["bias"], **geometry)
        return convolve(torch.tanh(z), leaves["second"]).square().mean()

    return f, x


def assert_product_is_exact(f, x):
    v = draw(sum(leaf.numel() for leaf in x.values()), seed=4)
    product = hessian_operator(f, x, mode="traced-split") @ v
    expected = hessian_operator(f, x, mode="reverse-over-reverse") @ v
    assert norm(product - expected) <= 1e-12 * norm(expected)


@pytest.mark.slow
@settings(max_examples=50)  # of 54 geometries
@given(
    size=st.integers(4, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_products_with_any_stride_padding_and_dilation(size, kernel, stride, padding, dilation):
    if size + 2 * padding <= dilation * (kernel - 1):
        return
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    assert_product_is_exact(*two_convolutions(size, 2, kernel, **geometry))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_products_in_any_number_of_dimensions(dims, groups):
    problem = two_convolutions(5, 4, 3, dims=dims, groups=groups, padding=1)
    assert_product_is_exact(*problem)


@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": 2, "dilation": 2},
        {"padding": (0, 1), "stride": (1, 2)},
    ],
)
def test_products_with_many_more_channels_than_pixels(geometry):
    assert_product_is_exact(*two_convolutions(3, 40, 3, images=1, width=41, **geometry))


def test_guards_survive_the_rewrite():
    f, x = two_convolutions(6, 2, 3, padding=1)

    def g(leaves):
        value = f(leaves)
        return value**2 if value.item() > 1e-3 else value**3

    H = hessian_operator(g, x, mode="traced-split")
    v = draw(H.shape[0], seed=4)
    H @ v
    small = {name: 1e-2 * leaf for name, leaf in x.items()}
    product = H.at(small) @ v
    expected = hessian_operator(g, small, mode="reverse-over-reverse") @ v
    assert f(x) > 1e-3 > f(small)
    assert norm(product - expected) <= 1e-12 * norm(expected)


def test_a_transposed_convolution_is_left_as_it_is():
    images, weight = draw(3, 2, 4, 4), draw(2, 3, 3, 3, seed=1)

    def f(w):
        return torch.tanh(F.conv_transpose2d(images, w, stride=2)).square().sum()

    v = draw(weight.numel(), seed=2).view_as(weight)
    product = hessian_operator(f, weight, mode="traced-split") @ v
    expected = hessian_operator(f, weight, mode="reverse-over-reverse") @ v
    assert norm((product - expected).flatten()) <= 1e-12 * norm(expected.flatten())


def gradient_of_weight(x, g, kernel, stride=1, padding=1, dilation=1):
    """As torch's second derivative has it."""
    w = F.conv2d(x.transpose(0, 1), g.transpose(0, 1), None, dilation, padding, stride)
    for dim, size in enumerate(kernel, start=2):
        if w.shape[dim] > size:
            w = w.narrow(dim, 0, size)
    return w.transpose(0, 1)


def rewritten(f, *inputs):
    """The program of f in its new form; None if there is nothing to rewrite."""
    new = rewrite_weight_gradients(simplify(trace(lambda: [f(*inputs)], inputs)))
    if new is None:
        return None
    graph = simplify(retrace(new, inputs))
    return Program(graph, graph.nodes, graph.inputs, graph.outputs)


@pytest.mark.parametrize(
    ("channels", "size", "stride", "operation"),
    [
        (2, 8, 1, aten.convolution_backward.default),
        (2, 8, 2, aten.convolution_backward.default),  # 4 x 4 entries, of which 3 x 3 are kept
        (2, 7, 2, aten.convolution_backward.default),
        (64, 4, 1, aten.mm.default),
        (64, 4, 2, aten.mm.default),
    ],
)
def test_a_convolution_of_transposed_images_is_rewritten(channels, size, stride, operation):
    x = draw(1, channels, size, size)
    places = F.conv2d(x, draw(1, channels, 3, 3), None, stride, 1).shape[2:]
    g = draw(1, 65, *places, seed=1)

    def f(x, g):
        return gradient_of_weight(x, g, (3, 3), stride)

    program = rewritten(f, x, g)
    functions = [node.function for node in program.nodes]
    assert operation in functions
    assert aten.convolution.default not in functions
    (product,), expected = run(program, [x, g]), f(x, g)
    assert product.shape == expected.shape == (65, channels, 3, 3)
    assert norm((product - expected).flatten()) <= 1e-13 * norm(expected.flatten())


def test_other_convolutions_stay():
    x, g = draw(2, 3, 9, 9), draw(3, 4, 3, 3, seed=1)
    assert rewritten(lambda x, g: F.conv2d(x, g.transpose(0, 1)), x, g) is None
    assert rewritten(lambda x, g: F.conv2d(x.transpose(0, 1), g[:, :2]), x, g) is None


def test_a_gradient_that_f_cuts_further_stays():
    """A smaller kernel would fit more often than there are entries of g."""
    x, g = draw(2, 3, 8, 8), draw(2, 4, 6, 6, seed=1)
    assert rewritten(lambda x, g: gradient_of_weight(x, g, (3, 3), 1, 0), x, g) is not None
    assert rewritten(lambda x, g: gradient_of_weight(x, g, (2, 2), 1, 0), x, g) is None


def test_a_gradient_that_is_read_before_it_is_transposed_back_stays():
    x, g = draw(2, 3, 8, 8), draw(2, 4, 8, 8, seed=1)

    def f(x, g):
        w = F.conv2d(x.transpose(0, 1), g.transpose(0, 1), None, 1, 1)
        return w.transpose(0, 1).square() + w.sum()

    assert rewritten(f, x, g) is None


def test_a_backward_pass_of_small_images_is_rewritten():
    x, g, w = draw(1, 40, 3, 3), draw(1, 41, 3, 3, seed=1), draw(41, 40, 3, 3, seed=2)

    for mask in ([True, True, True], [False, True, False], [False, True, True]):
        rest = ([41], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)

        def f(x, g, w, rest=rest):
            parts = aten.convolution_backward(g, x, w, *rest)
            return torch.cat([part.flatten() for part in parts if part is not None])

        program = rewritten(f, x, g, w)
        assert aten.mm.default in [node.function for node in program.nodes]
        (result,), expected = run(program, [x, g, w]), f(x, g, w)
        assert norm(result - expected) <= 1e-13 * norm(expected)


def test_a_gauss_newton_product_with_small_images():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(40, 40, 3, padding=1, stride=2), torch.nn.ReLU(), torch.nn.Flatten()
    ).double()
    risk = Risk(model, torch.nn.MSELoss(), (draw(1, 40, 4, 4), draw(1, 160, seed=1)))
    v = draw(sum(p.numel() for p in model.parameters()), seed=2)
    product = ggn_operator(risk, risk.params, mode="traced-split") @ v
    expected = ggn_operator(risk, risk.params, mode="retained-graph") @ v
    assert norm(product - expected) <= 1e-12 * norm(expected)
