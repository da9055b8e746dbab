"""Options that the benchmarks of training share."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that are common; `set_defaults` gives their defaults."""
    parser = argparse.ArgumentParser(f"python -m benchmarks {name}", description=description)
    add = parser.add_argument
    add("--seeds", type=int)
    add("--seconds", type=float, help="for each run")
    add("--clock", choices=["wall", "processor"], default="wall", help="whose seconds these are")
    add("--cg", type=int, help="iterations of CG at most")
    add("--damping-rule")
    add("--rivals", nargs="+", default=[], help="names of those to run; default all")
    add("--threads", type=int)
    add("--output", type=Path, default=Path("hesse-bench") / name, help="folder")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options, with the threads set and the folder made."""
    options = parser.parse_args(arguments or [])
    if options.threads:
        torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    return options
