# SPDX-License-Identifier: Apache-2.0
"""`hesse curvature FILE` measures what a script leaves, and says what is wrong with one."""

import re

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

import hesse
from hesse.cli import main
from hesse.report.measuring import measure_file, problem_of

RISK = """
import torch, hesse
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
data = [(torch.randn(9, 3).double(), torch.randint(0, 2, (9,))) for _ in range(2)]
risk = hesse.Risk(model, torch.nn.CrossEntropyLoss(), data)
if __name__ == "__main__":
    raise SystemExit("this is not to run")
"""
FUNCTION = """
import torch
x = torch.arange(1.0, 7.0, dtype=torch.float64)
def f(x):
    return (x**4).sum() / 12
"""


@pytest.fixture
def script(tmp_path):
    def write(text, name="problem.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def arguments(file, *more):
    return ["curvature", str(file), "--output", str(file.parent / "out"), "--no-progress", *more]


@pytest.mark.slow
def test_the_eigenvalues_of_a_function_are_on_the_page(script, capsys):
    file = script(FUNCTION)  # the Hessian is diag(x^2)
    page = measure_file(file, file.parent / "out", eigenvalues=2, rtol=1e-8, progress=False)
    html, shown = page.read_text(encoding="utf-8"), capsys.readouterr().out
    for text in ("<td>36</td>", "<td>25</td>", "<td>1</td>", "Trace 91", "<svg"):
        assert text in html
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!\#|data:)""", html)
    assert "Dry run: products of the Hessian of 6 variables" in shown


@pytest.mark.slow
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_the_command_measures_a_risk_and_goes_on_from_its_checkpoints(script, curvature, capsys):
    file = script(RISK)
    with pytest.raises(SystemExit) as ended:
        main(arguments(file, "--curvature", curvature, "--eigenvalues", "3"))
    assert ended.value.code == 0
    A = getattr(hesse, f"{curvature}_operator")(problem_of(file)[0])
    largest = float(torch.linalg.eigvalsh(A.to_dense())[-1])
    assert f"{largest:.5g}" in capsys.readouterr().out
    names = {path.name for path in (file.parent / "out").iterdir()}
    assert {"curvature.html", f"{file.stem}-{curvature}-largest-3.safetensors"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("other", ["options", "script"])
def test_other_measurements_share_a_folder(script, other):
    """The default folder is one for all: its checkpoints must not be in each other's way."""
    file = script(RISK)
    commands = [arguments(file, "--eigenvalues", "3")]
    if other == "options":
        commands.append(arguments(file, "--eigenvalues", "2"))
    else:
        commands.append(arguments(script(FUNCTION, "other.py")))
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0


@pytest.mark.slow
def test_a_model_that_was_trained_meanwhile_is_no_continuation(script, capsys):
    for seed, code in ((0, 0), (1, 1)):
        with pytest.raises(SystemExit) as ended:
            main(arguments(script(RISK.replace("manual_seed(0)", f"manual_seed({seed})"))))
        assert ended.value.code == code
    assert re.search(r"remedy: .*--output, or delete the checkpoints", capsys.readouterr().err)


def test_a_function_that_is_no_scalar_is_named(script, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments(script(FUNCTION.replace(".sum() / 12", ""))))
    assert ended.value.code == 1
    assert "f(x) to be a scalar" in capsys.readouterr().err
    for f in (lambda x: x**2, lambda x: torch.tensor(1.0)):
        with pytest.raises(hesse.HesseError, match=r"f\(x\) to (be a scalar|depend)"):
            hesse.plan(f, torch.ones(3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 3", "which leaves model"),
        ("risk = 3", "which leaves risk"),
        ("f = 3\nx = 4", "which leaves f, x"),
        ("def f(x):\n    return (x**2).sum()", "which leaves f"),
    ],
)
def test_a_script_without_a_problem_is_refused(script, text, message, capsys):
    file = script(text)
    with pytest.raises(SystemExit) as ended:
        main(arguments(file))
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"hesse curvature {file}")
    assert message in error
    assert not (file.parent / "out").exists()


def test_what_cannot_be_measured_is_named(script, tmp_path, capsys):
    for given in (
        arguments(tmp_path / "missing.py"),
        arguments(script(RISK), "--curvature", "hesian"),
        arguments(script(RISK), "--eigenvalues", "0"),
        arguments(script(FUNCTION), "--curvature", "ggn"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 1
        assert "remedy:" in capsys.readouterr().err
