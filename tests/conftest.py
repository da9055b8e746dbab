# SPDX-License-Identifier: Apache-2.0
"""What all tests share: seeds, and hypothesis without a clock. No default dtype is changed."""

import hypothesis
import pytest
import torch

# Derandomised: a failure in CI is a failure at home. No deadline: the first call warms up.
from hesse.estimators.estimator_run import EstimatorRun
from hesse.risk.risk import Risk
from hesse.testing.likelihoods import LIKELIHOODS

hypothesis.settings.register_profile("hesse", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("hesse")

# The tensors of the tests are tiny: threads only get into one another's way.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` skip themselves where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, *grads):
        return 2 * ctx.saved_tensors[0] * grads[0]


@pytest.fixture
def square():
    """x^2 by a custom function, which no program can stand for."""
    return _Square.apply


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from one seed, and must leave torch's global settings as they were."""
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


@pytest.fixture(scope="session")
def pool():
    """Three processes that wait for jobs, see `ranks_pool`."""
    from tests.ranks_pool import Pool

    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture
def sampled(monkeypatch):
    """Estimators sample also where the exact answer takes fewer products."""
    monkeypatch.setattr(EstimatorRun, "takes_exact", lambda *_: False)


@pytest.fixture
def build():
    """From a case of `hesse.testing.likelihoods` by its name to a risk on two ragged batches."""

    def risk(name, sizes=(5, 3), frozen=False, **changes):
        case = LIKELIHOODS[name]
        model, loss, batches = case.make(sizes)
        if frozen:
            next(model.parameters()).requires_grad_(False)
        return Risk(model, loss, batches, **(case.options | changes))

    return risk
