# SPDX-License-Identifier: Apache-2.0
"""Layer norms: their derivatives are those of the formula, to the third, by one fused operation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hesse
from hesse.ad.decompositions import DECOMPOSITIONS
from hesse.ad.normalisation import normalised, project

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def by_the_formula(x, eps):
    z = x - x.mean(-1, keepdim=True)
    return z / (z.square().mean(-1, keepdim=True) + eps).sqrt()


def cubes(function):
    weights = torch.linspace(1.0, 2.0, 5, dtype=DOUBLE)
    return lambda x: (function(x, 1e-2) ** 3 * weights).sum()


def gradient(f):
    return lambda x: torch.autograd.grad(f(x), x, create_graph=True)[0]


def along(v, f):
    return lambda x: (gradient(f)(x) * v).sum()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_derivatives_are_those_of_the_formula(size):
    x, v = size * draw(3, 5), draw(3, 5, seed=1) / size
    f, oracle = cubes(normalised), cubes(by_the_formula)
    for order in range(4):
        assert torch.allclose(f(x.requires_grad_()), oracle(x), rtol=1e-10), order
        f, oracle = along(v, f), along(v, oracle)


def test_every_mode_is_checked_by_differences():
    x = draw(3, 5).requires_grad_()
    f, slope = cubes(normalised), gradient(cubes(normalised))
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(slope, x)
    z = normalised(draw(3, 5, seed=1), 0.0)
    both = x, z.requires_grad_()
    assert torch.autograd.gradcheck(project, both, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(project, both, check_fwd_over_rev=True)


def test_a_projection_is_symmetric_and_has_the_row_and_ones_in_its_null_space():
    z, u, v = normalised(draw(2, 6), 0.0), draw(2, 6, seed=1), draw(2, 6, seed=2)
    assert torch.allclose((u * project(v, z)).sum(), (v * project(u, z)).sum())
    assert project(z, z).abs().max() < 1e-14
    assert project(torch.ones_like(z), z).abs().max() < 1e-14


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


@pytest.mark.parametrize("make", [hesse.hessian_operator, hesse.ggn_operator])
def test_a_product_reads_each_norm_by_the_fused_operation(make):
    torch.manual_seed(0)
    model = nn.Sequential(Block(6), Block(6), nn.Linear(6, 3)).double()
    risk = hesse.Risk(model, nn.CrossEntropyLoss(), (draw(9, 6), torch.arange(9) % 3))
    A = make(risk, risk.params, mode="traced-split")
    V = draw(A.shape[0], 3, seed=3)
    calls = []

    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    A @ V[:, 0]
    with Calls():
        product = A @ V[:, 0]
    # The derivative of the second norm, and its transpose; the first one reads the data alone.
    assert sum("native_layer_norm_backward" in call for call in calls) == 2
    plain = make(risk, risk.params, mode="retained-graph")
    assert torch.allclose(product, plain @ V[:, 0], rtol=1e-10)
    assert torch.allclose(A.matmat(V), torch.stack([A @ v for v in V.T], 1), rtol=1e-10)


def test_results_are_those_of_torch():
    x, w, b = draw(2, 3, 4), draw(3, 4, seed=1), draw(3, 4, seed=2)
    ours = normalised(x.flatten(1), 1e-5).view(x.shape) * w + b
    assert torch.allclose(ours, F.layer_norm(x, (3, 4), w, b), rtol=1e-13)


def batch_norm(x, *statistics):
    return F.batch_norm(x, *(statistics or (None, None)), training=True)


def by_channels(x):
    """Batch and instance norm of an input of shape (5, 3, 1) or (1, 3, 5)."""
    rows = x.movedim(1, 0)
    return by_the_formula(rows.flatten(1), 1e-5).view(rows.shape).movedim(0, 1)


@pytest.mark.parametrize("mode", ["traced-split", "retained-graph", "forward-over-reverse"])
@pytest.mark.parametrize("has_statistics", [False, True])
@pytest.mark.parametrize(
    ("norm", "shape"), [(batch_norm, (5, 3, 1)), (F.instance_norm, (1, 3, 5))], ids=["batch", "one"]
)
def test_a_loss_of_gradients_of_a_batch_or_instance_norm(norm, shape, has_statistics, mode):
    """Torch's own third derivative of them takes mean and variance for constants."""
    x, v, weights = draw(15), draw(15, seed=1), draw(*shape, seed=2)
    statistics = (torch.zeros(3).double(), torch.ones(3).double()) if has_statistics else ()

    def loss(norm, *statistics):
        def energy(x):
            return (norm(x.view(shape), *statistics).sin() * weights).sum()

        return lambda x: torch.func.grad(energy)(x).square().sum()

    H = hesse.hessian_operator(loss(norm, *statistics), x, mode=mode)
    if has_statistics and norm is F.instance_norm and mode == "traced-split":
        with pytest.raises(hesse.errors.DerivativeError, match="changes a tensor in place"):
            H @ v
        return
    found = H @ v
    want = torch.autograd.functional.hessian(loss(by_channels), x) @ v
    assert torch.allclose(found, want, rtol=1e-9, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("norm", [torch.batch_norm, torch.instance_norm])
def test_those_that_torch_offers_without_defaults(norm):
    x, v, w, b = draw(60), draw(60, seed=1), draw(3, seed=2), draw(3, seed=3)
    by = {torch.batch_norm: (5, 3, 4), torch.instance_norm: (1, 3, 20)}[norm]

    def loss(norm):
        def energy(x):
            return norm(x.view(by)).sin().square().sum()

        return lambda x: torch.func.grad(energy)(x).square().sum()

    H = hesse.hessian_operator(
        loss(lambda x: norm(x, w, b, None, None, True, 0.1, 1e-5, False)), x, mode="traced-split"
    )
    formula = loss(lambda x: by_channels(x) * w[:, None] + b[:, None])
    want = torch.autograd.functional.hessian(formula, x) @ v
    assert torch.allclose(H @ v, want, rtol=1e-9, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("norm", [F.batch_norm, F.instance_norm])
def test_running_statistics_are_written_as_by_torch(norm):
    x = draw(4, 3, 5)
    found = [torch.zeros(3).double(), torch.ones(3).double()]
    want = [torch.zeros(3).double(), torch.ones(3).double()]
    ours = DECOMPOSITIONS[norm](x, *found, None, None, True, 0.3, 1e-5)
    of_torch = norm(x, *want, None, None, True, 0.3, 1e-5)
    assert torch.allclose(ours, of_torch, rtol=1e-12, atol=1e-12)
    assert ours.stride() == of_torch.stride()
    assert all(map(torch.equal, found, want))


@pytest.mark.parametrize("norm", [F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm])
def test_a_weight_of_another_dtype_leaves_that_of_the_input(norm):
    x, w, b = draw(2, 4, 4, 4).bfloat16(), draw(4, seed=1).float(), draw(4, seed=2).float()
    x = x.contiguous(memory_format=torch.channels_last)
    middle = {F.group_norm: (2,), F.layer_norm: ((4,),)}.get(norm, (None, None))
    last = (True,) if norm is F.batch_norm else ()
    ours, of_torch = (f(x, *middle, w, b, *last) for f in (DECOMPOSITIONS[norm], norm))
    assert ours.dtype == of_torch.dtype == torch.bfloat16
    assert ours.stride() == of_torch.stride()
    assert torch.allclose(ours, of_torch, rtol=0.02, atol=0.02)
