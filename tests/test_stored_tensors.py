# SPDX-License-Identifier: Apache-2.0
"""What a model or f computes once, and stores from one call to the next, is refused."""

import functools
import warnings

import pytest
import torch
from torch import nn

from hesse.curvature import hessian_operator, hvp, jacobian_operator
from hesse.errors import FunctionError
from hesse.optimize.minimize import minimize
from hesse.risk.risk import Risk

X, Y = torch.randn(5, 3).double(), torch.randn(5, 3).double()
MSE = nn.MSELoss()


class Squared(nn.Module):
    """x W W', of which a child stores the square."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3).double())
        self.bias = nn.Parameter(torch.randn(3).double())

    def square(self):
        return self.weight @ self.weight.T

    def forward(self, x):
        return x @ self.square() + self.bias**3


class InAttribute(Squared):
    stored = None

    def square(self):
        if self.stored is None:
            self.stored = super().square()
        return self.stored


class InDict(Squared):
    def __init__(self):
        super().__init__()
        self.stored = {"squares": []}

    def square(self):
        if not self.stored["squares"]:
            self.stored["squares"].append(super().square())
        return self.stored["squares"][0]


class InProperty(Squared):
    @functools.cached_property
    def stored(self):
        return super().square()

    def square(self):
        return self.stored


class InCache(Squared):
    @functools.cache  # noqa: B019
    def square(self):
        return super().square()


class InClosure(Squared):
    def __init__(self):
        super().__init__()
        stored = {}

        def square():
            if "square" not in stored:
                stored["square"] = Squared.square(self)
            return stored["square"]

        self.square = square


FOUND = [InAttribute, InDict, InProperty]


@pytest.mark.parametrize("module", [*FOUND, InCache, InClosure])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_model_that_stores_what_it_computed_is_refused(module, gradients):
    with torch.set_grad_enabled(gradients), pytest.raises(FunctionError) as caught:
        Risk(module(), MSE, (X, Y))
    assert "stores what it computed from 'weight'" in caught.value.got
    assert ("attribute 'stored' of the module" in caught.value.got) == (module in FOUND)


def test_the_place_in_a_child_is_named():
    model = nn.Sequential(nn.Linear(3, 3).double(), InAttribute())
    with pytest.raises(FunctionError, match=r"from '1\.weight' in the attribute '1\.stored'"):
        Risk(model, MSE, (X, Y))


@pytest.mark.parametrize("module", FOUND)
def test_what_was_stored_before_is_named(module):
    model = module()
    model(X)
    with pytest.raises(FunctionError, match="stores what it computed from 'weight' in the attr"):
        Risk(model, MSE, (X, Y))


@pytest.mark.parametrize("module", FOUND)
def test_there_is_a_warning_where_something_may_have_been_stored_without_a_graph(module):
    model = module()
    with torch.no_grad():
        model(X)
    with pytest.warns(UserWarning, match="not depend on 'weight', and .* attribute 'stored'"):
        Risk(model, MSE, (X, Y))


def test_a_frozen_parameter_may_be_stored():
    model = InAttribute()
    model.weight.requires_grad_(False)
    with torch.no_grad():
        model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Risk(model, MSE, (X, Y))


class WithConstant(Squared):
    """Has a tensor that is no buffer, and stores its last outputs, which nobody reads."""

    def __init__(self):
        super().__init__()
        self.scale = torch.ones(3).double()

    def forward(self, x):
        self.outputs = super().forward(x) * self.scale
        return self.outputs


def test_constants_and_tensors_that_nobody_reads_are_no_matter():
    torch.manual_seed(0)
    model = WithConstant()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        risk = Risk(model, MSE, (X, Y))
    H = hessian_operator(risk, risk.params).to_dense()
    plain = Squared()
    plain.load_state_dict(model.state_dict())
    risk = Risk(plain, MSE, (X, Y))
    torch.testing.assert_close(H, hessian_operator(risk, risk.params).to_dense())
    assert H.norm() > 0


def test_a_callable_that_stores_what_it_computed_is_refused():
    stored = {}

    def model(params, x):
        if "square" not in stored:
            stored["square"] = params["w"] @ params["w"].T
        return x @ stored["square"]

    with pytest.raises(FunctionError, match="stores what it computed from 'w'"):
        Risk(model, MSE, (X, Y), params={"w": torch.randn(3, 3).double()})


def storing():
    stored = {}

    def f(x):
        if "square" not in stored:
            stored["square"] = x * x
        return (stored["square"] * x * x).sum()

    return f


POINT, OTHER = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 5.0]).double()


def test_an_f_that_stores_what_it_computed_is_refused_at_the_second_point():
    f, ones = storing(), torch.ones(2).double()
    H = hessian_operator(f, POINT)
    torch.testing.assert_close(H.to_dense(), torch.diag(12 * POINT**2))
    with pytest.raises(FunctionError, match="stores what it computed from an earlier x"):
        _ = H.at(OTHER) @ ones
    with pytest.raises(FunctionError, match="stores what it computed from an earlier x"):
        hvp(f, OTHER, ones)


def test_a_minimisation_of_an_f_that_stores_what_it_computed_is_refused():
    with pytest.raises(FunctionError, match="stores what it computed from an earlier x"):
        minimize(storing(), OTHER, method="newton-cg")


def test_a_jacobian_of_what_is_stored_is_refused():
    stored = {}

    def g(x):
        if "square" not in stored:
            stored["square"] = x * x
        return stored["square"] * x

    J = jacobian_operator(g, POINT)  # calls g for the shape of its result
    with pytest.raises(FunctionError, match="stores what it computed from an earlier x"):
        J.to_dense()


def test_a_product_inside_of_f_may_close_over_the_x_of_another_function():
    def outer(x):
        inner = hvp(lambda y: (y**2).sum() * 0.5, x.detach(), torch.ones(2).double())
        return (x**4 * inner).sum()

    torch.testing.assert_close(hvp(outer, POINT, torch.ones(2).double()), 12 * POINT**2)
    torch.testing.assert_close(hvp(outer, OTHER, torch.ones(2).double()), 12 * OTHER**2)
