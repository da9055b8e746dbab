# SPDX-License-Identifier: Apache-2.0
"""The demonstration runs, its page needs no network, and a seed fixes its results."""

import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("jinja2")

from hesse.report.cores import leave_busy_cores
from hesse.report.demo import QUICK, run_demo
from hesse.report.digits import digits
from hesse.report.training import Curve, train_adamw, train_hessian_free, train_lbfgs


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo"), effort=QUICK, progress=False)


@pytest.mark.slow
def test_the_page_is_one_self_contained_file(page):
    html = page.read_text(encoding="utf-8")
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    assert html.count("<svg") == 5
    outside = r"""(?:src|href|action)\s*=\s*["'](?!\#|data:)|@import|url\((?!["']?\#)"""
    assert not re.findall(outside, html)


@pytest.mark.slow
def test_the_page_names_all_methods_and_the_best(page):
    html = page.read_text(encoding="utf-8")
    for word in ("HessianFree", "AdamW", "L-BFGS-B", "Newton-CG", "ends lowest", "standard error"):
        assert word in html


@pytest.mark.parametrize("train", [train_hessian_free, train_adamw, train_lbfgs])
def test_the_same_seed_gives_the_same_errors(train):
    pixels = digits()[0][:200]
    first, second = (train(pixels, 3, 2, lambda _: None) for _ in range(2))
    assert first.errors == second.errors
    assert first.errors[-1] < first.errors[0]


def test_a_curve_gives_the_time_of_an_error_and_the_error_at_a_time():
    curve = Curve("AdamW", torch.nn.Sequential(), torch.zeros(1))
    curve.seconds, curve.errors = [0.0, 1.0, 2.0], [4.0, 2.0, 1.0]
    assert curve.seconds_to(2.0) == 1.0
    assert curve.seconds_to(0.5) is None
    assert curve.error_at(1.5) == 2.0


@pytest.mark.parametrize(("load", "threads"), [(7.5, 1), (0.1, 2)])
def test_one_thread_is_taken_on_a_busy_machine(monkeypatch, load, threads):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        leave_busy_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_missing_extra_is_reported_without_a_traceback():
    script = "import sys; sys.modules['typer'] = None; from hesse.cli import main; main(['demo'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'hesse[demo]'" in done.stderr
    assert "Traceback" not in done.stderr
