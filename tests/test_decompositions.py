# SPDX-License-Identifier: Apache-2.0
"""Operations that torch differentiates once have exact products in every mode, and programs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hesse
from hesse.ad.torch_calls import TorchCalls
from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import NonFiniteError
from hesse.risk import Risk
from hesse.vectors.inner_products import norm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's forward mode

DOUBLE = torch.float64
MODES = ("reverse-over-reverse", "forward-over-reverse", "reverse-over-forward", "traced-split")


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=DOUBLE, generator=generator)


X, Y, W = draw(6, 3), draw(5, 3, seed=1), draw(7, 3, seed=2)
INDICES, OFFSETS = torch.tensor([1, 2, 4, 5, 4, 3, 2, 6, 0]), torch.tensor([0, 4, 4, 7])
LENGTHS = torch.tensor([2, 0, 4])
SCORES = draw(12, 3, 6)
WORDS = torch.tensor([[1, 2, 2], [3, 1, 0], [5, 5, 4]])
FRAMES, LETTERS = torch.tensor([12, 10, 11]), torch.tensor([3, 2, 3])
LABELS = torch.tensor([[0, 2, -1], [1, -1, 0], [2, 1, 0], [-1, 0, 0], [2, -1, -1], [0, 1, -1]])


def bag(w, **options):
    return F.embedding_bag(INDICES, w, OFFSETS, **options).pow(3).sum()


def ctc(z, *lengths, words=WORDS, **options):
    return F.ctc_loss(z, words, *lengths, **options).square().sum()


def unpooled(x):
    image = x.reshape(1, 1, 6, 3)
    largest, indices = F.max_pool2d(image, 2, stride=1, return_indices=True)
    return F.max_unpool2d(largest, indices, 2, stride=1).pow(3).sum()


CASES = {
    **{f"cdist {p}": (lambda x, p=p: torch.cdist(x, Y, p).pow(3).sum(), X)
       for p in (1.0, 1.5, 2.0, 3.0, math.inf)},
    **{f"cdist of a matrix with itself {p}":
       (lambda x, p=p: (torch.cdist(x, x, p).pow(3) + torch.cdist(x, x, p)).sum(), X)
       for p in (1.0, 2.0, 3.0, math.inf)},
    **{f"pdist {p}": (lambda x, p=p: F.pdist(x, p).pow(3).sum(), X)
       for p in (1.0, 2.0, 3.0, math.inf)},
    "cdist in batches": (lambda x: torch.cdist(x.view(2, 3, 3), x.tanh()[:4]).pow(3).sum(), X),
    **{f"embedding_bag {mode} {padding}":
       (lambda w, m=mode, p=padding: bag(w, mode=m, padding_idx=p), W)
       for mode in ("sum", "mean", "max") for padding in (None, 2, -1)},
    "embedding_bag with weights": (
        lambda w: F.embedding_bag(
            INDICES.view(3, 3), w, mode="sum", per_sample_weights=w[:3].sin()
        ).pow(3).sum(), W),
    "embedding_bag sparse": (lambda w: bag(w, mode="sum", sparse=True), W),
    "embedding_bag by frequency": (lambda w: bag(w, scale_grad_by_freq=True), W),
    "embedding_bag last offset": (lambda w: bag(w, include_last_offset=True), W),
    **{f"segment_reduce {reduce}":
       (lambda x, r=reduce: torch.segment_reduce(x, r, lengths=LENGTHS, initial=1.0).pow(3).sum(),
        X.abs() + 1.0)
       for reduce in ("sum", "mean", "prod", "max")},
    **{f"segment_reduce {reduce} of columns":
       (lambda x, r=reduce: torch.segment_reduce(
           x.mT.contiguous(), r, offsets=torch.tensor([[0, 2, 6]] * 3), axis=1).pow(3).sum(), X)
       for reduce in ("sum", "mean", "prod", "max", "min")},
    **{f"ctc_loss {reduction}":
       (lambda z, r=reduction: ctc(z.log_softmax(-1), FRAMES, LETTERS, reduction=r), SCORES)
       for reduction in ("none", "mean", "sum")},
    "ctc_loss of scores": (
        lambda z: ctc(z, (12, 10, 11), (3, 0, 2), words=torch.tensor([1, 2, 2, 3, 5])), SCORES),
    "ctc_loss of one": (
        lambda z: ctc(z[:, 0].log_softmax(-1), FRAMES[0], LETTERS[0], words=WORDS[0]), SCORES),
    "ctc_loss impossible": (
        lambda z: ctc(z.log_softmax(-1), torch.tensor([2, 10, 11]), LETTERS, zero_infinity=True),
        SCORES),
    "multi_margin_loss": (
        lambda x: F.multi_margin_loss(x.sin(), torch.arange(6) % 3, 2, 0.7, Y[0].abs()), X),
    "multilabel_margin_loss": (
        lambda x: F.multilabel_margin_loss(x.sin(), LABELS, reduction="none").pow(2).sum(), X),
    "hardsigmoid": (lambda x: F.hardsigmoid(3 * x).pow(3).sum(), X),
    "max_unpool of overlapping windows": (unpooled, X),
    "logcumsumexp": (lambda x: (torch.logcumsumexp(50 * x, 0) * X).sum(), X / 50),
}  # fmt: skip


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("name", CASES)
def test_products_and_gradients_are_those_of_differences(name):
    f, x = CASES[name]
    v, h = draw(*x.shape, seed=9), 1e-4
    points = [hvp(f, x + t * h * v, v, value_and_gradient=True) for t in (-2, -1, 1, 2)]
    far, behind, ahead, farther = (point.gradient for point in points)
    expected = (8 * (ahead - behind) - (farther - far)) / (12 * h)
    slope = float(points[2].value - points[1].value) / (2 * h)
    gradient = hvp(f, x, v, value_and_gradient=True).gradient
    assert abs(float((gradient * v).sum()) - slope) <= 1e-5 * (
        abs(slope) + norm(gradient.flatten())
    )
    for mode in MODES:
        if mode == "traced-split":
            H = hessian_operator(f, x, mode=mode)
            products = [H @ v, H @ v]
        elif name == "logcumsumexp" and "forward" in mode:
            continue
        else:
            products = [hvp(f, x, v, mode)]
        for product in products:
            error = norm((product - expected).flatten())
            assert error <= 1e-8 * norm(expected.flatten()), mode


@pytest.mark.parametrize("name", ["cdist 2.0", "embedding_bag mean None", "ctc_loss mean"])
def test_values_are_those_of_torch(name):
    f, x = CASES[name]
    value = hvp(f, x, x, value_and_gradient=True).value
    assert abs(float(value - f(x))) <= 1e-13 * abs(float(value))


def test_an_lstm_where_the_flags_of_torch_are_frozen(monkeypatch):
    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", False)
    lstm, x = torch.nn.LSTM(2, 3).double(), torch.randn(4, 2, dtype=torch.float64)
    H = hessian_operator(lambda x: lstm(x)[0].square().sum(), x)
    v = torch.ones_like(x)
    difference = (H.at(x + 1e-5 * v).flat_gradient - H.at(x - 1e-5 * v).flat_gradient) / 2e-5
    torch.testing.assert_close(H @ v.reshape(-1), difference, rtol=1e-6, atol=1e-8)


def test_the_distance_of_points_that_coincide_has_no_second_derivative():
    def squares(x):
        return torch.cdist(x, Y[:2]).square().diagonal().sum()

    x = Y[:2].clone()
    with pytest.raises(NonFiniteError):  # 0 would be wrong
        hvp(squares, x, x, "reverse-over-reverse")
    product = hvp(squares, x, x, "finite-difference")
    assert norm((product - 2 * x).flatten()) <= 1e-8 * norm(x.flatten())


def test_a_module_is_composed_too():
    bags = nn.EmbeddingBag(7, 3, dtype=DOUBLE)

    def f(w):
        return torch.func.functional_call(bags, {"weight": w}, (INDICES, OFFSETS)).pow(3).sum()

    v = draw(7, 3)
    expected = hvp(lambda w: bag(w, mode="mean"), W, v)
    assert torch.equal(hvp(f, W, v), expected)


@pytest.mark.parametrize("mode", ["auto", *MODES])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_cross_entropy_of_saturated_probabilities(mode, reduction):
    """d^2/dz^2 BCE(sigmoid(z), y) = p (1 - p); torch's own is wrong by 1e-5 to 0.1 here."""
    z = torch.tensor([-25.0, -15.0, -2.0, 0.0, 1.0, 15.0, 18.0, 25.0], dtype=DOUBLE)
    y, w = torch.linspace(0.0, 1.0, 8, dtype=DOUBLE), torch.linspace(0.5, 2.0, 8, dtype=DOUBLE)

    def f(z):
        return F.binary_cross_entropy(torch.sigmoid(z), y, weight=w, reduction=reduction)

    H = hessian_operator(f, z, mode=mode)
    p, count = torch.sigmoid(z), 8 if reduction == "mean" else 1
    expected = w * p * (1 - p) / count
    torch.testing.assert_close(H @ torch.ones(8, dtype=DOUBLE), expected, rtol=1e-7, atol=1e-15)
    torch.testing.assert_close(H.gradient, w * (p - y) / count, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(H.value, f(z))


def test_binary_cross_entropy_at_zero_and_one_is_that_of_torch():
    y = torch.tensor([0.0, 1.0, 0.3, 0.0, 1.0], dtype=DOUBLE)

    def f(p):
        return F.binary_cross_entropy(p.clamp(0.0, 1.0), y)

    p = torch.tensor([-1.0, 2.0, 0.5, 3.0, -3.0], dtype=DOUBLE)
    H = hessian_operator(f, p)
    assert float(H.value) == pytest.approx(float(f(p)))
    torch.testing.assert_close(
        H @ torch.ones(5, dtype=DOUBLE), torch.tensor([0, 0, 0.8, 0, 0], dtype=DOUBLE)
    )
    with pytest.raises(NonFiniteError):
        hvp(lambda p: F.binary_cross_entropy(p, y), 2.0 * p, p)


@pytest.mark.parametrize("mode", ["auto", *MODES])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_sinc_near_zero(mode, dtype):
    """Six terms of the series of sinc'' are exact below 0.05; torch's has no digit at 1e-8."""
    x = torch.tensor([0.0, 1e-8, -1e-7, 1e-4, -1e-3, 0.02, 0.05], dtype=dtype)
    z = (math.pi * x.double()) ** 2
    terms = [(-1) ** k * (2 * k - 1) * z ** (k - 1) / (math.factorial(2 * k - 1) * (2 * k + 1))
             for k in range(1, 7)]  # fmt: skip
    H = hessian_operator(lambda x: torch.sinc(x).sum(), x, mode=mode)
    product = H @ torch.ones(7, dtype=dtype)
    expected = (math.pi**2 * sum(terms)).to(dtype)
    torch.testing.assert_close(product, expected, rtol=50 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("sinc", [torch.sinc, torch.special.sinc, torch.Tensor.sinc])
def test_sinc_away_from_zero_is_that_of_torch(sinc):
    x = torch.linspace(-3.0, 3.0, 7, dtype=DOUBLE) + 0.1
    pi_x = math.pi * x
    sine, cosine = pi_x.sin(), pi_x.cos()
    exact = math.pi**2 * (-sine / pi_x - 2 * cosine / pi_x**2 + 2 * sine / pi_x**3)
    H = hessian_operator(lambda x: sinc(x).sum(), x)
    torch.testing.assert_close(H @ torch.ones(7, dtype=DOUBLE), exact)
    torch.testing.assert_close(H.value, torch.sinc(x).sum())


@pytest.mark.some_cases(20)
@pytest.mark.fast_cases(15)
@pytest.mark.parametrize("mode", ["auto", *MODES])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(
    "exp", [torch.matrix_exp, torch.linalg.matrix_exp, torch.Tensor.matrix_exp]
)
def test_matrix_exp_of_large_slopes(exp, scale, mode):
    """H v of a sum of exp(A) + exp(A)^2 is that of the power series, whatever f is scaled by."""
    A, V = draw(2, 3, 3), draw(2, 3, 3, seed=1)

    def f(A, exp=exp):
        E = exp(A)
        return scale * (E + E.square()).sum()

    def series(A):
        term = total = torch.eye(3, dtype=DOUBLE).expand(2, 3, 3)
        for k in range(1, 60):
            term = term @ A / k
            total = total + term
        return total

    expected = hvp(lambda A: f(A, series), A, V, "reverse-over-reverse")
    product = hessian_operator(f, A, mode=mode) @ V
    assert norm((product - expected).reshape(-1)) <= 1e-12 * norm(expected.reshape(-1))
    along_large = hessian_operator(f, A, mode=mode) @ (1e8 * V) / 1e8
    assert norm((along_large - expected).reshape(-1)) <= 1e-12 * norm(expected.reshape(-1))


@pytest.mark.parametrize("mode", ["auto", *MODES])
@pytest.mark.parametrize("exponent", [0, -30])
def test_logcumsumexp_where_its_slope_is_zero(exponent, mode):
    """torch takes the logarithm of the slope, and its second derivative there is wrong."""
    x, v, apart = draw(3, 4), draw(3, 4, seed=1), 100.0 * torch.arange(4, dtype=DOUBLE)

    def f(x):
        sums = torch.logcumsumexp(x - apart * exponent, -1)
        return (sums - sums.detach()).square().sum() + x.logcumsumexp(0)[1].square().sum()

    def by_exponentials(x):  # of every row on its own
        z = x - apart * exponent
        sums = torch.stack([z[:, : k + 1].logsumexp(-1) for k in range(4)], -1)
        return (sums - sums.detach()).square().sum() + x[:2].logsumexp(0).square().sum()

    product = hessian_operator(f, x, mode=mode) @ v
    expected = hvp(by_exponentials, x, v, "reverse-over-reverse")
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-12)


def test_logcumsumexp_of_infinite_entries_is_that_of_torch():
    z = torch.tensor([[-math.inf, -math.inf, 1.0, 2.0, -math.inf, 800.0, -math.inf]], dtype=DOUBLE)
    for x, dim in [(z, 1), (z, 0), (z[:, :0], 1), (z[0, 2], 0)]:
        with TorchCalls():
            composed = torch.logcumsumexp(x, dim)
        torch.testing.assert_close(composed, torch.logcumsumexp(x, dim), rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (2, 4, 3, 3), (2, 4, 2, 3, 3)])
@pytest.mark.parametrize("affine", [False, True])
def test_group_norm_is_that_of_torch(shape, affine):
    x, w, b = draw(*shape), draw(4, seed=1), draw(4, seed=2)
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))
    forms = [x, x.to(memory_format=channels_last)] if channels_last else [x]
    for form in forms:
        arguments = (form, 2, w, b) if affine else (form, 2)
        expected = F.group_norm(*arguments)
        with TorchCalls():
            composed = F.group_norm(*arguments)
        torch.testing.assert_close(composed, expected, rtol=1e-13, atol=1e-13)
        assert composed.stride() == expected.stride()


@pytest.mark.parametrize("mode", ["retained-graph", "traced-split"])
@pytest.mark.parametrize("layer", [
    lambda z: F.group_norm(z, 2), lambda z: z / z.std(1, keepdim=True),
    lambda z: z / torch.linalg.vector_norm(z, dim=1, keepdim=True), lambda z: F.rms_norm(z, (4,)),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:the loss is flat")
def test_a_loss_without_curvature_has_the_matrix_zero(layer, mode):
    """torch's zero is a tensor without memory, which kernels read as if it had some."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    risk = Risk(lambda p, x: layer(torch.func.functional_call(model, p, x)), nn.L1Loss(),
                (draw(5, 3), draw(5, 4)), params=dict(model.named_parameters()))  # fmt: skip
    for _ in range(3):
        junk = [torch.full((n,), 1e140, dtype=DOUBLE) for n in range(1, 60) for _ in range(40)]
        del junk
        G = ggn_operator(risk, risk.params, mode=mode)
        assert not (G @ torch.ones(G.shape[0], dtype=DOUBLE)).any()


@pytest.mark.parametrize("mode", ["auto", "retained-graph", "traced-split"])
def test_a_product_that_is_zero_everywhere_has_memory(mode):
    """The derivative of `sgn` is a tensor of torch without storage, which NumPy cannot read."""
    x = torch.tensor([1.0, -2.0, 4.0], dtype=DOUBLE)
    H = hessian_operator(lambda x: x.abs().sum(), x, mode=mode)
    assert not (H @ torch.ones(3, dtype=DOUBLE)).add_(0.0).numpy().any()
    assert hesse.eigsh(H, 1).values.tolist() == [0.0]
    fitted = hesse.minimize(lambda x: (x - 0.3).abs().sum(), x, hesse.TrustKrylov(), mode=mode)
    assert (fitted.x - 0.3).abs().max() < 1e-3


def transposed(*shape):
    return torch.rand(shape[::-1], dtype=DOUBLE).permute(*reversed(range(len(shape))))


def every_second(*shape):
    return torch.rand(*shape[:-1], 2 * shape[-1], dtype=DOUBLE)[..., ::2]


OF_STRIDED_TENSORS = {
    "layer_norm": lambda make: F.layer_norm(make(4, 3), (3,), None, make(3)),
    "layer_norm of two dimensions": lambda make: F.layer_norm(make(2, 4, 3), (4, 3), make(4, 3)),
    "weight_norm": lambda make: torch._weight_norm(make(4, 3), make(4, 1), 0),
    "weight_norm of columns": lambda make: torch._weight_norm(make(4, 3), make(1, 3), 1),
    "embedding": lambda make: F.embedding(WORDS.T, make(9, 3), padding_idx=1),
    "embedding_bag": lambda make: F.embedding_bag(WORDS, make(9, 3), mode="sum"),
    "segment_reduce": lambda make: torch.segment_reduce(make(6, 3), "sum", lengths=LENGTHS),
    "cdist": lambda make: torch.cdist(make(2, 4, 3), make(2, 5, 3)),
    "pdist": lambda make: F.pdist(make(4, 3)),
    "sinc": lambda make: make(4, 3).sinc(),
    "hardsigmoid": lambda make: F.hardsigmoid(make(4, 3)),
    "binary_cross_entropy":
        lambda make: F.binary_cross_entropy(make(4, 3), make(4, 3), make(4, 3), reduction="none"),
    "max_unpool": lambda make: F.max_unpool1d(
        make(2, 3, 4), torch.arange(24).reshape(2, 3, 4) % 8, 2),
    "lstm": lambda make: nn.LSTM(3, 4).double()(make(5, 2, 3))[0],
}  # fmt: skip


@pytest.mark.parametrize("make", [transposed, every_second])
@pytest.mark.parametrize("name", OF_STRIDED_TENSORS)
def test_results_have_the_strides_of_torchs_own(name, make):
    """Where torch gives contiguous tensors, users call `view` on them."""
    function = OF_STRIDED_TENSORS[name]
    expected = function(make)
    with TorchCalls():
        composed = function(make)
    assert (composed.shape, composed.stride()) == (expected.shape, expected.stride())
