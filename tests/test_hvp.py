# SPDX-License-Identifier: Apache-2.0
"""Hessian-vector products: every mode on every problem against the dense definition."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.ad.one_shot import ONE_SHOT_MODES as ONE_SHOT
from hesse.curvature import hessian_operator, hvp
from hesse.errors import DerivativeError, StructureError
from hesse.krylov import solve
from hesse.operators import dense_operator
from hesse.testing import (
    all_problems,
    dense_gradient,
    dense_hessian,
    finite_difference_bilinear,
    finite_difference_hessian,
    networks,
    problems,
)
from hesse.vectors.inner_products import dot, norm
from hesse.vectors.space import Space

PROBLEMS = {problem.name: problem for problem in all_problems()}
SINGLE = {problem.name: problem for problem in all_problems(torch.float32)}
EXACT = ["reverse-over-reverse", "forward-over-reverse", "reverse-over-forward"]
DIFFERENCES = ["finite-difference", "forward-difference"]

# What a mode cannot do, it must refuse: torch.autograd.grad inside f knows nothing of torch.func's
# transforms.
REFUSED = {
    ("pinn_autograd", "forward-over-reverse"),
    ("pinn_autograd", "reverse-over-forward"),
}

# Relative to |H| |v|. Exact modes differ by rounding. A central difference errs by
# eps^(2/3) = 4e-11 times third derivatives, a forward one by eps^(1/2) = 1.5e-8 times them: their
# step is what balances rounding, and no step does better in float64.
TOLERANCE = dict.fromkeys(EXACT, 1e-10) | {"finite-difference": 1e-6, "forward-difference": 1e-4}


@cache
def hessian_of(name):
    return dense_hessian(PROBLEMS[name].f, PROBLEMS[name].x)


@cache
def near(name, seed):
    """A problem at a random point, and its dense Hessian there."""
    problem = PROBLEMS[name].near(seed)
    return problem, dense_hessian(problem.f, problem.x)


def sees_another_function(name, mode):
    """Whether differences of gradients see through the no_grad that autograd respects."""
    return name == "stop_gradient" and mode in DIFFERENCES


@pytest.mark.some_cases(50)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("mode", ["auto", *ONE_SHOT])
@pytest.mark.parametrize("name", PROBLEMS)
@given(point=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=4)
def test_every_mode_agrees_with_the_dense_hessian(name, mode, point, seed):
    if sees_another_function(name, mode):
        return
    problem, H = near(name, point)
    v = problem.direction(seed)
    if (name, mode) in REFUSED:
        with pytest.raises(DerivativeError, match=r"remedy: .*mode='auto'"):
            hvp(problem.f, problem.x, v, mode)
        return
    tolerance = TOLERANCE.get(mode, TOLERANCE["reverse-over-reverse"])
    assert norm(hvp(problem.f, problem.x, v, mode) - H @ v) <= tolerance * float(H.norm()) * norm(v)


@pytest.mark.fast_cases(10)
@pytest.mark.parametrize("name", PROBLEMS)
@given(point=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=3)
def test_the_oracle_agrees_with_values_of_f_alone(name, point, seed):
    if sees_another_function(name, "finite-difference"):
        return
    problem, H = near(name, point)
    u, v = problem.direction(seed), problem.direction(seed + 100)
    bilinear = finite_difference_bilinear(problem.f, problem.x, u, v)
    # 1e-10 of derivatives up to the sixth, which for a LayerNorm of four entries are large; the
    # constant 1e-9 is the rounding of f itself, which alone is left where H = 0.
    bound = 1e-6 * float(H.norm()) + 1e-9 * (1 + abs(float(problem.f(problem.x).detach())))
    assert abs(bilinear - dot(u, H @ v)) <= bound * norm(u) * norm(v)


@pytest.mark.parametrize("name", [n for n, problem in PROBLEMS.items() if problem.hessian_product])
@given(point=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=5)
def test_the_oracle_agrees_with_the_closed_form(name, point, seed):
    problem, H = near(name, point)
    x, v = problem.space.flatten(problem.x), problem.direction(seed)
    assert norm(problem.hessian_product(x, v) - H @ v) <= 1e-13 * float(H.norm()) * norm(v)


def test_the_finite_difference_hessian_is_the_closed_form():
    problem = problems.polynomial_sine()
    hessian = finite_difference_hessian(problem.f, problem.x)
    x, y = 3.0, 1.0
    closed = torch.tensor([[2 * y, 2 * x], [2 * x, -math.sin(y)]], dtype=torch.float64)
    assert torch.allclose(hessian, closed, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", ["auto", *ONE_SHOT])
def test_the_closed_form_of_x2y_plus_sin_y(mode):
    problem = problems.polynomial_sine()
    v = {"x": torch.tensor(0.5).double(), "y": torch.tensor(-2.0).double()}
    product = hvp(problem.f, problem.x, v, mode)
    rtol = TOLERANCE.get(mode, 1e-15)
    assert float(product["x"]) == pytest.approx(2 * 0.5 - 2 * 6.0, rel=rtol)
    assert float(product["y"]) == pytest.approx(6 * 0.5 + 2.0 * math.sin(1.0), rel=rtol)


# --------------------------------------------------------------------------------------------------
# Laws


@pytest.mark.parametrize("mode", ["auto", *EXACT])
@given(seed=st.integers(0, 99), a=st.floats(-100, 100), b=st.floats(-100, 100))
@settings(max_examples=10)
def test_products_are_linear_and_symmetric(mode, seed, a, b):
    problem = PROBLEMS["mlp_tanh"].near(seed)
    u, v = problem.direction(seed), problem.direction(seed + 100)
    Hu, Hv, H_both = (hvp(problem.f, problem.x, w, mode) for w in (u, v, a * u + b * v))
    size = abs(a) * norm(Hu) + abs(b) * norm(Hv)
    assert norm(H_both - a * Hu - b * Hv) <= 1e-12 * size
    assert abs(dot(u, Hv) - dot(v, Hu)) <= 1e-12 * (norm(u) * norm(Hv) + norm(v) * norm(Hu))


@pytest.mark.parametrize("mode", ONE_SHOT)
@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e-200, 1e200])
def test_the_length_of_v_does_not_matter(mode, scale):
    problem = PROBLEMS["mlp_tanh"]
    v = problem.direction(0)
    product, scaled = (hvp(problem.f, problem.x, c * v, mode) for c in (1.0, scale))
    # The step scales with 1/|v| up to rounding, which moves a difference by its own error.
    assert norm(scaled / scale - product) <= TOLERANCE[mode] * norm(product)


@pytest.mark.some_cases(20)
@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9])
@pytest.mark.parametrize("norm_layer", ["group_norm", "layer_norm", "instance_norm", "rms_norm"])
def test_a_short_v_keeps_the_digits_of_normalisation(norm_layer, scale, mode):
    """torch's forward rule of group_norm returns rounding errors for a tiny v (35,000 times v)."""
    functional = torch.nn.functional
    generator = torch.Generator().manual_seed(0)
    inputs, x, v = (torch.randn(*shape, generator=generator) for shape in [(10, 6), (48,), (48,)])
    layers = {
        "group_norm": lambda h: functional.group_norm(h, 2),
        "layer_norm": lambda h: functional.layer_norm(h, (8,)),
        "instance_norm": lambda h: functional.instance_norm(h.reshape(10, 2, 4)),
        "rms_norm": lambda h: functional.rms_norm(h, (8,)),
    }

    def f(x):
        hidden = inputs.to(x.dtype) @ x.reshape(6, 8)
        return layers[norm_layer](hidden).tanh().square().sum()

    try:
        product = hvp(f, x, scale * v, mode) / scale
    except DerivativeError:
        return  # torch has no right rule for this mode, and Hesse says so
    expected = dense_hessian(f, x.double()) @ v.double()
    assert norm(product.double() - expected) <= 1e-5 * norm(expected)


@pytest.mark.parametrize("mode", ONE_SHOT)
def test_the_product_with_zero_is_zero(mode):
    problem = PROBLEMS["mlp_tanh"]
    v = torch.zeros(problem.space.n, dtype=torch.float64)
    result = hvp(problem.f, problem.x, v, mode, value_and_gradient=True)
    assert not result.product.any()
    assert float(result.value) == float(problem.f(problem.x))


@pytest.mark.parametrize("mode", ONE_SHOT)
@pytest.mark.parametrize("name", ["rosenbrock", "nested_tree", "lstm", "linear_in_one_leaf"])
def test_value_and_gradient_come_with_the_product(name, mode):
    problem = PROBLEMS[name]
    v = problem.direction(0)
    result = hvp(problem.f, problem.x, v, mode, value_and_gradient=True)
    exact = dense_gradient(problem.f, problem.x)
    assert torch.equal(result.product, hvp(problem.f, problem.x, v, mode))
    assert norm(result.gradient - exact) <= 1e-14 * norm(exact)
    assert float(result.value) == pytest.approx(float(problem.f(problem.x)), rel=1e-14)


# --------------------------------------------------------------------------------------------------
# Structures


@pytest.mark.parametrize("mode", ["auto", *ONE_SHOT])
def test_a_tree_gives_a_tree_and_a_flat_vector_a_flat_one(mode):
    problem = problems.nested_tree()
    v = problem.direction(0)
    tree = hvp(problem.f, problem.x, problem.space.unflatten(v), mode)
    assert isinstance(tree["pair"], problems.Pair)
    assert isinstance(tree["list"][0], tuple)
    assert torch.equal(problem.space.flatten(tree), hvp(problem.f, problem.x, v, mode))


def test_vmap_over_a_product_is_refused_with_a_way_out():
    def f(x):
        return (x**4).sum()

    x, block = torch.ones(3), torch.eye(3)
    for product in (
        lambda v: hvp(f, x, v),
        lambda v: hvp(f, v, x),
        lambda v: hessian_operator(f, x) @ v,
    ):
        with pytest.raises(StructureError, match=r"matmat\(V\), V of shape \(n, k\)"):
            torch.vmap(product)(block)
    assert torch.equal(hessian_operator(f, x).matmat(block), 12 * block)


def slope(f):
    return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]


def slope_of_gradient(f):
    """The inner transform does not see what the outer one differentiates in."""
    return slope(lambda x: torch.func.grad(lambda w: w * f(x))(torch.ones(())))


@pytest.mark.parametrize("transform", [torch.func.grad, slope, slope_of_gradient])
@pytest.mark.filterwarnings("ignore::hesse.errors.FallbackWarning")
def test_a_derivative_of_a_result_by_torch_func_is_refused_and_not_zero(transform):
    def f(x):
        return (x**4).sum()

    u, A = torch.arange(3.0), dense_operator(torch.eye(3))
    for of_u in (
        lambda u: hvp(f, u, torch.ones(3)).sum(),
        lambda u: hvp(f, torch.ones(3), u).sum(),
        lambda u: hvp(lambda x: (x**2 * u).sum(), torch.ones(3), torch.ones(3)).sum(),
        lambda u: (hessian_operator(f, u) @ torch.ones(3)).sum(),
        lambda u: (A @ u).sum(),
        lambda u: (A @ torch.stack([u, u], 1)).sum(),
        lambda u: (dense_operator(torch.diag(u)) @ torch.ones(3)).sum(),
        lambda u: solve(A, u).x.sum(),
    ):
        with pytest.raises(StructureError, match="a constant of the transforms of"):
            transform(of_u)(u)
    with pytest.raises(StructureError, match="a constant of the transforms of"):  # 2 u is within
        torch.func.grad(lambda u: torch.func.grad(lambda w: w @ (A @ (2 * u)))(u).sum())(u)
    same = torch.func.grad(lambda u: (u * hvp(f, torch.ones(3), torch.ones(3))).sum())(u)
    assert torch.equal(same, torch.full((3,), 12.0))  # of constants there is a product


@pytest.mark.parametrize("mode", ["auto", *ONE_SHOT])
def test_an_unused_leaf_gives_zeros_of_its_shape(mode):
    problem = problems.unused_leaf()
    used, unused = hvp(problem.f, problem.x, problem.space.unflatten(torch.ones(6).double()), mode)
    assert used.all()
    assert unused.shape == (2, 2)
    assert not unused.any()


@pytest.mark.parametrize("mode", ["auto", *ONE_SHOT])
def test_a_frozen_parameter_has_zero_rows_and_columns(mode):
    problem = problems.nested_tree()
    H, space = dense_hessian(problem.f, problem.x), problem.space
    leaves = space.leaves(problem.x)
    varies = torch.cat([torch.full((leaf.numel(),), i != 1) for i, leaf in enumerate(leaves)])
    leaves[1] = torch.nn.Parameter(leaves[1], requires_grad=False)
    v = problem.direction(0)
    product = hvp(problem.f, space.build(leaves), v, mode)
    expected = varies * (H @ (varies * v))
    assert norm(product - expected) <= TOLERANCE.get(mode, 1e-10) * norm(expected)
    assert not product[~varies].any()


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", PROBLEMS)
def test_float32_is_computed_in_float32(name, mode):
    if (name, mode) in REFUSED:
        return
    single, H = SINGLE[name], hessian_of(name)
    v = single.direction(0)
    product = hvp(single.f, single.x, v, mode)
    assert product.dtype == torch.float32
    # Rounding of the parameters alone moves H by 6e-8 of its derivative; 1e-4 allows for a thousand
    # operations, and for the LayerNorm of four nearly equal entries.
    assert norm(product.double() - H @ v.double()) <= 1e-4 * float(H.norm()) * norm(v)


@pytest.mark.parametrize("mode", DIFFERENCES)
def test_differences_in_float32_have_half_of_its_digits(mode):
    single = networks.mlp("Tanh", torch.float32)
    H = hessian_of("mlp_tanh")
    v = single.direction(0)
    error = norm(hvp(single.f, single.x, v, mode).double() - H @ v.double())
    # eps^(2/3) = 2.4e-5 and eps^(1/2) = 3.5e-4, times third derivatives of order ten.
    bound = {"finite-difference": 1e-3, "forward-difference": 1e-2}[mode]
    assert error <= bound * float(H.norm()) * norm(v)


# --------------------------------------------------------------------------------------------------
# Manners


@pytest.mark.parametrize("mode", ["auto", "retained-graph", *ONE_SHOT])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_surrounding_no_grad_or_inference_mode_changes_nothing(mode, guard):
    problem = PROBLEMS["pinn"]
    v = problem.direction(0)
    expected = hessian_of("pinn") @ v
    with guard():
        H = hessian_operator(problem.f, problem.x, mode=mode)
        product, value, gradient = H @ v, H.value, H.flat_gradient
        if mode in ONE_SHOT:
            assert torch.equal(hvp(problem.f, problem.x, v, mode), product)
    assert norm(product - expected) <= TOLERANCE.get(mode, 1e-10) * norm(expected)
    exact = dense_gradient(problem.f, problem.x)
    assert norm(gradient - exact) <= 1e-12 * norm(exact)
    assert float(value) == pytest.approx(float(problem.f(problem.x)), rel=1e-14)


@pytest.mark.parametrize("mode", ["auto", *ONE_SHOT])
def test_a_point_made_in_inference_mode_is_taken(mode):
    with torch.inference_mode():
        x, v = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, -1.0]).double()
    product = hvp(lambda x: (x**3).sum(), x, v, mode)
    assert torch.allclose(product, torch.tensor([6.0, -12.0]).double(), rtol=TOLERANCE.get(mode, 0))


@pytest.mark.parametrize("mode", ["auto", *ONE_SHOT])
def test_the_callers_tensors_are_left_alone(mode):
    net = torch.nn.Linear(3, 2).double()
    inputs = torch.randn(4, 3).double()
    x = dict(net.named_parameters())
    x["bias"].grad = torch.full((2,), 7.0).double()
    v = {name: torch.randn_like(leaf).requires_grad_() for name, leaf in x.items()}
    before = [leaf.detach().clone() for leaf in (*x.values(), *v.values())]

    def f(params):
        return torch.func.functional_call(net, params, (inputs,)).pow(4).sum()

    result = hvp(f, x, v, mode, value_and_gradient=True)
    for leaf, old in zip((*x.values(), *v.values()), before, strict=True):
        assert torch.equal(leaf, old)
        assert leaf.requires_grad
        assert leaf.is_leaf
    assert x["weight"].grad is None
    assert x["bias"].grad.tolist() == [7.0, 7.0]
    assert not any(v[name].grad is not None for name in v)
    space = Space.of(x)
    outputs = (*space.leaves(result.product), *space.leaves(result.gradient), result.value)
    assert not any(output.requires_grad for output in outputs)
