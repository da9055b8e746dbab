# SPDX-License-Identifier: Apache-2.0
"""`check_operator` catches each way of being broken, names it, and costs what it says."""

import pytest
import torch

from hesse.errors import HesseError, OperatorError
from hesse.operators import LinearOperator, dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator, check_operator
from hesse.vectors.space import Space

N = 40  # beyond the size up to which the dense matrix is compared as well
SPACE = Space.of({"a": torch.zeros(N - 4).double(), "b": torch.zeros(2, 2).double()})
DIAGONAL = torch.linspace(1.0, 2.0, N).double()


class Sound(LinearOperator):
    """A diagonal operator on trees, from which the broken ones differ in one method."""

    def __init__(self, *, symmetric=True):
        super().__init__(SPACE, symmetric=symmetric)
        self.calls = 0

    def _matvec(self, v):
        self.calls += 1
        return DIAGONAL * v


class Affine(Sound):
    def _matvec(self, v):
        return DIAGONAL * v + 1e-5


class Absolute(Sound):
    def _matvec(self, v):
        return DIAGONAL * v.abs()


class Normalised(Sound):
    def _matvec(self, v):
        return DIAGONAL * v / v.norm()


class Asymmetric(Sound):
    def _matvec(self, v):
        return DIAGONAL * v + 1e-4 * v.cumsum(0)


class WrongAdjoint(Sound):
    def __init__(self):
        super().__init__(symmetric=False)

    def _rmatvec(self, u):
        return 1.0001 * DIAGONAL * u


class MisshapenAdjoint(WrongAdjoint):
    def _rmatvec(self, u):
        return (DIAGONAL * u)[1:]


class WrongMatmat(Sound):
    def _matmat(self, block):
        return DIAGONAL[:, None] * block.flip(1)


class WrongCurvature(Sound):
    def _curvature(self, v):
        return 0.5 * float(v @ (DIAGONAL * v))


class WrongTrees(Sound):
    def matvec(self, v):
        product = super().matvec(v)
        return product if isinstance(v, torch.Tensor) else {**product, "b": product["b"].T}


class Mutating(Sound):
    def _matvec(self, v):
        return v.mul_(DIAGONAL)


class Random(Sound):
    def _matvec(self, v):
        return DIAGONAL * v + 1e-5 * torch.randn_like(v)


class Drifting(Sound):
    def _matvec(self, v):
        return super()._matvec(v) * (1 + 1e-5 * self.calls)


class NotFinite(Sound):
    def _matvec(self, v):
        return DIAGONAL * v / torch.where(torch.arange(N) == N - 1, 0.0, 1.0)


class Demoting(Sound):
    def _matvec(self, v):
        return (DIAGONAL * v).float()


class Elsewhere(Sound):
    def _matvec(self, v):
        return (DIAGONAL * v).to("meta")


class Misshapen(Sound):
    def _matvec(self, v):
        return (DIAGONAL * v)[:-1]


class Column(Sound):
    def _matvec(self, v):
        return (DIAGONAL * v)[:, None]


class NoTensor(Sound):
    def _matvec(self, v):
        return (DIAGONAL * v).tolist()


class Graph(Sound):
    def _matvec(self, v):
        return DIAGONAL.clone().requires_grad_() * v


class _WrongSpace(Space):
    def inner(self, u, v):
        return float(u @ v + u @ v.cumsum(0))


class WrongInner(Sound):
    def __init__(self):
        super().__init__()
        self.domain = self.codomain = _WrongSpace(**vars(Space.flat(self.shape[0], self.dtype)))


BROKEN = {
    Affine: "linear",
    Absolute: "linear",
    Normalised: "linear",
    Asymmetric: "tagged symmetric",
    WrongAdjoint: "<u, A' w>",
    MisshapenAdjoint: "A' u",
    WrongMatmat: "matmat",
    WrongCurvature: "curvature",
    WrongTrees: "tree",
    Mutating: "input",
    Random: "deterministic",
    Drifting: "deterministic|linear",
    NotFinite: "finite",
    Demoting: "dtype",
    Elsewhere: "device",
    Misshapen: "shape",
    Column: "shape",
    NoTensor: "shape",
    Graph: "graph",
    WrongInner: "inner product",
}


def test_the_sound_operator_passes():
    report = check_operator(Sound())
    measured = (report.determinism, report.linearity, report.symmetry, report.matmat, report.tree)
    assert all(defect <= 1e-15 for defect in measured)
    assert report.curvature <= 1e-14
    assert report.adjoint is None


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_each_way_of_being_broken_is_caught(kind):
    words = rf"(?s)check_operator\({kind.__name__}.*expected: [^\n]*({BROKEN[kind]}).*remedy: +\S"
    with pytest.raises(OperatorError, match=words):
        check_operator(kind())


class WrongDense(Sound):
    def __init__(self):
        LinearOperator.__init__(self, Space.flat(4, torch.float64), symmetric=True)

    def _matvec(self, v):
        return 2.0 * v

    def to_dense(self):
        return 3.0 * torch.eye(4).double()


def test_the_matrix_of_a_small_operator_is_compared():
    with pytest.raises(OperatorError, match="to_dense"):
        check_operator(WrongDense())


def test_a_rectangular_operator_cannot_be_symmetric():
    A = function_operator(lambda v: v[:3] + 0, 4, 3, symmetric=True)
    with pytest.raises(OperatorError, match="square"):
        check_operator(A)


def test_what_the_operator_raises_passes_through():
    with pytest.raises(HesseError, match=r"matvec\(v\) of shape"):
        check_operator(function_operator(lambda v: v[1:], 4))


def test_the_tolerance_follows_the_argument_and_the_dtype():
    class Slightly(Sound):
        def _matvec(self, v):
            return DIAGONAL * v + 1e-10 * v.abs()

    defect = check_operator(Slightly()).linearity
    assert 1e-12 < defect < 1e-9
    with pytest.raises(OperatorError, match="linear"):
        check_operator(Slightly(), rtol=1e-13)
    assert check_operator(dense_operator(torch.eye(3))).tolerance > 1e3 * 1e-8
    assert check_operator(Sound()).tolerance < 1e-7


def test_a_check_is_reproducible_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    A = dense_operator(torch.arange(9.0).view(3, 3))
    assert check_operator(A) == check_operator(A)
    check_operator(A, generator=torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())


def test_a_check_costs_what_its_docstring_says():
    def products(A):
        counting = CountingOperator(A)
        check_operator(counting)
        return counting.products

    square = torch.arange(N * N).double().view(N, N)
    assert products(Sound()) == 8
    assert products(dense_operator(square + square.T)) == 7
    assert products(dense_operator(square)) == 7 + 1
    assert products(dense_operator(square[:3])) == 7 - 1 + 1
    assert products(diagonal_operator(torch.ones(4))) == 7 + 4
