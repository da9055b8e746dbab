"""asdex on JAX: the same functions, detected, coloured and compiled there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor


class Peer:
    """The sparse Hessian of one function by asdex; raises ImportError where that is missing."""

    def __init__(self, name: str, n: int, x: Tensor) -> None:
        import asdex
        import jax

        jax.config.update("jax_enable_x64", True)
        f, self._x = _functions(n)[name], jax.numpy.array(x.numpy())
        start = time.process_time()
        hessian = asdex.hessian(f, self._x)
        self.set_up = time.process_time() - start
        self._hessian = jax.jit(hessian)
        start = time.process_time()
        self.evaluate()
        self.first_call = time.process_time() - start

    def evaluate(self) -> Any:
        """The entries."""
        return self._hessian(self._x).data.block_until_ready()


def _functions(n: int) -> dict[str, Callable]:
    import jax.numpy as jnp

    side = round(n**0.5)

    def rosenbrock(x: Any) -> Any:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def bratu(u: Any) -> Any:
        g, h = jnp.pad(u.reshape(side, side), 1), 1 / (side + 1)
        down, right = g[1:, 1:-1] - g[:-1, 1:-1], g[1:-1, 1:] - g[1:-1, :-1]
        return 0.5 * (down**2).sum() + 0.5 * (right**2).sum() - h * h * 6.8 * jnp.exp(u).sum()

    def surface(u: Any) -> Any:
        g = jnp.pad(u.reshape(side, side), 1)
        a, b = g[1:, 1:] - g[:-1, :-1], g[1:, :-1] - g[:-1, 1:]
        return jnp.sqrt(1 + side**2 * (a * a + b * b) / 2).sum() / side**2

    return {"rosenbrock": rosenbrock, "bratu": bratu, "surface": surface}
