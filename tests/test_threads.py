"""Several threads at once: each gets the numbers of its own point, and leaves settings alone."""

import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import pytest
import torch
from torch import nn
from torch.backends import cuda

from hesse import Risk, hessian_operator, hvp
from hesse.ad.decompositions import without_onednn
from hesse.surroundings import math_attention

DOUBLE = torch.float64


class Quartic(nn.Module):
    """sum (w x)^4 / 12, whose Hessian is w^2 x^4 on the diagonal; slow enough to be met."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=DOUBLE))

    def forward(self, x):
        time.sleep(0.01)
        return (self.w * x) ** 4 / 12


def mean_of_sums(outputs, targets):
    return (outputs.sum(1) - targets).mean()


ONES = torch.ones(4, 3, dtype=DOUBLE), torch.zeros(4, dtype=DOUBLE)
V = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)


def product(risk, scale, way):
    point = {"w": torch.full((3,), float(scale), dtype=DOUBLE)}
    if way == "hvp":
        return hvp(risk, point, V)
    if way == "value":
        return torch.autograd.functional.hvp(lambda w: risk({"w": w}), point["w"], V)[1]
    return hessian_operator(risk, point, mode="retained-graph") @ V


@pytest.mark.parametrize("share", ["a risk", "a model"])
@pytest.mark.parametrize("way", ["hvp", "value", "operator"])
def test_threads_at_different_points_of_one_model_do_not_see_each_other(way, share):
    model = Quartic()
    risks = [Risk(model, mean_of_sums, ONES)] * 4
    if share == "a model":
        risks = [Risk(model, mean_of_sums, ONES) for _ in range(4)]
    scales = [1, 2, 3, 4] * 3
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda s: product(risks[s - 1], s, way), scales)
    for scale, result in zip(scales, found, strict=True):
        torch.testing.assert_close(result, scale**2 * V)
    assert model.w.data_ptr() == dict(model.named_parameters())["w"].data_ptr()
    assert (model.w == 1).all()


@pytest.mark.parametrize(
    ("setting", "is_on"),
    [
        (math_attention, cuda.flash_sdp_enabled),
        (without_onednn, lambda: torch.backends.mkldnn.enabled),
    ],
    ids=["math attention", "no oneDNN"],
)
def test_a_setting_stays_while_any_thread_needs_it(setting, is_on):
    inside, left = Barrier(2), Barrier(2)
    seen = []

    def first_in_first_out():
        with setting():
            inside.wait(10)
        left.wait(10)

    assert is_on()
    thread = Thread(target=first_in_first_out)
    thread.start()
    with setting():
        inside.wait(10)
        left.wait(10)
        seen.append(is_on())
    thread.join()
    assert (seen, is_on()) == ([False], True)


def test_draws_of_another_thread_are_not_those_of_the_function():
    def f(x):
        other = Thread(target=torch.rand, args=(1,))
        other.start()
        other.join()
        return (x**4).sum() / 12

    H = hessian_operator(f, 2 * torch.ones(3, dtype=DOUBLE), mode="traced-split")
    torch.testing.assert_close(H @ V, 4 * V)


def test_numpy_may_be_imported_by_another_thread(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy.random", types.ModuleType("numpy.random"))
    H = hessian_operator(lambda x: (x**4).sum() / 12, 2 * torch.ones(3, dtype=DOUBLE))
    torch.testing.assert_close(H @ V, 4 * V)
