# SPDX-License-Identifier: Apache-2.0
"""The Hessian and the generalised Gauss-Newton matrix of a function at a point, as operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from hesse.ad.evaluate import Variables, check_finite, check_finite_value
from hesse.ad.gauss_newton import RetainedGaussNewton
from hesse.ad.hessian_at import ONE_SHOT, HessianAt, HessianMode, check_mode
from hesse.ad.terms import has_one_term, weighted_sum
from hesse.data import Batch
from hesse.errors import ArgumentError, FunctionError
from hesse.operators.base import LinearOperator
from hesse.risk import Risk
from hesse.vectors import Space, Tree, dot


class HessianOperator(LinearOperator):
    """H = grad^2 f(x), symmetric n x n. See `hessian_operator`."""

    def __init__(
        self, f: Callable[[Any], Tensor], x: Tree, mode: HessianMode, space: Space
    ) -> None:
        super().__init__(space, symmetric=True)
        self._f = f
        self._mode: HessianMode = mode
        # A copy: the operator is that of this point even if the caller's tensors move on.
        self._x = space.copy(x)
        self._at = HessianAt(f, self._x, space, mode, "hesse.hessian_operator(f, x)", repeated=True)

    @property
    def value(self) -> Tensor:
        """f(x), a scalar tensor; computed at the first use, together with the gradient."""
        return self._at.value

    @property
    def gradient(self) -> Tree:
        """grad f(x), a tree like x."""
        return self.domain.unflatten(self.flat_gradient)

    @property
    def flat_gradient(self) -> Tensor:
        """grad f(x), shape (n,)."""
        return self._at.gradient

    @property
    def mode(self) -> str:
        """How products are taken; "auto" resolves to the mode in use."""
        return self._at.mode

    def at(self, x: Tree) -> HessianOperator:
        """The Hessian of the same function at another point of the same structure."""
        self.domain.leaves(x, call=f"{self}.at(x)", what="x")
        return HessianOperator(self._f, x, self._mode, self.domain)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._at.product(v)


def hessian_operator(
    f: Callable[[Any], Tensor], x: Tree, *, mode: HessianMode = "auto"
) -> HessianOperator:
    r"""The Hessian of f at x as a symmetric operator.

    $$ H = \nabla^2 f(x) \in \mathbb{R}^{n \times n} $$

    Args:
        f: scalar function of one argument; a `Risk` is one.
        x: the point, as in `hvp`; it is copied.
        mode: as in `hvp`, or "retained-graph": keep the graph of the gradient, so that a product
            costs two gradients. "auto" takes that for a plain f or a risk with one batch, and
            one-shot products, batch by batch, for a risk with several.

    Nothing is computed until the first product or the first look at `value` or `gradient`.

    Cost: a product with a retained graph 2 gradients, one-shot as in `hvp`; memory n for x, and
    with a retained graph its residuals until the operator is released.

    Raises:
        HesseError: as `hvp`; also if f draws random numbers.

    >>> import torch
    >>> H = hessian_operator(lambda x: (x**4).sum() / 12, torch.tensor([1.0, 2.0]))
    >>> H @ torch.ones(2), H.gradient, H.value
    (tensor([1., 4.]), tensor([0.3333, 2.6667]), tensor(1.4167))
    >>> H.at(torch.tensor([3.0, 0.0])).to_dense()
    tensor([[9., 0.],
            [0., 0.]])
    """
    call = "hesse.hessian_operator(f, x)"
    check_mode(mode, ["auto", "retained-graph", *ONE_SHOT], call)
    if mode == "retained-graph":
        _check_one_term(f, call)
    return HessianOperator(f, x, mode, Space.of(x, call=call))


class GaussNewtonOperator(LinearOperator):
    """G = J' H_L J + weight decay, symmetric n x n. See `ggn_operator`."""

    def __init__(self, risk: Risk, params: Tree, space: Space) -> None:
        super().__init__(space, symmetric=True)
        self.risk, self._call = risk, "hesse.ggn_operator(risk, params)"
        self._params = space.copy(params)
        self._variables, self._x = Variables.of(self._params, space, self._call)
        self._kept: tuple[float, RetainedGaussNewton] | None = None
        self._value: Tensor | None = None
        self._gradient: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """The risk at the parameters."""
        if self._value is None:
            (value,) = self._sum(lambda at: (at.value,))
            flat = self.domain.flatten(self._params)
            self._value = value + 0.5 * self.risk.weight_decay * dot(flat, flat)
            check_finite_value(float(self._value), self._call)
        return self._value

    @property
    def gradient(self) -> Tree:
        """The gradient of the risk, a tree like the parameters."""
        return self.domain.unflatten(self.flat_gradient)

    @property
    def flat_gradient(self) -> Tensor:
        """The gradient of the risk, shape (n,)."""
        if self._gradient is None:
            (gradient,) = self._sum(lambda at: (self._variables.flatten(at.gradient),))
            varying = self._varying(self.domain.flatten(self._params))
            self._gradient = gradient.add_(varying, alpha=self.risk.weight_decay)
            check_finite(self._gradient, self.domain, self._call, "gradient")
        return self._gradient

    def at(self, params: Tree) -> GaussNewtonOperator:
        """The Gauss-Newton matrix of the same risk at other parameters."""
        self.domain.leaves(params, call=f"{self}.at(params)", what="params")
        return GaussNewtonOperator(self.risk, params, self.domain)

    def _matvec(self, v: Tensor) -> Tensor:
        directions = self._variables.split(v)
        (product,) = self._sum(lambda at: (self._variables.flatten(at.product(directions)),))
        product.add_(self._varying(v), alpha=self.risk.weight_decay)
        return check_finite(product, self.domain, self._call, "product")

    def _curvature(self, v: Tensor) -> float:
        directions = self._variables.split(v)
        (curvature,) = self._sum(lambda at: (at.curvature(directions),))
        return float(curvature) + self.risk.weight_decay * dot(v, self._varying(v))

    def _sum(self, evaluate: Callable[[RetainedGaussNewton], tuple[Tensor, ...]]) -> list[Tensor]:
        """sum_b c_b evaluate(the product on batch b)."""
        sums = weighted_sum((c, evaluate(at)) for c, at in self._parts())
        return [entry for entry in sums if entry is not None]

    def _parts(self) -> Iterator[tuple[float, RetainedGaussNewton]]:
        """(c_b, the product on batch b): kept for a single batch, made anew for several."""
        if self._kept is None and self.risk.n_terms == 1:
            ((coefficient, batch),) = self.risk.batches()
            self._kept = coefficient, self._prepare(batch)
        if self._kept is not None:
            yield self._kept
            return
        for coefficient, batch in self.risk.batches():
            yield coefficient, self._prepare(batch)

    def _prepare(self, batch: Batch) -> RetainedGaussNewton:
        batch = batch.to(self.device)
        return RetainedGaussNewton(
            lambda x: self.risk.outputs(self._variables.tree(x), batch),
            lambda outputs: self.risk.batch_loss(outputs, batch),
            self._x,
            self._call,
        )

    def _varying(self, v: Tensor) -> Tensor:
        """v with zeros in the place of frozen parameters."""
        return self._variables.flatten(self._variables.split(v))


def ggn_operator(risk: Risk | Any, params: Tree) -> GaussNewtonOperator:
    r"""The generalised Gauss-Newton matrix of a risk, as a symmetric operator.

    $$ G = \sum_b c_b\, J_b^T H_b J_b + \lambda I, \qquad J_b = \frac{d z_b}{d\theta}, \quad
       H_b = \nabla_z^2 \ell_b $$

    with z_b the outputs of the model on batch b, c_b its weight and lambda the weight decay.
    Positive semi-definite when the loss is convex in the outputs.

    Args:
        risk: a `Risk`; the model's outputs must be what the loss is curved in (logits,
        predictions).
        params: the point, `risk.params` or another tree of the same names; it is copied.

    Cost: 1.33 gradients a product on a single batch, whose graph is kept; 2.33 on several, which
    are taken one after the other. `G.curvature(v)` costs half. `G.value` and `G.gradient` are those
    of the risk.

    Raises:
        HesseError: params not of the model; a loss that is linear in the outputs; NaN.

    References: Schraudolph 2002, doi:10.1162/08997660260028683.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> risk = Risk(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), (x, x))
    >>> ggn_operator(risk, risk.params).to_dense()                   # 2 (1 + 4) / 2
    tensor([[5.]])
    """
    call = "hesse.ggn_operator(risk, params)"
    if not isinstance(risk, Risk):
        raise FunctionError(
            call,
            expected="a hesse.Risk, which knows its outputs and its loss",
            got=f"a {type(risk).__name__}",
            remedy="Build hesse.Risk(model, loss, data); a plain function has no such matrix.",
        )
    return GaussNewtonOperator(risk, params, Space.of(params, call=call, what="params"))


def _check_one_term(f: Any, call: str) -> None:
    if not has_one_term(f):
        raise ArgumentError(
            call,
            expected="a single batch for mode='retained-graph', which keeps the graph of all data",
            got=f"{f.n_terms} batches",
            remedy="Use mode='auto', or give the data as one pair (inputs, targets).",
        )
