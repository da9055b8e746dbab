"""Takes products by JAX in a process and an environment of its own: `jax_worker.py CASE.npz`.

It reads requests from standard input and answers on standard output, one JSON object a line:

    {"prepare": NAME}             -> {"seconds", "repeated_bytes"}: compiling, and the first product
    {"run": NAME}                 -> {"seconds"}
    {"save": NAME, "path": FILE}  -> {}: the last product, an .npz file

or {"error": MESSAGE}. So the products are timed in turn with those of other processes, without the
time that the talking takes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax_functions import FUNCTIONS


class Worker:
    """The arrays of a case, and the products prepared so far."""

    def __init__(self, path: str) -> None:
        with np.load(path) as archive:
            function = str(archive["function"])
            numbers = [name for name in archive.files if name != "function"]
            arrays = {name: jax.numpy.asarray(archive[name]) for name in numbers}
        self.params, self.v, self.block = (
            _with_prefix(arrays, prefix) for prefix in ("params:", "v:", "block:")
        )
        self.data = (arrays.get("inputs"), arrays.get("targets"))
        self.outputs, self.loss = FUNCTIONS[function]
        self.products: dict[str, Callable[[], Any]] = {}
        self.results: dict[str, Any] = {}

    def value(self, params: dict, data: tuple) -> jax.Array:
        inputs, targets = data
        z = self.outputs(params, inputs)
        return z if self.loss is None else self.loss(z, targets)

    def answer(self, request: dict[str, str]) -> dict[str, Any]:
        if "prepare" in request:
            return self._prepare(request["prepare"])
        if "run" in request:
            return {"seconds": self._run(request["run"])}
        np.savez(request["path"], **self.results[request["save"]])
        return {}

    def _prepare(self, name: str) -> dict[str, Any]:
        start = time.perf_counter()
        compiled, arguments = METHODS[name](self)
        self.products[name] = lambda: compiled(*arguments)
        self._run(name)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "repeated_bytes": _repeated_bytes(compiled, arguments)}

    def _run(self, name: str) -> float:
        self.results[name] = None
        start = time.perf_counter()
        result = jax.block_until_ready(self.products[name]())
        seconds = time.perf_counter() - start
        self.results[name] = result
        return seconds


def _with_prefix(arrays: dict, prefix: str) -> dict:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _repeated_bytes(compiled: Any, arguments: tuple) -> int:
    """What the compiled product allocates: its temporaries, its result, and kept residuals."""
    memory = compiled.memory_analysis()
    kept = jax.tree.leaves(arguments[0]) if isinstance(arguments[0], jax.tree_util.Partial) else []
    allocated = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return int(allocated + sum(leaf.nbytes for leaf in kept))


# --------------------------------------------------------------------------------------------------
# Methods: (the compiled function, its arguments)


def gradient(worker: Worker) -> tuple:
    return _compiled(jax.grad(worker.value), worker.params, worker.data)


def forward_over_reverse(worker: Worker, block: bool = False) -> tuple:
    def product(params: dict, data: tuple, v: dict) -> dict:
        return jax.jvp(lambda at: jax.grad(worker.value)(at, data), (params,), (v,))[1]

    if block:
        batched = jax.vmap(product, in_axes=(None, None, 0))
        return _compiled(batched, worker.params, worker.data, worker.block)
    return _compiled(product, worker.params, worker.data, worker.v)


def linearize(worker: Worker, block: bool = False) -> tuple:
    def at(params: dict, data: tuple) -> Callable:
        return jax.linearize(lambda at: jax.grad(worker.value)(at, data), params)[1]

    linear = jax.jit(at)(worker.params, worker.data)
    if block:
        return _compiled(lambda linear, block: jax.vmap(linear)(block), linear, worker.block)
    return _compiled(lambda linear, v: linear(v), linear, worker.v)


def gauss_newton(worker: Worker) -> tuple:
    def product(params: dict, data: tuple, v: dict) -> dict:
        inputs, targets = data
        z, push = jax.linearize(lambda at: worker.outputs(at, inputs), params)
        return _weighted(worker, z, push, params, targets, v)

    return _compiled(product, worker.params, worker.data, worker.v)


def linearized_gauss_newton(worker: Worker, block: bool = False) -> tuple:
    inputs, targets = worker.data
    at = jax.jit(lambda params: jax.linearize(lambda at: worker.outputs(at, inputs), params))
    z, push = at(worker.params)

    def product(push: Callable, z: jax.Array, params: dict, targets: jax.Array, v: dict) -> dict:
        return _weighted(worker, z, push, params, targets, v)

    if not block:
        return _compiled(product, push, z, worker.params, targets, worker.v)
    batched = jax.vmap(product, in_axes=(None, None, None, None, 0))
    return _compiled(batched, push, z, worker.params, targets, worker.block)


def _weighted(
    worker: Worker, z: jax.Array, push: Callable, params: dict, targets: jax.Array, v: dict
) -> dict:
    """J' H_L J v, J being the map `push`."""
    slope = jax.grad(lambda z: worker.loss(z, targets))
    return jax.linear_transpose(push, params)(jax.jvp(slope, (z,), (push(v),))[1])[0]


def _compiled(function: Callable, *arguments: Any) -> tuple:
    return jax.jit(function).lower(*arguments).compile(), arguments


METHODS = {
    "gradient/grad": gradient,
    "hessian/forward-over-reverse": forward_over_reverse,
    "hessian/forward-over-reverse/8": partial(forward_over_reverse, block=True),
    "hessian/linearize": linearize,
    "hessian/linearize/8": partial(linearize, block=True),
    "ggn/one-shot": gauss_newton,
    "ggn/linearize": linearized_gauss_newton,
    "ggn/linearize/8": partial(linearized_gauss_newton, block=True),
}


def main() -> None:
    """Serve until standard input ends."""
    worker = Worker(sys.argv[1])
    print(json.dumps({"version": jax.__version__}), flush=True)
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
