# SPDX-License-Identifier: Apache-2.0
"""How objects print: each on one screen, with a representation of its own and one for notebooks."""

from __future__ import annotations

import html
import inspect
import pkgutil
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import hesse
from hesse.engine.plan import Plan
from hesse.errors import StructureError
from hesse.krylov.preconditioners import Pairs, jacobi
from hesse.operators import LinearOperator
from hesse.result import Result
from hesse.testing import CountingOperator, PeakMemory, all_problems, check_operator

FOLDER = Path(hesse.__file__).parent
MOST_ARGUMENTS = 15


def modules() -> Iterator[ModuleType]:
    yield hesse
    for module in pkgutil.walk_packages(hesse.__path__, "hesse."):
        if module.name != "hesse.__main__":
            yield import_module(module.name)


def public_objects() -> set:
    return {getattr(m, name) for m in modules() for name in getattr(m, "__all__", ())}


def classes() -> list[type]:
    """The public classes and those of all results, operators and plans.

    Errors and choices print as in every library, and an optimiser as those of torch do.
    """
    bases = (Result, LinearOperator, Plan)
    every = {v for m in modules() for v in vars(m).values() if inspect.isclass(v)}
    chosen = {v for v in every if issubclass(v, bases)} | set(
        filter(inspect.isclass, public_objects())
    )
    elsewhere = (BaseException, Enum, torch.optim.Optimizer)
    ours = [v for v in chosen if v.__module__.startswith("hesse.") and not issubclass(v, elsewhere)]
    return sorted(ours, key=lambda v: f"{v.__module__}.{v.__qualname__}")


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
def test_a_class_prints_by_code_of_its_own(cls):
    written = inspect.unwrap(cls.__repr__)  # a data class would wrap a generated function
    code = getattr(written, "__code__", None)
    assert code is not None, "only the repr of a base class of Python's"
    assert Path(code.co_filename).is_relative_to(FOLDER), "a generated repr: pass repr=False"
    assert callable(getattr(cls, "_repr_html_", None)), "no _repr_html_ for notebooks"


def shown() -> list:
    """One object of every kind, large where the kind can be."""
    torch.manual_seed(0)
    n = 400
    spectrum = torch.linspace(1.0, 2.0, n)
    A = hesse.diagonal_operator(spectrum)
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(40)])
    data = [(torch.randn(4, 3), torch.randn(4, 3)) for _ in range(2)]
    risk = hesse.Risk(net, nn.MSELoss(), data)
    small = hesse.Risk(net[:3], nn.MSELoss(), data)  # for what prints no list of the parameters
    x = torch.ones(n)
    G, K = hesse.ggn_operator(risk), hesse.kfac_operator(risk)
    F = hesse.fisher_operator(risk, None, "sampled", samples=3)
    M = hesse.gradient_covariance_operator(risk, centered=True)
    J = hesse.jacobian_operator(risk, risk.params)
    H = hesse.hessian_operator(lambda x: (x**4).sum(), x)
    _ = H @ x
    return [
        *(A, 2.0 * A + H, H, H.plan, risk, hesse.Space.of(risk.params), CountingOperator(A)),
        *(
            G,
            K,
            F,
            M,
            J,
            hesse.ntk_operator(risk),
            G + K,
            hesse.inverse_operator(0.5 * F + J.T @ J),
        ),
        *(hesse.GMRES(restart=3), hesse.XTrace(), hesse.Lanczos(), Pairs(), PeakMemory()),
        *(hesse.solve(A, x), hesse.eigsh(A, 3), hesse.svds(A, 3), jacobi(A)),
        *(hesse.trace(A), hesse.diagonal(A), hesse.spectral_density(A), check_operator(A)),
        hesse.minimize(lambda x: (x**4).sum(), x),
        hesse.least_squares(lambda x: x**2 - 2.0, x, max_iterations=3),
        A.restrict([0, 1]),
        A.project(torch.eye(n)[:, :2]),
        hesse.complement_operator(torch.eye(n)[:, :2]),
        hesse.apps.argmin(lambda x, l: (x**2 - l * x).sum(), x),
        risk.per_example,
        hesse.apps.influence(small, None, data, damping=1.0),
        hesse.apps.influence(small, None, data, damping=1.0, top=2).top,
        hesse.apps.self_influence(small, damping=1.0),
        hesse.apps.prune(risk, None, 0.5, damping=1.0),
        hesse.apps.Repair(),
        hesse.apps.standard_errors(lambda p: p.exp() - p, torch.zeros(20)),
        hesse.apps.laplace(risk, structure="kron", held_out=data[0]),
        hesse.apps.laplace(small, structure="diag").calibration(data),
        hesse.apps.laplace(small, structure="diag").predict(data[0][0]),
        hesse.fisher_root_operator(small),
        hesse.apps.profile(lambda p: p.exp() - p, torch.zeros(1).double()),
        tracker := hesse.apps.CurvatureTracker(small),
        tracker.step(learning_rate=0.1),
        tracker.history,
        hesse.apps.landscape(small, grid=3),
        hesse.apps.linearised(net),
        hesse.apps.linearised(net[:3]).fit(*data[0], ridge=1.0),
        hesse.apps.modes(lambda x: (x**2).sum(), torch.ones(4) * 0),
        hesse.apps.response(lambda x, q: (x - q) ** 2, torch.ones(()), torch.ones(())),
        hesse.apps.hypergradient(
            lambda x, l: x.sum(), lambda x, l: ((x - l) ** 2).sum() / 2, x, torch.ones(())
        ),
        hesse.hvp(lambda x: (x**4).sum(), x, x, value_and_gradient=True),
        all_problems()[0],
    ]


@pytest.mark.slow
def test_everything_prints_on_one_screen():
    for value in shown():
        lines = repr(value).splitlines()
        assert 1 <= len(lines) <= 24, value
        assert max(map(len, lines)) <= 200, value
        markup = value._repr_html_()
        assert markup.startswith(("<table>", "<code>")), type(value)
        assert len(markup) <= 8000
        assert html.escape(type(value).__name__.split(".")[-1]) in markup or "<caption>" in markup


def test_a_curvature_matrix_says_which_it_is_and_of_what():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = [(torch.randn(n, 3), torch.randint(0, 2, (n,))) for n in (4, 5)]
    risk = hesse.Risk(net, nn.CrossEntropyLoss(), data, weight_decay=0.1)
    of = "of Risk(Sequential, CrossEntropyLoss, 2 batches, weight_decay=0.1)"
    G = hesse.ggn_operator(risk)
    F = hesse.fisher_operator(risk, None, "sampled", samples=3, per="example")
    for A, head, about in (
        (G, "GaussNewton(26 x 26, torch.float32)", of),
        (hesse.hessian_operator(risk), "Hessian(26 x 26, torch.float32)", of),
        (
            hesse.hessian_operator(risk, with_respect_to="2"),
            "Hessian(10 x 10, ",
            "2.weight, 2.bias",
        ),
        (hesse.hessian_operator(risk, with_respect_to="inputs"), "Hessian(27 x", "in its inputs"),
        (F, "Fisher(26 x 26, torch.float32)", f"sampled, for each example, {of}, 3 draws"),
        (hesse.fisher_operator(risk), "Fisher(26 x", f"exact, for each row, {of}"),
        (
            hesse.gradient_covariance_operator(risk),
            "GradientMoment(26",
            "gradients of the examples",
        ),
        (hesse.ggn_operator(risk.weighted(torch.ones(9))), "GaussNewton(", "2 weighted batches"),
        (hesse.jacobian_operator(risk, risk.params), "Jacobian(18 x 26", of),
        (hesse.ntk_operator(risk), "Jacobian @ Jacobian.T(18 x 18", f"Jacobian  {of}"),
        (hesse.ntk_operator(net, inputs=data[0][0]), "Jacobian @", "of the outputs of Sequential"),
        (
            hesse.hessian_operator(torch.linalg.vector_norm, torch.ones(3)),
            "Hessian(3",
            "of linalg_v",
        ),
    ):
        first, *rest = repr(A).splitlines()
        assert first.startswith(head)
        assert about in rest[0]
        assert len(rest) == 1
        assert html.escape(about.removeprefix("Jacobian  ")) in A._repr_html_()
    whole = repr(G + hesse.kfac_operator(risk, damping=0.5) + 0.1 * hesse.identity_operator(26))
    assert [line.split()[0] for line in whole.splitlines()] == [
        "((GaussNewton",
        "GaussNewton",
        "K-FAC",
    ]
    assert "exact damping 0.5" in whole


def test_an_error_names_an_operator_in_one_line():
    F = hesse.fisher_operator(
        hesse.Risk(nn.Linear(1, 1), nn.MSELoss(), (torch.ones(2, 1), torch.ones(2, 1)))
    )
    with pytest.raises(hesse.HesseError) as caught:
        hesse.solve(F, torch.ones(3))
    assert "hesse.solve(Fisher(2 x 2, torch.float32), b" in str(caught.value).splitlines()[0]


def test_no_public_function_has_more_than_a_handful_of_arguments():
    functions = {v for v in public_objects() if inspect.isfunction(v)}
    for cls in filter(inspect.isclass, public_objects()):
        if cls.__module__.startswith("hesse.") and not issubclass(cls, Result):
            functions |= {v for n, v in vars(cls).items() if inspect.isfunction(v) and n[0] != "_"}
            functions |= {vars(cls)["__init__"]} if "__init__" in vars(cls) else set()
    # those that a caller gives
    counts = {
        f.__qualname__: len(inspect.signature(f).parameters.keys() - {"self"}) for f in functions
    }
    assert len(counts) > 50
    assert {name: n for name, n in counts.items() if n > MOST_ARGUMENTS} == {}


def test_a_result_is_read_as_that_of_scipy():
    result = hesse.minimize(lambda x: (x - 1).square().sum(), torch.zeros(2))
    assert "x" in result
    assert "nothing" not in result
    assert result.get("x") is result.x
    assert result.get("nothing", 3) == 3
    assert dict(result)["nit"] == dict(result.items())["nit"] == result.nit


def test_a_result_that_is_unpacked_names_its_fields():
    with pytest.raises(StructureError, match=r"Write result\.x"):
        _, _ = hesse.solve(torch.eye(2), torch.ones(2))
