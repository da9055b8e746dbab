# SPDX-License-Identifier: Apache-2.0
"""A spectral density is saved, limited and interrupted within a block of probes."""

import math
import time

import pytest
import torch

from hesse.errors import Status
from hesse.estimators import KernelPolynomial, LanczosDensity, spectral_density
from hesse.operators import function_operator

DOUBLE = torch.float64
METHODS = [LanczosDensity(12), KernelPolynomial(24)]
SHORT, LONG = 250, 5000  # vectors whose basis is kept, and not; all columns take more products


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Product:
    """A symmetric matrix that is interrupted at one of its products."""

    def __init__(self, n, stop=math.inf, seconds=0.0):
        self.d = torch.linspace(-1, 3, n, dtype=DOUBLE)
        self.u = torch.randn(n, generator=seeded(), dtype=DOUBLE) / n**0.5
        self.taken, self.stop, self.seconds = 0, stop, seconds

    def __call__(self, v):
        self.taken += 1
        if self.taken == self.stop:
            raise KeyboardInterrupt
        time.sleep(self.seconds)
        return self.d * v + self.u * (self.u @ v)

    @property
    def operator(self):
        return function_operator(self, len(self.d), symmetric=True, dtype=DOUBLE)


@pytest.mark.some_cases(12)
@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("n", [SHORT, LONG])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [3, 17, 30, 45, 58])
def test_a_run_interrupted_within_a_block_goes_on_to_the_same_bits(n, method, stop, tmp_path):
    asked = {"method": method, "probes": 5, "block_size": 5}
    whole = spectral_density(Product(n).operator, **asked, generator=seeded(5))
    broken, path = Product(n, stop), tmp_path / "run"
    try:
        part = spectral_density(broken.operator, **asked, generator=seeded(5), checkpoint=path)
        assert part.status is Status.INTERRUPTED
    except KeyboardInterrupt:
        part = None  # before there is any result
    rest = Product(n)
    resumed = spectral_density(rest.operator, **asked, generator=seeded(9), checkpoint=path)
    for name in ("grid", "density", "standard_error", "nodes", "weights"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert resumed.products == whole.products
    # What was taken is not taken again, but for the products of one step, the bound of the
    # spectrum among them, and those that recognise the operator.
    bound = 20 if isinstance(method, KernelPolynomial) and stop <= 22 else 0
    assert broken.taken + rest.taken <= whole.products + 2 + 5 + bound


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("n", [SHORT, LONG])
@pytest.mark.parametrize("method", METHODS)
def test_seconds_end_a_run_within_a_block(n, method):
    """The result is that of the steps so far: eight probes to a smaller depth."""
    product, began = Product(n, seconds=0.02), time.monotonic()
    density = spectral_density(product.operator, method=method, max_seconds=0.9)
    assert time.monotonic() - began < 5.0
    assert density.status is Status.MAX_SECONDS
    assert len(density.nodes) == 8
    assert density.products == product.taken < 8 * 12
    assert density.moment(1) == pytest.approx(1.0, abs=0.5)
    step = density.grid[1] - density.grid[0]
    assert float(density.density.sum() * step) == pytest.approx(1.0, abs=0.05)


def test_ctrl_c_within_the_first_block_returns_the_steps_so_far():
    density = spectral_density(Product(1000, 50).operator)
    assert density.status is Status.INTERRUPTED
    assert len(density.nodes) == 8
    with pytest.raises(KeyboardInterrupt):
        spectral_density(Product(1000, 3).operator)
