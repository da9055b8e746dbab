"""The operators of other libraries, as their documentation makes them, with a count of products."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from benchmarks.problem import Problem


@dataclass
class Count:
    """Products so far."""

    products: int = 0

    def counting(self, function: Callable, columns: Callable[[Any], int]) -> Callable:
        """The same function; its argument tells how many products it takes."""

        def counted(argument: Any) -> Any:
            self.products += columns(argument)
            return function(argument)

        return counted


def curvlinops_operator(problem: Problem, kind: str) -> tuple[Any, Count]:
    """`HessianLinearOperator` or `GGNLinearOperator`, without its check for determinism."""
    import curvlinops

    parts, count = problem.parts, Count()
    assert parts is not None
    operator = getattr(curvlinops, f"{kind}LinearOperator")(
        parts.model,
        parts.loss,
        list(parts.model.parameters()),
        [(parts.inputs, parts.targets)],
        check_deterministic=False,
        num_data=len(parts.inputs),
    )
    operator._matmat = count.counting(operator._matmat, lambda block: block[0].shape[-1])
    return operator, count


def eigenthings_operator(problem: Problem) -> tuple[Any, Count]:
    """`HessianOperator` of hessian-eigenthings."""
    import hessian_eigenthings as eigenthings

    parts, count = problem.parts, Count()
    assert parts is not None
    operator = eigenthings.HessianOperator(
        parts.model, [(parts.inputs, parts.targets)], eigenthings.supervised_loss(parts.loss)
    )
    operator.matvec = count.counting(operator.matvec, lambda _: 1)
    return operator, count


@contextmanager
def pyhessian_operator(problem: Problem) -> Iterator[tuple[Any, Count]]:
    """`hessian` of PyHessian, which keeps the graph of the gradient."""
    module: Any = importlib.import_module("pyhessian.hessian")
    parts, count, product = problem.parts, Count(), module.hessian_vector_product
    assert parts is not None

    def counted(gradient: Any, params: Any, v: Any) -> Any:
        count.products += 1
        return product(gradient, params, v)

    model = copy.deepcopy(parts.model)
    with patch.object(module, "hessian_vector_product", counted):
        data = (parts.inputs, parts.targets)
        yield module.hessian(model, parts.loss, data=data, cuda=False), count
    model.zero_grad()  # breaks the cycle of parameters and graph
