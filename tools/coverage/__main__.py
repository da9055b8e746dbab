# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.coverage`: write docs/coverage.md; with `--check` compare it instead."""

from __future__ import annotations

import argparse
import sys

import torch

from tools.coverage import page
from tools.coverage.models import MODELS
from tools.coverage.rules import rows_of, uncovered


def main(arguments: list[str] | None = None) -> int:
    """Make the table; with --check 1 if the page says something else."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tables = {}
    for name, make in MODELS.items():
        tables[name] = rows_of(make)
        print(f"{name}: without a rule: {', '.join(uncovered(tables[name])) or 'none'}", flush=True)
    text = page.text(tables)
    if not options.check:
        page.PAGE.write_text(text, encoding="utf-8")
        return 0
    ours, theirs = page.sections(text), page.sections(page.PAGE.read_text(encoding="utf-8"))
    differing = [name or "summary" for name in ours if ours[name] != theirs.get(name)]
    for name in differing:
        print(f"not as the page says: {name}", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
