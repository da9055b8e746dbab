# SPDX-License-Identifier: Apache-2.0
r"""Oracles: derivatives by their definition, in float64, apart from the products that they judge.

Dense matrices come row by row from `torch.autograd.functional`, on f as a function of one flat
vector; `finite_difference_bilinear` uses values of f alone, no derivative at all. Trees are
flattened in the order of `hesse.Space`, all leaves vary. All are debugging objects: n backward
passes or more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesse.boundary import public
from hesse.errors import DtypeError
from hesse.vectors.inner_products import norm
from hesse.vectors.space import Space, Tree


@public("hesse.testing.dense_gradient(f, x)", nested=False)
def dense_gradient(f: Callable[[Any], Tensor], x: Tree) -> Tensor:
    """The gradient of a scalar f at x, shape (n,).

    >>> dense_gradient(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0], dtype=torch.float64))
    tensor([ 3., 12.], dtype=torch.float64)
    """
    return dense_jacobian(f, x).reshape(-1)


@public("hesse.testing.dense_hessian(f, x)", nested=False)
def dense_hessian(f: Callable[[Any], Tensor], x: Tree) -> Tensor:
    """The Hessian of a scalar f at x, shape (n, n). Cost: a gradient with its graph, n products.

    >>> dense_hessian(lambda x: x[0] ** 2 * x[1], torch.tensor([1.0, 2.0], dtype=torch.float64))
    tensor([[4., 2.],
            [2., 0.]], dtype=torch.float64)
    """
    function, point, _ = _flat(f, x)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        hessian = functional.hessian(function, point)
    assert isinstance(hessian, Tensor)
    return hessian.detach()


@public("hesse.testing.dense_jacobian(g, x)", nested=False)
def dense_jacobian(g: Callable[[Any], Any], x: Tree) -> Tensor:
    """The Jacobian of g at x, shape (m, n), for outputs that are a tensor or a tree of tensors.

    >>> dense_jacobian(lambda x: x**2, torch.tensor([1.0, 2.0], dtype=torch.float64))
    tensor([[2., 0.],
            [0., 4.]], dtype=torch.float64)
    """
    function, point, _ = _flat(lambda leaves: _joined(g(leaves)), x)
    jacobian = functional.jacobian(function, point)
    assert isinstance(jacobian, Tensor)
    return jacobian.detach()


@public("hesse.testing.dense_ggn(outputs, loss, x)", nested=False)
def dense_ggn(outputs: Callable[[Any], Any], loss: Callable[[Any], Tensor], x: Tree) -> Tensor:
    """The generalised Gauss-Newton matrix J' H_L J of loss(outputs(x)) at x, shape (n, n).

    `outputs` maps x to a tensor or a tree of tensors z; `loss` maps such a z to a scalar.

    >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> dense_ggn(lambda x: x**2, lambda z: 0.5 * (z**2).sum(), x)
    tensor([[ 4.,  0.],
            [ 0., 16.]], dtype=torch.float64)
    """
    z = _detached(outputs(x))
    jacobian = dense_jacobian(outputs, x)
    return jacobian.T @ dense_hessian(loss, z) @ jacobian


@public("hesse.testing.finite_difference_bilinear(f, x, u, v)", nested=False)
def finite_difference_bilinear(f: Callable[[Any], Tensor], x: Tree, u: Tensor, v: Tensor) -> float:
    r"""u' H v for flat u and v, from eight values of f and no derivative.

    $$ D(h) = \frac{f(x + hu + hv) - f(x + hu - hv) - f(x - hu + hv) + f(x - hu - hv)}{4 h^2} $$

    has the error c h^2 + O(h^4); (4 D(h) - D(2h)) / 3 has not the first term. With the step
    h = eps^(1/6) for directions of unit length, rounding (eps / h^2) and truncation (h^4) are both
    near 1e-10 of the derivatives of f up to the sixth.

    >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> u, v = torch.eye(2, dtype=torch.float64)
    >>> finite_difference_bilinear(lambda x: x[0] ** 3 * x[1], x, u, v)    # 3 x0^2
    3.00000
    """
    function, point, _ = _flat(f, x)
    scale = norm(u) * norm(v)
    if scale == 0.0:
        return 0.0
    u, v = u / norm(u), v / norm(v)
    h = torch.finfo(torch.float64).eps ** (1 / 6)

    def difference(h: float) -> float:
        same, opposite = h * (u + v), h * (u - v)
        corners = (point + same, point - same, point + opposite, point - opposite)
        ahead, behind, left, right = (float(function(corner).detach()) for corner in corners)
        return (ahead + behind - left - right) / (4 * h * h)

    return scale * (4 * difference(h) - difference(2 * h)) / 3


@public("hesse.testing.finite_difference_hessian(f, x)", nested=False)
def finite_difference_hessian(f: Callable[[Any], Tensor], x: Tree) -> Tensor:
    """The Hessian from values of f alone, shape (n, n). Cost: 4 n (n + 1) evaluations.

    >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> finite_difference_hessian(lambda x: x[0] ** 2 * x[1], x).round(decimals=6)
    tensor([[4., 2.],
            [2., 0.]], dtype=torch.float64)
    """
    n = Space.of(x).n
    eye = torch.eye(n, dtype=torch.float64)
    hessian = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            hessian[i, j] = hessian[j, i] = finite_difference_bilinear(f, x, eye[i], eye[j])
    return hessian


def _flat(f: Callable, x: Tree) -> tuple[Callable[[Tensor], Tensor], Tensor, Space]:
    """f as a function of a flat vector, and x as that vector."""
    space = Space.of(x)
    for name, dtype in zip(space.names, space.dtypes, strict=True):
        if dtype != torch.float64:
            raise DtypeError(
                expected="a point in float64: an oracle must be better than what it judges",
                got=f"{dtype} for '{name or 'x'}'",
                remedy="Convert x, and the constants of f, with .double().",
            )
    return (lambda vector: f(space.unflatten(vector))), space.flatten(x), space


def _joined(outputs: Any) -> Tensor:
    """All tensors of the outputs in one vector, with their history."""
    leaves = Space.of(outputs, what="outputs").leaves(outputs)
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


def _detached(outputs: Any) -> Tree:
    """The outputs without history."""
    space = Space.of(outputs, what="outputs")
    return space.unflatten(space.flatten(outputs))
