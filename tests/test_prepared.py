# SPDX-License-Identifier: Apache-2.0
"""Split programs: they equal the unprepared product, are reused, and are never trusted blindly."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.engine.cost_model import Usage
from hesse.errors import DerivativeError, FallbackWarning, RandomnessError
from hesse.risk.risk import Risk
from hesse.testing import all_problems
from hesse.vectors.inner_products import norm

DOUBLE = torch.float64
PROBLEMS = {problem.name: problem for problem in all_problems()}


def split(f, x):
    return hessian_operator(f, x, mode="traced-split")


def assert_close(a, b, tolerance=1e-10):
    a, b = a.reshape(-1), b.reshape(-1)
    assert norm(a - b) <= tolerance * norm(b)


@pytest.mark.fast_cases(10)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_split_product_is_the_one_by_double_backward(name):
    problem = PROBLEMS[name]
    H, v = split(problem.f, problem.x), problem.direction(0)
    reference = hessian_operator(problem.f, problem.x, mode="retained-graph")
    near = problem.near(1).x
    for operator, other in ((H, reference), (H.at(near), reference.at(near))):
        assert_close(operator @ v, other @ v)
        assert_close(operator @ v, other @ v)  # nothing was changed by the first
        assert_close(operator.flat_gradient, other.flat_gradient)
        assert_close(operator.value, other.value)
        assert operator.mode == "traced-split"


# --------------------------------------------------------------------------------------------------
# Reuse


class Counted:
    """A function that counts its calls."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, x):
        self.calls += 1
        return self.f(x)


def test_a_hundred_points_share_one_recording():
    f = Counted(lambda x: (x**4).sum() + torch.sin(x[0] * x[1]))
    H = split(f, torch.ones(3, dtype=DOUBLE))
    v = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
    H @ v
    for i in range(100):
        x = torch.full((3,), 0.01 * i, dtype=DOUBLE)
        H = H.at(x)
        assert_close(H @ v, hvp(f.f, x, v), 1e-12)
    # Once for the recording, once a point for the value, and at the 2nd, 4th, ... 64th point.
    assert f.calls <= 1 + 100 + 6 + 1


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batches(*sizes):
    torch.manual_seed(1)
    return [(torch.randn(n, 5).double(), torch.randint(0, 3, (n,))) for n in sizes]


def preparations(risk):
    return [p for p in risk.programs.values() if p.partition is not None]


@pytest.mark.parametrize("operator", [hessian_operator, ggn_operator])
def test_batches_of_one_shape_share_programs_and_a_ragged_one_has_its_own(operator):
    risk = Risk(net(), nn.CrossEntropyLoss(), batches(8, 8, 8, 3), weight_decay=0.1)
    A = operator(risk, risk.params, mode="traced-split")
    B = operator(risk, risk.params, mode="retained-graph")
    v = A.domain.gaussian()
    for _ in range(3):
        assert_close(A @ v, B @ v, 1e-13)
    assert_close(A.curvature(v), B.curvature(v), 1e-13)
    assert [p.validator.num_traces for p in preparations(risk)] == [1, 1]
    other = risk.on(batches(8, 3))
    assert_close(
        operator(other, risk.params, mode="traced-split") @ v,
        operator(other, risk.params, mode="retained-graph") @ v,
        1e-13,
    )
    assert [p.validator.num_traces for p in preparations(risk)] == [1, 1]


def test_targets_that_are_the_inputs_and_targets_that_are_not_are_told_apart():
    x, y = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    model = nn.Linear(3, 3).double()
    risk = Risk(model, nn.MSELoss(), (x, x))
    v = hessian_operator(risk, risk.params).domain.gaussian()
    split(risk, risk.params) @ v
    other = risk.on((x, y))
    H = split(other, risk.params)
    H @ v
    assert_close(H.flat_gradient, hessian_operator(other, risk.params).flat_gradient, 1e-13)


# --------------------------------------------------------------------------------------------------
# What a recording cannot see, or must not keep


def check_points(f, points, tolerance=1e-10):
    """Products at every point, in turn, against one-shot products."""
    H = hessian_operator(f, points[0], mode="traced-split")
    v = torch.linspace(1, 2, len(points[0]), dtype=DOUBLE)
    for x in points:
        assert_close(H.at(x) @ v, hvp(f, x, v), tolerance)
    return H


X1 = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
X2 = torch.tensor([-1.0, 2.0, 0.7], dtype=DOUBLE)


def test_control_flow_on_values_is_recorded_anew():
    def f(x):
        return (x**4).sum() if x[0] > 0 else (x**3).sum()

    check_points(f, [X1, X2, 2 * X1])


def test_a_value_read_by_item_is_not_baked_in():
    check_points(lambda x: (x**3).sum() * x[0].item(), [X1, X2])


def test_a_value_that_python_reads_behind_torch_is_caught():
    def f(x):
        return (x**3).sum() * float(x.detach().numpy()[0])

    check_points(f, [X1, X2])


def test_a_shape_that_depends_on_values():
    check_points(lambda x: (x[x > 0] ** 3).sum(), [X1, X2, -X1])


def test_a_rebound_global_is_caught():
    scale = {"s": 1.0}
    H = split(lambda x: scale["s"] * (x**3).sum(), X1)
    H @ X1
    scale["s"] = 2.0
    assert_close(H.at(X2) @ X1, 12 * X2 * X1, 1e-13)


def test_data_changed_in_place_count_at_the_next_point():
    data = torch.ones(3, dtype=DOUBLE)
    H = split(lambda x: (data * x**3).sum(), X1)
    H @ X1
    data.mul_(2.0)
    assert_close(H.at(X2) @ X1, 12 * X2 * X1, 1e-13)


def test_a_random_function_is_not_traced():
    H = split(lambda x: (nn.functional.dropout(x) ** 2).sum(), X1)
    with pytest.raises(RandomnessError, match="set dropout to 0"):
        H @ X1


def test_in_place_operations_on_views():
    def f(x):
        y = torch.zeros(2, 3, dtype=DOUBLE)
        y[0] = x**2
        y[1, 1:] += x[:2] ** 3
        y.mul_(y.detach().sum() + y)
        return y.sum()

    check_points(f, [X1, X2])


def test_a_constant_made_inside_f_and_changed_there():
    def f(x):
        weights = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
        weights[1] = 5.0
        return (weights * x**3).sum()

    check_points(f, [X1, X2])


def test_a_frozen_leaf_is_an_input_of_the_program():
    def tree(scale):
        frozen = nn.Parameter(torch.full((3,), scale, dtype=DOUBLE), requires_grad=False)
        return {"a": frozen, "b": X1.clone()}

    H = split(lambda p: (p["a"] * p["b"] ** 3).sum(), tree(1.0))
    v = torch.ones(6, dtype=DOUBLE)
    H @ v
    product = H.at(tree(2.0)) @ v
    assert_close(product, torch.cat([torch.zeros(3).double(), 12 * X1]), 1e-13)


def test_complex_numbers_on_the_way():
    check_points(lambda x: torch.fft.fft(x**2).abs().pow(2).sum(), [X1, X2])
    check_points(lambda x: (torch.fft.fft(x**2).conj() * torch.fft.fft(x)).real.sum(), [X1, X2])
    check_points(lambda x: (torch.complex(x, -x) ** 3 * (2 - 1j)).real.sum(), [X1, X2])


def test_a_user_who_keeps_an_intermediate_tensor_does_no_harm():
    kept = []

    def f(x):
        y = x**2
        kept.append(y)
        return (y * x).sum() + 0 * kept[0].detach().sum()

    check_points(f, [X1, X2])


# --------------------------------------------------------------------------------------------------
# Many directions at once


@pytest.mark.fast_cases(10)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_block_of_directions_gives_the_single_products(name):
    problem = PROBLEMS[name]
    H = split(problem.f, problem.x)
    block = torch.stack([problem.direction(seed) for seed in range(5)], dim=1)
    singles = torch.stack([H @ v for v in block.T], dim=1)
    assert_close(H.matmat(block), singles)
    assert_close(H.at(problem.near(1).x).matmat(block), H.at(problem.near(1).x).matmat(block))


def test_a_block_for_gauss_newton_on_ragged_batches():
    risk = Risk(net(), nn.CrossEntropyLoss(), batches(8, 8, 3), weight_decay=0.1)
    G = ggn_operator(risk, risk.params, mode="traced-split")
    block = torch.randn(G.shape[0], 7).double()
    singles = torch.stack([G @ v for v in block.T], dim=1)
    assert_close(G.matmat(block), singles, 1e-13)


def test_small_programs_take_blocks_and_large_ones_do_not():
    def at_once(size):
        x = torch.ones(size)
        H = split(lambda x: (x**4).sum(), x)
        H.matmat(torch.ones(size, 5))
        return H.plan.directions_at_once

    assert at_once(10) >= 4
    assert at_once(10**6) == 1


# --------------------------------------------------------------------------------------------------
# The plan


def test_the_plan_tells_the_rung_and_the_cost():
    risk = Risk(net(), nn.CrossEntropyLoss(), batches(8))
    H = hessian_operator(risk, risk.params)
    assert "nothing has been computed yet" in str(H.plan)
    v = H.domain.gaussian()
    H @ v
    H @ v
    assert H.plan.mode == "retained-graph"
    assert "until products have taken" in H.plan.reason
    H.announce(1000)
    H @ v
    plan = H.plan
    assert plan.mode == "traced-split"
    with FlopCounterMode(display=False) as counter:
        H @ v
    assert plan.flops == counter.get_total_flops()
    hidden, classes = 8 * 7 * 8, 8 * 3 * 8  # tanh and what its derivatives need; the softmax
    assert hidden <= plan.residual_bytes <= 5 * (hidden + classes)
    for word in ("traced-split", "operations", "residuals", "MFLOP", "double backward"):
        assert word in str(plan)


def test_products_that_were_announced_are_not_counted_twice():
    usage = Usage(announced=20)
    for seconds in (1.0, 1.0):  # the first one is not counted
        usage.add_graph_product(seconds, traceable=True)
    assert usage.total_seconds == 21.0  # one was taken, twenty of one second each follow
    usage.add_program_product(15.0)
    assert usage.total_seconds == 21.0
    usage.add_program_product(10.0)
    assert usage.total_seconds == 26.0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, at its first forward mode
def test_the_plan_tells_what_failed():
    H = hessian_operator(lambda x: (nn.functional.dropout(x, 0.0) ** 2).sum(), X1, mode="auto")
    H.announce(1000)
    H @ X1
    assert H.mode == "retained-graph" or not H.plan.notes
    x = torch.randn(4, 1, 3, dtype=torch.float64)
    lengths = torch.tensor([4]), torch.tensor([2])
    words = torch.tensor([[1, 2]])
    loss = torch.ops.aten.ctc_loss.Tensor  # not composed, as that of torch.nn.functional is
    H = hessian_operator(lambda x: loss(x.log_softmax(2), words, *lengths), x)
    with pytest.warns(FallbackWarning):
        H @ torch.ones_like(x)
    assert H.plan.mode == H.mode != "retained-graph"
    assert any("ctc" in note for note in H.plan.notes)


# --------------------------------------------------------------------------------------------------
# Compiled


@pytest.mark.slow
def test_a_compiled_program_is_right_is_reused_and_says_what_it_gained():
    risk = Risk(net(), nn.CrossEntropyLoss(), batches(8))
    H = hessian_operator(risk, risk.params, mode="compiled-split")
    v = H.domain.gaussian()
    try:
        product = H @ v
    except DerivativeError as error:
        pytest.skip(str(error))  # no compiler here
    assert_close(product, hessian_operator(risk, risk.params) @ v, 1e-12)
    assert H.mode == H.plan.mode == "compiled-split"
    near = H.at(H.domain.unflatten(H.domain.flatten(risk.params) + 0.1))
    assert_close(near @ v, hvp(risk, near.domain.unflatten(near.domain.flatten(near._x)), v), 1e-12)
    notes = [note for note in near.plan.notes if "compiled" in note]
    assert len(notes) == 1  # once, for both points
    assert "of the time it took before" in notes[0]


def test_without_a_compiler_the_error_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    H = hessian_operator(lambda x: (x**4).sum(), X1, mode="compiled-split")
    with pytest.raises(DerivativeError, match=r"no C\+\+ compiler"):
        H @ X1


def test_an_operation_that_hides_that_it_shares_memory():
    def f(x):
        y = x * x
        halves = torch.ops.aten.unsafe_split.Tensor(y, 2)
        square = torch.ops.aten._unsafe_view.default(y, [2, 2])
        return (square**3).sum() + (y**2).sum() + (halves[0] * torch.sin(halves[1])).sum()

    x = torch.linspace(0.5, 1.4, 4, dtype=DOUBLE)
    v = torch.linspace(-1.0, 2.0, 4, dtype=DOUBLE)
    H = split(f, x)
    for _ in range(3):  # a residual that were written over would change the next product
        assert_close(H @ v, hvp(f, x, v))
