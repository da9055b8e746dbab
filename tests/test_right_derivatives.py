# SPDX-License-Identifier: Apache-2.0
"""Products where torch's derivative is another than that of f: mended, refused or said."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hesse import Risk, ggn_operator, hessian_operator, hvp
from hesse.errors import DerivativeError, FallbackWarning, HesseError

DOUBLE = torch.float64
ZERO, V = torch.zeros(3, dtype=DOUBLE), torch.tensor([1.0, 2.0, -1.0], dtype=DOUBLE)

SQUARES = {  # each is sum x^2, spelt with an operation that has a kink at zero
    "abs": lambda x: (x.abs() ** 2).sum(),
    "builtin abs": lambda x: (abs(x) ** 2).sum(),
    "complex abs": lambda x: (torch.complex(x, 0 * x).abs() ** 2).sum(),
    "relu": lambda x: (torch.relu(x) ** 2 + nn.functional.relu(-x) ** 2).sum(),
    "maximum": lambda x: (torch.maximum(x, -x) ** 2).sum(),
    "elu": lambda x: nn.functional.elu(x * x, alpha=0.5).sum(),
    "celu": lambda x: (nn.functional.selu(x * x) / 1.0507009873554805).sum(),
    "amax": lambda x: (torch.stack([x, -x]).amax(0) ** 2).sum(),
    "max": lambda x: sum(torch.stack([y, -y]).max() ** 2 for y in x),
    "l1_loss": lambda x: nn.functional.l1_loss(x * x, torch.zeros_like(x), reduction="sum"),
    "integer clamp": lambda x: (x.clamp(min=0) ** 2 + x.clamp(max=0) ** 2).sum(),
    "clamp_min": lambda x: (torch.clamp_min(x + 2, 2) + torch.clamp_max(x, 0) - 2).square().sum(),
    "hardtanh": lambda x: (
        (nn.functional.hardtanh(x + 1) - nn.functional.hardtanh(1 - x)).square().sum()
    ),
    "relu6": lambda x: (nn.functional.relu6(x) - nn.functional.relu6(-x)).square().sum(),
    "softshrink": lambda x: (
        (nn.functional.softshrink(x + 0.5) + nn.functional.softshrink(-x + 0.5)).square().sum()
    ),
    "threshold": lambda x: (
        nn.functional.threshold(x + 2, 2, 2).sub(2).square()
        + nn.functional.threshold(2 - x, 2, 2).sub(2).square()
    ).sum(),
    "clamp": lambda x: (x.clamp(min=0.0) ** 2 + x.clamp(max=0.0) ** 2).sum(),
    "norm": lambda x: x.norm() ** 2,
    "linalg.norm": lambda x: torch.linalg.norm(x) ** 2,
    "sqrt": lambda x: ((x * x).sqrt() ** 2).sum(),
}


@pytest.mark.parametrize("f", SQUARES.values(), ids=SQUARES)
def test_a_smooth_function_has_its_curvature_at_a_kink_of_an_operation(f):
    with pytest.warns(FallbackWarning, match="finite-difference"):
        torch.testing.assert_close(hvp(f, ZERO, V), 2 * V, rtol=1e-4, atol=1e-4)
    H = hessian_operator(f, ZERO)
    with pytest.warns(FallbackWarning, match="finite-difference"):
        product = H @ V
    torch.testing.assert_close(product, 2 * V, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(H @ (3 * V), 6 * V, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "mode",
    ["forward-over-reverse", "reverse-over-forward", "reverse-over-reverse", "retained-graph"],
)
@pytest.mark.parametrize("f", SQUARES.values(), ids=SQUARES)
def test_a_named_mode_refuses_to_give_another_number(f, mode):
    with pytest.raises(HesseError):
        hessian_operator(f, ZERO, mode=mode) @ V


@pytest.mark.filterwarnings("ignore::hesse.errors.FallbackWarning")
def test_a_kink_that_the_first_direction_passes_by_is_seen():
    H = hessian_operator(lambda x: (x.abs() ** 2).sum(), torch.tensor([1.0, 0.0], dtype=DOUBLE))
    torch.testing.assert_close(H.to_dense(), 2 * torch.eye(2, dtype=DOUBLE), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::hesse.errors.FallbackWarning")
def test_a_kink_that_is_a_small_part_of_the_product_is_seen():
    def f(x):
        return (x.abs() ** 2).sum() + 1e3 * (x.sum() - 2.0) ** 4

    def smooth(x):
        return (x**2).sum() + 1e3 * (x.sum() - 2.0) ** 4

    torch.testing.assert_close(hvp(f, ZERO, V), hvp(smooth, ZERO, V), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::hesse.errors.FallbackWarning")
def test_one_sided_curvature_is_left_to_torch():
    """relu(x)^2 has no second derivative at zero; a difference is the mean of both sides."""
    assert_close = torch.testing.assert_close
    assert_close(hvp(lambda x: (torch.relu(x) ** 2 + x**2).sum(), ZERO, V), 2 * V)


POWERS = {
    "**": lambda b, e: b**e,
    "pow": torch.pow,
    "float_power": torch.float_power,
    "in place": lambda b, e: (1.0 * b).pow_(e),
}


@pytest.mark.parametrize("power", POWERS.values(), ids=POWERS)
@pytest.mark.filterwarnings("ignore::hesse.errors.FallbackWarning")
def test_an_exponent_of_zero_varies_with_the_base(power):
    x = [torch.tensor([1.5, 2.0, 0.7], dtype=DOUBLE), torch.tensor([0.0, 1.0, 0.0], dtype=DOUBLE)]
    v = torch.linspace(-1.0, 1.0, 6, dtype=DOUBLE)
    right = hvp(lambda x: (x[1] * x[0].log()).exp().sum() ** 2, x, v)
    torch.testing.assert_close(
        hvp(lambda x: power(*x).sum() ** 2, x, v), right, rtol=1e-6, atol=1e-6
    )
    for mode in ("forward-over-reverse", "reverse-over-forward", "retained-graph"):
        with pytest.raises(HesseError, match="pow"):
            hessian_operator(lambda x: power(*x).sum() ** 2, x, mode=mode) @ v


def test_a_true_kink_is_left_to_torch_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product = hvp(lambda x: (x.abs() + x**2).sum(), ZERO, V)
    torch.testing.assert_close(product, 2 * V)


def test_another_formula_is_taken_where_one_gives_nan():
    x = torch.arange(9.0, dtype=DOUBLE).reshape(3, 3).sin()
    others = ~torch.eye(3, dtype=torch.bool)

    def pair(x):  # all distances, those to itself masked
        r = (x[:, None] - x).norm(dim=-1)
        return torch.where(others, r, 1.0).pow(-6)[others].sum()

    def plain(x):
        i, j = others.nonzero(as_tuple=True)
        return (x[i] - x[j]).square().sum(-1).pow(-3).sum()

    with pytest.warns(FallbackWarning, match="NaN or Inf"):
        torch.testing.assert_close(hvp(pair, x, x), hvp(plain, x, x))


def test_a_function_that_is_nan_is_refused_with_its_parameter():
    with pytest.raises(HesseError, match="NaN or Inf"):
        hvp(lambda x: torch.sqrt(-x.abs() - 1).sum(), V, V)


def symmetric_or_refused(A, name):
    try:
        dense = A.to_dense()
    except DerivativeError as error:
        refusal = str(error)
        dense = torch.eye(1)
    else:
        refusal = name
    assert name in refusal
    torch.testing.assert_close(dense, dense.T)


def embedding_risk(**options):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(6, 4, **options), nn.Linear(4, 3)
            nn.init.normal_(self.embedding.weight)

        def forward(self, i):
            return self.head(torch.tanh(self.embedding(i)).mean(1))

    i = torch.tensor([[0, 1, 2], [3, 4, 0], [5, 0, 0], [1, 1, 1]])
    return Risk(Net().double(), nn.MSELoss(), (i, torch.randn(4, 3, dtype=DOUBLE)))


@pytest.mark.some_cases(7)
@pytest.mark.parametrize("operator", [hessian_operator, ggn_operator])
@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("mode", ["auto", "traced-split", "retained-graph"])
def test_products_are_those_of_a_symmetric_matrix_or_refused(operator, options, mode):
    risk = embedding_risk(**options)
    symmetric_or_refused(operator(risk, risk.params, mode=mode), "nn.Embedding")


@pytest.mark.parametrize("mode", ["auto", "traced-split", "forward-over-reverse"])
def test_the_padding_row_counts_as_frozen_and_nothing_is_scaled(mode):
    padded, scaled = embedding_risk(padding_idx=0), embedding_risk(scale_grad_by_freq=True)
    plain = embedding_risk()
    params = plain.params
    right = hessian_operator(plain, params, mode="retained-graph").to_dense()
    found = hessian_operator(scaled, params, mode=mode).to_dense()
    torch.testing.assert_close(found, right)
    right[:4] = right[:, :4] = 0.0  # the first row of the table
    torch.testing.assert_close(hessian_operator(padded, params, mode=mode).to_dense(), right)


@pytest.mark.parametrize("mode", ["auto", "traced-split", "forward-over-reverse"])
def test_hooks_and_raw_matrices_are_named(mode):
    def hooked(x):
        y = x * 1.0
        if y.requires_grad:
            y.register_hook(lambda g: torch.stack([g[1], 2 * g[0], g[2]]))
        return (y**3).sum()

    def raw(x):
        A = torch.stack([x + 4, 0 * x + 1, x.flip(0)]) + 5 * torch.eye(3, dtype=DOUBLE)
        return torch.linalg.cholesky(A).pow(3).sum()

    for f, name in ((hooked, "hook"), (raw, "cholesky")):
        symmetric_or_refused(hessian_operator(f, V, mode=mode), name)


@pytest.mark.parametrize("mode", ["auto", "traced-split", "forward-over-reverse"])
@pytest.mark.parametrize("noise", [-25.0, -30.0])
def test_a_covariance_that_is_almost_singular_is_taken_for_symmetric(mode, noise):
    """The likelihood of a Gaussian process: products are as symmetric as rounding lets them be."""
    place = torch.linspace(0, 1, 12, dtype=DOUBLE)[:, None]
    y = torch.sin(6 * place[:, 0])

    def f(t):
        K = torch.exp(t[0] - (place - place.T) ** 2 / 2 / t[1].exp() ** 2)
        L = torch.linalg.cholesky(K + t[2].exp() * torch.eye(12, dtype=DOUBLE))
        return y @ torch.cholesky_solve(y[:, None], L)[:, 0] / 2 + L.diagonal().log().sum()

    t = torch.tensor([2.41, -0.67, noise], dtype=DOUBLE)
    H = torch.autograd.functional.hessian(f, t)
    defect = float((H - H.T).norm() / H.norm())
    assert defect > torch.finfo(DOUBLE).eps ** 0.5  # or the test tests nothing
    product = hessian_operator(f, t, mode=mode) @ V
    torch.testing.assert_close(product, H @ V, rtol=1e3 * defect, atol=0.0)


@pytest.mark.filterwarnings("ignore::hesse.errors.FallbackWarning")
def test_kinks_are_seen_while_somebody_counts_operations():
    with FlopCounterMode(display=False):
        product = hvp(lambda x: (x.abs() ** 2).sum(), ZERO, V)
    torch.testing.assert_close(product, 2 * V, rtol=1e-4, atol=1e-4)
