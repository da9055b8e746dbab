"""Sparse Hessians: set-up, colours and evaluations, beside asdex, and Newton's method on Bratu.

Seconds are those of the processor, of all threads: on a busy machine they vary less than the
clock's. An evaluation gives all entries at a point; those of Hesse and of asdex take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hesse
from benchmarks.machine import describe_machine, one_line
from benchmarks.sparse.functions import FUNCTIONS, bratu
from benchmarks.sparse.peer import Peer

_HEADER = """
| function | n | set-up, s | products | evaluation, ms | of products | asdex: set-up, s | first call, s | evaluation, ms | ratio |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""  # noqa: E501


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and write it."""
    options = _parser().parse_args(arguments or [])
    if options.threads:
        torch.set_num_threads(options.threads)
        limit = f"--xla_cpu_multi_thread_eigen={options.threads > 1}".lower()
        os.environ.setdefault("XLA_FLAGS", limit)
    warnings.simplefilter("ignore")
    text = [one_line(describe_machine()).replace("float32", "float64"), _HEADER]
    for name in options.functions:
        for n in options.sizes or [FUNCTIONS[name][1] // (100 if options.quick else 1)]:
            text.append(_row(name, n, options))
            print(text[-1], file=sys.stderr, flush=True)
    if not options.without_newton:
        text += ["", newton(2_500 if options.quick else 250_000)]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "sparse.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks sparse", description=__doc__)
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--sizes", nargs="+", type=int, help="variables; default for each its own")
    parser.add_argument("--mode", choices=["auto", "traced-split", "compiled-split"],
                        default="auto")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a hundredth of the variables")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="threads of torch and of JAX")
    parser.add_argument("--without-newton", action="store_true")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("hesse-bench"), help="folder")
    return parser


def _row(name: str, n: int, options: argparse.Namespace) -> str:
    make, _ = FUNCTIONS[name]
    f, x = make(n)
    hesse.sparse_hessian_operator(*make(100))  # the first one of a process imports much
    start = time.process_time()
    S = hesse.sparse_hessian_operator(f, x, mode=options.mode)
    set_up = time.process_time() - start
    for _ in range(5):
        S = S.at(x)
    H, v = hesse.hessian_operator(f, x, mode="traced-split"), torch.ones_like(x)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: S.at(x),
        "product": lambda: H @ v,
    }
    peer = None if options.without_peer else _peer(name, len(x), x)
    if peer is not None:
        runs["peer"] = peer.evaluate
    seconds = _interleaved(runs, options.rounds)
    ours, product = seconds["ours"], seconds["product"]
    row = f"| {name} | {len(x):,} | {set_up:.2f} | {S.num_products} | {1e3 * ours:.2f} | "
    row += f"{ours / S.num_products / product:.2f} | "
    if peer is None:
        return f"{row}- | - | - | - |"
    theirs = seconds["peer"]
    return (
        f"{row}{peer.set_up:.1f} | {peer.first_call:.1f} | {1e3 * theirs:.2f} | "
        f"{ours / theirs:.2f} |"
    )


def _peer(name: str, n: int, x: torch.Tensor) -> Peer | None:
    try:
        return Peer(name, n, x)
    except (ImportError, KeyError):
        return None


def _interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median of the seconds of each, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def newton(n: int) -> str:
    """Newton's method on Bratu's problem from zero, to 1e-9 of the first gradient."""
    f, x = bratu(n)
    u = torch.zeros_like(x)
    S = hesse.sparse_hessian_operator(f, u)
    size = start = float(S.flat_gradient.norm())
    lines = [f"Newton on Bratu, n = {len(u):,}:"]
    for step in range(1, 20):
        begin = time.perf_counter()
        u = u - hesse.solve(S, S.flat_gradient, rtol=1e-10).x
        solved = time.perf_counter()
        S = S.at(u)
        size = float(S.flat_gradient.norm())
        lines.append(
            f"{step}: |g| / |g0| = {size / start:.1e}, factor and solve {solved - begin:.2f} s, "
            f"gradient and Hessian {time.perf_counter() - solved:.2f} s"
        )
        if size <= 1e-9 * start:
            return "\n".join([*lines, f"negative eigenvalues: {S.inertia.negative}"])
    return "\n".join([*lines, "not converged"])
