# SPDX-License-Identifier: Apache-2.0
"""The benchmark of differential equations: derivatives, exact solutions, a short fit."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.pinn import main
from benchmarks.pinn.collocation import Collocation
from benchmarks.pinn.command import Watch
from benchmarks.pinn.equations import EQUATIONS, cole_hopf
from benchmarks.pinn.network import Network

NAMES = sorted(EQUATIONS)


def network_for(name: str, *, is_periodic: bool, activation: str) -> Network:
    """A small one."""
    domain = EQUATIONS[name]().domain
    return Network(5, 3, domain, is_periodic=is_periodic, activation=activation)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["tanh", "sine"])
@pytest.mark.parametrize("is_periodic", [False, True])
def test_jets_are_derivatives(is_periodic, activation):
    network = network_for("convection", is_periodic=is_periodic, activation=activation)
    theta = network.start(0, torch.float64)
    points = torch.rand(
        7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    jet = network.jet(theta, network.inputs(points))
    (first,) = torch.autograd.grad(jet.u.sum(), points, create_graph=True)
    seconds = [
        torch.autograd.grad(first[:, i].sum(), points, retain_graph=True)[0][:, i] for i in (0, 1)
    ]
    assert torch.allclose(jet.u, network.values(theta, network.inputs(points)[0]), rtol=1e-13)
    for got, expected in zip(jet[1:], [first[:, 0], first[:, 1], *seconds], strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_periodic", [False, True])
def test_the_rows_are_those_of_the_jacobian(name, is_periodic):
    equation = EQUATIONS[name]()
    if is_periodic and not equation.is_periodic:
        pytest.skip("the equation is not")
    network = network_for(name, is_periodic=is_periodic, activation="tanh")
    problem = Collocation(equation, network, 32, torch.float64)
    theta = network.start(1, torch.float64)
    expected = torch.func.jacfwd(problem.residuals)(theta)
    assert expected.shape == (problem.size, network.size)
    assert torch.allclose(problem.jacobian(theta), expected, rtol=1e-11, atol=1e-13)


def test_balanced_residuals_of_a_part_of_the_time():
    """Their Jacobian has a block of one norm for each kind, and the points are early."""
    equation = EQUATIONS["convection"]()
    network = network_for("convection", is_periodic=False, activation="tanh")
    problem = Collocation(equation, network, 32, torch.float64, part=0.25)
    theta = network.start(1, torch.float64)
    problem.weigh(problem.balance(theta))
    expected = torch.func.jacfwd(problem.residuals)(theta)
    assert torch.allclose(problem.jacobian(theta), expected, rtol=1e-11, atol=1e-13)
    norms = [float(torch.linalg.matrix_norm(rows)) for rows in expected.split([32, 4, 4])]
    assert norms == pytest.approx([norms[-1]] * 3, rel=1e-12)
    early = network.inputs(torch.tensor([[0.25, 0.0]], dtype=torch.float64))[0, 0, 0]
    assert all(float(at[0, :, 0].max()) <= early for c in problem._conditions for at in c.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_solution_solves_the_equation(name):
    """By central differences of it, which have an error of h^2."""
    equation = EQUATIONS[name]()
    (t0, t1), (x0, x1) = equation.domain
    at = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t, x = t0 + (t1 - t0) * (0.1 + 0.8 * at[:, 0]), x0 + (x1 - x0) * at[:, 1]
    u, h = equation.exact, 1e-3

    class Differences:
        """A jet of the exact solution."""

        def __init__(self) -> None:
            self.u = u(t, x)
            self.t = (u(t + h, x) - u(t - h, x)) / (2 * h)
            self.x = (u(t, x + h) - u(t, x - h)) / (2 * h)
            self.tt = (u(t + h, x) - 2 * self.u + u(t - h, x)) / h**2
            self.xx = (u(t, x + h) - 2 * self.u + u(t, x - h)) / h**2

    jet = Differences()
    size = float(torch.stack([jet.t, jet.x, jet.xx]).abs().max())
    left = equation.inside(jet, t, x)  # type: ignore[arg-type]
    assert float(left.abs().max()) < 5e-3 * size


def test_the_quadrature_for_burgers_is_exact_to_rounding():
    """Against the series of the heat equation's solution in Bessel functions, of 60 digits."""
    mp = pytest.importorskip("mpmath")
    with mp.workdps(60):
        a = 1 / (2 * mp.pi * mp.mpf("0.01"))
        terms = [mp.besseli(n, a) * (2 if n else 1) * (-1) ** n for n in range(240)]
        for t, x in [(0.0, -0.3), (0.01, 0.02), (0.25, -0.05), (0.5, 0.013), (1.0, -0.004)]:
            decayed = [c * mp.exp(-((n * mp.pi) ** 2) * t / 100) for n, c in enumerate(terms)]
            top = sum(n * c * mp.sin(n * mp.pi * x) for n, c in enumerate(decayed))
            bottom = sum(c * mp.cos(n * mp.pi * x) for n, c in enumerate(decayed))
            got = cole_hopf(*torch.tensor([t, x], dtype=torch.float64), 0.01)
            assert float(got) == pytest.approx(float(2 * mp.pi / 100 * top / bottom), abs=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("windows", "most"), [("1", 20), ("3", 200)])
def test_a_fit_lowers_the_error_and_goes_on_where_it_stopped(
    tmp_path, capsys, monkeypatch, windows, most
):
    def ends_after(count):  # steps, not seconds, of which some machines need few
        monkeypatch.setattr(Watch, "is_over", property(lambda watch: len(watch.rows) >= count))

    options = ["--equations", "reaction", "--width", "6", "--depth", "2", "--points", "128"]
    options += ["--output", str(tmp_path), "--dtype", "float32", "--windows", windows]
    ends_after(8)
    main(options)
    (path,) = tmp_path.glob("*.jsonl")
    assert len(path.read_text().splitlines()) == 8
    ends_after(most)
    main(options)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) > 8
    assert rows[-1]["window"] == int(windows)
    places = [(row["window"], row["step"]) for row in rows]
    assert places == sorted(set(places))
    counts = [row["jacobians"] for row in rows]
    assert counts == sorted(counts)
    assert counts[-1] >= len(rows)
    assert "reaction" in capsys.readouterr().out
    assert (tmp_path / "pinn.md").exists()
