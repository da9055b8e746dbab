# SPDX-License-Identifier: Apache-2.0
"""Principal sub-matrices and projections, of every kind of operator, against the dense matrix."""

import numpy as np
import pytest
import torch

import hesse
from hesse.errors import (
    ArgumentError,
    DtypeError,
    HesseError,
    OperatorError,
    ShapeError,
    StructureError,
)
from hesse.testing import CountingOperator, check_operator

DOUBLE = torch.float64
N = 9


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded(seed))


def definite(n=N, seed=0):
    M = random(n, n, seed=seed)
    return M @ M.T + n * torch.eye(n, dtype=DOUBLE)


def chain(x):
    return ((x[1:] - x[:-1] ** 2) ** 2).sum() + (x**4).sum()


X = torch.linspace(0.5, 1.5, N, dtype=DOUBLE)
TREE = {"w": torch.ones(2, 3, dtype=DOUBLE), "b": torch.ones(3, dtype=DOUBLE)}


def quartic(tree):
    w, b = tree["w"], tree["b"]
    return ((w @ b) ** 4).sum() + (w**2).sum() + (b**2).sum() * w.sum() ** 2


def general():
    M = random(N, N, seed=5)
    return hesse.function_operator(lambda v: M @ v, N, rmatvec=lambda u: M.T @ u, dtype=DOUBLE)


EYE = hesse.identity_operator(N, DOUBLE)
KINDS = {
    "dense": lambda: hesse.dense_operator(definite()),
    "dense, not symmetric": lambda: hesse.dense_operator(random(N, N)),
    "diagonal": lambda: hesse.diagonal_operator(X),
    "identity": lambda: EYE,
    "low rank": lambda: hesse.low_rank_operator(random(N, 2), torch.tensor([2.0, 1.0]).double()),
    "low rank + diagonal": lambda: KINDS["low rank"]() + hesse.diagonal_operator(X),
    "sparse": lambda: hesse.sparse_hessian_operator(chain, X),
    "sparse + identity": lambda: KINDS["sparse"]() + 0.1 * EYE,
    "function": general,
    "transposed": lambda: general().T,
    "product": lambda: general() @ general().T,
    "Hessian": lambda: hesse.hessian_operator(chain, X),
    "Hessian + identity": lambda: 2.0 * hesse.hessian_operator(chain, X) - 0.5 * EYE,
    "block diagonal": lambda: hesse.block_diagonal_operator([definite(4), definite(5)]),
    "Hessian of a tree": lambda: hesse.hessian_operator(quartic, TREE),
}
INDICES = {
    "indices": [4, 0, 7],
    "one": [3],
    "all, in reverse": list(range(N))[::-1],
    "a range": range(2, 6),
}


@pytest.mark.fast_cases(20)
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_restriction_is_the_principal_sub_matrix(kind, index):
    A = KINDS[kind]()
    where = list(index)
    right = A.to_dense()[where][:, where]
    part = A.restrict(index)
    torch.testing.assert_close(part.to_dense(), right, rtol=1e-12, atol=1e-12)
    assert part.symmetric == A.symmetric
    check_operator(part)
    diagonal = part._diagonal()
    if diagonal is not None:
        torch.testing.assert_close(diagonal, right.diagonal(), rtol=1e-12, atol=1e-12)
    if A._diagonal() is not None:
        assert diagonal is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_projection_is_what_its_formula_says(kind):
    A, Q = KINDS[kind](), random(N, 3, seed=3)
    right = Q.T @ A.to_dense() @ Q
    for part in (A.project(Q), A.project(hesse.dense_operator(Q))):
        torch.testing.assert_close(part.to_dense(), right, rtol=1e-11, atol=1e-11)
        assert part.symmetric == A.symmetric
        check_operator(part)


@pytest.mark.parametrize(
    "kind", ["dense", "diagonal", "identity", "sparse", "low rank + diagonal", "sparse + identity"]
)
def test_a_restriction_of_a_structured_operator_has_its_exact_inverse(kind):
    part = KINDS[kind]().restrict([1, 2, 5, 8])
    inverse = part._inverse()
    assert inverse is not None
    eye = torch.eye(4, dtype=DOUBLE)
    torch.testing.assert_close(inverse.to_dense() @ part.to_dense(), eye, rtol=1e-10, atol=1e-10)


def test_a_projection_of_a_structured_operator_has_its_exact_inverse():
    Q = torch.linalg.qr(random(N, 3))[0]
    for A in (KINDS["dense"](), KINDS["low rank"]() + KINDS["dense"]()):
        assert A.project(Q)._inverse() is not None


def test_masks_are_sets_of_entries():
    A = KINDS["Hessian of a tree"]()
    mask = {"w": torch.tensor([[True, False, True], [False, False, True]]),
            "b": torch.tensor([False, True, False])}  # fmt: skip
    flat = torch.tensor([1, 0, 1, 0, 0, 1, 0, 1, 0]).bool()
    right = A.to_dense()[flat][:, flat]
    for index in (mask, flat, flat.numpy(), flat.tolist(), flat.nonzero()[:, 0].numpy()):
        torch.testing.assert_close(A.restrict(index).to_dense(), right)
    W = hesse.hessian_operator(lambda w: (w**4).sum(), torch.ones(2, 2))
    assert W.restrict(torch.eye(2).bool()).shape == (2, 2)


def test_negative_indices_count_from_the_end():
    A = KINDS["dense"]()
    torch.testing.assert_close(A.restrict([-1, 0]).to_dense(), A.restrict([8, 0]).to_dense())


def test_a_product_with_a_part_takes_one_of_the_whole():
    A = CountingOperator(general())
    A.restrict([0, 1]) @ torch.ones(2, dtype=DOUBLE)
    A.project(random(N, 2)) @ torch.ones(2, dtype=DOUBLE)
    assert A.products == 2


def test_obs_by_a_solve_on_the_kept_block_is_the_constrained_minimum():
    A, w = definite(), random(N, seed=4)
    pruned, kept = [1, 4], [0, 2, 3, 5, 6, 7, 8]
    b = A[kept][:, pruned] @ w[pruned]
    step = hesse.solve(hesse.dense_operator(A).restrict(kept), b).x
    inverse = torch.linalg.inv(A)
    multipliers = torch.linalg.solve(inverse[pruned][:, pruned], -w[pruned])
    torch.testing.assert_close(step, (inverse[:, pruned] @ multipliers)[kept])


def test_parts_of_different_entries_are_not_taken_for_the_same():
    R = general()
    assert (R.restrict([0, 1]).T @ R.restrict([0, 1])).symmetric
    assert not (R.restrict([0, 1]).T @ R.restrict([0, 2])).symmetric


@pytest.mark.parametrize("k", [1, 3, N - 1])
def test_a_complement_is_an_orthonormal_basis(k):
    Q = random(N, k)
    Z = hesse.complement_operator(Q)
    check_operator(Z)
    dense = Z.to_dense()
    torch.testing.assert_close(dense.T @ dense, torch.eye(N - k, dtype=DOUBLE))
    torch.testing.assert_close(dense.T @ Q, torch.zeros(N - k, k, dtype=DOUBLE))
    torch.testing.assert_close(Z.T.to_dense(), dense.T)


def test_projecting_eigenvectors_out_leaves_the_other_eigenvalues():
    A = definite()
    values, vectors = torch.linalg.eigh(A)
    part = hesse.dense_operator(A).project(hesse.complement_operator(vectors[:, :4] @ random(4, 4)))
    assert part.symmetric
    torch.testing.assert_close(torch.linalg.eigvalsh(part.to_dense()), values[4:])


def test_columns_of_any_size_have_a_complement():
    Q = random(N, 2) * torch.tensor([1e-300, 1e300], dtype=DOUBLE)
    dense = hesse.complement_operator(Q).to_dense()
    cosines = dense.T @ (Q / Q.abs().amax(dim=0))
    assert cosines.abs().max() < 1e-14


A = hesse.dense_operator(definite())
TALL = hesse.dense_operator(random(N, 3))
REFUSED = {
    "not square": (lambda: TALL.restrict([0]), ShapeError),
    "out of range": (lambda: A.restrict([0, N]), ArgumentError),
    "below the range": (lambda: A.restrict([-N - 1]), ArgumentError),
    "twice": (lambda: A.restrict([1, 1]), ArgumentError),
    "twice, once from the end": (lambda: A.restrict([N - 1, -1]), ArgumentError),
    "none": (lambda: A.restrict([]), ArgumentError),
    "an empty mask": (lambda: A.restrict(torch.zeros(N).bool()), ArgumentError),
    "a mask of another length": (lambda: A.restrict(torch.ones(N - 1).bool()), ShapeError),
    "numbers that are not indices": (lambda: A.restrict(torch.ones(N)), DtypeError),
    "floats in a list": (lambda: A.restrict([0.5]), DtypeError),
    "a table of indices": (lambda: A.restrict(torch.zeros(2, 2).long()), ShapeError),
    "text": (lambda: A.restrict("w"), StructureError),
    "nothing": (lambda: A.restrict(None), StructureError),
    "a tree of something else": (
        lambda: KINDS["Hessian of a tree"]().restrict({"w": torch.ones(2, 3).bool()}),
        StructureError,
    ),
    "a tree of numbers": (lambda: KINDS["Hessian of a tree"]().restrict(TREE), StructureError),
    "project: not square": (lambda: TALL.project(random(3, 1)), ShapeError),
    "project: another height": (lambda: A.project(random(3, 1)), ShapeError),
    "project: another dtype": (lambda: A.project(torch.ones(N, 1)), DtypeError),
    "project: a vector": (lambda: A.project(X), ShapeError),
    "project: no columns": (lambda: A.project(random(N, 0)), ShapeError),
    "project: NaN": (lambda: A.project(torch.full((N, 1), torch.nan).double()), OperatorError),
    "project: text": (lambda: A.project("Q"), StructureError),
    "project: an operator that does not fit": (lambda: A.project(TALL.T), ShapeError),
    "complement: a vector": (lambda: hesse.complement_operator(X), StructureError),
    "complement: nothing left": (lambda: hesse.complement_operator(definite()), ShapeError),
    "complement: no columns": (lambda: hesse.complement_operator(random(N, 0)), ShapeError),
    "complement: text": (lambda: hesse.complement_operator("Q"), StructureError),
    "complement: integers": (
        lambda: hesse.complement_operator(torch.ones(N, 1).long()),
        DtypeError,
    ),
    "complement: dependent": (
        lambda: hesse.complement_operator(torch.ones(N, 2).double()),
        OperatorError,
    ),
    "complement: zero": (lambda: hesse.complement_operator(torch.zeros(N, 1)), OperatorError),
    "complement: NaN": (
        lambda: hesse.complement_operator(torch.full((N, 1), torch.nan)),
        OperatorError,
    ),
}


@pytest.mark.parametrize(("call", "error"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, HesseError)
    assert caught.value.remedy
    assert caught.value.call


def test_parts_print_what_they_are():
    H = KINDS["Hessian"]()
    assert "restrict(2 entries)" in repr(H.restrict([0, 1]))
    assert "project(1 columns)" in repr(H.project(np.ones((N, 1))))
    assert "block('w')" in repr(KINDS["Hessian of a tree"]().block("w"))
