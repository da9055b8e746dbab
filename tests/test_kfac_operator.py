# SPDX-License-Identifier: Apache-2.0
"""K-FAC and EK-FAC as operators: damping, inverses, powers, points, files, and what is refused."""

import pickle

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import hesse
from hesse import Risk, ekfac_operator, ggn_operator, kfac_operator, load_kfac, solve
from hesse.errors import (
    ArgumentError,
    DataError,
    FunctionError,
    NonFiniteError,
    OperatorError,
    StructureError,
)
from hesse.operators.eigenbasis import eigenbasis, refreshed_basis
from hesse.report.digits import autoencoder, reconstruction_loss
from hesse.testing import check_operator

DOUBLE = torch.float64
MAKERS = [kfac_operator, ekfac_operator]


def risk(N=20, dtype=DOUBLE, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)
    ).to(dtype)  # fmt: skip
    data = torch.randn(N, 4, dtype=dtype), torch.randint(0, 3, (N,))
    return Risk(model, nn.CrossEntropyLoss(), data, **options)


def grouped(N=6):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
    ).double()  # fmt: skip
    data = torch.randn(N, 4, 4, 4, dtype=DOUBLE), torch.randint(0, 3, (N,))
    return Risk(model, nn.CrossEntropyLoss(), data)


def eye(n):
    return torch.eye(n, dtype=DOUBLE)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("problem", [risk, grouped])
def test_it_conforms(make, problem):
    for damping in (0.0, 0.1):
        check_operator(make(problem(), damping=damping))


@pytest.mark.parametrize("problem", [risk, grouped])
@pytest.mark.parametrize(
    ("make", "form"),
    [
        (kfac_operator, "exact"), (kfac_operator, "factored"), (kfac_operator, "relative"),
        (ekfac_operator, "exact"), (ekfac_operator, "relative"),
    ],
)  # fmt: skip
def test_every_damping_has_an_exact_inverse(problem, make, form):
    K = make(problem(), damping=0.1, damping_form=form)
    n = K.shape[0]
    inverse = hesse.inverse_operator(K)
    torch.testing.assert_close(inverse.to_dense() @ K.to_dense(), eye(n))
    b = torch.randn(n, dtype=DOUBLE)
    solution = solve(K, b)
    assert solution.method == "direct"
    assert solution.products == 1
    torch.testing.assert_close(solution.x, torch.linalg.solve(K.to_dense(), b))
    shifted = solve(K + 0.3 * hesse.identity_operator(n), b)
    assert shifted.method == "direct"
    torch.testing.assert_close(shifted.x, torch.linalg.solve(K.to_dense() + 0.3 * eye(n), b))


def test_exact_damping_adds_a_multiple_of_the_identity():
    for make in MAKERS:
        K = make(risk())
        n = K.shape[0]
        torch.testing.assert_close(K.damped(0.2).to_dense(), K.to_dense() + 0.2 * eye(n))


def test_factored_damping_is_that_of_martens_and_grosse():
    K = kfac_operator(risk())
    damped = K.damped(0.2, "factored")
    block, index = K.blocks[0], K.blocks[0].place.take(torch.arange(K.shape[0]))
    S, A = block.left.entries[0], block.right.entries[0]
    pi = ((A.trace() / len(A)) / (S.trace() / len(S))).sqrt()
    expected = torch.kron(
        S + 0.2**0.5 / pi * eye(len(S)), A + pi * 0.2**0.5 * eye(len(A))
    )  # fmt: skip
    torch.testing.assert_close(damped.to_dense()[index][:, index], expected)
    norm = K.blocks[1]
    own = norm.place.take(torch.arange(K.shape[0]))
    expected = K.to_dense()[own][:, own] + 0.2 * eye(norm.n)
    torch.testing.assert_close(damped.to_dense()[own][:, own], expected)


def test_damping_by_names_and_relative_to_the_mean_eigenvalue():
    K = kfac_operator(risk())
    added = K.damped({"0.*": 0.1, "2.weight": 0.7}).to_dense() - K.to_dense()
    sizes = dict(zip(K.domain.names, K.domain.sizes, strict=True))
    wanted = {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.7}
    expected = torch.cat(
        [torch.full((n,), wanted.get(name, 0.0), dtype=DOUBLE) for name, n in sizes.items()]
    )
    torch.testing.assert_close(added, torch.diag(expected))
    relative = K.damped(0.1, "relative").to_dense() - K.to_dense()
    for block in K.blocks:
        own = block.place.take(torch.arange(K.shape[0]))
        mean = K.to_dense()[own, own].mean()
        torch.testing.assert_close(relative[own][:, own], 0.1 * mean * eye(len(own)))
    with pytest.raises(ArgumentError, match=r"0.weight: 0.1, 0.bias: 0"):
        K.damped({"0.weight": 0.1})


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
def test_eigenvalues_powers_and_samples(make):
    K = make(risk(), damping=0.05)
    dense = K.to_dense()
    torch.testing.assert_close(K.eigenvalues(), torch.linalg.eigvalsh(dense))
    half = K.power(0.5).to_dense()
    torch.testing.assert_close(half @ half, dense)
    torch.testing.assert_close(K.power(-1).to_dense() @ dense, eye(K.shape[0]))
    assert K._trace() == pytest.approx(float(dense.trace()))
    sign, log = K._logdet()
    assert sign == 1.0
    assert log == pytest.approx(float(torch.logdet(dense)))
    torch.testing.assert_close(K._diagonal(), dense.diagonal())
    function = K._function(torch.log)
    values, vectors = torch.linalg.eigh(dense)
    torch.testing.assert_close(function.to_dense(), vectors @ torch.diag(values.log()) @ vectors.T)
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([K.sample(generator) for _ in range(1000)])
    covariance = samples.T @ samples / len(samples)
    # |error|_F of n^2 entries, each with a standard deviation of about 1 / sqrt(1000) of K^-1
    inverse = torch.linalg.inv(dense)
    expected = ((inverse.trace() ** 2 + inverse.square().sum()) / len(samples)).sqrt()
    assert (covariance - inverse).norm() < 2 * expected


def test_weight_decay_is_in_the_matrix():
    plain, decayed = risk(), risk(weight_decay=0.3)
    for make in MAKERS:
        expected = make(plain).to_dense() + 0.3 * eye(make(plain).shape[0])
        torch.testing.assert_close(make(decayed).to_dense(), expected)
        hesse.inverse_operator(make(decayed))  # regular


# -- Points ----------------------------------------------------------------------------------------


def test_another_point_has_what_a_new_operator_has_without_a_trace():
    R = risk()
    other = {name: leaf + 0.1 * torch.randn_like(leaf) for name, leaf in R.params.items()}
    K = kfac_operator(R)
    for _ in range(3):
        moved = K.at(other)
        torch.testing.assert_close(moved.to_dense(), kfac_operator(R, other).to_dense())
    assert K._estimator.programs.traces == 1
    assert torch.equal(K.at(R.params).to_dense(), K.to_dense())


def test_a_refreshed_basis_keeps_the_traces_and_is_stays_nearer_than_kfac():
    R = risk(N=60)
    other = {name: leaf + 0.02 * torch.randn_like(leaf) for name, leaf in R.params.items()}
    G = ggn_operator(R, other).to_dense()
    E, K = ekfac_operator(R).at(other), kfac_operator(R, other)
    later, new = E, ekfac_operator(R, other)
    for _ in range(30):
        later = later.at(other)
    for refreshed, often, fresh, kfac in zip(
        E.blocks, later.blocks, new.blocks, K.blocks, strict=True
    ):
        own = refreshed.place.take(torch.arange(len(G)))
        block = G[own][:, own]
        errors = [
            float((b.operator(0.0).to_dense() - block).norm())
            for b in (refreshed, kfac, often, fresh)
        ]
        assert refreshed.operator(0.0).to_dense().trace() == pytest.approx(float(block.trace()))
        if refreshed.d is not None:
            assert errors[0] < errors[1]
            assert errors[2] == pytest.approx(errors[3], rel=1e-3)


@pytest.mark.parametrize("seed", [1, 2])
def test_eigenvectors_of_sparse_images_are_orthonormal(seed):
    """Pixels that are always or nearly always zero: from upper halves MKL fails, or gives NaN."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(500, 785, generator=generator)
    X = X * (torch.rand(500, 785, generator=generator) < torch.linspace(0.0, 0.5, 785) ** 3)
    X[:, torch.randperm(785, generator=generator)[:117]] = 0.0
    A = (X.T @ X)[None]
    values, basis = eigenbasis(A)
    rotated = (basis.double().mT @ A.double() @ basis.double()).float()
    torch.testing.assert_close(rotated, values.diag_embed(), rtol=1e-4, atol=1e-3)
    for Q in (basis, refreshed_basis(A, basis)):
        torch.testing.assert_close(Q.mT @ Q, torch.eye(785)[None], rtol=0, atol=1e-5)


def test_refreshing_finds_the_eigenvectors_in_the_end():
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(2, 6, 6, dtype=DOUBLE)).Q
    A = Q @ torch.diag(2.0 ** torch.arange(6, dtype=DOUBLE)) @ Q.mT
    basis = eigenbasis(A + 0.5 * (A @ A).diagonal(dim1=-2, dim2=-1).diag_embed() ** 0.5)[1]
    for _ in range(60):
        basis = refreshed_basis(A, basis)
    rotated = basis.mT @ A @ basis
    torch.testing.assert_close(rotated, rotated.diagonal(dim1=-2, dim2=-1).diag_embed())


@pytest.mark.parametrize("make", MAKERS)
def test_gradients_that_are_not_finite_are_named(make):
    """The root has an infinite slope where the first unit is zero: one row of it is NaN."""

    class Root(nn.Module):
        def forward(self, x):
            return x.abs().sqrt()

    model = nn.Sequential(nn.Linear(1, 2), Root(), nn.Linear(2, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([1.0, 3.0]))
    x = torch.tensor([[2.0], [-1.0], [1.0]], dtype=DOUBLE)
    R = Risk(model, nn.CrossEntropyLoss(), (x, torch.tensor([0, 1, 2])))
    with pytest.raises(NonFiniteError, match=r"NaN or Inf in those of '0\.weight' and '0\.bias'"):
        make(R)


def test_a_program_is_not_used_after_a_buffer_changed():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    model = model.double().eval()
    R = Risk(model, nn.CrossEntropyLoss(), (torch.randn(9, 4).double(), torch.randint(0, 3, (9,))))
    K = kfac_operator(R)
    K = K.at(R.params).at(R.params)
    with torch.no_grad():
        model[1].running_var.mul_(9.0)
    torch.testing.assert_close(K.at(R.params).to_dense(), kfac_operator(R).to_dense())


def test_data_of_each_sweep_may_be_new_tensors():
    R = risk()
    x, y = R.data.first.inputs, R.data.first.targets
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    batched = Risk(R.model, R.loss, loader)
    E = ekfac_operator(batched)
    torch.testing.assert_close(E.to_dense(), ekfac_operator(R).to_dense())
    assert E.at(batched.params).domain == E.domain


# -- Files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("problem", [risk, grouped])
def test_files(make, problem, tmp_path):
    K = make(problem(), damping={"3.*": 0.1})
    K.save(tmp_path / "kfac.safetensors")
    loaded = load_kfac(tmp_path / "kfac.safetensors")
    torch.testing.assert_close(loaded.to_dense(), K.to_dense())
    assert repr(loaded) == repr(K)
    assert loaded.domain == K.domain
    with pytest.raises(StructureError, match="loaded from a file"):
        loaded.at(K._estimator.risk.params)
    again = pickle.loads(pickle.dumps(K))
    assert torch.equal(again.to_dense(), K.to_dense())
    assert torch.equal(again.at(K._estimator.risk.params).blocks[0].left.entries,
                       K.blocks[0].left.entries)  # fmt: skip
    with pytest.raises(ArgumentError, match=r"another\.safetensors"):
        load_kfac(tmp_path / "another.safetensors")


def test_the_parts_of_a_parameter_in_a_file(tmp_path):
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.inner(x, x[:, :2], x[:, :2], need_weights=False)[0].mean(1))

    data = torch.randn(4, 3, 4, dtype=DOUBLE), torch.tensor([0, 1, 2, 0])
    K = ekfac_operator(Risk(Cross().double(), nn.CrossEntropyLoss(), data))
    assert "inner.in_proj_weight, in_proj_bias (1 of 3)" in repr(K)
    K.save(tmp_path / "k")
    torch.testing.assert_close(load_kfac(tmp_path / "k").to_dense(), K.to_dense())


# -- Refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("make", MAKERS)
def test_a_singular_block_is_named(make, dtype):
    K = make(risk(N=40, dtype=dtype))  # one logit is free, and the bias before it moves all
    # along three directions only
    with pytest.raises(StructureError, match=r"singular blocks of 2\.bias, 3\.weight"):
        hesse.inverse_operator(K)
    with pytest.raises(StructureError, match=r"3\.weight"):
        K.power(-0.5)
    with pytest.raises(OperatorError, match="a singular one"):  # not what rounding leaves of zero
        hesse.logdet(K)


def test_a_dead_layer_is_zero_and_needs_damping():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    R = Risk(model, nn.CrossEntropyLoss(), (torch.randn(8, 4).double(), torch.randint(0, 3, (8,))))
    for make in MAKERS:
        K = make(R)
        assert not K.block("0.weight").to_dense().any()
        for damped in (K.damped(0.1), K.damped(0.1, "relative")):
            assert torch.isfinite(damped.to_dense()).all()
        assert torch.isfinite(hesse.inverse_operator(K.damped(0.1)).to_dense()).all()
        with pytest.raises(StructureError, match=r"0\.weight"):
            hesse.inverse_operator(K.damped(0.1, "relative"))
    factored = kfac_operator(R, damping=0.1, damping_form="factored")
    torch.testing.assert_close(
        hesse.inverse_operator(factored).to_dense() @ factored.to_dense(), eye(factored.shape[0])
    )


def test_wrong_arguments():
    R = risk()
    with pytest.raises(ArgumentError, match="EK-FAC"):
        ekfac_operator(R, damping=0.1, damping_form="factored")
    with pytest.raises(ArgumentError, match="at least zero"):
        kfac_operator(R, damping=-1.0)
    with pytest.raises(ArgumentError, match=r"or patterns[\s\S]*'0\.wieght'"):
        kfac_operator(R, damping={"*.bias": 0.1, "0.wieght": 0.1})
    with pytest.raises(ArgumentError, match="positive integer"):
        kfac_operator(R, samples=0)
    with pytest.raises(ArgumentError, match="expand"):
        kfac_operator(R, approximation="mean")
    with pytest.raises(FunctionError, match=r"hesse.Risk"):
        kfac_operator(lambda x: x.sum())


def test_losses_and_data_that_have_no_factors():
    x, y = torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, 3, dtype=DOUBLE)

    def bumpy(z, t):
        return torch.sin(3 * (z - t)).mean()

    with pytest.raises(FunctionError, match="convex in the outputs"):
        kfac_operator(Risk(nn.Linear(4, 3).double(), bumpy, (x, y)))
    with pytest.raises(FunctionError, match="likelihood"):
        kfac_operator(Risk(nn.Linear(4, 3).double(), bumpy, (x, y)), fisher="empirical")

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x, shift):
            return self.a(x) + shift.sum(0)

    with pytest.raises(DataError, match="first dimension"):
        kfac_operator(Risk(Two().double(), nn.MSELoss(), (((x, x[:2, :3])), y)))


# -- As a preconditioner ---------------------------------------------------------------------------


@pytest.mark.slow
def test_conjugate_gradients_need_three_times_fewer_products():
    pixels = torch.tensor(load_digits().data / 16.0, dtype=torch.float32)
    model = autoencoder(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        reconstruction_loss(model(pixels), pixels).backward()
        optimizer.step()
    R = Risk(model, reconstruction_loss, (pixels, pixels))
    G, b = ggn_operator(R), -ggn_operator(R).flat_gradient
    generator = torch.Generator().manual_seed(0)
    K = kfac_operator(R, fisher="sampled", samples=5, generator=generator)
    I = hesse.identity_operator(len(b))
    for damping in (1e-2, 1e-3):
        M = hesse.inverse_operator(K.damped(damping))
        plain = solve(G + damping * I, b, "cg", rtol=0.1)
        faster = solve(G + damping * I, b, "cg", preconditioner=M, rtol=0.1)
        assert plain.converged
        assert faster.converged
        assert 3 * faster.products <= plain.products, (damping, faster.products, plain.products)
