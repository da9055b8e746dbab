# SPDX-License-Identifier: Apache-2.0
"""The fuzzer: it finds a fault that is planted, shrinks it, and goes on where it was stopped."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hesse.ad import graph_nodes

pytest.importorskip("tools.fuzz", reason="a source distribution has no tools/")

from tools.fuzz import campaign
from tools.fuzz.campaign import Progress, shrunk
from tools.fuzz.cases import FunctionCase, from_json, to_json
from tools.fuzz.draw import draw
from tools.fuzz.judge import FAULTS, Row, judge
from tools.fuzz.script import script

pytestmark = pytest.mark.no_cover

SEEDS = range(40)
PLANTED = ("planted({0})",)


def verdicts(seeds, extra=()):
    return [row.verdict for seed in seeds for row in judge(draw(seed, extra))]


def faulty(case):
    return [row for row in judge(case) if row.verdict in FAULTS]


@pytest.mark.slow
def test_a_few_dozen_cases_are_right():
    found = verdicts(SEEDS)
    assert not set(FAULTS) & set(found)
    assert found.count("right") > 60


def test_a_case_is_a_function_of_its_seed_and_survives_as_data():
    for seed in SEEDS:
        case = draw(seed)
        assert case == draw(seed)
        assert from_json(json.loads(json.dumps(to_json(case)))) == case


def test_a_planted_wrong_derivative_is_found_and_shrunk(monkeypatch):
    """sin x, the derivative of whose derivative is wrong, with Hesse's own check switched off."""
    monkeypatch.setattr(graph_nodes, "_checked_name", lambda node: None)
    case, row = next(
        (case, row) for case in (draw(seed, PLANTED) for seed in range(100)) for row in faulty(case)
    )
    assert row.verdict == "wrong"
    small = shrunk(case, row.check, row.verdict)
    assert isinstance(small, FunctionCase)
    assert [step.code for step in small.steps] == list(PLANTED)
    assert [leaf.shape for leaf in small.leaves] == [()]
    assert faulty(small)


def test_the_planted_derivative_is_never_silent():
    found = verdicts(range(20), PLANTED)
    assert not set(FAULTS) & set(found)


@pytest.mark.slow
def test_a_script_needs_nothing_but_torch_and_hesse(fresh):
    for seed, checks in ((3, ("operator auto", "trace")), (5, ("solve",))):  # a function, a model
        case = replace(draw(seed), checks=checks, context="no_grad")
        for check in checks:
            if any(row == Row(check, "right") for row in judge(case)):
                done = fresh.run(script(case, check, "wrong"))
                assert "expected" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_campaign_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    one = campaign.run(tmp_path, seed=7, seconds=60, cases=3)
    two = campaign.run(tmp_path, seed=7, seconds=60, cases=2)
    assert (one.next, two.next, two.cases) == (10, 12, 5)
    whole = Progress(7, 7)
    for seed in range(7, 12):
        whole.add(seed, [list(row) for row in judge(draw(seed))])
    assert two.verdicts == whole.verdicts


def test_a_crash_is_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    code = "import os; print('{\"begin\": 4}', flush=True); os.abort()"
    rows = campaign.rows_of_process([sys.executable, "-c", code])
    ((seed, ((check, verdict, _),)),) = rows
    assert (seed, check, verdict) == (4, "", "crashed")
