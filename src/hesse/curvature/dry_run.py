# SPDX-License-Identifier: Apache-2.0
"""`plan`: what products will take in time and memory, seen on the first batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.curvature.fisher import fisher_operator
from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.point import point_of
from hesse.curvature.point_product import kept_share
from hesse.curvature.rank_sum import NoData, RankSum
from hesse.curvature.shard_sum import ShardSum
from hesse.errors import check_choice
from hesse.memory.available import available_bytes
from hesse.memory.peak import PeakMemory
from hesse.memory.sizes import format_bytes
from hesse.ranks import Ranks
from hesse.result import Result, html_table
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

OPERATORS = {"hessian": hessian_operator, "ggn": ggn_operator, "fisher": fisher_operator}
TITLES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix", "fisher": "Fisher matrix"}
_MANY = 1000  # products, of which an operator is told, so that it takes the time to trace them
_REPEATS = 3


@dataclass(frozen=True, repr=False)
class DryRun(Result):
    """What products of a curvature matrix take.

    Attributes:
        curvature: which matrix.
        n: the number of variables.
        batches: how many, each taken to be like the first.
        kept: of how many of them residuals are kept between products.
        mode: how products are taken.
        setup_seconds: the first product of a batch beyond the time of later ones: what tracing and
            checks take, once for each shape of data.
        gradient_seconds, product_seconds: of all batches.
        flops: of a product, in matrix products and convolutions; None where nothing is traced.
        vector_bytes: of a vector that a method keeps.
        kept_bytes: of all residuals that are kept.
        peak_bytes: the most that tensors take during a product, with what is kept.
        free_bytes: what the device has left now; 0 where that cannot be found out.
        ranks: how many processes share the data. Batches, FLOP and what is kept are of all of them,
            seconds of the slowest with its messages, other bytes those of the fullest.
        sent_seconds: of a product, what messages take.
    """

    curvature: str
    n: int
    batches: int
    kept: int
    mode: str
    setup_seconds: float
    gradient_seconds: float
    product_seconds: float
    flops: float | None
    vector_bytes: int
    kept_bytes: float
    peak_bytes: float
    free_bytes: float
    ranks: int = 1
    sent_seconds: float = 0.0

    @property
    def gradients(self) -> float:
        """How many gradients a product costs."""
        return self.product_seconds / self.gradient_seconds if self.gradient_seconds else math.nan

    def seconds(self, products: int) -> float:
        """What so many products take, set-up included."""
        return self.setup_seconds + products * self.product_seconds

    def bytes(self, vectors: int) -> float:
        """The peak of a method that keeps so many vectors."""
        return self.peak_bytes + vectors * self.vector_bytes

    def __repr__(self) -> str:
        rows = self._rows()
        return "\n".join([self._title(), *(f"  {name:9} {text}" for name, text in rows)])

    def _repr_html_(self) -> str:
        return html_table(self._title(), self._rows())

    def _title(self) -> str:
        seen = f", seen on the first of {self.batches}" if self.batches > 1 else ""
        if self.ranks > 1:
            seen = f", seen on the first batches of {self.ranks} ranks"
        name = TITLES[self.curvature]
        return f"Dry run: products of the {name} of {self.n:,} variables{seen}"

    def _rows(self) -> list[tuple[str, str]]:
        product = f"{_duration(self.product_seconds)}, {self.gradients:.1f} gradients"
        if self.flops:
            product += f", {self.flops / 1e9:.3g} GFLOP in matrix products"
        free = f", {format_bytes(self.free_bytes)} are free" if self.free_bytes else ""
        each = f"{format_bytes(self.vector_bytes)} more for each vector that a method keeps"
        rows = [
            ("gradient", _duration(self.gradient_seconds)),
            ("product", product),
            ("mode", f"{self.mode}; set-up {_duration(self.setup_seconds)} for a shape of data"),
            ("memory", f"{format_bytes(self.peak_bytes)}{free}; {each}"),
        ]
        if self.batches > 1:
            kept = f"residuals of {self.kept} of {self.batches} are kept between products"
            rows.append(("batches", f"{kept}, {format_bytes(self.kept_bytes)}"))
        hundred = f"{_duration(self.seconds(100))}, {format_bytes(self.bytes(30))}"
        rows.append(("example", f"100 products and 30 vectors: {hundred}"))
        if self.ranks > 1:
            sent = f"messages take {_duration(self.sent_seconds)} of a product"
            rows.append(("ranks", f"the slowest, and the fullest, of {self.ranks}; {sent}"))
        if 0.0 < self.free_bytes < self.peak_bytes:
            rows.append(("note", "a product does not fit: give the operator memory_budget="))
        return rows


@public("hesse.plan(f, x)")
def plan(
    f: Callable[[Any], Tensor] | Risk,
    x: Tree | None = None,
    *,
    curvature: Literal["hessian", "ggn", "fisher"] = "hessian",
) -> DryRun:
    """Find out what products will take in time and memory, before anything long.

    Args:
        f: scalar function of one argument; a `Risk` is one, of which the first batch is used.
        x: the point; of a `Risk` it may be left out.
        curvature: of which matrix the products are.

    Returns:
        DryRun; it prints as a table. `seconds(products)` and `bytes(vectors)` give what a method
        takes: 100 products and 30 vectors, say, for ten eigenvalues by `eigsh`.

    Seconds are those of this machine as busy as it is now. Every batch is taken to be like the
    first; where a loader reads or makes its data, that time comes on top. Programs that were traced
    serve operators of the same risk later.

    Several ranks that share the data measure at the same time, as they take products. All get the
    same result.

    Cost: about eleven gradients of the first batch, and tracing a product.

    Raises:
        HesseError: as `hessian_operator`, `ggn_operator` and `fisher_operator`.

    >>> import torch
    >>> run = plan(lambda x: (x**4).sum() / 12, torch.ones(1000))
    >>> run.n, run.batches, run.vector_bytes, run.seconds(10) > run.setup_seconds
    (1000, 1, 4000, True)
    """
    check_choice("curvature", curvature, tuple(OPERATORS))
    x = point_of(f, x)
    if isinstance(f, Risk) and f.ranks is not None:
        return _of_ranks(f.ranks, curvature, f, x)
    return _of_one(curvature, f, x)


def _of_one(curvature: str, f: Any, x: Tree) -> DryRun:
    """That of a process which has all of f."""
    space = Space.of(x)
    head, batches = _first_batch(f)
    seconds = _gradient_seconds(head, space, x)
    kept = _measured(curvature, head, x, memory_budget=None)
    number, again = batches, 0.0
    if batches > 1:
        number = min(batches, int(kept_share(space.device) / max(1.0, kept.residual_bytes)))
        again = _measured(curvature, head, x, memory_budget="none").seconds
    return DryRun(
        curvature=curvature,
        n=space.n,
        batches=batches,
        kept=number,
        mode=kept.mode,
        setup_seconds=max(0.0, kept.first_seconds - kept.seconds),
        gradient_seconds=batches * seconds,
        product_seconds=number * kept.seconds + (batches - number) * again,
        flops=None if kept.flops is None else float(batches * kept.flops),
        vector_bytes=space.size * space.dtype.itemsize,
        kept_bytes=number * kept.residual_bytes,
        peak_bytes=kept.peak_bytes + max(0, number - 1) * kept.residual_bytes,
        free_bytes=available_bytes(space.device),
    )


def _of_ranks(ranks: Ranks, curvature: str, risk: Risk, x: Tree) -> DryRun:
    """That of processes which share the data: what each finds for its part, and messages."""
    with ranks.alike():
        space = Space.of(x, ranks=ranks)
    whole = space.whole_tree(x)
    with ranks.alike():
        nothing = NoData(Space.of(whole))
        here = _of_one(curvature, risk.local, whole) if risk.num_summands else _idle(curvature)
    of_gradient, of_product = _message_seconds(nothing, space)
    here = replace(
        here,
        n=space.n,
        gradient_seconds=here.gradient_seconds + of_gradient,
        product_seconds=here.product_seconds + of_product,
        vector_bytes=space.size * space.dtype.itemsize,
        free_bytes=available_bytes(space.device),
        ranks=ranks.size,
        sent_seconds=of_product,
    )
    if space.shards is not None:  # the direction is gathered
        here = replace(here, peak_bytes=here.peak_bytes + space.n * space.dtype.itemsize)
    return _together(ranks, here)


_SUMMED = ("batches", "kept", "flops", "kept_bytes")
_LARGEST = (
    *("setup_seconds", "gradient_seconds", "product_seconds", "sent_seconds"),
    *("vector_bytes", "peak_bytes"),
)


def _together(ranks: Ranks, here: DryRun) -> DryRun:
    """What processes find of their parts, as one plan; in the mode of the slowest."""
    names = (*_SUMMED, *_LARGEST, "free_bytes")
    numbers = [math.nan if here[name] is None else float(here[name]) for name in names]
    found = dict(zip(names, zip(*ranks.gather(*numbers), strict=True), strict=True))
    seconds = found["product_seconds"]
    mode = ranks.tell(seconds.index(max(seconds)), here.mode)
    whole: dict[str, Any] = {name: sum(found[name]) for name in _SUMMED}
    whole |= {name: max(found[name]) for name in _LARGEST}
    whole |= {name: int(whole[name]) for name in ("batches", "kept", "vector_bytes")}
    whole["flops"] = None if math.isnan(whole["flops"]) else whole["flops"]
    return replace(here, **whole, mode=mode, free_bytes=min(found["free_bytes"]))


def _idle(curvature: str) -> DryRun:
    """That of a process without data."""
    numbers = dict.fromkeys((*_SUMMED, *_LARGEST, "free_bytes", "n"), 0)
    return DryRun(curvature=curvature, mode="no data", **numbers)


def _message_seconds(nothing: NoData, space: Space) -> tuple[float, float]:
    """What the messages of a gradient and of a product take, between processes without data."""
    kind, v = RankSum if space.shards is None else ShardSum, space.zeros()

    def least(call: Callable[[], Any]) -> float:
        return min(_timed(call, space.device) for _ in range(_REPEATS))

    A = kind(nothing, space)
    return least(lambda: kind(nothing, space).flat_gradient), least(lambda: A.matvec(v))


@dataclass(frozen=True)
class _Measured:
    """What products of one batch take."""

    mode: str
    first_seconds: float
    seconds: float
    flops: int | None
    residual_bytes: float
    peak_bytes: float


def _first_batch(f: Any) -> tuple[Any, int]:
    """f on the first batch alone, and the number of batches."""
    if not isinstance(f, Risk):
        return f, 1
    first = f.data.first
    return f.unchecked_on([(first.inputs, first.targets)]), f.num_summands


def _gradient_seconds(f: Any, space: Space, x: Tree) -> float:
    """A gradient of f by torch alone, once it is known to have one."""
    _ = hessian_operator(f, x).gradient
    flat = space.flatten(x, what="x").clone()

    def gradient() -> None:
        with torch.enable_grad():
            leaf = flat.detach().requires_grad_()
            torch.autograd.grad(f(space.unflatten(leaf)), leaf, allow_unused=True)

    gradient()
    return min(_timed(gradient, space.device) for _ in range(_REPEATS))


def _measured(curvature: str, f: Any, x: Tree, **options: Any) -> _Measured:
    with PeakMemory() as memory:
        A = _ready(curvature, f, x, options)
        v = torch.ones(A.shape[1], dtype=A.dtype, device=A.device)
        first = _timed(lambda: A.matvec(v), A.device)
        A.matvec(v)
        held = memory.current - v.nbytes
    seconds = min(_timed(lambda: A.matvec(v), A.device) for _ in range(_REPEATS))
    return _Measured(
        *(A.mode, first, seconds, A.plan.flops),
        *(float(A.plan.residual_bytes or held), float(memory.peak - v.nbytes)),
    )


def _ready(curvature: str, f: Any, x: Tree, options: dict[str, Any]) -> CurvatureOperator:
    A = OPERATORS[curvature](f, x, **options)
    A.announce(_MANY)
    return A


def _timed(function: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _duration(seconds: float) -> str:
    """A time in words.

    >>> _duration(0.0042), _duration(75.0), _duration(7200.0)
    ('4.2 ms', '1.25 min', '2 h')
    """
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"
