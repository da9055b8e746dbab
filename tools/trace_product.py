# SPDX-License-Identifier: Apache-2.0
"""How much of Hesse one product runs: `python tools/trace_product.py [--list]`.

It traces products `H @ v` with the Hessian of a `Risk` of three batches: the first one, the one
that replaces the retained graph by a traced program (after it `H.mode` differs), and the 100th; and
the construction of the `Risk` and of its operator, which come before. For each it counts the files
and functions of the package entered, the distinct lines run, and the lines of those files. Code of
other packages and module bodies run by imports do not count; a generator expression, and before
Python 3.12 any comprehension, counts as a function.

With limits it exits with status 1 where a count is above one.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

import hesse

PACKAGE = str(Path(hesse.__file__).parent)
PRODUCTS = 100


@dataclass
class Route:
    """The code of the package that a computation entered."""

    codes: set[CodeType] = field(default_factory=set)
    lines: set[tuple[str, int]] = field(default_factory=set)

    @property
    def files(self) -> list[str]:
        """The files entered, relative to the package."""
        paths = {code.co_filename for code in self.codes}
        return sorted(str(Path(path).relative_to(PACKAGE)) for path in paths)

    def functions(self, file: str | None = None) -> list[str]:
        """The functions entered, of one file or of all."""
        path = None if file is None else str(Path(PACKAGE, file))
        named = {
            (code.co_filename, code.co_qualname if sys.version_info >= (3, 11) else code.co_name)
            for code in self.codes
            if path in (None, code.co_filename)
        }
        return sorted(name for _, name in named)

    @property
    def file_lines(self) -> int:
        """The lines of the files entered."""
        texts = (Path(PACKAGE, file).read_text(encoding="utf-8") for file in self.files)
        return sum(len(text.splitlines()) for text in texts)


@contextmanager
def following() -> Iterator[Route]:
    """Trace the code of the package that runs within the context, in this thread."""
    route = Route()

    def on_line(frame: FrameType, event: str, _: Any) -> Callable:
        if event == "line":
            route.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return on_line

    def on_call(frame: FrameType, event: str, _: Any) -> Callable | None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or class
        if not is_function or not code.co_filename.startswith(PACKAGE):
            return None
        route.codes.add(code)
        return on_line

    previous = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield route
    finally:
        sys.settrace(previous)


def measure() -> dict[str, Route]:
    """The routes of construction, of the first product, the tracing one, and the 100th."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 10))
    data = [(torch.randn(64, 20), torch.randint(0, 10, (64,))) for _ in range(3)]
    routes: dict[str, Route] = {}
    with following() as routes["construction"]:
        risk = hesse.Risk(model, nn.CrossEntropyLoss(), data)
        H = hesse.hessian_operator(risk, risk.params)
    v = torch.randn(H.shape[1])
    mode = H.mode
    for number in range(1, PRODUCTS + 1):
        if 1 < number < PRODUCTS and "tracing product" in routes:
            _ = H @ v
            continue
        with following() as route:
            _ = H @ v
        if number == 1:
            routes["first product"] = route
        if number == PRODUCTS:
            routes[f"{PRODUCTS}th product"] = route
        elif H.mode != mode:
            routes["tracing product"] = route
        mode = H.mode
    return routes


def table(routes: dict[str, Route]) -> str:
    """The counts, as Markdown."""
    rows = [
        "| work | files entered | functions | distinct lines run | lines of those files |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, route in routes.items():
        counts = len(route.files), len(route.functions()), len(route.lines), route.file_lines
        rows.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |")
    return "\n".join(rows)


def listing(routes: dict[str, Route]) -> str:
    """The files of every route, with their functions."""
    parts = []
    for name, route in routes.items():
        parts.append(f"## {name}")
        parts += [f"{file}: {', '.join(route.functions(file))}" for file in route.files]
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="list files and functions too")
    parser.add_argument("--limit-files", type=int, help=f"of the {PRODUCTS}th product")
    parser.add_argument("--limit-functions", type=int, help=f"of the {PRODUCTS}th product")
    parser.add_argument("--limit-first-files", type=int, help="of the first product")
    options = parser.parse_args(arguments)
    routes = measure()
    print(table(routes))
    if options.list:
        print(listing(routes))
    first, last = routes["first product"], routes[f"{PRODUCTS}th product"]
    counts = [
        (f"files of the {PRODUCTS}th product", len(last.files), options.limit_files),
        (f"functions of the {PRODUCTS}th product", len(last.functions()), options.limit_functions),
        ("files of the first product", len(first.files), options.limit_first_files),
    ]
    above = [(what, n, limit) for what, n, limit in counts if limit is not None and n > limit]
    for what, count, limit in above:
        print(f"{what}: {count}, above the limit of {limit}", file=sys.stderr)
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
