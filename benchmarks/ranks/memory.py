"""The memory of `eigsh` on sharded vectors: the peak of each process, in vectors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, nn

import hesse
from benchmarks.ranks.processes import run

K, BASIS, PRODUCTS = 4, 30, 40
_MIB = 1 << 20

HEADER = """\
| ranks | MiB before | peak, MiB | of the run, vectors | 6 + 38/p |
|--:|--:|--:|--:|--:|"""


def table(counts: list[int], n: int) -> list[str]:
    """A row for each number of ranks: the largest of their peaks."""
    rows = [HEADER]
    for count in counts:
        before, peak = max(run(count, _peak, n), key=lambda row: row[1])
        rows.append(
            f"| {count} | {before / _MIB:.0f} | {peak / _MIB:.0f} "
            f"| {(peak - before) / (4 * n):.1f} | {6 + 38 / count:.1f} |"
        )
    return rows


def _peak(rank: int, n: int) -> tuple[int, int]:
    """Bytes after a small run, which has imported all modules, and at most in the one of n."""
    _eigenvalues(rank, 10_000)
    before = _memory("VmRSS")
    _eigenvalues(rank, n)
    return before, _memory("VmHWM")


def _eigenvalues(rank: int, n: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    outputs = round((n / 2) ** 0.5)
    torch.manual_seed(0)
    model = nn.Linear(n // outputs, outputs, bias=False)
    x, y = torch.randn(2, n // outputs), torch.randint(0, outputs, (2,))
    mine = [(x + rank, (y + rank) % outputs)]
    risk = hesse.Risk(model, nn.CrossEntropyLoss(), mine, 1e-3, group=mesh)
    H = hesse.hessian_operator(risk, hesse.distributed.shard(risk.params, mesh))
    method = hesse.Lanczos(basis_size=BASIS)
    hesse.eigsh(H, K, method=method, max_products=PRODUCTS, rtol=1e-12)


def _memory(name: str) -> int:
    """A number of bytes that Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
