# SPDX-License-Identifier: Apache-2.0
"""The package pickles nothing itself; what a user pickles is the same again."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import hesse
from hesse.krylov import CG, solve
from hesse.operators import dense_operator
from tests.checkpoint_runs import DOUBLE, N, matrix

# -- No pickle, no eval ----------------------------------------------------------------------------


def test_the_package_neither_pickles_nor_evaluates():
    """The one `exec` makes a function of a program that was traced in this process."""
    words = (
        r"\bpickle\b|torch\.load|torch\.save|\bmarshal\b|\bshelve\b|numpy\.load|(?<![.\w])eval\("
    )
    words += r"|(?<![.\w])exec\(|\bjoblib\b|\byaml\b"
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(hesse.__file__).parent.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(words, line)
    ]
    assert [line for line in found if "would pickle the message" not in line] == [
        "program_cache.py: A deep copy or a pickle is empty: programs are made again where they "
        "are wanted. Who takes",
        'program.py: exec(compile("\\n".join(lines), "<hesse program>", "exec"), names)',
    ]


def quartic(x):
    return (x**4).sum()


def tripled(v):
    return 3 * v


def test_objects_that_a_user_pickles_are_the_same_again():
    M, x = matrix(), torch.ones(N, dtype=DOUBLE)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    risk = hesse.Risk(model, nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 2)))
    operators = [
        dense_operator(M), dense_operator(M) + 2 * hesse.diagonal_operator(x),
        hesse.kronecker_operator(M[:4, :4], M[:3, :3]), hesse.low_rank_operator(M[:, :3], x[:3]),
        hesse.block_diagonal_operator([M, M]), hesse.inverse_operator(dense_operator(M)),
        hesse.function_operator(tripled, N, symmetric=True, dtype=DOUBLE),
        hesse.hessian_operator(quartic, x), hesse.hessian_operator(risk, risk.params),
        hesse.ggn_operator(risk, risk.params), hesse.jacobian_operator(quartic, x),
    ]  # fmt: skip
    for A in operators:
        for _ in range(2):  # also after a product
            copied, v = pickle.loads(pickle.dumps(A)), torch.ones(A.shape[1], dtype=A.dtype)
            assert torch.equal(copied @ v, A @ v)
    result = solve(M, x, CG())
    assert torch.equal(pickle.loads(pickle.dumps(result)).x, result.x)


def test_a_posterior_that_a_user_pickles_predicts_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(6, 3)
    risk = hesse.Risk(model, nn.CrossEntropyLoss(), (x, torch.arange(6) % 3))
    for structure in ("full", "kron", "last-layer"):
        posterior = hesse.apps.laplace(risk, structure=structure)
        copied = pickle.loads(pickle.dumps(posterior))
        assert torch.equal(copied.predict(x), posterior.predict(x))
        assert copied.log_evidence == posterior.log_evidence


def test_a_function_that_cannot_be_pickled_is_named():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(hesse.hessian_operator(lambda x: (x**2).sum(), torch.ones(2)))
