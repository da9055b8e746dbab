"""The command line under torchrun: all ranks measure, the first one prints and writes."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

import hesse
from hesse.cli import main
from hesse.report.measuring import _check_is_shared, problem_of
from tests import report_jobs as jobs

distributed = pytest.mark.distributed


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "problem.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@distributed
def test_all_ranks_measure_and_the_first_one_speaks(pool, script):
    found = pool.run(jobs.commanded, script(jobs.SCRIPT), "--eigenvalues", "3", "--rtol", "1e-6")
    assert [code for code, *_ in found] == [0, 0, 0]
    first, *others = found
    assert all(output == errors == "" for _, output, errors in others)
    H = hesse.hessian_operator(problem_of(script(jobs.WHOLE))[0])
    for value in torch.linalg.eigvalsh(H.to_dense())[-3:]:
        assert f"{value:.5g}" in first[1]
    assert "6 variables, seen on the first batches of 3 ranks" in first[1]
    assert "eigsh" in first[2]  # a progress bar
    page = script(jobs.SCRIPT).parent / "out" / "curvature.html"
    assert "of 3 ranks" in page.read_text(encoding="utf-8")


@distributed
@pytest.mark.parametrize(
    ("text", "words", "options"),
    [
        (jobs.WHOLE, "got:      a risk without group=", ()),
        (jobs.FUNCTION, "got:      a function", ()),
        (jobs.SCRIPT, "curvature to be one of", ("--curvature", "hesian")),
        (None, "no file", ()),
    ],
)
def test_what_makes_no_sense_is_said_once(pool, script, text, words, options):
    file = script(text or "")
    if text is None:
        file.unlink()
    found = pool.run(jobs.commanded, file, *options)
    assert [code for code, *_ in found] == [1, 1, 1]
    assert words in found[0][2]
    assert found[1][1:] == found[2][1:] == ["", ""]
    assert not (file.parent / "out").exists()


@distributed
@pytest.mark.parametrize(
    ("text", "words"),
    [(jobs.WITHOUT_RISK, "which leaves"), (jobs.WRONG_DATA, "out of bounds")],
)
def test_what_is_wrong_on_one_rank_is_said_by_it_and_by_the_first(pool, script, text, words):
    found = pool.run(jobs.commanded, script(text))
    assert [code for code, *_ in found] == [1, 1, 1]
    assert "on rank 1: " in found[0][2]
    assert found[1][2].startswith("rank 1: hesse")
    assert words in found[0][2]
    assert words in found[1][2]
    assert found[2][2] == ""


@distributed
def test_a_risk_that_some_ranks_share_is_refused(pool, script):
    found = pool.run(jobs.commanded, script(jobs.OF_TWO))
    assert [code for code, *_ in found] == [1, 1, 1]
    assert "one that 2 of them share" in found[0][2]
    assert found[1][2] == found[2][2] == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["demo"], 1, "Start it without torchrun"),
        (["--version"], 0, hesse.__version__),
        (["curvature", "x.py", "--eigenvalues", "ten"], 2, "integer"),
    ],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_before_ranks_meet_the_first_one_speaks(monkeypatch, capsys, rank, arguments, code, words):
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    said = "".join(capsys.readouterr())
    assert words in said if rank == "0" else said == ""


def test_a_script_that_destroys_the_group_is_refused():
    with pytest.raises(hesse.HesseError, match="destroy_process_group"):
        _check_is_shared(SimpleNamespace(ranks=object()), 1)
