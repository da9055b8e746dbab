# SPDX-License-Identifier: Apache-2.0
"""What random cases found once: each is a shrunk case that Hesse got wrong, and does no more."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tools.fuzz", reason="a source distribution has no tools/")

from tools.fuzz.campaign import read_case
from tools.fuzz.judge import FAULTS, judge

pytestmark = pytest.mark.no_cover

FILES = sorted(Path(__file__).parent.glob("data/fuzz_corpus/*.json"))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_case_that_was_wrong_is_right_or_refused(path):
    rows = list(judge(read_case(path)))
    assert not [row for row in rows if row.verdict in FAULTS]
    assert any(row.verdict == "right" for row in rows)


def test_every_case_says_what_was_wrong():
    assert FILES
    for path in FILES:
        assert json.loads(path.read_text(encoding="utf-8"))["about"].endswith(".")
