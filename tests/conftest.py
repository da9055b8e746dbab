# SPDX-License-Identifier: Apache-2.0
"""What all tests share: seeds, and hypothesis without a clock. No default dtype is changed."""

import gc
import os
import resource
import signal
from collections import defaultdict
from itertools import chain, combinations
from pathlib import Path

import hypothesis
import pytest
import torch

# Derandomised: a failure in CI is a failure at home. No deadline: the first call warms up.
from hesse.estimators.estimator_run import EstimatorRun
from hesse.risk.risk import Risk
from hesse.testing.likelihoods import LIKELIHOODS

hypothesis.settings.register_profile("hesse", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("hesse")

# Tests send Ctrl-C, which a process that a shell starts in the background ignores.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tensors of the tests are tiny: threads only get into one another's way, also in the processes
# that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    """`--thorough`: the long tests take all cases, seeds and samples, not a part of each kind."""
    parser.addoption(
        "--thorough", action="store_true", help="all cases, seeds and samples of the long tests"
    )


def _measurement(config):
    """What pauses and resumes the tracing for the coverage report, or None."""
    return getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None)


@pytest.hookimpl(tryfirst=True)  # before `pytest-cov`
def pytest_sessionstart(session):
    """End the tracing that `pytest-cov` began before it saw that this is a process of xdist.

    There it begins a second one, and to pause that one only wakes up the first, which nobody saves.
    """
    if (measurement := _measurement(session.config)) and hasattr(session.config, "workerinput"):
        measurement.pause()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """The fixtures of a test that is not traced are not traced either, nor is pytest itself."""
    measurement = _measurement(item.config)
    if measurement is None or "no_cover" not in item.keywords:
        return (yield)
    measurement.pause()
    try:
        return (yield)
    finally:
        measurement.pause()  # `pytest-cov` resumes after the call
        measurement.resume()


@pytest.fixture(scope="session")
def thorough(pytestconfig):
    """Whether to take all seeds and samples."""
    return pytestconfig.getoption("--thorough")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config, items):
    """Select and mark cases; slow tests come first, or a process would wait for them at the end.

    The first ones share a pool of ranks: all in one process, they start it once.

    For the coverage report one case of each test that is not slow is traced, which takes half as
    long again. Tests marked `gpu` or `distributed` are skipped where torch cannot run them.
    """
    _set_aside(config, items)
    for group in _by_test(items):
        if mark := group[0].get_closest_marker("fast_cases"):
            quick = [item for item in group if "slow" not in item.keywords]
            for item in set(quick) - _spread(quick, *mark.args):
                item.add_marker(pytest.mark.slow)
        quick = [item for item in group if "slow" not in item.keywords]
        for item in set(group) - _spread(quick, 1):
            item.add_marker(pytest.mark.no_cover)
    items.sort(key=lambda item: ("pool" not in item.fixturenames, "slow" not in item.keywords))
    for mark, is_there, reason in (
        ("gpu", torch.cuda.is_available(), "needs a CUDA device"),
        ("distributed", torch.distributed.is_available(), "torch without distributed"),
    ):
        for item in items if not is_there else ():
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Garbage is not looked for among the 10^6 objects that modules and cases are made of."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _by_test(items):
    """Lists of the cases of one test each."""
    cases = defaultdict(list)
    for item in items:
        cases[item.parent, getattr(item, "originalname", item.name)].append(item)
    return cases.values()


def _set_aside(config, items):
    """Leave to `--thorough` what `some_cases` does not take; there these cases are slow."""
    others = set()
    for group in _by_test(items):
        if mark := group[0].get_closest_marker("some_cases"):
            others |= set(group) - _covering(group, *mark.args)
    if config.getoption("--thorough"):
        for item in others:
            item.add_marker(pytest.mark.slow)
        return
    config.hook.pytest_deselected(items=[item for item in items if item in others])
    items[:] = [item for item in items if item not in others]


def _covering(group, count):
    """So many of the cases of a test: each value of each parameter about as often, pairs likewise.

    One after the other, the case is taken with most values that none has, and the rarest ones.
    """
    values, pairs = {}, {}
    for item in group:
        values[item] = [(name, id(value)) for name, value in item.callspec.params.items()]
        pairs[item] = list(combinations(values[item], 2))
    taken = dict.fromkeys(chain(*values.values(), *pairs.values()), 0)  # a Counter is slow at 0
    left = list(group)

    def frequency(item):
        old = sum(taken[value] > 0 for value in values[item])
        return [old, *(sum(taken[each] for each in parts[item]) for parts in (values, pairs))]

    for _ in range(min(count, len(group))):
        left.remove(item := min(left, key=frequency))
        for part in values[item] + pairs[item]:
            taken[part] += 1
    if not all(taken[value] for item in group for value in values[item]):
        raise pytest.UsageError(f"{count} cases of {group[0].nodeid} do not have every value")
    return set(group) - set(left)


def _spread(group, count):
    """So many of the cases of a test, at equal distances."""
    count = min(count, len(group))
    return {group[k * len(group) // count] for k in range(count)}


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


def seed(number):
    """As `torch.manual_seed`, which keeps a stack trace of each call where there is no CUDA."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)


def pytest_collectstart(collector):
    """The numbers that a module draws when it is imported are the same in every run."""
    if isinstance(collector, pytest.Module):
        seed(0)


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from one seed, and must leave torch's global settings as they were."""
    seed(0)
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


@pytest.fixture(scope="session")
def fresh():
    """What runs scripts in processes that have imported torch and Hesse alone."""
    from tests.fresh_process import FreshProcess

    fresh = FreshProcess()
    yield fresh
    fresh.close()


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


@pytest.fixture
def little_memory():
    """At most 4 GB more of address space than now."""
    with Path("/proc/self/statm").open() as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
