"""Options that the benchmarks of products share."""

from __future__ import annotations

import argparse
import os
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from benchmarks.models import MODELS
from benchmarks.subjects import SUBJECTS
from benchmarks.subjects.subject import Subject


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that are common."""
    parser = argparse.ArgumentParser(f"python -m benchmarks {name}", description=description)
    parser.add_argument("--models", nargs="+", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument(
        "--subjects", nargs="+", metavar="PATTERN", help="names or patterns, such as 'hesse/*'"
    )
    parser.add_argument("--threads", type=int, help="threads of torch and of JAX")
    parser.add_argument("--output", type=Path, default=Path("hesse-bench"), help="folder")
    parser.add_argument("--list", action="store_true", help="list models and subjects, and stop")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The options, with what they ask for set up."""
    options = parser.parse_args(arguments)
    if options.list:
        print("models:", *MODELS, "\nsubjects:", *SUBJECTS, sep="\n  ")
        parser.exit()
    unknown = [name for name in options.models or [] if name not in MODELS]
    if unknown:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(MODELS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    # A compiler that finds its results of yesterday says nothing about the first call.
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def chosen(patterns: list[str] | None, compiled: bool = True) -> list[Subject]:
    """The subjects that match; without patterns, all."""
    patterns = patterns or ["*"]
    return [
        subject
        for name, subject in SUBJECTS.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and (compiled or not subject.compiled or name in patterns)
    ]
