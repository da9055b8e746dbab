# SPDX-License-Identifier: Apache-2.0
"""Residuals and data that are written to behind torch's back: by NumPy, by C, by a lost bit."""

import pytest
import torch
from torch import nn

from hesse import Risk, ggn_operator, hessian_operator, jacobian_operator
from hesse.engine.data_version import BitSums, bit_sums
from hesse.errors import DataError

DOUBLE = torch.float64
MAKERS = [hessian_operator, ggn_operator]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


@pytest.fixture
def _always(monkeypatch):
    """Sums are taken at every product, whatever they cost."""
    monkeypatch.setattr("hesse.engine.data_version.BITS_PART", 1e12)


def flip(tensor, place=0, bit=62):
    """Flip a bit without torch."""
    plain = tensor.detach().as_strided((tensor.numel(),), (1,))  # in the order of memory
    plain.numpy().view("int64")[place] ^= 1 << bit


def residuals(operator):
    return operator._at._prepared._settled[0][2].residuals


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("batches", [1, 3])
def test_a_bit_flip_in_any_residual_is_noticed(make, batches):
    data = [(randn(20, 6, seed=k), randn(20, 3, seed=k + 9)) for k in range(batches)]
    risk = Risk(network(), nn.MSELoss(), data)
    operator = make(risk, risk.params, mode="traced-split")
    v = randn(operator.shape[1])
    expected = [operator @ v for _ in range(4)][-1]
    flips = [
        (number, bit)
        for number, residual in enumerate(residuals(operator))
        for bit in (0, 40, 62)
        if residual.dtype == DOUBLE
    ]
    for number, bit in flips:
        damaged = residuals(operator)[number]
        flip(damaged, bit=bit)
        with pytest.raises(DataError, match=r"other bits in \d+ of"):
            _ = operator @ v
        flip(damaged, bit=bit)  # it may be a view of the data
        for _ in range(4):  # prepared anew
            torch.testing.assert_close(operator @ v, expected, rtol=1e-12, atol=0.0)


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("mode", ["traced-split", "retained-graph"])
def test_data_written_by_numpy_are_noticed(mode):
    X, Y = randn(20, 6), randn(20, 3, seed=1)
    risk = Risk(network(), nn.MSELoss(), (X, Y))
    H = hessian_operator(risk, risk.params, mode=mode)
    v = randn(H.shape[1])
    before = [H @ v for _ in range(4)][-1]
    X.numpy()[3, 2] = 5.0
    with pytest.raises(DataError, match="nobody wrote by torch"):
        _ = H @ v
    fresh = Risk(network(), nn.MSELoss(), (X.clone(), Y))
    expected = hessian_operator(fresh, fresh.params) @ v
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(H @ v, expected)


@pytest.mark.usefixtures("_always")
def test_data_written_by_torch_are_followed():
    X, Y = randn(20, 6), randn(20, 3, seed=1)
    risk = Risk(network(), nn.MSELoss(), (X, Y))
    H = hessian_operator(risk, risk.params, mode="traced-split")
    v = randn(H.shape[1])
    for k in range(5):
        fresh = Risk(network(), nn.MSELoss(), (X.clone(), Y))
        for _ in range(3):
            torch.testing.assert_close(H @ v, hessian_operator(fresh, fresh.params) @ v)
        X.mul_(1.0 + k)


@pytest.mark.usefixtures("_always")
def test_operators_that_nothing_happens_to_are_as_ever():
    A, x = randn(50, 6), randn(6, seed=1)
    H = hessian_operator(lambda y: torch.tanh(A @ y).pow(2).sum(), x, mode="traced-split")
    J = jacobian_operator(lambda y: torch.tanh(A @ y), x, mode="traced-split")
    for operator in (H, J):
        v = randn(6, seed=2)
        products = torch.stack([operator @ v for _ in range(10)])
        torch.testing.assert_close(products, products[:1].expand(10, -1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, bool])
@pytest.mark.parametrize("size", [0, 1, 3, 8, 1001])
def test_every_bit_counts(dtype, size):
    dtype = torch.bool if dtype is bool else dtype
    whole = torch.ones(size + 3, dtype=dtype)
    for start in range(3):  # however it lies in memory
        tensor = whole[start : start + size]
        before = bit_sums([tensor])
        data = tensor.view(torch.uint8)
        for place in torch.randint(0, 8 * max(len(data), 1), (20 * (size > 0),)).tolist():
            data[place // 8] ^= 1 << place % 8
            assert bit_sums([tensor]) != before
            data[place // 8] ^= 1 << place % 8


def test_columns_and_conjugates_have_sums():
    X = torch.randn(4, 5)
    Z = torch.randn(3, dtype=torch.complex64)
    assert bit_sums([X.T[1], Z.conj()]) == bit_sums([X.T[1].clone(), Z.conj().resolve_conj()])
    assert bit_sums([Z.conj()]) != bit_sums([Z])


def test_sums_take_a_small_part_of_the_time(monkeypatch):
    """By a clock that goes on by what each call is said to take."""
    now, looks = [0.0], []
    monkeypatch.setattr("hesse.engine.data_version.time.perf_counter", lambda: now[0])

    class Product:
        @property
        def tensors(self):
            looks.append(now[0])
            now[0] += 1e-5  # twice at every look: for the bytes, and for the bits
            return [torch.ones(3)]

    sums, products = BitSums(), [Product()]
    for _ in range(10_000):
        sums.check(products)
        now[0] += 1e-4
    assert len(looks) > 10
    assert 1e-5 * len(looks) < 0.005 * now[0]
