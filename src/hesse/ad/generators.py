# SPDX-License-Identifier: Apache-2.0
"""The random generators that a function may draw from: have any been drawn from?

Those of torch, of Python and of NumPy can be looked at. A `torch.Generator` of the user's own
cannot be found; but whoever draws from it hands it to torch, where `Composed` counts. What remains
unseen are generator objects of Python and NumPy.
"""

from __future__ import annotations

import pickle
import random
import sys
from typing import Any

import torch
from torch import Tensor

from hesse.ad.decompositions import Composed


def generator_states(*, quickly: bool = False) -> dict[str, Any]:
    """What changes when random numbers are drawn; `quickly`: of torch only, not 60 microseconds.

    >>> before = generator_states()
    >>> _ = torch.rand(1)
    >>> same_states(before, generator_states()), same_states(before, before)
    (False, True)
    """
    states = {"own": Composed.draws, "torch": torch.random.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if quickly:
        return states
    states["random"] = random.getstate()
    if "numpy.random" in sys.modules:
        states["numpy"] = pickle.dumps(sys.modules["numpy.random"].get_state(legacy=False))
    return states


def same_states(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether nothing was drawn between the two looks, from generators that were there at both."""
    return all(_equal(before[name], after[name]) for name in before.keys() & after.keys())


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b
