# SPDX-License-Identifier: Apache-2.0
"""The same products on a CUDA device; skipped where there is none."""

import pytest
import torch
from torch import nn

from hesse.ad.one_shot import ONE_SHOT_MODES as ONE_SHOT
from hesse.curvature import (
    ekfac_operator,
    ggn_operator,
    hessian_operator,
    hvp,
    kfac_operator,
    sparse_hessian_operator,
)
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm

pytestmark = pytest.mark.gpu

PREPARED = ["auto", "retained-graph", "traced-split"]


def risk_on(device, dtype):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    head = [nn.Flatten(), nn.Linear(16 * 8, 4)]
    model = nn.Sequential(layer, *head).to(device, dtype).eval()
    data = torch.rand(12, 8, 16).to(dtype), torch.arange(12) % 4  # moved batch by batch
    return Risk(model, nn.CrossEntropyLoss(), data)


@pytest.fixture(scope="module")
def reference():
    """Products in float64 on the CPU."""
    risk = risk_on("cpu", torch.float64)
    H = hessian_operator(risk, risk.params, mode="retained-graph")
    G = ggn_operator(risk, risk.params, mode="retained-graph")
    v = torch.randn(H.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return v, H @ v, G @ v


def assert_close(product, expected, tolerance):
    assert product.is_cuda
    assert norm(product.double().cpu() - expected) <= tolerance * norm(expected)


@pytest.mark.parametrize("mode", PREPARED)
def test_prepared_products(reference, mode):
    v, hessian, gauss_newton = reference
    risk, ours = risk_on("cuda", torch.float64), v.cuda()
    H = hessian_operator(risk, risk.params, mode=mode)
    assert_close(H @ ours, hessian, 1e-10)
    assert_close((H @ torch.stack([ours, -ours, ours], dim=1))[:, 2], hessian, 1e-10)
    assert_close(ggn_operator(risk, risk.params, mode=mode) @ ours, gauss_newton, 1e-10)


@pytest.mark.slow
def test_a_compiled_product(reference):
    v, hessian, _ = reference
    risk = risk_on("cuda", torch.float32)
    H = hessian_operator(risk, risk.params, mode="compiled-split")
    assert_close(H @ v.float().cuda(), hessian, 1e-4)


@pytest.mark.parametrize("mode", [mode for mode in ONE_SHOT if "difference" not in mode])
def test_one_shot_products(reference, mode):
    v, hessian, _ = reference
    risk = risk_on("cuda", torch.float64)
    assert_close(hvp(risk, risk.params, v.cuda(), mode), hessian, 1e-10)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision(reference, precision):
    v, hessian, _ = reference
    before = torch.get_float32_matmul_precision()
    risk = risk_on("cuda", torch.float32)
    H = hessian_operator(risk, risk.params, precision=precision)
    assert_close(H @ v.float().cuda(), hessian, 3e-2)
    assert "relative error of a product" in str(H.plan) or "no units" in str(H.plan)
    assert torch.get_float32_matmul_precision() == before


def test_the_allocator_agrees_that_nothing_is_left(reference):
    v = reference[0].float().cuda()
    risk = risk_on("cuda", torch.float32)
    H = hessian_operator(risk, risk.params, mode="traced-split")
    H @ v
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for _ in range(5):
        H @ v
    assert torch.cuda.memory_allocated() <= held


def test_a_sparse_hessian():
    pytest.importorskip("scipy")

    def f(x):
        return ((x[1:] - x[:-1] ** 2) ** 2).sum()

    x = torch.linspace(0.5, 1.5, 100, dtype=torch.float64)
    v = torch.cos(x)
    S, H = sparse_hessian_operator(f, x.cuda()), hessian_operator(f, x)
    assert_close(S @ v.cuda(), H @ v, 1e-12)
    assert_close(S.at(x.cuda() + 1) @ v.cuda(), H.at(x + 1) @ v, 1e-12)
    assert_close(S._inverse() @ (S @ v.cuda()), v, 1e-8)


@pytest.mark.parametrize("make", [kfac_operator, ekfac_operator])
def test_factors_are_those_of_the_cpu(make):
    K = make(risk_on("cuda", torch.float64), damping=0.1)
    expected = make(risk_on("cpu", torch.float64), damping=0.1)
    assert K.device.type == "cuda"
    torch.testing.assert_close(K.eigenvalues().cpu(), expected.eigenvalues())
    v = torch.randn(K.shape[0], dtype=torch.float64)
    assert_close(K @ v.cuda(), expected @ v, 1e-8)
    assert_close(K.power(-0.5) @ v.cuda(), expected.power(-0.5) @ v, 1e-8)
