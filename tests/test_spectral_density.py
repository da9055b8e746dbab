"""The density of eigenvalues: a density, with the moments of the spectrum, within its band."""

import builtins
import math

import matplotlib as mpl
import pytest
import torch

from hesse.errors import (
    ArgumentError,
    MissingExtraError,
    NonFiniteError,
    OperatorError,
    Status,
)
from hesse.estimators import KernelPolynomial, LanczosDensity, spectral_density, trace
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator, PeakMemory

pytestmark = pytest.mark.usefixtures("sampled")  # test_exact.py has the exact ones
DOUBLE = torch.float64
METHODS = [LanczosDensity, KernelPolynomial]


def of_steps(method, steps):
    """The method with so many products a probe."""
    return method(steps if method is LanczosDensity else 2 * steps)


def symmetric(n, seed=0):
    M = torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE) + 2 * torch.eye(n, dtype=DOUBLE)
    return (M + M.T) / 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_moments_of_the_density_are_those_of_the_spectrum():
    M = symmetric(80)
    density = spectral_density(M, probes=30, method=LanczosDensity(20), generator=seeded())
    for power in (1, 2, 3):
        exact = float(torch.linalg.matrix_power(M, power).trace()) / 80
        per_probe = (density.weights * density.nodes**power).sum(dim=1)
        error = float(per_probe.std()) / math.sqrt(30)
        assert abs(density.moment(power) - exact) <= 4 * error
    assert density.products == 600


@pytest.mark.parametrize("method", METHODS)
def test_products_are_counted_and_the_curve_is_a_density(method):
    A = CountingOperator(dense_operator(symmetric(90)))
    density = spectral_density(A, method=of_steps(method, 30), probes=5, generator=seeded())
    assert density.products == A.products == 150 + (20 if method is KernelPolynomial else 0)
    assert density.status is Status.CONVERGED
    assert bool((density.density >= 0).all())
    step = density.grid[1] - density.grid[0]
    # The grid ends four bandwidths out (tails of 6e-5), or just inside the ends of the interval.
    assert float(density.density.sum() * step) == pytest.approx(1.0, abs=1e-3)
    assert density.weights.sum(dim=1).tolist() == pytest.approx([1.0] * 5)


def gaussian_mixture(M, density):
    z = (density.grid - torch.linalg.eigvalsh(M)[:, None]) / density.bandwidth
    return torch.exp(-0.5 * z**2).mean(dim=0) / (density.bandwidth * math.sqrt(2 * math.pi))


def test_the_default_bandwidth_is_what_the_steps_resolve():
    """With many probes only the quadrature's own error is left: it is below the peak's 1e-3."""
    M = symmetric(150)
    density = spectral_density(M, probes=4, method=LanczosDensity(40), generator=seeded())
    exact_rules = spectral_density(
        M, probes=4, method=LanczosDensity(150, density.bandwidth), generator=seeded()
    )
    t = torch.linspace(-10, 14, 200, dtype=DOUBLE)
    curves = [
        (d.weights[..., None] * torch.exp(-0.5 * ((t - d.nodes[..., None]) / d.bandwidth) ** 2))
        .sum(dim=1)
        .mean(dim=0)
        for d in (density, exact_rules)
    ]
    assert float((curves[0] - curves[1]).abs().max() / curves[1].max()) < 2e-3


@pytest.mark.slow
def test_the_band_holds_the_truth():
    M = symmetric(60, 1)
    density = spectral_density(M, probes=40, method=LanczosDensity(60, 0.5), generator=seeded())
    low, high = density.interval
    exact = gaussian_mixture(M, density)
    assert float(((low <= exact) & (exact <= high)).double().mean()) > 0.85
    assert bool((low <= density.density).all() and (density.density <= high).all())


def test_kernel_polynomials_agree_with_lanczos():
    M = symmetric(200)
    kernel = spectral_density(M, method="kernel-polynomial", probes=20, generator=seeded())
    exact = gaussian_mixture(M, kernel)
    inner = (kernel.grid - 2).abs() < 15
    difference = (kernel.density - exact)[inner].abs().sum() * (kernel.grid[1] - kernel.grid[0])
    assert float(difference) < 0.15
    # The same probes: what differs is the damping, by about (pi / 128)^2 / 2 of half the range.
    lanczos = spectral_density(M, probes=20, generator=seeded())
    assert kernel.moment(1) == pytest.approx(lanczos.moment(1), abs=0.02)


def test_a_target_takes_more_probes():
    M = symmetric(100)
    for method in METHODS:
        density = spectral_density(M, method=of_steps(method, 30), rtol=0.1, generator=seeded())
        assert density.status is Status.CONVERGED
        assert density.error <= 0.1
        assert len(density.weights) > 8
    ended = spectral_density(M, rtol=1e-3, max_products=800, generator=seeded())
    assert ended.status is Status.MAX_PRODUCTS
    assert ended.products <= 800


def test_blocks_change_nothing_but_rounding():
    M = symmetric(60)
    method = LanczosDensity(20)
    one, many = (
        spectral_density(M, method=method, block_size=b, generator=seeded()) for b in (1, 8)
    )
    torch.testing.assert_close(one.density, many.density, rtol=1e-9, atol=1e-12)
    again = spectral_density(M, method=method, block_size=8, generator=seeded())
    assert torch.equal(many.nodes, again.nodes)


@pytest.mark.parametrize("method", METHODS)
def test_float32_trees_and_multiples_of_the_identity(method):
    d = {"a": torch.full((12,), 2.0), "b": torch.full((3, 2), 2.0)}
    density = spectral_density(diagonal_operator(d), method=method())
    assert density.moment(1) == pytest.approx(2.0, abs=1e-2)


def test_ctrl_c_and_the_callback_return_what_there_is():
    def interrupt(density):
        if len(density.nodes) >= 2:
            raise KeyboardInterrupt

    M = symmetric(40)
    density = spectral_density(M, block_size=1, callback=interrupt)
    assert density.status is Status.INTERRUPTED
    assert len(density.nodes) == 2
    assert spectral_density(M, callback=lambda d: True).status is Status.STOPPED
    one = spectral_density(M, probes=1)
    assert math.isinf(float(one.standard_error[0]))
    assert math.isinf(float(one.interval[1][0]))


def assert_same_bits(first, second):
    for name in ("grid", "density", "standard_error", "nodes", "weights"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert (first.products, first.status) == (second.products, second.status)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [None, 0.1])
def test_an_interrupted_run_goes_on_to_the_same_bits(method, rtol, tmp_path):
    """Ctrl-C in the middle of a step: the file holds a whole one, this or that many probes."""
    M, left = symmetric(70), [90]

    def product(v):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return M @ v

    A = function_operator(product, 70, symmetric=True, dtype=DOUBLE)
    asked = {"method": of_steps(method, 20), "rtol": rtol, "block_size": 2}
    path = tmp_path / "run"
    broken = spectral_density(A, **asked, generator=seeded(), checkpoint=path)
    assert broken.status is Status.INTERRUPTED
    assert 0 < len(broken.nodes) < 8
    resumed = spectral_density(A, **asked, generator=seeded(1), checkpoint=path)
    assert_same_bits(resumed, spectral_density(A, **asked, generator=seeded()))


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_costs_only_the_rest(method, tmp_path):
    path, counted = tmp_path / "run", CountingOperator(dense_operator(symmetric(60)))
    asked = {"method": of_steps(method, 15), "block_size": 3, "checkpoint": path}
    stopped = spectral_density(counted, **asked, callback=lambda d: len(d.nodes) >= 6)
    assert stopped.status is Status.STOPPED
    counted.products = 0
    whole = spectral_density(counted, **asked)
    assert whole.status is Status.CONVERGED
    torch.testing.assert_close(whole.weights[:6], stopped.weights)
    assert counted.products == 2 * 15 + 1  # two probes, and one to recognise the operator
    counted.products = 0
    finer = spectral_density(counted, **asked, points=4096)
    assert torch.equal(finer.nodes, whole.nodes)
    assert len(finer.grid) == 4096
    assert counted.products == 1
    longer = spectral_density(counted, **asked, rtol=0.95 * whole.error)
    assert longer.products > whole.products == stopped.products + 30


def test_a_checkpoint_of_another_question_is_refused(tmp_path):
    M, path = symmetric(40), tmp_path / "run"
    ten = LanczosDensity(steps=10)
    spectral_density(M, method=ten, checkpoint=path)
    with pytest.raises(ArgumentError, match="steps = 12"):
        spectral_density(M, method=LanczosDensity(steps=12), checkpoint=path)
    with pytest.raises(ArgumentError, match="probes = 9"):
        spectral_density(M, method=ten, probes=9, checkpoint=path)
    with pytest.raises(ArgumentError, match="method = kernel-polynomial"):
        spectral_density(M, method=KernelPolynomial(degree=20), checkpoint=path)
    with pytest.raises(ArgumentError, match="with this operator"):
        spectral_density(symmetric(40, 1), method=ten, checkpoint=path)
    with pytest.raises(ArgumentError, match="call = trace"):
        trace(M, checkpoint=path)


def test_it_plots_and_says_what_is_missing(monkeypatch):
    mpl.use("Agg")
    from matplotlib import pyplot

    density = spectral_density(symmetric(40), generator=seeded())
    axes = density.plot()
    assert axes.get_xlabel() == "eigenvalue"
    assert density.plot(axes) is axes
    pyplot.close(axes.figure)
    original = builtins.__import__

    def without(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="report"):
        density.plot()


def test_what_cannot_be_is_refused():
    with pytest.raises(OperatorError, match="symmetric"):
        spectral_density(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ArgumentError):
        spectral_density(torch.eye(3), probes=0)
    with pytest.raises(ArgumentError, match="method"):
        spectral_density(torch.eye(3), method="histogram")
    with pytest.raises(ArgumentError, match="memory budget"):
        spectral_density(torch.eye(30), memory_budget="1kB")
    with pytest.raises(ArgumentError, match="which one probe takes"):
        spectral_density(torch.eye(30), max_products=10)
    broken = function_operator(lambda v: v * math.nan, 20, symmetric=True)
    for method in METHODS:
        with pytest.raises(NonFiniteError):
            spectral_density(broken, method=method())


def test_invalid_options_are_refused_by_the_method_that_has_them():
    for wrong in (0.0, math.nan):
        with pytest.raises(ArgumentError, match=r"hesse.LanczosDensity\(.*\n.*bandwidth > 0"):
            LanczosDensity(bandwidth=wrong)
    with pytest.raises(ArgumentError, match="degree >= 1"):
        KernelPolynomial(degree=0)
    with pytest.raises(ArgumentError, match="points >= 2"):
        spectral_density(torch.eye(30), points=1)


def test_kernel_polynomials_of_odd_degree():
    A = CountingOperator(dense_operator(symmetric(60)))
    odd, even = (
        spectral_density(A, method=KernelPolynomial(degree), probes=2, generator=seeded())
        for degree in (29, 30)
    )
    assert odd.products == even.products == 2 * 15 + 20
    assert odd.bandwidth == pytest.approx(even.bandwidth * 30 / 29)
    assert odd.moment(1) == pytest.approx(even.moment(1), rel=0.02)


def test_the_axis_is_logarithmic_where_outliers_are_few():
    mpl.use("Agg")
    from matplotlib import pyplot

    outliers = torch.cat([torch.full((200,), 1e-3, dtype=DOUBLE), torch.tensor([1.0, 2.0])])
    for M, scale in ((torch.diag(outliers), "log"), (symmetric(60), "linear")):
        density = spectral_density(M, generator=seeded())
        assert density.is_sparse == (scale == "log")
        assert density.plot().get_yscale() == scale
        assert density.plot(scale="log").get_yscale() == "log"
        assert density.plot(scale="linear").get_yscale() == "linear"
    pyplot.close("all")
    with pytest.raises(ArgumentError, match="Did you mean 'log'"):
        density.plot(scale="logg")


def test_a_density_prints_on_one_screen():
    density = spectral_density(symmetric(60), generator=seeded())
    assert len(repr(density).splitlines()) == 9
    assert "<table>" in density._repr_html_()
    assert density["products"] == density.products


@pytest.mark.some_cases(4)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vectors", [5, 6, 20])
def test_a_budget_is_kept(method, vectors):
    n = 50_000
    A, budget = diagonal_operator(torch.linspace(0.1, 1, n, dtype=torch.float64)), vectors * n * 8
    with PeakMemory() as memory:
        spectral_density(
            A, method=of_steps(method, 20), probes=8, block_size=8, memory_budget=budget
        )
    assert memory.peak <= 1.02 * budget  # signs are drawn in words
