"""Whatever is wrong with an argument, the answer is a HesseError that names it."""

import math

import numpy as np
import pytest
import torch

from hesse.errors import ArgumentError, HesseError, Status, check_count
from hesse.estimators import (
    KernelPolynomial,
    LanczosDensity,
    XDiag,
    XTrace,
    count_eigenvalues,
    diagonal,
    logdet,
    matrix_function,
    norm,
    sample_normal,
    spectral_density,
    trace,
)
from hesse.krylov import (
    CG,
    GMRES,
    LOBPCG,
    LSMR,
    MINRES,
    Lanczos,
    MultiShiftCG,
    eigsh,
    inverse_operator,
    nystrom_operator,
    solve,
    svds,
)
from hesse.krylov.preconditioners import (
    Pairs,
    block_jacobi,
    jacobi,
    nystrom,
    pivoted_cholesky,
    quasi_newton,
)
from hesse.operators import diagonal_operator, function_operator
from hesse.optimize import LBFGS, Cubic, Enriched, NewtonCG, NewtonMINRES, TrustCG, TrustKrylov
from hesse.testing import symmetric_matrix

N = 12
M = symmetric_matrix(torch.linspace(1.0, 3.0, N), dtype=torch.float32)
HIDDEN = function_operator(lambda v: M @ v, N, symmetric=True)
b = torch.linspace(1.0, 2.0, N)

NOT_NUMBERS = [
    "3", True, 1j, [], [1], object(), torch.ones(2), torch.ones(()), torch.tensor(True),
    np.ones(2), np.bool_(True), math.nan,
]  # fmt: skip
NOT_COUNTS = [*NOT_NUMBERS, 1.5, 2.0, 0, -1]
NEGATIVE = [*NOT_NUMBERS, -1.0, -math.inf]
NOT_POSITIVE = [*NEGATIVE, 0.0]
NOT_NAMES = ["nonsense", 3, None, True, b"cg", ["cg"], torch.ones(2), np.ones(2)]
NOT_SOLVERS = [*NOT_NAMES, CG, KernelPolynomial(), object()]
NOT_METHODS = [*NOT_NAMES, LanczosDensity, XTrace, XDiag, object()]
NOT_FUNCTIONS = ["f", 3, 1.5, [print], torch.ones(2)]
NOT_GENERATORS = [0, "seed", torch.ones(2), np.random.default_rng(0), [None]]
NOT_VECTORS = [
    3, "b", [1.0], np.ones(N), torch.ones(()), torch.ones(N - 1), torch.ones(N, N, 1),
    torch.ones(N).double(), torch.ones(N).int(), torch.ones(N, dtype=torch.complex64),
    torch.full((N,), math.nan), torch.full((N,), math.inf), torch.ones(N, device="meta"),
]  # fmt: skip
NOT_OPERATORS = [
    None, 3, "A", [[1.0]], np.eye(N, dtype=int), torch.ones(N), torch.ones(N, N).int(),
    torch.ones(N, N, dtype=torch.complex64), torch.ones(2, 2, 2), torch.zeros(0, 0),
]  # fmt: skip
NOT_BUDGETS = ["much", "1 parsec", 0, -1, True, math.nan, math.inf, "1e999", [], torch.ones(2), 7]
LIMITS = {
    "max_products": NOT_COUNTS,
    "max_seconds": NOT_POSITIVE,
    "callback": NOT_FUNCTIONS,
    "progress": ["yes", 1, None, torch.ones(2)],
}
SAVED = {"checkpoint": [3, 1.5, b"run", ["run"]]}
SAMPLED = {
    **LIMITS,
    **SAVED,
    "A": NOT_OPERATORS,
    "rtol": [*NEGATIVE, None],
    "atol": [*NEGATIVE, None],
    "block_size": NOT_COUNTS,
    "memory_budget": NOT_BUDGETS,
    "generator": NOT_GENERATORS,
}
DENSITY = {
    **{name: values for name, values in SAMPLED.items() if name not in ("rtol", "atol")},
    "rtol": NEGATIVE,
    "probes": NOT_COUNTS,
    "points": [*NOT_COUNTS, 1],
}
FUNCTION = {
    **LIMITS,
    "rtol": NEGATIVE,
    "basis_size": NOT_COUNTS,
    "block_size": NOT_COUNTS,
    "memory_budget": NOT_BUDGETS,
}
EIGEN = {
    **LIMITS,
    "k": [*NOT_COUNTS, N + 1],
    "rtol": NEGATIVE,
    "v0": NOT_VECTORS,
    "generator": NOT_GENERATORS,
    "memory_budget": NOT_BUDGETS,
}

SYSTEM = {
    **LIMITS,
    "b": [None, *NOT_VECTORS, torch.ones(N, 0)],
    "x0": NOT_VECTORS,
    "preconditioner": ["ilu", 3, torch.ones(N), torch.ones(3, 3), torch.ones(N, N).double()],
    "rtol": [*NEGATIVE, None],
    "atol": [*NEGATIVE, None],
    "max_iterations": [*NOT_NUMBERS, 1.5, 2.0, -1],
}


def of_two_pairs(method):
    return eigsh(HIDDEN, 2, method=method)


# (function, its other arguments, wrong values by argument)
CASES = {
    "solve": (solve, {"A": HIDDEN, "b": b}, {
        **SYSTEM, **SAVED, "A": NOT_OPERATORS, "method": NOT_SOLVERS,
    }),
    "CG": (CG, {}, {
        "replace_every": NOT_COUNTS, "radius": [*NOT_POSITIVE, None], "stop": NOT_FUNCTIONS,
        "keep": NOT_FUNCTIONS, "verify": [None, 1, torch.ones(2)],
    }),
    "MultiShiftCG": (MultiShiftCG, {}, {
        "shifts": [1.0, "12", [], [None], [math.nan], [math.inf], torch.ones(2, 2), [1j], {}],
    }),
    "LSMR": (LSMR, {}, {"tikhonov": [*NEGATIVE, None, math.inf]}),
    "Enriched": (Enriched, {}, {"memory": [*NOT_COUNTS, None]}),
    "NewtonCG": (NewtonCG, {}, {"max_inner_iterations": [*NOT_COUNTS, None]}),
    "TrustCG": (TrustCG, {}, {"max_inner_iterations": [*NOT_COUNTS, None]}),
    "TrustKrylov": (TrustKrylov, {}, {"max_inner_iterations": [*NOT_COUNTS, None]}),
    "Cubic": (Cubic, {}, {"max_inner_iterations": [*NOT_COUNTS, None]}),
    "NewtonMINRES": (NewtonMINRES, {}, {"max_inner_iterations": [*NOT_COUNTS, None]}),
    "MINRES": (MINRES, {}, {"truncated": [None, 1, torch.ones(2)]}),
    "LBFGS": (LBFGS, {}, {"memory": [*NOT_COUNTS, None]}),
    "GMRES": (GMRES, {}, {"restart": [*NOT_COUNTS, None]}),
    "solve block": (solve, {"A": HIDDEN, "b": torch.ones(N, 2)}, {
        "x0": [torch.ones(N, 3), torch.ones(N), torch.full((N, 2), math.nan), "x0"],
    }),
    "solve jacobi": (solve, {"A": HIDDEN, "b": b, "preconditioner": "jacobi"}, {
        "generator": NOT_GENERATORS,
    }),
    "eigsh": (eigsh, {"A": HIDDEN, "k": 2}, {
        **EIGEN, **SAVED, "A": [*NOT_OPERATORS, torch.ones(N, 3)], "which": NOT_NAMES,
        "method": [*NOT_SOLVERS, Lanczos],
    }),
    "Lanczos": (Lanczos, {}, {
        "block_size": NOT_COUNTS, "basis_size": NOT_COUNTS,
        "basis_dtype": ["float32", torch.int32, torch.complex64, 3],
        "basis_device": ["nonsense", "cuda:99", "meta", -1, 1.5],
        "search_missed": [None, 1, "no", torch.ones(2)],
    }),
    "LOBPCG": (LOBPCG, {}, {"block_size": NOT_COUNTS}),
    "options for k pairs": (of_two_pairs, {}, {
        "method": [
            Lanczos(block_size=N + 1), Lanczos(basis_size=2), LOBPCG(block_size=N + 1),
            *(LOBPCG(preconditioner=M) for M in SYSTEM["preconditioner"]),
        ],
    }),
    "lobpcg": (eigsh, {"A": HIDDEN, "k": 2, "which": "SA", "method": "lobpcg"}, {
        **EIGEN, "which": ["LM", "BE", 3], "B": [3, "B", torch.ones(3, 3), torch.ones(N)],
        "memory_budget": ["1GB"], "checkpoint": ["run"],
    }),
    "svds": (svds, {"A": HIDDEN, "k": 2}, {
        **EIGEN, **SAVED, "A": NOT_OPERATORS, "method": [*NOT_SOLVERS, Lanczos],
    }),
    "trace": (trace, {"A": HIDDEN}, {**SAMPLED, "method": [*NOT_METHODS, XDiag()]}),
    "diagonal": (diagonal, {"A": HIDDEN}, {**SAMPLED, "method": [*NOT_METHODS, XTrace()]}),
    "norm": (norm, {"A": HIDDEN}, {**SAMPLED, "ord": [None, 1, "2", torch.ones(2), [2]]}),
    "norm 2": (norm, {"A": HIDDEN, "ord": 2}, SAMPLED),
    "logdet": (logdet, {"A": HIDDEN}, SAMPLED),
    "count_eigenvalues": (count_eigenvalues, {"A": HIDDEN, "low": 1.5}, {
        **SAMPLED, "low": [None, "1", math.nan, 1j, torch.ones(2), True],
        "high": [None, "1", math.nan, 1j, torch.ones(2), 1.0],
    }),
    "small trace": (trace, {"A": M[:4, :4]}, {
        name: values for name, values in SAMPLED.items() if name not in ("generator", "callback")
    }),
    "spectral_density": (spectral_density, {"A": HIDDEN, "points": 8}, {
        **DENSITY, "method": NOT_METHODS,
    }),
    "kernel polynomials": (
        spectral_density, {"A": HIDDEN, "points": 8, "method": "kernel-polynomial"}, DENSITY,
    ),
    "LanczosDensity": (LanczosDensity, {}, {"steps": NOT_COUNTS, "bandwidth": NOT_POSITIVE}),
    "KernelPolynomial": (KernelPolynomial, {}, {"degree": NOT_COUNTS}),
    "matrix_function": (matrix_function, {"fun": "sqrt", "A": HIDDEN, "b": b}, {
        **FUNCTION, "A": NOT_OPERATORS, "b": [*NOT_VECTORS, None],
        "fun": [*NOT_NAMES, lambda v: None, lambda v: v[1:], lambda v: v / 0, lambda v: 1.0],
    }),
    "sample_normal": (sample_normal, {"A": HIDDEN}, {
        **FUNCTION, "A": NOT_OPERATORS, "count": [*NOT_COUNTS, None], "role": NOT_NAMES,
        "generator": NOT_GENERATORS,
    }),
    "inverse_operator": (inverse_operator, {"A": HIDDEN}, {
        "A": [*NOT_OPERATORS, torch.ones(N, 3)], "method": NOT_SOLVERS,
        "preconditioner": SYSTEM["preconditioner"],
    }),
    "jacobi": (jacobi, {"A": HIDDEN}, {
        "A": NOT_OPERATORS, "probes": [*NOT_COUNTS, 1, None], "diagonal": NOT_VECTORS,
        "generator": NOT_GENERATORS,
    }),
    "block_jacobi": (block_jacobi, {"A": HIDDEN, "size": 2}, {
        "A": NOT_OPERATORS, "size": [*NOT_COUNTS, None], "probes": NOT_COUNTS,
        "generator": NOT_GENERATORS,
    }),
    "nystrom": (nystrom, {"A": HIDDEN, "rank": 4}, {
        "A": NOT_OPERATORS, "rank": [*NOT_COUNTS, None], "max_rank": NOT_COUNTS,
        "damping": [*NEGATIVE, None], "generator": NOT_GENERATORS,
    }),
    "nystrom_operator": (nystrom_operator, {"A": HIDDEN, "rank": 4}, {
        "A": NOT_OPERATORS, "rank": [*NOT_COUNTS, None, N + 1], "generator": NOT_GENERATORS,
        "sketch_size": [*NOT_COUNTS, 3, N + 1],
    }),
    "pivoted_cholesky": (pivoted_cholesky, {"A": M, "rank": 4}, {
        "A": NOT_OPERATORS, "rank": [*NOT_COUNTS, None], "damping": [*NEGATIVE, None],
        "diagonal": NOT_VECTORS,
    }),
    "quasi_newton": (quasi_newton, {"pairs": [(b, M @ b)]}, {
        "pairs": [None, 3, [], [b], [(b,)], [(b, None)], torch.ones(2), [(b, b[1:])]],
        "memory": [*NOT_COUNTS, None],
    }),
    "Pairs": (Pairs, {}, {"most": [*NOT_COUNTS, None]}),
    "function_operator": (function_operator, {"matvec": torch.neg, "n": N}, {
        "matvec": NOT_FUNCTIONS, "rmatvec": NOT_FUNCTIONS,
        "n": [*NOT_NUMBERS, None, 1.5, -1], "m": [*NOT_NUMBERS, 1.5, -1],
    }),
}  # fmt: skip
TABLE = [(name, argument) for name, (_, _, wrong) in CASES.items() for argument in wrong]


@pytest.mark.parametrize(("name", "argument"), TABLE)
def test_what_is_wrong_is_named(name, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, others, wrong = CASES[name]
    for value in wrong[argument]:
        with pytest.raises(HesseError) as caught:
            function(**{**others, argument: value})
        error = caught.value
        for part in (error.call, error.expected, error.got, error.remedy):
            assert part


INTEGERS = [3, np.int64(3), np.int32(3), torch.tensor(3), np.array(3)]


@pytest.mark.parametrize("three", INTEGERS, ids=repr)
def test_integers_of_other_libraries_are_integers(three):
    assert type(check_count("k", three, 1)) is int
    lanczos = Lanczos(block_size=three, basis_size=three + 5)
    assert len(eigsh(HIDDEN, three, method=lanczos).values) == 3
    assert len(svds(HIDDEN, three, method=Lanczos(basis_size=three + 5)).S) == 3
    assert solve(HIDDEN, b, GMRES(restart=three), max_iterations=three).iterations == 3
    assert solve(HIDDEN, b, CG(replace_every=three), max_products=three).products == 3
    assert sample_normal(HIDDEN, three, basis_size=three).value.shape == (N, 3)
    assert trace(HIDDEN, block_size=three, max_products=three).products == 3
    density = spectral_density(
        HIDDEN, probes=three, method=LanczosDensity(steps=three), points=three + 5
    )
    assert density.nodes.shape == (3, 3)
    assert block_jacobi(HIDDEN, three, probes=three).products == 9
    assert nystrom(HIDDEN, three, max_rank=three).products == 3


def test_the_message_says_what_to_give():
    with pytest.raises(ArgumentError, match=r"k to be an integer, k >= 1\n  got:      2.0"):
        eigsh(HIDDEN, 2.0)
    with pytest.raises(ArgumentError, match="Give a list"):
        solve(HIDDEN, b, MultiShiftCG(1.0))
    with pytest.raises(ArgumentError, match=r"a number, rtol >= 0\n  got:      '1e-3'"):
        solve(HIDDEN, b, rtol="1e-3")
    with pytest.raises(ArgumentError, match="replace_every to be an integer"):
        solve(HIDDEN, b, CG(replace_every=0))


@pytest.mark.parametrize("estimate", [trace, diagonal, norm, logdet, count_eigenvalues])
@pytest.mark.parametrize("n", [1, 4, 10])
def test_a_small_matrix_keeps_the_budget(estimate, n):
    A = diagonal_operator(torch.linspace(1.0, 2.0, n))
    assert estimate(A, memory_budget=4 * n * n * 4).standard_error is not None
    with pytest.raises(ArgumentError, match="a memory budget of at least"):
        estimate(A, memory_budget=4 * n)
    if n > 1 and estimate is not count_eigenvalues and estimate is not logdet:
        sampled = estimate(A, memory_budget=3 * n * 4, max_products=40)
        assert sampled.products > n or sampled.status is Status.CONVERGED


def test_the_remedy_for_a_budget_is_one_that_there_is():
    A = diagonal_operator(torch.linspace(1.0, 2.0, 500))
    vector = 500 * 4
    for estimate, options in [
        (logdet, {}), (count_eigenvalues, {}), (norm, {}), (spectral_density, {}),
    ]:  # fmt: skip
        with pytest.raises(ArgumentError) as caught:
            estimate(A, memory_budget=vector, **options)
        assert "hutchinson" not in str(caught.value)
    with pytest.raises(ArgumentError, match="take fewer steps"):
        spectral_density(A, memory_budget=4 * vector)
    for estimate, method in [(trace, "xtrace"), (trace, "hutch++"), (diagonal, "xdiag")]:
        with pytest.raises(ArgumentError, match="method='hutchinson'"):
            estimate(A, method=method, memory_budget=3 * vector)
        plain = estimate(A, method="hutchinson", memory_budget=3 * vector, max_products=4)
        assert plain.products <= 4
