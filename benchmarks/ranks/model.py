"""What a product and a step of Lanczos take on GPUs, by the alpha-beta model: nothing is measured.

    product    c n t / F       12 for H v, 8 for G v, 6 for a gradient; t tokens a rank
    wire       2 (p - 1) / p  4 n / B + alpha(p)
    vectors    (m + 6) passes over the 4 n / p bytes of a vector, of m in a basis
    scalars    reductions a step times alpha(p)

The efficiency of a product is product / (product + wire), since nothing overlaps: F / B and t
decide it, n does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RANKS, TOKENS = (8, 64, 1024), (4096, 32768, 262144)
COSTS = {"gradient": 6, "H v": 12, "G v": 8}
BASIS, PASSES, REDUCTIONS = 30, 6, 2


@dataclass(frozen=True)
class Cluster:
    """Rates of a GPU, in bytes and operations a second, and of what joins them; assumed."""

    flops: float = 2e14
    memory: float = 2.5e12
    inside: float = 4e11
    """Of an all-reduce within a node of eight."""
    between: float = 4.5e10

    def alpha(self, ranks: int) -> float:
        """Seconds of a reduction of some numbers."""
        return 15e-6 + 7e-6 * math.log2(ranks)

    def wire(self, n: float, ranks: int) -> float:
        """Seconds to send a product."""
        rate = self.inside if ranks <= 8 else self.between
        return 2 * (ranks - 1) / ranks * 4 * n / rate + self.alpha(ranks)

    def product(self, cost: float, n: float, tokens: int) -> float:
        """Seconds to compute one."""
        return cost * n * tokens / self.flops

    def efficiency(self, cost: float, n: float, ranks: int, tokens: int) -> float:
        """The part of a product that is no communication."""
        seconds = self.product(cost, n, tokens)
        return seconds / (seconds + self.wire(n, ranks))

    def step(self, n: float, ranks: int, tokens: int) -> dict[str, float]:
        """Seconds of the parts of a Lanczos step with H v, on shards."""
        return {
            "product": self.product(COSTS["H v"], n, tokens),
            "wire": self.wire(n, ranks),
            "vectors": (BASIS + PASSES) * 4 * n / ranks / self.memory,
            "scalars": REDUCTIONS * self.alpha(ranks),
        }


def tables(n: float) -> list[str]:
    """The efficiency of products, and the parts of a step."""
    cluster = Cluster()
    rows = ["| ranks | tokens a rank | " + " | ".join(COSTS) + " |", "|--:|--:|--:|--:|--:|"]
    for ranks in RANKS:
        for tokens in TOKENS:
            parts = (cluster.efficiency(cost, n, ranks, tokens) for cost in COSTS.values())
            shown = " | ".join(f"{part:.2f}" for part in parts)
            rows.append(f"| {ranks:,} | {tokens:,} | {shown} |")
    names = list(cluster.step(n, 8, TOKENS[1]))
    rows += ["", "| ranks | " + " | ".join(names) + " | efficiency |", "|--:|--:|--:|--:|--:|--:|"]
    for ranks in RANKS:
        step = cluster.step(n, ranks, TOKENS[1])
        shown = " | ".join(f"{1e3 * seconds:.2f} ms" for seconds in step.values())
        rows.append(f"| {ranks:,} | {shown} | {step['product'] / sum(step.values()):.3f} |")
    return rows
