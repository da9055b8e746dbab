# SPDX-License-Identifier: Apache-2.0
"""Whether a function is deterministic: does it draw random numbers, does it give the same again?

The generators of torch, of Python and of NumPy can be looked at. A `torch.Generator` of the user's
own cannot be found; but whoever draws from it hands it to torch, where `TorchCalls` counts. What
remains unseen are generator objects of Python and NumPy.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.ad.torch_calls import TorchCalls
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


# -- Generators ------------------------------------------------------------------------------------


def generator_states(*, quickly: bool = False) -> dict[str, Any]:
    """What changes when random numbers are drawn; `quickly`: of torch only, not 60 microseconds.

    >>> before = generator_states()
    >>> _ = torch.rand(1)
    >>> same_states(before, generator_states()), same_states(before, before)
    (False, True)
    """
    states = {"own": TorchCalls.draws, "torch": torch.random.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if quickly:
        return states
    states["random"] = random.getstate()
    if "numpy.random" in sys.modules:
        states["numpy"] = sys.modules["numpy.random"].get_state(legacy=False)
    return states


def same_states(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether nothing was drawn between the two looks, from generators that were there at both."""
    return all(_equal(before[name], after[name]) for name in before.keys() & after.keys())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return bool((a == b).all()) if hasattr(a, "dtype") else a == b
