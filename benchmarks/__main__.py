"""`python -m benchmarks [NAME]`: run one benchmark, or all."""

from __future__ import annotations

import sys

from benchmarks import optimizers, products, tune_adamw

BENCHMARKS = {
    "products": products.main,
    "optimizers": optimizers.main,
    "tune-adamw": tune_adamw.main,
}


def main(names: list[str]) -> int:
    """Run the named benchmarks; the quick ones if none is named."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"No benchmark {unknown[0]!r}. There are: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    for name in names or ["products", "optimizers"]:
        print(f"\n## {name}\n")
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
