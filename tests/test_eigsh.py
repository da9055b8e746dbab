"""Eigenpairs: right, with bounds that hold, in bounded memory, with their counts."""

import math
import signal

import pytest
import torch

from hesse.errors import ArgumentError, HesseError, NonFiniteError, OperatorError, Status
from hesse.krylov import Lanczos, eigsh
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.progress import uninterrupted
from hesse.testing import CountingOperator, PeakMemory
from hesse.vectors.rows import transform

DOUBLE = torch.float64


def symmetric(n, seed, dtype=DOUBLE):
    M = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (M + M.T) / 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def wanted(M, k, which):
    values = torch.linalg.eigvalsh(M)
    if which == "LM":
        return values[values.abs().argsort()[-k:]].sort().values
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return torch.cat([values[:low], values[len(values) - (k - low) :]])


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (40, 3), (150, 6)])
def test_agrees_with_dense(n, k, which):
    M = symmetric(n, seed=n)
    pairs = eigsh(M, k, which, generator=seeded())
    assert pairs.converged.all()
    scale = float(torch.linalg.matrix_norm(M, 2))
    # Rayleigh quotients are off by at most residual^2 / gap, far below the residual's 1.5e-8
    torch.testing.assert_close(pairs.values, wanted(M, k, which), rtol=0, atol=1e-11 * scale)
    residual = M @ pairs.vectors - pairs.vectors * pairs.values
    # a bound, and sharp to the hundredth of rtol |A| that lost orthogonality may add to it
    assert (residual.norm(dim=0) <= pairs.residuals + 1e-13 * scale).all()
    torch.testing.assert_close(residual.norm(dim=0), pairs.residuals, rtol=0, atol=3e-10 * scale)
    eye = torch.eye(k, dtype=DOUBLE)
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, eye, rtol=0, atol=1e-10)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_the_bound_holds_whether_or_not_it_converged(which, thorough):
    for seed in range(0, 60, 1 if thorough else 3):
        M = symmetric(30, seed)
        pairs = eigsh(
            M,
            3,
            which,
            method=Lanczos(basis_size=8),
            max_products=12 + seed,
            generator=seeded(seed),
        )
        distance = (torch.linalg.eigvalsh(M)[:, None] - pairs.values).abs().amin(dim=0)
        assert (distance <= pairs.residuals + 1e-13).all()


def test_products_are_counted_and_the_basis_is_bounded():
    A = CountingOperator(dense_operator(symmetric(200, 1)))
    pairs = eigsh(A, 4, method=Lanczos(basis_size=12), generator=seeded())
    assert pairs.converged.all()
    assert pairs.products == A.products
    lanczos = LanczosProcess(A, 12, torch.ones(200, dtype=DOUBLE), None)
    assert lanczos.basis.rows.shape == (13, 200)


def test_repeated_eigenvalues_come_with_their_multiplicity():
    values = torch.tensor([7.0] * 3 + [2.0] * 20 + [1.0] * 30, dtype=DOUBLE)
    pairs = eigsh(diagonal_operator(values), 4, generator=seeded())
    torch.testing.assert_close(pairs.values, torch.tensor([2.0, 7.0, 7.0, 7.0], dtype=DOUBLE))


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_a_multiplicity_that_one_start_cannot_see_is_searched_for(which):
    top, bottom = [5.0] * 3 + [4.0] * 2, [-6.0] * 2
    middle = torch.linspace(-1.0, 3.0, 300, dtype=DOUBLE).tolist()
    values = torch.tensor(top + bottom + middle, dtype=DOUBLE)
    pairs = eigsh(diagonal_operator(values), 6, which, generator=seeded())
    expected = wanted(torch.diag(values), 6, which)
    torch.testing.assert_close(pairs.values, expected, rtol=0, atol=1e-9)


def test_without_the_search_a_block_sees_the_multiplicity_of_its_size():
    values = torch.tensor([4.0, 5.0, 5.0, *torch.linspace(-1, 1, 200).tolist()], dtype=DOUBLE)
    A = diagonal_operator(values)
    alone = eigsh(A, 2, method=Lanczos(search_missed=False), generator=seeded())
    torch.testing.assert_close(alone.values, values[:2])
    block = eigsh(A, 2, method=Lanczos(search_missed=False, block_size=2), generator=seeded())
    torch.testing.assert_close(block.values, values[1:3])


@pytest.mark.parametrize("b", [1, 2, 5])
def test_blocks_take_their_products_together_and_agree(b):
    A = CountingOperator(dense_operator(symmetric(120, 7)))
    pairs = eigsh(A, 4, method=Lanczos(block_size=b), generator=seeded())
    assert pairs.converged.all()
    assert pairs.products == A.products
    torch.testing.assert_close(pairs.values, wanted(A.A.matrix, 4, "LA"), rtol=1e-10, atol=0)


def test_the_vectors_of_a_nearby_operator_are_a_good_start():
    M = torch.diag(torch.cat([torch.linspace(0, 1, 400), torch.tensor([2.0, 3.0, 4.0])]).double())
    E = 1e-3 * symmetric(403, 8) / 20
    before = eigsh(M, 3, generator=seeded())
    cold = eigsh(M + E, 3, method=Lanczos(search_missed=False), generator=seeded())
    warm = eigsh(
        M + E, 3, method=Lanczos(search_missed=False), v0=before.vectors, generator=seeded()
    )
    assert warm.converged.all()
    torch.testing.assert_close(warm.values, cold.values, rtol=1e-9, atol=0)
    again = eigsh(M, 3, method=Lanczos(search_missed=False), v0=before.vectors, generator=seeded())
    assert again.products <= 9 < cold.products


def test_a_budget_is_kept_and_an_impossible_one_says_what_is_needed():
    n, k = 100_000, 5
    d = torch.linspace(0, 1, n)
    d[::20_000] = torch.arange(2.0, 7.0)
    A, budget = diagonal_operator(d), 24 * n * 4
    with PeakMemory() as memory:
        pairs = eigsh(A, k, memory_budget=budget, generator=seeded())
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, torch.arange(2.0, 7.0).double(), rtol=1e-6, atol=0)
    assert memory.peak <= budget
    with pytest.raises(ArgumentError, match="at least 6,800,000 bytes for 6 basis vectors"):
        eigsh(A, k, memory_budget="6.7MB")
    assert eigsh(A, k, memory_budget=6_800_000, max_products=99).products <= 99


@pytest.fixture
def ctrl_c():
    """As in the foreground: whoever runs the tests may have Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_a_block(ctrl_c):
    done = []

    def interrupted():
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                done.append(1)
            done.append(2)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1, 2]


def test_ctrl_c_amid_a_restart_waits_for_its_end(monkeypatch, ctrl_c):
    """The basis is rotated in place: half of it would be worth nothing."""

    def interrupted(rows, S):
        signal.raise_signal(signal.SIGINT)
        transform(rows, S)

    monkeypatch.setattr("hesse.krylov.basis.transform", interrupted)
    A = diagonal_operator(torch.linspace(0, 1, 5000, dtype=DOUBLE))
    pairs = eigsh(A, 3, generator=seeded())
    assert pairs.status is Status.INTERRUPTED
    assert pairs.products == 31  # a basis full, and one to verify
    assert pairs.residuals.max() < 0.05
    eye = torch.eye(3, dtype=DOUBLE)
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, eye, rtol=0, atol=1e-13)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(("k", "m", "b"), [(1, 10, 1), (2, 12, 2), (5, 20, 1), (1, 20, 8)])
@pytest.mark.parametrize("rows", [None, torch.float32], ids=["exact", "coarse"])
def test_so_many_vectors(k, m, b, rows):
    n = 100_000
    d = torch.linspace(0, 1, n, dtype=DOUBLE)
    d[:6] = torch.arange(2.0, 8.0)
    A = diagonal_operator(d)
    with PeakMemory() as memory:
        method = Lanczos(basis_size=m, block_size=b, basis_dtype=rows)
        pairs = eigsh(A, k, method=method, generator=seeded())
    assert pairs.converged.all()
    basis = m + b if rows is None else (m + b) / 2
    more = max(k + 3, 2 * b) if rows is None else max(2 * k + 4, 2 * b)
    assert memory.peak == pytest.approx((basis + more) * 8 * n, rel=0.01)


@pytest.mark.slow
def test_ten_million_variables_in_a_gigabyte():
    n = 10**7
    d = torch.linspace(0, 1, n)
    d[[5, 500, 50_000, 5_000_000, 9_999_999]] = torch.arange(2.0, 7.0)
    with PeakMemory() as memory:
        pairs = eigsh(diagonal_operator(d), 5, memory_budget="1GB", generator=seeded())
    assert pairs.converged.all()
    assert memory.peak <= 10**9
    torch.testing.assert_close(pairs.values, torch.arange(2.0, 7.0).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.float16, 3e-3)])
def test_a_basis_in_lower_precision_says_how_far_it_got(dtype, accuracy):
    d = torch.cat([torch.linspace(0, 1, 500), torch.tensor([2.0, 4.0])]).double()
    pairs = eigsh(diagonal_operator(d), 2, method=Lanczos(basis_dtype=dtype), generator=seeded())
    assert pairs.vectors.dtype == DOUBLE
    torch.testing.assert_close(pairs.values, d[-2:], rtol=accuracy, atol=0)
    assert ((pairs.values - d[-2:]).abs() <= pairs.residuals).all()


def test_limits_stop_it_and_say_so():
    A = CountingOperator(dense_operator(symmetric(200, 9)))
    few = eigsh(A, 3, "SA", rtol=1e-12, max_products=20, generator=seeded())
    assert few.status is Status.MAX_PRODUCTS
    assert few.products == A.products == 20
    assert eigsh(A, 3, max_seconds=1e-9, generator=seeded()).status is Status.MAX_SECONDS
    stopped = eigsh(A, 3, callback=lambda state: state.products >= 7, generator=seeded())
    assert stopped.status is Status.STOPPED
    assert stopped.products == 7 + 1


@pytest.mark.slow
def test_the_bound_holds_in_random_cases(thorough):
    generator = seeded(1)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    for case in range(1000 if thorough else 150):
        n, k, dtype = draw(2, 60), draw(1, 4), [torch.float32, DOUBLE][case % 2]
        Q, _ = torch.linalg.qr(symmetric(n, case))
        spread = torch.randn(n, generator=generator, dtype=DOUBLE) * 10.0 ** draw(-3, 4)
        spread[: draw(0, n)] = float(spread[0])  # multiple eigenvalues
        M = Q @ torch.diag(spread) @ Q.T
        M = ((M + M.T) / 2).to(dtype)
        which = ["LA", "SA", "LM", "BE"][draw(0, 4)]
        pairs = eigsh(
            M,
            min(k, n),
            which,
            method=Lanczos(block_size=min(draw(1, 4), n)),
            max_products=draw(4, 100),
            generator=generator,
        )
        exact = torch.linalg.eigvalsh(M.double())
        distance = (exact[:, None] - pairs.values).abs().amin(dim=0)
        assert (distance <= pairs.residuals).all(), (case, n, k, which)


@pytest.mark.parametrize("other", [-114.0, -9.0, 300.0])
@pytest.mark.parametrize("is_given", [True, False])
def test_one_value_nearly_everywhere(other, is_given):
    """The search among equal values fills its basis, and keeps what was found apart from them."""
    values = torch.full((59,), 114.0, dtype=DOUBLE)
    values[0] = other
    Q, _ = torch.linalg.qr(symmetric(59, 1))
    M = Q @ torch.diag(values) @ Q.T
    v0 = torch.randn(59, 3, generator=seeded(), dtype=DOUBLE) if is_given else None
    pairs = eigsh((M + M.T) / 2, 3, "LM", method=Lanczos(block_size=3), v0=v0, generator=seeded())
    wanted = values[values.abs().argsort()[-3:]].sort().values
    torch.testing.assert_close(pairs.values.abs(), wanted.abs(), rtol=1e-12, atol=0)


def test_an_invariant_subspace_at_the_first_step():
    start = torch.zeros(50, dtype=DOUBLE)
    start[0] = 1.0  # an eigenvector of the smallest eigenvalue
    pairs = eigsh(diagonal_operator(torch.arange(1.0, 51, dtype=DOUBLE)), 2, v0=start)
    torch.testing.assert_close(pairs.values, torch.tensor([49.0, 50.0], dtype=DOUBLE))


def test_single_precision():
    M = symmetric(100, 3)
    pairs = eigsh(M.float(), 3, generator=seeded())
    assert pairs.converged.all()
    torch.testing.assert_close(pairs.values, wanted(M, 3, "LA"), rtol=1e-5, atol=0)


def test_too_few_products_are_reported_not_hidden():
    pairs = eigsh(
        symmetric(300, 4), 3, "SA", method=Lanczos(basis_size=6), max_products=8, generator=seeded()
    )
    assert not pairs.converged.all()
    assert pairs.products <= 8 + 3


def test_a_seed_gives_the_same_bits_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, second = (eigsh(symmetric(60, 5), 2, generator=seeded(9)) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(state, torch.random.get_rng_state())


def test_agrees_with_arpack_and_needs_no_more_products():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    A = CountingOperator(dense_operator(symmetric(400, 6)))
    ours = eigsh(A, 5, rtol=1e-8, generator=seeded())
    alone = eigsh(A, 5, method=Lanczos(search_missed=False), rtol=1e-8, generator=seeded())
    A.products = 0
    start = torch.randn(400, generator=seeded(), dtype=DOUBLE).numpy()
    theirs = linalg.eigsh(A.to_scipy(), 5, which="LA", tol=1e-8, v0=start, ncv=30)[0]
    torch.testing.assert_close(ours.values, torch.tensor(theirs).sort().values)
    assert alone.products <= A.products
    assert ours.products <= 1.5 * A.products  # at the edge of a semicircle the search takes long


def laplacian(*sizes):
    """Of a grid of these sizes."""
    total = torch.zeros(1, 1, dtype=DOUBLE)
    for m in sizes:
        line = 2 * torch.eye(m, dtype=DOUBLE)
        line -= torch.diag(torch.ones(m - 1, dtype=DOUBLE), 1)
        line -= torch.diag(torch.ones(m - 1, dtype=DOUBLE), -1)
        total = torch.kron(total, torch.eye(m, dtype=DOUBLE)) + torch.kron(
            torch.eye(len(total), dtype=DOUBLE), line
        )
    return total


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("M", "k", "which"),
    [
        (laplacian(20, 20), 3, "LA"),
        (laplacian(20, 20), 4, "SA"),
        (laplacian(20, 20), 5, "BE"),
        (laplacian(7, 7, 7), 4, "LM"),
        (torch.diag(torch.linspace(0, 1, 200, dtype=DOUBLE).repeat_interleave(2)), 3, "LA"),
    ],
    ids=["2-D LA", "2-D SA", "2-D BE", "3-D LM", "doubled"],
)
def test_multiple_eigenvalues_in_a_dense_spectrum(M, k, which):
    for seed in range(3):
        pairs = eigsh(M, k, which, generator=seeded(seed))
        assert pairs.status is Status.CONVERGED
        scale = float(pairs.values.abs().max())
        torch.testing.assert_close(pairs.values, wanted(M, k, which), rtol=0, atol=1e-9 * scale)


def test_accurate_vectors_of_other_eigenvalues_do_not_deceive():
    A = diagonal_operator(torch.linspace(0, 1, 200, dtype=DOUBLE))
    start = torch.eye(200, dtype=DOUBLE)[:, 196:198]  # the third and the fourth
    for noise in (0.0, 1e-10):
        v0 = start + noise * torch.randn(200, 2, dtype=DOUBLE, generator=seeded())
        values = eigsh(A, 2, v0=v0, generator=seeded()).values
        torch.testing.assert_close(values, torch.tensor([198 / 199, 1.0], dtype=DOUBLE))


def test_a_coarse_basis_of_the_whole_space_ends():
    pairs = eigsh(
        symmetric(30, 3).float(),
        6,
        method=Lanczos(basis_dtype=torch.bfloat16),
        max_products=200,
        generator=seeded(),
    )
    assert pairs.status in (Status.CONVERGED, Status.STAGNATED)


def test_ctrl_c_returns_the_best_so_far():
    calls = []

    def product(v):
        calls.append(1)
        if len(calls) == 45:
            raise KeyboardInterrupt
        return v * torch.arange(1.0, 201)

    pairs = eigsh(function_operator(product, 200, symmetric=True), 2, "SA", generator=seeded())
    assert pairs.converged.tolist() != [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_an_operator_that_is_wrongly_called_symmetric_is_refused(dtype):
    for seed in range(20):
        M = torch.randn(50, 50, generator=seeded(seed), dtype=dtype)
        broken = function_operator(M.mv, 50, symmetric=True, dtype=dtype)
        with pytest.raises(OperatorError, match="symmetric=True"):
            eigsh(broken, 2, generator=seeded(seed))


def test_what_cannot_be_is_refused():
    with pytest.raises(OperatorError, match="symmetric"):
        eigsh(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), 1)
    for wrong in ({"k": 0}, {"k": 4}, {"which": "SM"}, {"k": 2, "method": Lanczos(basis_size=2)}):
        with pytest.raises(ArgumentError, match="remedy"):
            eigsh(torch.diag(torch.arange(3.0)), **wrong)
    with pytest.raises(NonFiniteError):
        eigsh(function_operator(lambda v: v * math.nan, 3, symmetric=True), 1)
    with pytest.raises(HesseError):
        eigsh(torch.eye(3), 1, v0=torch.ones(4))
