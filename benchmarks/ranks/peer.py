"""hessian-eigenthings' DDP operator beside Hesse: errors and messages on even and ragged data."""

from __future__ import annotations

import copy

import torch
from torch import distributed, nn

import hesse
from benchmarks.ranks.processes import run
from hesse.testing import Traffic

SPLITS = {"even": [[16, 16], [16, 16]], "ragged": [[16, 16], [8, 8]], "very": [[24, 24], [4, 4]]}
"""The batches of each rank, by their sizes."""

HEADER = """\
| data | of | error | messages | numbers, in n |
|---|---|--:|--:|--:|"""


def table() -> list[str]:
    """A row for each split of the data and each library."""
    rows = [HEADER]
    for split, sizes in SPLITS.items():
        for name, (error, calls, numbers) in run(len(sizes), _products, sizes)[0].items():
            rows.append(f"| {split} | {name} | {error:.1e} | {calls} | {numbers:.2f} |")
    return rows


def _products(rank: int, sizes: list[list[int]]) -> dict[str, tuple[float, int, float]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)).double()
    loss = nn.CrossEntropyLoss()
    total = sum(map(sum, sizes))
    x, y = torch.randn(total, 20, dtype=torch.float64), torch.randint(0, 5, (total,))
    ends = list(torch.tensor([size for part in sizes for size in part]).cumsum(0))
    parts = list(zip(x.tensor_split(ends[:-1]), y.tensor_split(ends[:-1]), strict=True))
    first = sum(map(len, sizes[:rank]))
    mine = parts[first : first + len(sizes[rank])]
    exact = hesse.hessian_operator(hesse.Risk(copy.deepcopy(model), loss, (x, y)))
    v = exact.domain.gaussian(torch.Generator().manual_seed(1))
    shared = hesse.Risk(copy.deepcopy(model), loss, mine, group=distributed.group.WORLD)
    H = hesse.hessian_operator(shared)
    calls = {"Hesse": lambda: H @ v}
    try:
        from hessian_eigenthings.operators import DDPHessianOperator
    except ImportError:
        pass
    else:
        ddp = DDPHessianOperator(model, mine, lambda m, batch: loss(m(batch[0]), batch[1]))
        calls["hessian-eigenthings"] = lambda: ddp.matvec(v)
    found, wanted = {}, exact @ v
    for name, call in calls.items():
        with Traffic() as traffic:
            product = call()
        error = float((product - wanted).norm() / wanted.norm())
        messages, numbers = sum(traffic.calls.values()), sum(traffic.numbers.values())
        found[name] = error, messages, numbers / len(v)
    return found
