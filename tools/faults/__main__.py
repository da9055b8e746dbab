# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.faults`: make every fault happen, and write docs/faults.md.

A run of some of them changes their rows alone. With `--check` nothing is written: it is compared
with the page. The status is 1 if a fault is
silent, ends in an error that Hesse does not explain, in a crash or in a hang.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
import torch._dynamo  # here once, not in the process of every fault that needs it

import hesse.scipy  # noqa: F401, likewise
from tools.faults import page
from tools.faults.fault import FAULTS, Fault, Outcome
from tools.faults.runner import run
from tools.faults.scenarios import settings


def main(arguments: list[str] | None = None) -> int:
    """Run the faults; 1 if a verdict is bad, or with --check not that of the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the page")
    parser.add_argument(
        "--only", action="append", help="faults whose name contains this text, or another --only"
    )
    parser.add_argument("--fast", action="store_true", help="without the slow ones")
    parser.add_argument("--slow", action="store_true", help="the slow ones alone")
    parser.add_argument("--moments", type=int, default=100, help="at which a process is killed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a process with threads must not fork
    settings.moments = options.moments
    wanted = options.only or [""]
    chosen = [f for f in FAULTS if any(text in f.name for text in wanted)]
    if options.fast != options.slow:
        chosen = [f for f in chosen if f.slow == options.slow]
    began = time.monotonic()
    outcomes = run(chosen, _show)
    bad = [name for name, outcome in outcomes.items() if not outcome.verdict.is_good]
    differing = page.differing(outcomes, page.rows()) if options.check else []
    for name in differing:
        print(f"not as the page says: {name}", file=sys.stderr)
    if not options.check and not bad:
        known = {**page.rows(), **outcomes}
        page.write({fault.name: known[fault.name] for fault in FAULTS if fault.name in known})
    print(f"{len(outcomes)} faults, {len(bad)} bad, {time.monotonic() - began:.0f} s")
    return 1 if bad or differing else 0


def _show(fault: Fault, outcome: Outcome) -> None:
    mark = "  " if outcome.verdict.is_good else "!!"
    print(f"{mark} {fault.name}: {outcome.verdict.value}: {outcome.says[:300]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
