# SPDX-License-Identifier: Apache-2.0
"""The checks of a case: what is asked of Hesse, and what is expected.

In the code of a check `target` is the function or the risk, x its point, v and w flat directions,
`like_x` a flat vector in the form of x, and y another point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tools.fuzz.oracle import DOUBLE, Expected, Oracle, Unclear

ONE_SHOT = (
    "auto",
    "reverse-over-reverse",
    "forward-over-reverse",
    "reverse-over-forward",
    "finite-difference",
    "forward-difference",
)
PREPARED = ("auto", "retained-graph", "traced-split")
COMPILED = "compiled-split"
DIFFERENCES = ("finite-difference", "forward-difference")


class Facts(NamedTuple):
    """What expectations are computed from."""

    oracle: Oracle
    v: Tensor
    w: Tensor
    y: Tensor
    weight_decay: float
    of_inputs: Oracle | None = None
    """Of a model: the loss as a function of the inputs."""


class Check(NamedTuple):
    """What Hesse is asked, and the expectation."""

    code: str
    expected: Callable[[Facts], Expected]
    of: str = "both"
    """"function", "model", or both."""


def _like(value: Tensor, *parts: Expected) -> Expected:
    """A result computed from others, with their errors."""
    size = max(part.size for part in parts)
    error = sum(part.error for part in parts)
    return Expected(value, error, size, any(part.by_differences for part in parts))


def _product(facts: Facts) -> Expected:
    return facts.oracle.product(facts.v)


def _product_at(facts: Facts) -> Expected:
    return facts.oracle.product(facts.v, facts.y)


def _block(facts: Facts) -> Expected:
    parts = [facts.oracle.product(v) for v in (facts.v, facts.w, facts.v - facts.w)]
    return _like(torch.stack([part.value for part in parts], 1).reshape(-1), *parts)


def _gradient(facts: Facts) -> Expected:
    for direction in (facts.v, facts.w):  # v may be a unit vector
        facts.oracle.product(direction)  # or it is unclear whether torch's gradient is right
    gradient = facts.oracle.gradient(facts.oracle.x)
    value = torch.tensor([facts.oracle.value(facts.oracle.x)], dtype=DOUBLE)
    whole = torch.cat([value, gradient])
    return Expected(whole, 0.0, float(whole.norm()) + 1e-6)


def _curvature(facts: Facts) -> Expected:
    product = facts.oracle.product(facts.v)
    size = product.size * float(facts.v.norm())
    return Expected((facts.v @ product.value).reshape(1), product.error, size + 1e-9)


def _affine(facts: Facts) -> Expected:
    product = facts.oracle.product(facts.v)
    size = 2 * product.size + float(facts.v.norm())
    value = 2 * product.value + 0.5 * facts.v
    return Expected(value, 2 * product.error, size, product.by_differences)


def _square(facts: Facts) -> Expected:
    one = facts.oracle.product(facts.v)
    two = facts.oracle.product(one.value)
    return _like(two.value, two, one)


def _part(facts: Facts) -> Expected:
    first = facts.oracle.first_leaf
    masked = torch.zeros_like(facts.v)
    masked[first] = facts.v[first]
    product = facts.oracle.product(masked)
    return _like(product.value[first], product)


def _dense(facts: Facts) -> Expected:
    dense = facts.oracle.dense
    return _like(dense.value.reshape(-1), dense)


def _trace(facts: Facts) -> Expected:
    dense = facts.oracle.dense
    return _like(dense.value.trace().reshape(1), dense)


def _diagonal(facts: Facts) -> Expected:
    dense = facts.oracle.dense
    return _like(dense.value.diagonal(), dense)


def _largest(facts: Facts) -> Expected:
    dense = facts.oracle.dense
    values = torch.linalg.eigvalsh((dense.value + dense.value.T) / 2)
    return _like(values[-min(2, len(values)) :], dense)


def _frobenius(facts: Facts) -> Expected:
    dense = facts.oracle.dense
    return _like(dense.value.norm().reshape(1), dense)


def shift_of(facts: Facts) -> float:
    """What makes H + shift I definite."""
    return 2.0 * float(facts.oracle.dense.value.norm()) + 1.0


def _solution(facts: Facts) -> Expected:
    dense, shift = facts.oracle.dense, shift_of(facts)
    matrix = dense.value + shift * torch.eye(facts.oracle.n, dtype=DOUBLE)
    solution = torch.linalg.solve(matrix, facts.v)
    size = float(solution.norm()) + 1e-12
    return Expected(solution, size * dense.error / shift, 10 * size, dense.by_differences)


def _logdet(facts: Facts) -> Expected:
    dense, shift = facts.oracle.dense, shift_of(facts)
    matrix = dense.value + shift * torch.eye(facts.oracle.n, dtype=DOUBLE)
    return Expected(torch.logdet(matrix).reshape(1), dense.error, float(facts.oracle.n))


def _push_forward(facts: Facts) -> Expected:
    jacobian = facts.oracle.jacobian
    size = jacobian.size * (float(facts.v.norm()) + 1e-9)
    return Expected(jacobian.value @ facts.v, 0.0, size)


def _pull_back(facts: Facts) -> Expected:
    jacobian = facts.oracle.jacobian
    u = torch.linspace(-1.0, 1.0, len(jacobian.value), dtype=DOUBLE)
    return Expected(jacobian.value.T @ u, 0.0, jacobian.size * (float(u.norm()) + 1e-9))


def _inputs(facts: Facts) -> Expected:
    oracle = facts.of_inputs
    if oracle is None:
        raise Unclear("inputs that are no real numbers")
    return oracle.product(torch.linspace(-1.0, 1.0, oracle.n, dtype=DOUBLE))


def _gauss_newton(facts: Facts) -> Expected:
    matrix = facts.oracle.gauss_newton
    value = matrix.value @ facts.v + facts.weight_decay * facts.v
    size = (matrix.size + facts.weight_decay) * (float(facts.v.norm()) + 1e-9)
    return Expected(value, matrix.error, size, matrix.by_differences)


def _gauss_newton_curvature(facts: Facts) -> Expected:
    product = _gauss_newton(facts)
    length = float(facts.v.norm())
    return Expected(
        (facts.v @ product.value).reshape(1), product.error, product.size * length + 1e-9
    )


_H = "H = hesse.hessian_operator(target, x{options})\n"
_SHIFTED = _H.format(options="") + "A = H + shift * hesse.identity_operator(n)\n"

CHECKS: dict[str, Check] = {
    **{f"hvp {m}": Check(f"got = hesse.hvp(target, x, v, {m!r})", _product) for m in ONE_SHOT},
    "hvp tree": Check("got = hesse.hvp(target, x, like_x(v))", _product),
    **{
        f"value and gradient {m}": Check(
            f"point = hesse.hvp(target, x, v, {m!r}, value_and_gradient=True)\n"
            "got = [point.value, point.gradient]",
            _gradient,
        )
        for m in ONE_SHOT
    },
    **{
        f"operator {m}": Check(_H.format(options=f", mode={m!r}") + "got = H @ v", _product)
        for m in (*PREPARED, *ONE_SHOT[1:5], COMPILED)
    },
    **{
        f"second product {m}": Check(
            _H.format(options=f", mode={m!r}") + "H @ w\ngot = H @ v", _product
        )
        for m in PREPARED
    },
    **{
        f"operator at y {m}": Check(
            _H.format(options=f", mode={m!r}") + "H @ w\ngot = H.at(like_x(y)) @ v", _product_at
        )
        for m in PREPARED
    },
    **{
        f"block {m}": Check(
            _H.format(options=f", mode={m!r}") + "got = H @ torch.stack([v, w, v - w], 1)", _block
        )
        for m in PREPARED
    },
    "after counts": Check(
        "with hesse.deterministic():\n"
        "    H = hesse.hessian_operator(target, x)\n"
        "for u in (w, v - w, w):\n"
        "    H @ u\n"
        "got = H @ v",
        _product,
    ),
    "operator tree": Check(_H.format(options="") + "got = H @ like_x(v)", _product),
    "value and gradient": Check(_H.format(options="") + "got = [H.value, H.gradient]", _gradient),
    "value and gradient traced-split": Check(
        _H.format(options=", mode='traced-split'") + "H @ v\ngot = [H.value, H.gradient]", _gradient
    ),
    "curvature": Check(_H.format(options="") + "got = torch.tensor(H.curvature(v))", _curvature),
    "dense": Check(_H.format(options="") + "got = H.to_dense()", _dense),
    "transpose": Check(_H.format(options="") + "got = H.T @ v", _product),
    "affine": Check(
        _H.format(options="") + "got = (2 * H + 0.5 * hesse.identity_operator(n)) @ v", _affine
    ),
    "square": Check(_H.format(options="") + "got = (H @ H) @ v", _square),
    "leaf": Check(
        "space = hesse.Space.of(x)\n"
        + _H.format(options=", with_respect_to=space.names[0]")
        + "got = H @ v[: H.shape[0]]",
        _part,
    ),
    "trace": Check(
        _H.format(options="") + "e = hesse.trace(H)\ngot, slack = torch.as_tensor(e.value), e",
        _trace,
    ),
    "diagonal": Check(
        _H.format(options="") + "e = hesse.diagonal(H)\ngot, slack = torch.as_tensor(e.value), e",
        _diagonal,
    ),
    "norm": Check(
        _H.format(options="") + "e = hesse.norm(H)\ngot, slack = torch.as_tensor(e.value), e",
        _frobenius,
    ),
    "eigsh": Check(
        _H.format(options="") + "got = hesse.eigsh(H, min(2, n)).values.sort().values", _largest
    ),
    "solve": Check(_SHIFTED + "got = hesse.solve(A, v, rtol=1e-10).x", _solution),
    "logdet": Check(
        _SHIFTED + "e = hesse.logdet(A)\ngot, slack = torch.as_tensor(e.value), e", _logdet
    ),
    **{
        f"jacobian {m}": Check(
            f"J = hesse.jacobian_operator(jacobian_of, x, mode={m!r})\ngot = J @ v", _push_forward
        )
        for m in PREPARED
    },
    **{
        f"adjoint {m}": Check(
            f"J = hesse.jacobian_operator(jacobian_of, x, mode={m!r})\n"
            "got = J.T @ torch.linspace(-1, 1, J.shape[0], dtype=torch.float64).to(v.dtype)",
            _pull_back,
        )
        for m in PREPARED
    },
    **{
        f"gauss-newton {m}": Check(
            f"got = hesse.ggn_operator(target, x, mode={m!r}) @ v", _gauss_newton, "model"
        )
        for m in (*PREPARED, COMPILED)
    },
    "gauss-newton curvature": Check(
        "got = torch.tensor(hesse.ggn_operator(target, x).curvature(v))",
        _gauss_newton_curvature,
        "model",
    ),
    "gauss-newton after counts": Check(
        "with hesse.deterministic():\n"
        "    G = hesse.ggn_operator(target, x)\n"
        "for u in (w, v - w, w):\n"
        "    G @ u\n"
        "got = G @ v",
        _gauss_newton,
        "model",
    ),
    "no memory": Check(
        _H.format(options=", memory_budget='none'") + "got = H @ v", _product, "model"
    ),
    **{
        f"inputs {m}": Check(
            _H.format(options=f", with_respect_to='inputs', mode={m!r}")
            + "got = H @ torch.linspace(-1, 1, H.shape[0], dtype=torch.float64).to(v.dtype)",
            _inputs,
            "model",
        )
        for m in ("auto", "traced-split")
    },
    "risk": Check(
        "x = {name: p.requires_grad_() for name, p in x.items()}\n"
        "with torch.inference_mode(False), torch.enable_grad():\n"
        "    value = target(x)\n"
        "    got = [value, torch.autograd.grad(value, list(x.values()), allow_unused=True,\n"
        "        materialize_grads=True)]",
        _gradient,
        "model",
    ),
}


def names(of: str) -> list[str]:
    """The checks of a kind of case."""
    return [name for name, check in CHECKS.items() if check.of in ("both", of)]


def mode_of(name: str) -> str:
    """The mode that the name of a check ends with, "auto" if with none."""
    last = name.rsplit(" ", 1)[-1]
    return last if last in (*ONE_SHOT, *PREPARED, COMPILED) else "auto"
