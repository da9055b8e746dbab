# SPDX-License-Identifier: Apache-2.0
"""The Hessian and the generalised Gauss-Newton matrix of a function at a point, as operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hesse.ad.evaluate import check_finite, check_finite_value
from hesse.ad.gauss_newton import GaussNewtonKind, Model
from hesse.ad.summands import Term, check_at
from hesse.ad.variables import Leaves, Variables
from hesse.curvature.memory_budget import layout
from hesse.data.batches import Batch, flatten_batch
from hesse.engine.fallback import ONE_SHOT, HessianAt, HessianMode
from hesse.engine.options import Request
from hesse.engine.plan import Plan
from hesse.engine.summed_product import PREPARED, Preparations, Prepared, PreparedMode
from hesse.errors import FunctionError, check_choice
from hesse.memory.sizes import parse_bytes
from hesse.operators.algebra import LinearOperator
from hesse.risk.risk import Risk
from hesse.tracing.precision import Precision, check_precision
from hesse.vectors.inner_products import dot
from hesse.vectors.rows import transposed
from hesse.vectors.space import Space, Tree


class HessianOperator(LinearOperator):
    """H = grad^2 f(x), symmetric n x n. See `hessian_operator`."""

    def __init__(
        self,
        f: Callable[[Any], Tensor],
        x: Tree,
        space: Space,
        request: Request,
        preparations: Preparations,
    ) -> None:
        super().__init__(space, symmetric=True)
        self._f, self._request, self._preparations = f, request, preparations
        # A copy: the operator is that of this point even if the caller's tensors move on.
        self._x, call = space.copy(x), "hesse.hessian_operator(f, x)"
        self._at = HessianAt(
            f, self._x, space, request, call, repeated=True, preparations=preparations
        )

    @property
    def value(self) -> Tensor:
        """f(x), a scalar tensor; computed at the first use, together with the gradient."""
        return self._at.value.clone()

    @property
    def gradient(self) -> Tree:
        """grad f(x), a tree like x."""
        return self.domain.unflatten(self.flat_gradient)

    @property
    def flat_gradient(self) -> Tensor:
        """grad f(x), shape (n,)."""
        return self._at.gradient.clone()

    @property
    def mode(self) -> str:
        """How products are taken; "auto" resolves to the mode in use."""
        return self._at.mode

    @property
    def plan(self) -> Plan:
        """How products are taken and why, what they cost, what was tried: made to be printed."""
        return self._at.plan

    def at(self, x: Tree) -> HessianOperator:
        """The Hessian of the same function at another point of the same structure."""
        self.domain.leaves(x, call=f"{self}.at(x)", what="x")
        return HessianOperator(self._f, x, self.domain, self._request, self._preparations)

    def announce(self, products: int) -> None:
        self._at.expect(products)

    def __reduce__(self):  # what is prepared is prepared again where it is wanted
        return _hessian, (self._f, self._x, self.domain, self._request)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._at.product(v)

    def _matmat(self, block: Tensor) -> Tensor:
        return self._at.products(transposed(block)).T


def _hessian(f: Any, x: Tree, space: Space, request: Request) -> HessianOperator:
    return HessianOperator(f, x, space, request, getattr(f, "preparations", {}))


def hessian_operator(
    f: Callable[[Any], Tensor],
    x: Tree,
    *,
    mode: HessianMode = "auto",
    memory_budget: int | float | str | None = None,
    precision: Precision = "highest",
) -> HessianOperator:
    r"""The Hessian of f at x as a symmetric operator.

    $$ H = \nabla^2 f(x) \in \mathbb{R}^{n \times n} $$

    Args:
        f: scalar function of one argument; a `Risk` is one.
        x: the point, as in `hvp`; it is copied.
        mode: "auto", a mode of `hvp`, or one of three that prepare at x what all products share.
            "retained-graph" keeps the graph of the gradient: nothing to set up. "traced-split"
            records once, for all points and all data of these shapes, a program of the product and
            keeps what does not depend on v. "compiled-split" compiles that. "auto" starts with the
            graph, on one batch or one after the other, and goes on to the others as soon as the
            time spent on products shows that they pay; `plan` tells which is in use, and why.
        memory_budget: bytes, or a text such as "4GB", that tensors made for a product may take. The
            batches of a `Risk` are cut until a product fits, and residuals are kept for as many of
            them as fit. Some small products are taken at once to find out; for another f, one.
        precision: "highest", "high" (TF32 where a GPU has it) or "medium" (bfloat16 operands in
            large matrix products and convolutions, where the processor is faster in it). Value and
            gradient stay exact; `plan` tells the measured relative error of a product.

    Nothing else is computed until the first product or the first look at `value` or `gradient`.
    After a change of anything else that f reads, such as other parameters, make a new operator
    (`H.at(x)`): programs follow the change, a kept graph only where it needs what was changed, and
    a value or gradient that was looked at not at all.

    Cost: a prepared product 2 gradients, one-shot as in `hvp`; memory n for x, and the residuals
    of a single batch until the operator is released.

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
    check_choice("mode", mode, ["auto", *PREPARED, *ONE_SHOT], call)
    check_precision(precision, mode)
    space = Space.of(x, call=call)

    def make(f: Any, request: Request) -> HessianOperator:
        check_at(f, x)
        return _hessian(f, x, space, request)

    request = Request(mode, precision)
    if memory_budget is None:
        return make(f, request)
    return make(*layout(f, make, request, parse_bytes(memory_budget, call), call))


class GaussNewtonOperator(LinearOperator):
    """G = J' H_L J + weight decay, symmetric n x n. See `ggn_operator`."""

    def __init__(
        self,
        risk: Risk,
        params: Tree,
        space: Space,
        request: Request,
    ) -> None:
        super().__init__(space, symmetric=True)
        self._request = request
        self.risk, self._call = risk, "hesse.ggn_operator(risk, params)"
        self._params = space.copy(params)
        self._variables, x = Variables.of(self._params, space, self._call)
        self._at = Prepared(
            GaussNewtonKind(self._call),
            partial(_models, risk, self._variables),
            self._variables,
            x,
            request,
            risk.preparations,
            alone=risk.n_terms == 1,
        )
        self._value: Tensor | None = None
        self._gradient: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """The risk at the parameters."""
        if self._value is None:
            self._value = self._with_decay(self._at.value())
            check_finite_value(float(self._value), self._call)
        return self._value.clone()

    @property
    def gradient(self) -> Tree:
        """The gradient of the risk, a tree like the parameters."""
        return self.domain.unflatten(self.flat_gradient)

    @property
    def flat_gradient(self) -> Tensor:
        """The gradient of the risk, shape (n,)."""
        if self._gradient is None:
            value, gradient = self._at.value_and_gradient()
            self._value = self._with_decay(value)
            if self.risk.weight_decay:
                varying = self._varying(self.domain.flatten(self._params))
                gradient = torch.add(gradient, varying, alpha=self.risk.weight_decay)
            self._gradient = check_finite(gradient, self.domain, self._call, "gradient")
        return self._gradient.clone()

    @property
    def mode(self) -> str:
        """How products are taken; "auto" may change as they are."""
        return self._at.mode

    @property
    def plan(self) -> Plan:
        """How products are taken and why, what they cost, what was tried: made to be printed."""
        return self._at.plan([])

    def at(self, params: Tree) -> GaussNewtonOperator:
        """The Gauss-Newton matrix of the same risk at other parameters."""
        self.domain.leaves(params, call=f"{self}.at(params)", what="params")
        return GaussNewtonOperator(self.risk, params, self.domain, self._request)

    def announce(self, products: int) -> None:
        self._at.expect(products)

    def __reduce__(self):  # what is prepared is prepared again where it is wanted
        return GaussNewtonOperator, (self.risk, self._params, self.domain, self._request)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._decayed(self._at.product(v), v)

    def _matmat(self, block: Tensor) -> Tensor:
        rows = transposed(block)
        products = self._at.products(rows)
        for v, product in zip(rows, products, strict=True):
            self._decayed(product, v)
        return products.T

    def _curvature(self, v: Tensor) -> float:
        curvature, decay = float(self._at.curvature(v)), self.risk.weight_decay
        return curvature + decay * dot(v, self._varying(v)) if decay else curvature

    def _decayed(self, product: Tensor, v: Tensor) -> Tensor:
        """The product with the weight decay's part, in place; finite, or an error."""
        if self.risk.weight_decay:
            product.add_(self._varying(v), alpha=self.risk.weight_decay)
        return check_finite(product, self.domain, self._call, "product")

    def _with_decay(self, value: Tensor) -> Tensor:
        flat = self.domain.flatten(self._params)
        return value + 0.5 * self.risk.weight_decay * dot(flat, flat)

    def _varying(self, v: Tensor) -> Tensor:
        """v with zeros in the place of frozen parameters."""
        return self._variables.flatten(self._variables.split(v))


def _models(risk: Risk, variables: Variables) -> Iterator[Term]:
    """(outputs, loss) of every batch, as functions of the varying leaves and of the outputs."""
    for coefficient, batch in risk.batches():
        batch = batch.to(variables.space.device)
        data, key = flatten_batch(batch)
        yield Term(coefficient, _model(risk, variables, batch), data, key)


def _model(risk: Risk, variables: Variables, batch: Batch) -> Model:
    def outputs(x: Leaves) -> Any:
        return risk.outputs(variables.tree(x), batch)

    return outputs, lambda z: risk.batch_loss(z, batch)


def ggn_operator(
    risk: Risk | Any,
    params: Tree,
    *,
    mode: PreparedMode = "auto",
    memory_budget: int | float | str | None = None,
    precision: Precision = "highest",
) -> GaussNewtonOperator:
    r"""The generalised Gauss-Newton matrix of a risk, as a symmetric operator.

    $$ G = \sum_b c_b\, J_b^T H_b J_b + \lambda I, \qquad J_b = \frac{d z_b}{d\theta}, \quad
       H_b = \nabla_z^2 \ell_b $$

    with z_b the outputs of the model on batch b, c_b its weight and lambda the weight decay.
    Positive semi-definite when the loss is convex in the outputs.

    Args:
        risk: a `Risk`; the model's outputs must be what the loss is curved in (logits,
            predictions).
        params: the point, `risk.params` or another tree of the same names; it is copied.
        mode, memory_budget, precision: as in `hessian_operator`; there are no one-shot modes.

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
    risk = _risk(risk, call)
    check_choice("mode", mode, ["auto", *PREPARED], call)
    check_precision(precision, mode)
    space = Space.of(params, call=call, what="params")

    def make(risk: Risk, request: Request) -> GaussNewtonOperator:
        risk.check_at(params)
        return GaussNewtonOperator(risk, params, space, request)

    request = Request(mode, precision)
    if memory_budget is None:
        return make(risk, request)
    return make(*layout(risk, make, request, parse_bytes(memory_budget, call), call))


def _risk(f: Any, call: str) -> Risk:
    if isinstance(f, Risk):
        return f
    raise FunctionError(
        call,
        expected="a hesse.Risk, which knows its outputs, its loss and its batches",
        got=f"a {type(f).__name__}",
        remedy="Build hesse.Risk(model, loss, data). A plain function has no Gauss-Newton matrix.",
    )
