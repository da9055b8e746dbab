# SPDX-License-Identifier: Apache-2.0
"""The benchmark of spectra: its exact answers are exact, and it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

for peer in ("scipy", "curvlinops", "hessian_eigenthings", "pyhessian"):
    pytest.importorskip(peer)

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


def dense_hessian(problem):
    """By `torch.func`, which neither Hesse nor the benchmark's answers use."""
    double = problem.double()
    names, sizes = zip(*((k, v.numel()) for k, v in double.params.items()), strict=True)

    def f(x):
        parts = zip(names, x.split(sizes), strict=True)
        return double.f({name: part.view_as(double.params[name]) for name, part in parts})

    x = torch.cat([leaf.detach().reshape(-1) for leaf in double.params.values()])
    return torch.func.hessian(f)(x)


def test_the_exact_answers_are_those_of_the_dense_hessian():
    from benchmarks.models.classifier import classifier
    from benchmarks.spectra.exact import Exact

    problem = classifier(quick=True)
    exact, H = Exact(problem), dense_hessian(problem)
    torch.testing.assert_close(exact.diagonal, H.diagonal(), rtol=1e-9, atol=1e-12)
    assert exact.trace == pytest.approx(float(H.trace()), rel=1e-9)
    torch.testing.assert_close(exact.largest(10), torch.linalg.eigvalsh(H)[-10:])


def test_the_ten_largest_are_so_in_magnitude_too():
    from benchmarks.models.classifier import classifier

    values = torch.linalg.eigvalsh(dense_hessian(classifier(quick=True)))
    assert values[-10] > -values[0]


def test_it_runs_and_reports_who_failed(tmp_path):
    from benchmarks.spectra import main

    main(["--quick", "--jobs", "eigenvalues", "density", "cg", "--output", str(tmp_path)])
    report = (tmp_path / "spectra.md").read_text()
    for subject in ("Hesse eigsh", "curvlinops with ARPACK", "hessian-eigenthings lanczos"):
        row = next(line for line in report.splitlines() if line.startswith(f"| {subject} |"))
        assert "**" not in row
    assert "Hesse spectral_density | 160 |" in report
