"""A run that is killed at any moment goes on to the same bits, and only with the same question."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from hesse.checkpoint import Checkpoint
from hesse.errors import ArgumentError, HesseError, Status
from hesse.estimators import KernelPolynomial, LanczosDensity, diagonal, spectral_density, trace
from hesse.krylov import Lanczos, eigsh, solve
from hesse.operators import dense_operator, function_operator
from hesse.testing import CountingOperator, symmetric_matrix

DOUBLE = torch.float64
N = 150


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(seed=0):
    M = torch.randn(N, N, generator=seeded(seed), dtype=DOUBLE)
    return M @ M.T / N + 0.01 * torch.eye(N, dtype=DOUBLE)


def slow_operator():
    """A matrix whose products take a millisecond."""
    M = matrix()

    def product(v):
        time.sleep(1e-3)
        return M @ v

    return function_operator(product, N, symmetric=True, dtype=DOUBLE)


def eigenpairs(path):
    pairs = eigsh(
        slow_operator(),
        4,
        "SA",
        method=Lanczos(basis_size=40),
        generator=seeded(1),
        checkpoint=path,
    )
    return pairs.values, pairs.vectors, torch.tensor(pairs.products)


def block_eigenpairs(path):
    pairs = eigsh(
        slow_operator(), 3, method=Lanczos(block_size=2), generator=seeded(2), checkpoint=path
    )
    return pairs.values, pairs.vectors, torch.tensor(pairs.products)


def estimate_by(measure, method):
    def run(path):
        value, error, *_ = measure(
            slow_operator(), method=method, rtol=0, max_products=150, generator=seeded(3),
            checkpoint=path,
        )  # fmt: skip
        return torch.as_tensor(value), torch.as_tensor(error)

    return run


def auto_trace(path):
    estimate = trace(slow_operator(), rtol=1e-3, generator=seeded(4), checkpoint=path)
    return torch.tensor(estimate.value), torch.tensor(estimate.standard_error)


def density_by(method):
    def run(path):
        density = spectral_density(
            slow_operator(), method=method, generator=seeded(5), checkpoint=path
        )
        return density.grid, density.density, density.standard_error, density.weights

    return run


def solution_by(method):
    def run(path):
        b = torch.ones(N, dtype=DOUBLE)
        solution = solve(slow_operator(), b, method, rtol=1e-11, checkpoint=path)
        return solution.x, torch.tensor(solution.products), torch.tensor(solution.history)

    return run


RUNS = {
    "eigsh": eigenpairs,
    "eigsh in blocks": block_eigenpairs,
    "trace auto": auto_trace,
    **{
        f"trace {method}": estimate_by(trace, method)
        for method in ("hutchinson", "hutch++", "xtrace", "xnystrace")
    },
    **{f"diagonal {method}": estimate_by(diagonal, method) for method in ("auto", "xdiag")},
    "lanczos": density_by(LanczosDensity(steps=25)),
    "kernel-polynomial": density_by(KernelPolynomial(degree=50)),
    **{method: solution_by(method) for method in ("cg", "minres", "lsmr", "gmres")},
}


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def kill_after(seconds, run, path):
    """Whether a process that runs this had to be killed after so many seconds."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(path,))
    process.start()
    process.join(seconds)
    alive = process.is_alive()
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments_it_goes_on_to_the_same_bits(name, tmp_path, thorough):
    run, killed = RUNS[name], 0
    expected = run(tmp_path / "undisturbed")
    began = time.monotonic()
    run(None)
    whole, moments = time.monotonic() - began, random.Random(name)
    for trial in range(trials := 20 if thorough else 3):
        path = tmp_path / f"run-{trial}"
        killed += kill_after(whole * moments.uniform(0.1, 0.9), run, path)
        assert same(run(path), expected)
    assert killed >= trials // 2


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["eigsh", "cg", "minres"])
def test_after_the_end_it_answers_from_the_file(name, tmp_path):
    path = tmp_path / "run"
    first = RUNS[name](path)
    assert same(RUNS[name](path), first)


def test_ctrl_c_leaves_a_file_to_go_on_from(tmp_path):
    path, M = tmp_path / "run.safetensors", matrix()

    def interrupt(state):
        if state.products == 25:
            raise KeyboardInterrupt

    whole = eigsh(M, 3, "SA", generator=seeded())
    broken = eigsh(M, 3, "SA", generator=seeded(), checkpoint=path, callback=interrupt)
    assert broken.status is Status.INTERRUPTED
    A = CountingOperator(dense_operator(M))
    rest = eigsh(A, 3, "SA", generator=seeded(), checkpoint=path)
    assert torch.equal(rest.vectors, whole.vectors)
    assert A.products == rest.products - 25 + 1  # one to recognise the operator


def test_a_limit_that_was_reached_may_be_raised(tmp_path):
    path, M, b = tmp_path / "run", matrix(), torch.ones(N, dtype=DOUBLE)
    short = solve(M, b, "cg", rtol=1e-10, max_iterations=10, checkpoint=path)
    assert short.status is Status.MAX_ITERATIONS
    longer = solve(M, b, "cg", rtol=1e-10, checkpoint=path)
    assert longer.converged
    assert longer.iterations > 10


def test_another_question_or_operator_is_refused(tmp_path):
    path, M = tmp_path / "run", matrix()
    eigsh(M, 3, generator=seeded(), checkpoint=path)
    with pytest.raises(ArgumentError, match="k = 2"):
        eigsh(M, 2, generator=seeded(), checkpoint=path)
    with pytest.raises(ArgumentError, match="with this operator"):
        eigsh(matrix(1), 3, generator=seeded(), checkpoint=path)
    with pytest.raises(ArgumentError, match="dtype"):
        eigsh(M.float(), 3, generator=seeded(), checkpoint=path)
    with pytest.raises(ArgumentError, match="function = solve"):
        solve(M, torch.ones(N, dtype=DOUBLE), "cg", checkpoint=path)
    other = tmp_path / "other"
    other.write_bytes(b"not a checkpoint")
    with pytest.raises(HesseError):
        eigsh(M, 3, checkpoint=other)


def test_nothing_is_ever_half_written(tmp_path, monkeypatch):
    path, A = tmp_path / "run", dense_operator(matrix())
    eigsh(A, 2, generator=seeded(), checkpoint=path)
    before = path.read_bytes()

    def disk_full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("hesse.saving.tensor_file.save_file", disk_full)
    checkpoint = Checkpoint(path, A, function="eigsh")
    with pytest.warns(UserWarning, match="no space left(?s:.*)The run goes on"):
        checkpoint.save(seeded(), now=True)
    checkpoint.save(seeded(), now=True)  # it has been said
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_another_start_is_another_question(tmp_path):
    M, starts = matrix(), torch.randn(N, 3, generator=seeded(), dtype=DOUBLE)
    for j, v0 in enumerate((starts[:, 0], starts[:, :2])):
        path = tmp_path / f"run-{j}"
        first = eigsh(M, 3, v0=v0, checkpoint=path)
        assert torch.equal(eigsh(M, 3, v0=v0, checkpoint=path).vectors, first.vectors)
        with pytest.raises(ArgumentError, match="v0"):
            eigsh(M, 3, v0=starts[:, 2 - j : 3], checkpoint=path)
        with pytest.raises(ArgumentError, match="v0"):
            eigsh(M, 3, method=Lanczos(block_size=1 + j), checkpoint=path)


def test_a_preconditioner_is_recognised_by_its_product(tmp_path):
    A, b = dense_operator(matrix()), torch.ones(N, dtype=DOUBLE)
    path, one, other = tmp_path / "run", matrix(1), matrix(2)
    short = solve(A, b, "cg", one, rtol=1e-10, max_iterations=5, checkpoint=path)
    longer = solve(A, b, "cg", one.clone(), rtol=1e-10, max_iterations=9, checkpoint=path)
    assert (short.iterations, longer.iterations) == (5, 9)
    for preconditioner in (other, None):  # which look the same when printed
        with pytest.raises(ArgumentError, match="with this operator preconditioner"):
            solve(A, b, "cg", preconditioner, rtol=1e-10, checkpoint=path)


@pytest.mark.parametrize("name", ["jacobi", "nystrom"])
def test_a_random_preconditioner_is_the_same_again(name, tmp_path):
    M, b = matrix() + torch.eye(N, dtype=DOUBLE), torch.ones(N, dtype=DOUBLE)
    A = function_operator(lambda v: M @ v, N, symmetric=True, dtype=DOUBLE)
    limits = {"rtol": 1e-12, "checkpoint": tmp_path / "run"}
    short = solve(A, b, "cg", name, max_iterations=4, **limits)
    longer = solve(A, b, "cg", name, **limits)
    assert longer.converged
    assert longer.history[:5] == short.history
    with pytest.raises(ArgumentError, match="with this operator preconditioner"):
        solve(A, b, "cg", name, generator=seeded(5), **limits)


@pytest.mark.parametrize("path", [3, 1.5, b"run", ["run"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ArgumentError, match="the path of a file"):
        solve(matrix(), torch.ones(N, dtype=DOUBLE), "cg", checkpoint=path)
    with pytest.raises(ArgumentError, match="the path of a file"):
        eigsh(matrix(), checkpoint=path)


@pytest.mark.some_cases(11)
@pytest.mark.parametrize("limit", ["max_products", "max_iterations", "callback"])
@pytest.mark.parametrize("method", ["cg", "minres", "gmres", "lsmr", "block-cg", "auto"])
def test_a_solve_goes_on_after_a_limit_to_the_same_bits(method, limit, tmp_path):
    """The residual that verifies what is returned must not take the place of the recurrence's."""
    n, path = 60, tmp_path / "run"
    A = symmetric_matrix(torch.logspace(0, 3, n, dtype=torch.float64))
    b = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = torch.stack([b, b.flip(0)], dim=1) if method == "block-cg" else b
    operator = function_operator(lambda v: A @ v, n, symmetric=True, dtype=torch.float64)

    def run(**options):
        return solve(operator, b, method, rtol=1e-9, **options)

    ends = {"max_products": 16, "max_iterations": 7, "callback": lambda s: s.iteration >= 7}
    whole = run()
    first = run(checkpoint=path, **{limit: ends[limit]})
    assert not first.converged
    rest = run(checkpoint=path)
    assert rest.converged
    assert torch.equal(rest.x, whole.x)
    assert (rest.products, rest.iterations) == (whole.products, whole.iterations)
