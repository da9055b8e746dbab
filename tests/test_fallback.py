# SPDX-License-Identifier: Apache-2.0
"""The ladder of modes: it steps down where torch has no derivative, and says so once."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from hesse.ad.one_shot import ONE_SHOT_MODES as ONE_SHOT
from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import DerivativeError, FallbackWarning, NonFiniteError
from hesse.risk.risk import Risk
from hesse.testing import dense_hessian
from hesse.vectors.inner_products import norm
from tests.custom_functions import Cube

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
EXACT = ["reverse-over-reverse", "forward-over-reverse", "reverse-over-forward"]
X = torch.linspace(-1.0, 1.3, 4, dtype=torch.float64)
V = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


class TwiceCube(torch.autograd.Function):
    """x^3 with a backward pass that torch can differentiate, and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class KernelCube(TwiceCube):
    """x^3 with a backward pass that a foreign kernel computes: to torch it is a constant."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2) * grad


def cube_once(x):
    return Cube.apply(x).sum()


def distances(x):
    """The kernel of cdist has no derivative of its derivative before torch 2.15."""
    five = torch.ones(1, 1, dtype=x.dtype) * 5.0
    return torch.ops.aten.cdist(x[:, None], five).pow(3).sum()


def test_auto_steps_down_to_differences_and_says_so_once():
    with pytest.warns(FallbackWarning) as caught:
        product = hvp(cube_once, X, V)
    assert norm(product - 6 * X * V) <= 1e-8 * norm(product)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "using 'finite-difference' because" in message
    assert (
        "reverse-over-reverse: the backward pass of Cube is marked once_differentiable" in message
    )


def test_an_operator_warns_once_and_keeps_the_mode_that_worked():
    H = hessian_operator(cube_once, X)
    with pytest.warns(FallbackWarning) as caught:
        first = H @ V
    assert len(caught) == 1
    assert H.mode == "finite-difference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(H @ V, first)
        assert torch.equal(H.gradient, 3 * X**2)


@pytest.mark.parametrize("mode", EXACT)
def test_an_explicit_mode_says_what_is_missing_and_what_to_do(mode):
    with pytest.raises(DerivativeError) as caught:
        hvp(cube_once, X, V, mode)
    assert caught.value.call == f"hesse.hvp(f, x, v, mode='{mode}')"
    assert mode in caught.value.expected
    assert "'finite-difference'" in caught.value.remedy
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("mode", ["reverse-over-reverse", "retained-graph"])
def test_a_foreign_kernel_in_the_backward_pass_is_not_taken_for_a_constant(mode):
    def f(x):
        return KernelCube.apply(x).sum() + (x**2).sum()

    with pytest.warns(FallbackWarning, match="KernelCube cannot be differentiated"):
        product = hvp(f, X, V)
    assert norm(product - (6 * X + 2) * V) <= 1e-8 * norm(product)
    H = hessian_operator(f, X, mode=mode)
    with pytest.raises(DerivativeError, match="KernelCube cannot be differentiated"):
        H @ torch.eye(4, dtype=torch.float64)[0]
    with pytest.warns(FallbackWarning, match="KernelCube"):
        dense = hessian_operator(f, X).to_dense()
    assert norm((dense - torch.diag(6 * X + 2)).flatten()) <= 1e-8


def test_a_function_without_forward_mode_needs_no_fallback():
    def f(x):
        return TwiceCube.apply(x).sum()

    for mode in ("auto", "reverse-over-reverse"):
        assert torch.allclose(hvp(f, X, V, mode), 6 * X * V, rtol=1e-15)
    for mode in EXACT[1:]:
        with pytest.raises(DerivativeError):
            hvp(f, X, V, mode)


@pytest.mark.skipif(TORCH >= (2, 15), reason="this torch differentiates cdist twice")
def test_auto_takes_forward_mode_where_the_double_backward_is_missing():
    with pytest.warns(FallbackWarning, match="forward-over-reverse|reverse-over-forward|finite"):
        product = hvp(distances, X, V)
    assert norm(product - 6 * (5 - X) * V) <= 1e-7 * norm(product)


def test_the_users_own_error_is_not_hidden_behind_a_derivative():
    def f(x):
        return (x @ torch.ones(7, dtype=x.dtype)).sum()

    for mode in ("auto", *ONE_SHOT):
        with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch") as caught:
            hvp(f, X, V, mode)
        assert not isinstance(caught.value, DerivativeError)


class ForeignCube(TwiceCube):
    """x^3 with a backward pass that is foreign altogether."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * grad.detach().numpy())


def gauss_newton_product(function):
    data = (X[None], torch.zeros(1, 4, dtype=torch.float64))
    risk = Risk(lambda p, x: function.apply(p) + 0 * x, torch.nn.MSELoss(), data, params=X)
    return ggn_operator(risk, X) @ V


@pytest.mark.parametrize("function", [TwiceCube, KernelCube])
def test_a_gauss_newton_product_asks_of_a_backward_pass_only_what_it_needs(function):
    expected = (3 * X**2) ** 2 * V / 2  # (2 / 4) J'J v
    assert norm(gauss_newton_product(function) - expected) <= 1e-14 * norm(expected)


@pytest.mark.parametrize("function", [Cube, ForeignCube])
def test_a_gauss_newton_product_refuses_a_foreign_backward_pass(function):
    with pytest.raises(DerivativeError, match=f"the backward pass of {function.__name__} "):
        gauss_newton_product(function)


# --------------------------------------------------------------------------------------------------
# torch's derivatives of its own operations: right, or refused


def _matrix(x):
    return torch.diag(x**2 + 1) + 0.3 * torch.outer(x, x.sin() + V)


def _covariance(x):
    return torch.diag(x**2 + 1) + 0.3 * torch.outer(x, x)


Z = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
PAIRS = torch.tensor([0, 1, 1, 0])
HALF = torch.full((4,), 0.5, dtype=torch.float64)

OPERATIONS = {
    "layer_norm": lambda x: F.layer_norm(Z * x, (4,)),
    "layer_norm_module": lambda x: torch.nn.LayerNorm(4, dtype=x.dtype)(Z * x),
    "layer_norm_affine": lambda x: F.layer_norm(Z * x, (4,), x, V),
    "rms_norm": lambda x: F.rms_norm(Z * x, (4,), x),
    "group_norm": lambda x: F.group_norm((Z * x)[None].transpose(1, 2), 2),
    "instance_norm": lambda x: F.instance_norm((Z * x)[None]),
    "batch_norm_of_the_batch": lambda x: F.batch_norm(Z * x, None, None, x, V, training=True),
    "native_batch_norm": lambda x: torch.native_batch_norm(Z * x, x, V, None, None, True, 0.1, 0.0)[
        0
    ],
    "batch_norm_running": lambda x: F.batch_norm(Z * x, V, V**2, x, V),
    "det": lambda x: torch.linalg.det(_matrix(x)),
    "det_method": lambda x: _matrix(x).det(),
    "logdet": lambda x: torch.logdet(_covariance(x)),
    "slogdet": lambda x: torch.linalg.slogdet(_covariance(x))[1],
    "solve": lambda x: torch.linalg.solve(_matrix(x), V),
    "tensorsolve": lambda x: torch.linalg.tensorsolve(_matrix(x), V),
    "triangular_solve": lambda x: torch.triangular_solve(V[:, None], _matrix(x)).solution,
    "solve_triangular": lambda x: torch.linalg.solve_triangular(_matrix(x), V[:, None], upper=True),
    "inv": lambda x: torch.linalg.inv(_matrix(x)),
    "lu": lambda x: torch.linalg.lu(_matrix(x))[2],
    "lu_solve": lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(_matrix(x)), V[:, None]),
    "cholesky": lambda x: torch.linalg.cholesky(_covariance(x)),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky(_covariance(x))),
    "cholesky_solve": lambda x: torch.cholesky_solve(
        V[:, None], torch.linalg.cholesky(_covariance(x))
    ),
    "householder_product": lambda x: torch.linalg.householder_product(_matrix(x), x),
    "eigvalsh": lambda x: torch.linalg.eigvalsh(_covariance(x)),
    "svdvals": lambda x: torch.linalg.svdvals(Z * x),
    "qr": lambda x: torch.linalg.qr(_matrix(x))[1],
    "pinv": lambda x: torch.linalg.pinv(_matrix(x)[:, :3]),
    "matrix_exp": lambda x: torch.linalg.matrix_exp(0.1 * _matrix(x)),
    "softmax": lambda x: F.softmax(Z * x, -1),
    "logsumexp": lambda x: torch.logsumexp(Z * x, -1),
    "var": lambda x: torch.var(Z * x, -1),
    "cumprod": lambda x: torch.cumprod(Z * x, -1),
    "prod": lambda x: torch.prod(Z * x, -1),
    "normalize": lambda x: F.normalize(Z * x, dim=-1),
    "cosine_similarity": lambda x: F.cosine_similarity(Z * x, Z**2),
    "interpolate": lambda x: F.interpolate((Z * x)[None], scale_factor=2.0, mode="linear"),
    "glu": lambda x: F.glu(Z * x),
    "silu": lambda x: F.silu(Z * x),
    "mse_loss": lambda x: F.mse_loss(Z * x**2, Z),
    "mse_loss_sum": lambda x: F.mse_loss(Z * x**2, Z, reduction="sum"),
    "mse_loss_none": lambda x: F.mse_loss(Z * x**2, Z, reduction="none"),
    "mse_loss_weighted": lambda x: F.mse_loss(Z * x**2, Z, weight=Z**2),
    "huber_loss": lambda x: F.huber_loss(Z * x**2, Z),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(Z * x**2, Z),
    "bce": lambda x: F.binary_cross_entropy_with_logits(Z * x**2, torch.sigmoid(Z)),
    "cross_entropy": lambda x: F.cross_entropy(Z * x**2, torch.tensor([1, 0, 3])),
    "kl_div": lambda x: F.kl_div(
        F.log_softmax(Z * x**2, 1), F.softmax(Z, 1), reduction="batchmean"
    ),
    "poisson_nll_loss": lambda x: F.poisson_nll_loss(Z * x**2, Z**2),
    "gaussian_nll_loss": lambda x: F.gaussian_nll_loss(Z * x**2, Z, (Z * x) ** 2 + 1),
    "embedding": lambda x: F.embedding(torch.tensor([0, 1, 1]), x.view(2, 2)),
    "index_add": lambda x: torch.zeros(3).double().index_add(0, torch.tensor([0, 1, 1, 2]), x**2),
    "scatter_reduce_prod": lambda x: V[:2].scatter_reduce(0, PAIRS, x, "prod"),
    "scatter_reduce_mean": lambda x: V[:2].scatter_reduce(0, PAIRS, x, reduce="mean"),
    "bilinear": lambda x: F.bilinear(Z * x, Z * x, torch.outer(x, V).expand(3, 4, 4)),
    "gamma": lambda x: torch.distributions.Gamma(x**2 + 1, x**2 + 2).log_prob(HALF),
    "multivariate_normal": lambda x: torch.distributions.MultivariateNormal(
        x, _covariance(x)
    ).log_prob(V),
}


@pytest.mark.some_cases(110)
@pytest.mark.fast_cases(60)
@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_differentiated_rightly_or_refused(name, mode):
    """Some forward rules of torch have wrong derivatives, without an error: see ad.forward_mode."""

    def f(x):
        return (OPERATIONS[name](x) ** 3).sum()

    H = dense_hessian(f, X)
    try:
        product = hvp(f, X, V, mode)
    except (DerivativeError, NonFiniteError):
        assert mode != "reverse-over-reverse"
        return
    # Of |H| |v|, since H v may cancel; matrix functions lose a few digits to their condition.
    assert norm(product - H @ V) <= 1e-10 * float(H.norm()) * norm(V)


def test_what_is_refused_is_known_by_name():
    for name in ("det", "solve"):
        with pytest.raises(DerivativeError, match=name):
            hvp(lambda x, op=OPERATIONS[name]: (op(x) ** 3).sum(), X, V, "reverse-over-forward")


_FIRST_PRODUCT = """
import sys, torch, hesse
A = torch.randn(5, 5)
H = hesse.hessian_operator(lambda x: (torch.tanh(A @ x) ** 2).sum(), torch.ones(5), mode={mode!r})
H @ torch.ones(5)
print("sympy" in sys.modules)
"""


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("mode", ["auto", "traced-split", "reverse-over-reverse"])
def test_the_first_product_does_not_wait_for_imports(mode, fresh):
    done = fresh.run(_FIRST_PRODUCT.format(mode=mode))
    assert done.stdout.split() == ["False"], done.stderr
