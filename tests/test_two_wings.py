# SPDX-License-Identifier: Apache-2.0
"""Linear algebra is there without a line of differentiation, models or data."""

import subprocess
import sys

import pytest

LINEAR_ALGEBRA = ["vectors", "operators", "krylov", "estimators", "testing"]
OTHER_WING = ["tracing", "ad", "engine", "data", "risk", "curvature", "optimize", "apps"]

SCRIPT = f"""
import sys
import torch
import hesse
from hesse import {", ".join(LINEAR_ALGEBRA)}

assert hesse.solve(2.0 * torch.eye(3), torch.ones(3)).converged
assert hesse.trace(torch.eye(3)).value == 3.0
loaded = {{name.split(".")[1] for name in sys.modules if name.startswith("hesse.")}}
assert not loaded & set({OTHER_WING!r}), loaded
assert hesse.hessian_operator and "curvature" in dir(hesse)
"""


@pytest.mark.slow
def test_linear_algebra_loads_nothing_of_the_other_wing(fresh):
    done = fresh.run(SCRIPT)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error():
    script = "import hesse; hesse.no_such_name"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "module 'hesse' has no attribute 'no_such_name'" in done.stderr


@pytest.mark.slow
def test_an_application_is_loaded_when_it_is_first_used(fresh):
    script = (
        "import sys, hesse; names = dir(hesse.apps); assert 'argmin' in names, names; "
        "loaded = [m for m in sys.modules if m.startswith('hesse.apps.')]; assert not loaded; "
        "hesse.apps.argmin; assert 'hesse.apps.implicit.argmin' in sys.modules; "
        "assert 'hesse.apps.statistics' not in sys.modules; hesse.apps.no_such_name"
    )
    done = fresh.run(script)
    assert "module 'hesse.apps' has no attribute 'no_such_name'" in done.stderr
