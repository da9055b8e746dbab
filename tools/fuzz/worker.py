# SPDX-License-Identifier: Apache-2.0
"""A child process that judges cases, so that a crash is a row and not the end.

It writes a line of JSON before and after every case, and ends itself where one takes too long.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
import warnings
from typing import Any

import torch

from tools.fuzz.cases import Case, from_json
from tools.fuzz.draw import draw
from tools.fuzz.judge import judge

LONGEST = 240.0
"""Seconds after which a case hangs."""


def rows_of(case: Case) -> list[tuple[str, ...]]:
    """The verdicts on a case; a failure of the fuzzer itself is one, too."""
    try:
        return [tuple(row) for row in judge(case)]
    except Exception:
        return [("", "fuzzer", traceback.format_exc(limit=-4)[-600:])]


def work(first: int, count: int) -> None:
    """Judge the cases of these seeds."""
    for seed in range(first, first + count):
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        _say({"begin": seed})
        _say({"seed": seed, "rows": rows_of(draw(seed))})
    faulthandler.cancel_dump_traceback_later()


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """`FIRST COUNT`, or one case as JSON from standard input."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    faulthandler.enable()
    if len(sys.argv) == 3:
        work(int(sys.argv[1]), int(sys.argv[2]))
    else:
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        _say({"rows": rows_of(from_json(json.load(sys.stdin)))})


if __name__ == "__main__":
    main()
