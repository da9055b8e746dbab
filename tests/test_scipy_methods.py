# SPDX-License-Identifier: Apache-2.0
"""`scipy.optimize.minimize(method=hesse.scipy....)`: SciPy's arguments, options and results."""

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
from scipy.optimize import (
    Bounds,
    OptimizeResult,
    minimize,
    rosen,
    rosen_der,
    rosen_hess,
    rosen_hess_prod,
)

import hesse
import hesse.scipy as methods
from hesse.errors import ArgumentError, DerivativeError, HesseError

START = np.array([0.2, 1.0, 0.5, 2.0])
ALL = [getattr(methods, name) for name in methods.__all__]


@pytest.mark.some_cases(12)
@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("given", ["hessp", "hess", "nothing"])
def test_numpy_functions_are_minimised(method, given):
    products = {"hessp": {"hessp": rosen_hess_prod}, "hess": {"hess": rosen_hess}, "nothing": {}}
    result = minimize(rosen, START, jac=rosen_der, method=method, **products[given])
    assert isinstance(result, OptimizeResult)
    assert result.success, result.message
    assert isinstance(result.x, np.ndarray)
    assert result.x == pytest.approx(np.ones(4), abs=1e-6)
    assert result.fun == pytest.approx(0.0, abs=1e-12)
    assert result.jac == pytest.approx(rosen_der(result.x), abs=1e-9)
    assert result.min_curvature == pytest.approx(
        np.linalg.eigvalsh(rosen_hess(np.ones(4)))[0], rel=1e-3
    )


@pytest.mark.parametrize("method", ALL)
def test_a_function_of_a_tensor_needs_no_derivatives(method):
    result = minimize(
        lambda x, a: (a * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(), START,
        args=(100.0,), method=method,
    )  # fmt: skip
    assert result.x == pytest.approx(np.ones(4), abs=1e-6)


def test_calls_of_the_users_functions_are_what_is_counted():
    calls = {"fun": 0, "jac": 0, "hessp": 0}

    def counted(name, function):
        def called(*arguments):
            calls[name] += 1
            return function(*arguments)

        return called

    result = minimize(
        counted("fun", rosen), START, jac=counted("jac", rosen_der),
        hessp=counted("hessp", rosen_hess_prod), method=methods.trust_krylov,
    )  # fmt: skip
    points = result.njev + 1  # at each, two values and gradients and a product check the others
    assert calls["fun"] <= result.nfev + 2 * points
    assert calls["jac"] <= result.njev + 2 * points
    assert result.nhev <= calls["hessp"] <= result.nhev + points


def test_value_and_gradient_together():
    result = minimize(lambda x: (rosen(x), rosen_der(x)), START, jac=True, method=methods.newton_cg)
    assert result.x == pytest.approx(np.ones(4), abs=1e-6)


@pytest.mark.parametrize(
    "bounds", [[(-2, 0.5)] * 4, Bounds(-2, 0.5), Bounds([-2] * 4, [0.5] * 4), [(None, 0.5)] * 4]
)
@pytest.mark.parametrize("method", [methods.trust_cg, methods.enriched, methods.lbfgs])
def test_bounds(bounds, method):
    start = np.minimum(START, 0.5)
    theirs = minimize(rosen, start, jac=rosen_der, bounds=bounds, method="L-BFGS-B", tol=1e-12)
    ours = minimize(rosen, start, jac=rosen_der, hess=rosen_hess, bounds=bounds, method=method)
    assert ours.success
    assert ours.x == pytest.approx(theirs.x, abs=1e-5)
    with pytest.raises(ArgumentError, match="trust-cg"):
        minimize(rosen, start, jac=rosen_der, bounds=bounds, method=methods.cubic)


def test_options_and_callbacks():
    seen = []
    result = minimize(
        rosen, START, jac=rosen_der, hessp=rosen_hess_prod, method=methods.trust_krylov,
        callback=seen.append, options={"maxiter": 5, "max_inner_iterations": 2},
    )  # fmt: skip
    assert (result.success, result.nit) == (False, 5)
    assert all(x.shape == (4,) for x in seen)
    loose = minimize(rosen, START, jac=rosen_der, method=methods.cubic, options={"gtol": 0.1})
    assert loose.success
    assert np.linalg.norm(loose.jac) <= 0.1
    values = []

    def stop(intermediate_result):
        values.append(intermediate_result.fun)
        if len(values) == 3:
            raise StopIteration

    stopped = minimize(rosen, START, jac=rosen_der, method=methods.trust_cg, callback=stop)
    assert not stopped.success
    assert len(values) == 3


def test_what_is_not_taken_is_refused():
    with pytest.raises(ArgumentError, match="options among"):
        minimize(rosen, START, jac=rosen_der, method=methods.cubic, options={"ftol": 1.0})
    with pytest.raises(ArgumentError, match="constraints"):
        minimize(
            rosen,
            START,
            jac=rosen_der,
            method=methods.cubic,
            constraints={"type": "eq", "fun": rosen},
        )
    with pytest.raises(HesseError, match="Give jac= with a function of arrays"):
        minimize(rosen, START, method=methods.cubic)
    with pytest.raises(HesseError, match="4 entries"):
        minimize(rosen, START, jac=lambda x: x[:2], method=methods.cubic)


def test_products_that_are_not_those_of_the_gradient_are_named():
    with pytest.raises(DerivativeError, match="products of hess or hessp") as error:
        minimize(
            rosen, START, jac=rosen_der, hessp=lambda x, v: 1.01 * rosen_hess_prod(x, v),
            method=methods.trust_krylov,
        )  # fmt: skip
    assert "leave hess and hessp out" in str(error.value)


def test_the_callers_arrays_are_left_as_they_are():
    def gradient(x):
        result = rosen_der(x)
        x[:] = np.nan
        return result

    start = START.copy()
    result = minimize(
        rosen, start, jac=gradient, hessp=rosen_hess_prod, method=methods.trust_krylov
    )
    assert result.success
    assert np.array_equal(start, START)


def test_the_root_finds_the_package():
    assert hesse.scipy is methods
    assert torch.get_default_dtype() is torch.float32
