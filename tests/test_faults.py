# SPDX-License-Identifier: Apache-2.0
"""The table of faults in the documentation is what happens."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "tools" / "faults").exists(), reason="a source distribution has no tools/"
)


@pytest.fixture(scope="module")
def tools():
    """The modules of the tool."""
    sys.path.insert(0, str(ROOT))
    try:
        names = ("fault", "page", "runner", "scenarios")
        yield {name: importlib.import_module(f"tools.faults.{name}") for name in names}
    finally:
        sys.path.remove(str(ROOT))


def run(*arguments):
    """The command, in a process without threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.faults", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=_environment(),
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


def test_the_page_has_a_row_for_every_fault_and_none_is_bad(tools):
    rows, faults = tools["page"].rows(), tools["fault"].FAULTS
    assert list(rows) == [fault.name for fault in sorted(faults, key=_group(faults))]
    assert len(rows) >= 40
    assert len({fault.name for fault in faults}) == len(faults)
    for name, outcome in rows.items():
        assert outcome.verdict.is_good, name
        assert outcome.says, name


def _group(faults):
    groups = list(dict.fromkeys(fault.group for fault in faults))
    return lambda fault: groups.index(fault.group)


# What is asked of Hesse above all: a few rows of every kind, in seconds.
FAST = ["f returns", "f writes", "data written to between"]
LONGER = [
    "a file that is with a flipped bit", "third call / least_squares, svd",
    "/ trace, hutchinson", "eight threads", "a loader that gives",
    "at a trial point / minimize, newton-cg", "None at its 4th call / hesse.scipy.lbfgs",
    "solve= gives no solution / root",
    "the other rank has", "a file that is cut off in its tensors",
]  # fmt: skip
SLOW = [
    "workers of", "a worker of", "two processes",
    *(f"kill -9 at random moments, and the same call again / {call}"
      for call in ("eigsh", "trace", "HessianFree", "least_squares", "minimize, lbfgs")),
]  # fmt: skip


@pytest.mark.parametrize("some", [FAST, pytest.param(LONGER, marks=pytest.mark.slow)])
def test_some_faults_again(some):
    code, output = run("--check", "--fast", *(f"--only={text}" for text in some))
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.no_cover
def test_some_slow_faults_again_with_few_moments_of_kill_9():
    code, output = run("--check", "--slow", "--moments=3", *(f"--only={text}" for text in SLOW))
    assert code == 0, output


# -- The rule itself ------------------------------------------------------------------------------


def seen(tools, **fields):
    return tools["fault"].Seen(**fields)


def outcome(tools, scenario, happens=True):
    """What the rule says of a scenario."""
    module = tools["fault"]

    def made():
        if happens:
            module.Happened.now()
        return scenario()

    return module.judge(module.Fault("group", "title", "call", made)).verdict.value


def test_the_rule_tells_good_from_bad(tools):
    from hesse.errors import ArgumentError, NonFiniteError, Status

    def raising(error):
        def scenario():
            raise error

        return scenario

    words = {"expected": "a", "got": "b", "remedy": "c"}
    injected = tools["fault"].Injected()
    cases = {
        "survived": lambda: seen(tools, numbers=1.0, expected=1.0),
        "silent": lambda: seen(tools, numbers=1.0, expected=1.1, rtol=0.01),
        "refused": raising(ArgumentError(**words)),
        "caught": raising(NonFiniteError(**words)),
        "raw error": raising(IndexError("index 3")),
        "passed on": raising(injected),
        "not converged": lambda: seen(tools, numbers=1.0, status=Status.MAX_ITERATIONS),
    }
    for verdict, scenario in cases.items():
        assert outcome(tools, scenario) == verdict
    for verdict in ("survived", "refused", "caught"):
        assert outcome(tools, cases[verdict], happens=False) == "did not happen"
    after = lambda: seen(tools, numbers=1.0, expected=2.0, error=injected)  # noqa: E731
    assert outcome(tools, after) == "silent"  # the next call is wrong
    usual = lambda: seen(  # noqa: E731
        tools, numbers=1.0, expected=2.0, status=Status.MAX_PRODUCTS, usual=Status.MAX_PRODUCTS
    )
    assert outcome(tools, usual) == "silent"  # the status is that without the fault
    for text, verdict in (("x is no solution", "caught"), ("something else", "silent")):

        def warned(text=text):
            warnings.warn(text, UserWarning, stacklevel=1)
            return seen(tools, numbers=1.0, expected=2.0, warning="is no solution")

        assert outcome(tools, warned) == verdict
    nan = lambda: seen(tools, numbers=float("nan"), expected=1.0, rtol=0.1)  # noqa: E731
    assert outcome(tools, nan) == "silent"


def test_a_crash_and_a_hang_are_verdicts(tools):
    import os
    import signal
    import time

    fault, runner = tools["fault"], tools["runner"]
    crash = fault.Fault("g", "t", "c", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    hang = fault.Fault("g", "t", "c", lambda: time.sleep(60), timeout=0.2)
    assert runner.run_one(crash).verdict.value == "crash"
    assert runner.run_one(hang).verdict.value == "hang"


def test_a_row_is_read_as_it_was_written(tools, tmp_path):
    fault, page = tools["fault"], tools["page"]
    says = "*a* | b_c <d> [e] \\ f"
    outcomes = {f.name: fault.Outcome(fault.Verdict.CAUGHT, says) for f in fault.FAULTS}
    path = tmp_path / "page.md"
    page.write(outcomes, path)
    rows = page.rows(path)
    assert set(rows) == set(outcomes)
    assert {row.says for row in rows.values()} == {says}
    assert not list(page.differing(outcomes, rows))
    changed = {name: fault.Outcome(fault.Verdict.SILENT, says) for name in outcomes}
    assert len(list(page.differing(changed, rows))) == len(outcomes)
