# SPDX-License-Identifier: Apache-2.0
"""What an operator notices of a user's function, and what it must not take for a fault."""

import numpy
import pytest
import torch

from hesse import eigsh, function_operator, solve, svds, trace
from hesse.errors import HesseError, OperatorError, RandomnessError
from hesse.vectors.aliasing import PrivateResults

DOUBLE, N = torch.float64, 200


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def matrix(seed=0):
    M = randn(N, N, seed=seed)
    return M @ M.T / N + torch.eye(N, dtype=DOUBLE)


def operator(product, **options):
    return function_operator(product, N, dtype=DOUBLE, **{"symmetric": True, **options})


WRONG = {
    "affine": (lambda v: matrix() @ v + randn(N, seed=1), OperatorError, "a linear function"),
    "quadratic": (lambda v: matrix() @ v**2, OperatorError, "a linear function"),
    "norm": (lambda v: matrix() @ v * v.norm(), OperatorError, "a linear function"),
    "skew": (
        lambda v: matrix() @ v + randn(N, N).triu() @ v,
        OperatorError,
        "a symmetric operator",
    ),
    "noise": (lambda v: matrix() @ v * (1 + torch.rand(())), RandomnessError, "deterministic"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_symmetric_matrix_is_named(name):
    product, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        trace(operator(product), generator=seeded())


def test_an_affine_function_is_noticed_without_symmetry():
    with pytest.raises(OperatorError, match=r"hesse.trace(?s:.*)linear"):
        trace(operator(WRONG["affine"][0], symmetric=False))


def test_an_adjoint_of_another_matrix_is_noticed():
    M, b = randn(N, 50), randn(N, seed=1)
    A = function_operator(
        lambda v: M @ v, 50, N, rmatvec=lambda u: M.T @ u + 3 * u[:50], dtype=DOUBLE
    )
    with pytest.raises(OperatorError, match="adjoint"):
        solve(A, b, "lsmr")
    with pytest.raises(OperatorError, match="adjoint"):
        svds(A, 2)


def test_a_function_that_changes_within_a_run_is_noticed():
    M, calls = [matrix(), matrix(1)], []

    def product(v):
        calls.append(1)
        return M[len(calls) > 12] @ v

    with pytest.raises(OperatorError, match="the same operator throughout"):
        trace(operator(product), generator=seeded())


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_a_function_may_change_between_runs(size):
    """Such as a product with the Hessian at parameters that are being trained."""
    M, D = matrix(), torch.diag(randn(N, seed=3).abs())
    state = [M]
    A = operator(lambda v: state[0] @ v)
    for k in range(6):
        state[0] = M + k * size * D
        b = randn(N, seed=k)
        torch.testing.assert_close(A @ b, state[0] @ b)
        solution = solve(A, b, "cg", rtol=1e-10)
        torch.testing.assert_close(state[0] @ solution.x, b)
        largest = eigsh(A, 1, generator=seeded()).values
        torch.testing.assert_close(largest, torch.linalg.eigvalsh(state[0])[-1:])


@pytest.mark.parametrize("error", [1e-8, 1e-5, 1e-3])
def test_a_function_of_low_accuracy_passes(error):
    """Such as a difference quotient, or a solve to a tolerance: an error that v determines."""
    M, E = matrix(), randn(N, N, seed=5)

    def product(v):
        w = M @ v
        return w + error * w.norm() * torch.sin(E @ v * 100 / v.norm()) / N**0.5

    A = operator(product)
    for k in range(70):
        _ = A @ randn(N, seed=k)
    assert trace(A, generator=seeded()).value == pytest.approx(float(M.trace()), rel=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_in_low_precision_pass(dtype):
    M = matrix()
    low = M.to(dtype)
    A = operator(lambda v: (low @ v.to(dtype)).to(DOUBLE))
    for k in range(70):
        _ = A @ randn(N, seed=k)
    assert trace(A, generator=seeded()).value == pytest.approx(float(M.trace()), rel=1e-2)


def test_a_function_that_writes_to_its_argument_is_named():
    M, b = matrix(), randn(N)
    with pytest.raises(HesseError, match="leave its argument as it is"):
        solve(operator(lambda v: v.copy_(M @ v)), b, "cg")
    assert torch.equal(b, randn(N))


def test_products_with_a_graph_are_cut_off():
    M = matrix().requires_grad_()
    product = operator(lambda v: M @ v) @ randn(N)
    assert not product.requires_grad


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_products_in_one_buffer_are_copied(kind):
    M, buffer = matrix(), torch.empty(N, dtype=DOUBLE)
    array = buffer.numpy()

    def product(v):
        if kind == "tensor":
            return torch.mv(M, v, out=buffer)
        numpy.matmul(M.numpy(), v.numpy(), out=array)
        return torch.from_numpy(array)

    A, vectors = operator(product), [randn(N, seed=k) for k in range(4)]
    _ = A @ vectors[0]
    for v in vectors:
        torch.testing.assert_close(A @ v, M @ v)
    if kind == "tensor":
        products = [A @ v for v in vectors]
        torch.testing.assert_close(torch.stack(products, 1), M @ torch.stack(vectors, 1))


def test_the_argument_itself_is_no_buffer():
    v, results = torch.ones(3), PrivateResults()
    assert results.private(v, v) is v
    assert results.private(v, v) is v


@pytest.mark.parametrize("symmetric", [True, False])
def test_one_call_more_is_taken_without_symmetry_and_no_more(symmetric):
    M, calls = matrix(), []
    A = operator(lambda v: calls.append(1) or M @ v, symmetric=symmetric)
    method = "cg" if symmetric else "gmres"
    products = solve(A, randn(N), method, rtol=1e-12).products
    again = solve(A, randn(N, seed=1), method, rtol=1e-12).products
    assert len(calls) == products + again + (0 if symmetric else 1)


def test_the_second_product_is_that_of_the_matrix_to_the_bit():
    M = matrix()
    A = operator(lambda v: M @ v)
    for k in range(4):
        v = randn(N, seed=k)
        assert torch.equal(A @ v, M @ v)
