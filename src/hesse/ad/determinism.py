# SPDX-License-Identifier: Apache-2.0
"""Whether a function is deterministic: does it draw random numbers, does it give the same again?

`generator_states` tells whether it draws. One that does may still give the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.ad.torch_calls import generator_states, same_states
from hesse.errors import RandomnessError
from hesse.vectors.rows import joined

T = TypeVar("T")


def run_deterministic(run: Callable[[], T], *, again: bool = False) -> T:
    """run(), after making sure that no random numbers went into its result.

    Whether any were drawn is read off the generators, so that a deterministic f is run once. One
    that draws may still be deterministic (a fixed seed inside): a second run decides. `again`: the
    same was run at another point before, when it drew none from generators outside of torch.
    """
    before = generator_states(quickly=again)
    first = run()
    if same_states(before, generator_states(quickly=again)):
        return first
    second = run()
    check_same(first, second)
    return second


def check_same(first: Any, second: Any) -> None:
    """Raise if two runs at one point, tensors or prepared products, gave different results."""
    for one, two in zip(_fingerprints(first), _fingerprints(second), strict=True):
        # Entries of a gradient that cancel to nothing are rounding of the large ones.
        size = float(two.nan_to_num().abs().max()) if two.numel() else 0.0
        if not torch.allclose(one, two, atol=1e-8 + 1e-5 * size, equal_nan=True):
            raise RandomnessError(
                expected="a deterministic f: the same result at the same x",
                got=f"results that differ by {float((one - two).abs().max()):.3g} between two runs",
                remedy="Call model.eval(), set dropout to 0, or fix the seed inside f.",
            )


def _fingerprints(result: Any) -> Iterator[Tensor]:
    """What must agree: a tensor itself; the outputs, gradient and product of a linearisation.

    A value need not feel the noise: with a head of zeros a loss is the same for all features.
    """
    if isinstance(result, Tensor):
        yield result
        return
    yield joined(result.outputs)
    if not result.gradient:
        return
    yield joined(result.gradient)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(g.shape, generator=generator).to(g) for g in result.gradient]
    with suppress(NotImplementedError):  # what has no second derivative says so itself
        yield joined(result.apply("product", directions))
