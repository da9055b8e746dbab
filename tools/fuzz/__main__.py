# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.fuzz`: run a campaign, or show one case."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.fuzz.campaign import Progress, run
from tools.fuzz.draw import draw
from tools.fuzz.judge import FAULTS, judge


def main() -> int:
    """Status 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after so long")
    parser.add_argument("--cases", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--folder", type=Path, default=Path("hesse-fuzz"), help="for what is found")
    parser.add_argument("--show", type=int, metavar="CASE", help="show and judge one case")
    options = parser.parse_args()
    if options.show is not None:
        return _show(options.show)
    progress = run(options.folder, options.seed, options.seconds, options.cases)
    _report(progress)
    return int(any(progress.verdicts[verdict] for verdict in FAULTS))


def _show(seed: int) -> int:
    case = draw(seed)
    print(case.source())
    print(f"# context {case.context}, {case.dtype}, direction {case.direction}")
    rows = list(judge(case))
    for row in rows:
        print(*row, sep="\t")
    return int(any(row.verdict in FAULTS for row in rows))


def _report(progress: Progress) -> None:
    print(f"{progress.cases} cases from seed {progress.seed} in {progress.seconds:.0f} s")
    print(", ".join(f"{count} {verdict}" for verdict, count in progress.verdicts.most_common()))
    kinds = sorted(progress.details.items(), key=lambda item: -item[1]["count"])
    for kind, found in kinds:
        if found["verdict"] != "unclear":
            print(f"{found['count']:6d}  {kind}  (such as case {found['seeds'][0]})")


if __name__ == "__main__":
    raise SystemExit(main())
