# SPDX-License-Identifier: Apache-2.0
"""The sparsity of operations of torch, one by one, against dense Hessians."""

import pytest
import torch
import torch.nn.functional as F

from hesse.curvature import sparse_hessian_operator
from hesse.tracing.sparsity.rules import separable

DOUBLE = torch.float64
MASK = torch.tensor([True, False, True])
WEIGHT = torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE)


def ones(*shape):
    return torch.ones(shape, dtype=DOUBLE)


def complex_of(x):
    return torch.view_as_complex(x)


def grid(d):
    side = torch.linspace(-0.9, 0.9, 3, dtype=DOUBLE)
    return torch.stack(torch.meshgrid([side] * d, indexing="ij"), -1).expand(2, *[3] * d, d)


# The pattern is that of the nonzeros.
EXACT = {
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), (1, 2, 7)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), (1, 2, 5, 4)),
    "avg_pool2d, overlapping": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        (2, 5, 6),
    ),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2, 1), (1, 1, 3, 2, 4)),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 3), (1, 2, 8)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, 5)), (1, 2, 5, 4)),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), (1, 1, 4, 3, 2)),
    "lp_pool": (lambda x: F.lp_pool2d(x, 3, 2), (1, 1, 4, 4)),
    "local_response_norm": (lambda x: F.local_response_norm(x, 2), (1, 4, 3)),
    "linear": (lambda x: F.interpolate(x, size=7, mode="linear"), (2, 2, 4)),
    "trilinear": (
        lambda x: F.interpolate(x, size=(4, 3, 2), mode="trilinear"),
        (1, 2, 2, 3, 3),
    ),
    "nearest-exact": (lambda x: F.interpolate(x, size=7, mode="nearest-exact"), (2, 2, 4)),
    "nearest-exact, 3": (
        lambda x: F.interpolate(x, size=(4, 3, 2), mode="nearest-exact"),
        (1, 1, 2, 3, 3),
    ),
    "area": (lambda x: F.interpolate(x, size=(2, 3), mode="area"), (1, 1, 4, 5)),
    **{
        f"{mode}, {size}, corners {corners}": (
            lambda x, mode=mode, size=size, corners=corners: F.interpolate(
                x, size=size, mode=mode, align_corners=corners
            ),
            (1, 2, 4, 4),
        )
        for mode in ("bilinear", "bicubic")
        for size in ((2, 3), (4, 7), (1, 1))
        for corners in (False, True)
    },
    **{
        f"{mode}, antialias": (
            lambda x, mode=mode: F.interpolate(x, size=(2, 3), mode=mode, antialias=True),
            (1, 1, 4, 5),
        )
        for mode in ("bilinear", "bicubic")
    },
    "glu": (lambda x: F.glu(x, 1), (2, 4, 2)),
    **{
        name: (lambda x, name=name: getattr(F, name)(x - 0.7), (7,))
        for name in (
            *("elu", "selu", "celu", "hardswish", "softplus", "logsigmoid", "mish", "hardtanh"),
            *("leaky_relu", "gelu", "silu", "softsign"),
        )
    },
    "prelu": (lambda x: F.prelu(x - 0.7, WEIGHT), (2, 3)),
    "huber_loss": (lambda x: F.huber_loss(x[0], 3 * x[1], reduction="none"), (2, 4)),
    "smooth_l1_loss": (lambda x: F.smooth_l1_loss(x[0], 3 * x[1], reduction="none"), (2, 4)),
    "mse_loss": (lambda x: F.mse_loss(x[0], x[1], reduction="none"), (2, 4)),
    "soft_margin_loss": (lambda x: F.soft_margin_loss(x, ones(4), reduction="none"), (4,)),
    "mean of a loss": (lambda x: F.mse_loss(x[0], x[1]), (2, 4)),
    "nll_loss": (
        lambda x: F.nll_loss(x, torch.tensor([0, 2, -100, 1]), WEIGHT, reduction="none"),
        (4, 3),
    ),
    "cross_entropy": (lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1]), WEIGHT), (3, 3)),
    "cross_entropy of places": (
        lambda x: F.cross_entropy(x, torch.tensor([[[0, 1], [2, 1]]]), reduction="none"),
        (1, 3, 2, 2),
    ),
    "batch_norm": (
        lambda x: F.batch_norm(x[:4], None, None, x[4], x[5], training=True),
        (6, 3),
    ),
    "batch_norm, evaluated": (lambda x: F.batch_norm(x[:4], WEIGHT, WEIGHT, x[4], x[5]), (6, 3)),
    "instance_norm": (F.instance_norm, (2, 2, 4)),
    "masked_select": (lambda x: torch.masked_select(x, MASK), (2, 3)),
    "take": (lambda x: x.take(torch.tensor([0, 4, 4])), (2, 3)),
    "put": (
        lambda x: x.put(torch.tensor([1, 1]), x[0, :2] ** 2, accumulate=True),
        (2, 3),
    ),
    "matrix_exp": (torch.matrix_exp, (2, 3, 3)),
    "cholesky_solve": (
        lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(x @ x.mT + torch.eye(2))),
        (3, 2, 2),
    ),
    "kernels": (lambda x: F.conv2d(ones(1, 1, 3, 3), x), (1, 1, 2, 2)),
    "sizes of complex numbers": (lambda x: (complex_of(x) ** 2 + 1).abs(), (4, 2)),
    "products of complex numbers": (
        lambda x: torch.view_as_real(complex_of(x).roll(1) * complex_of(x)),
        (5, 2),
    ),
    "conjugates": (lambda x: (complex_of(x).conj() * complex_of(x).roll(1)).imag, (5, 2)),
    "fft": (lambda x: torch.fft.fft(x).abs(), (3, 4)),
    "rfft": (lambda x: torch.fft.rfft(x, dim=0).abs(), (5, 2)),
    "irfft": (lambda x: torch.fft.irfft(torch.fft.rfft(x) ** 2), (2, 5)),
    "fft2": (lambda x: torch.fft.fft2(x, dim=(0, 2)).abs(), (2, 3, 2)),
}

# There are no more dependences than that of an image on all of itself, or where maxima may be.
LARGER = {
    "relu6": (lambda x: F.relu6(x - 0.7), (7,)),
    "hardshrink": (lambda x: F.hardshrink(x), (7,)),
    "softshrink": (lambda x: F.softshrink(x), (7,)),
    "prelu, weights": (lambda x: F.prelu(x[:2] - 0.7, x[2]), (3, 3)),
    "ignored classes": (lambda x: F.cross_entropy(x, torch.tensor([0, 2, -100])), (3, 3)),
    "parts of complex numbers": (lambda x: torch.view_as_real(complex_of(x)), (4, 2)),
    "bilinear layer": (lambda x: F.bilinear(x, x, ones(2, 3, 3)), (2, 3)),
    "grid_sample": (lambda x: F.grid_sample(x, grid(2), align_corners=False), (2, 2, 3, 3)),
    "grid_sample, 3": (
        lambda x: F.grid_sample(x, grid(3)[:1], align_corners=False),
        (1, 1, 3, 3, 3),
    ),
    "points of a grid": (
        lambda x: F.grid_sample(ones(2, 1, 3, 3).cumsum(2) ** 2, x - 0.7, align_corners=False),
        (2, 2, 2, 2),
    ),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2, 1), (2, 2, 5)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), (2, 5, 5)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (1, 2, 4, 4, 2)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (1, 2, 5, 4)),
}


def checked(op, shape):
    """The pattern, and where a Hessian at one of three points is not zero."""

    def f(x):
        y = op(x.view(shape))
        return (y.sin() + y**3 / 3).sum()

    def point(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(torch.Size(shape).numel(), dtype=DOUBLE, generator=generator) + 0.2

    S = sparse_hessian_operator(f, point(0))
    dense = [torch.autograd.functional.hessian(f, point(seed)) for seed in range(3)]
    for seed in (0, 1, 0):
        S = S.at(point(seed))
        torch.testing.assert_close(S.to_dense(), dense[seed], rtol=1e-10, atol=1e-10)
        pattern = torch.from_numpy(S.structure.compression.pattern.toarray())
        assert bool((pattern | (dense[seed] == 0)).all())
    return pattern, (torch.stack(dense) != 0).any(0)


@pytest.mark.parametrize("name", EXACT)
def test_the_pattern_of_an_operation_is_that_of_its_nonzeros(name):
    pattern, nonzero = checked(*EXACT[name])
    assert torch.equal(pattern, nonzero)
    assert bool(nonzero.any())


@pytest.mark.parametrize("name", LARGER)
def test_the_pattern_of_an_operation_has_its_nonzeros(name):
    pattern, _ = checked(*LARGER[name])
    assert bool(pattern.any())


def test_large_images_are_looked_at_in_parts(monkeypatch):
    monkeypatch.setattr(separable, "_MOST_NUMBERS", 50)
    pattern, nonzero = checked(*EXACT["bilinear, (4, 7), corners True"])
    assert torch.equal(pattern, nonzero)
