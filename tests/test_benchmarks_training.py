# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of training: the tasks are what they say, and a run that is cut off goes on."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "shift"), [("addition", 1.0), ("multiplication", 0.25)])
def test_the_answer_is_that_of_the_two_marked_numbers(name, shift):
    from benchmarks.training import memory_tasks

    x, target = getattr(memory_tasks, name)(50, 40, seeded())
    assert x.shape == (50, 40, 2)
    for (values, marks), right in zip(x.transpose(1, 2), target.flatten(), strict=True):
        first, second = (marks == 1).nonzero().flatten().tolist()
        assert first in range(1, 4)
        assert second in range(4, 20)
        assert (marks == -1).nonzero().flatten().tolist() == [0, 37]
        a, b = float(values[first]) + 0.5, float(values[second]) + 0.5
        answer = a + b if name == "addition" else a * b
        assert float(right) == pytest.approx(answer - shift, abs=1e-6)


def test_the_bits_come_first_and_the_cue_before_they_are_to_be_repeated():
    from benchmarks.training.memory_tasks import five_bits

    x, bits = five_bits(20, 30, seeded())
    symbols = x.argmax(-1)
    assert torch.equal(symbols[:, :5], bits)
    assert (symbols[:, 5:34] == 2).all()
    assert (symbols[:, 34] == 3).all()
    assert (symbols[:, 35:] == 2).all()
    assert symbols.shape == (20, 40)


def small_task():
    from benchmarks.training.task import Task

    test = torch.randn(40, 3, generator=seeded(1))

    def model(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))

    def draw(count, generator):
        x = torch.randn(count, 3, generator=generator)
        return x, x.sin()

    @torch.no_grad()
    def error(model):
        return float((model(test) - test.sin()).square().mean())

    return Task("small", model, nn.functional.mse_loss, draw, error, "error", 0.0)


def rivals():
    from benchmarks.training.rivals import adamw, hessian_free, lbfgs, muon, nesterov
    from benchmarks.training.task import growing

    return {
        "AdamW": adamw(1e-2, 10, clip=1.0),
        "L-BFGS": lbfgs(20),
        "Muon": muon(1e-2, 10),
        "Nesterov": nesterov(1e-2, 10),
        "HessianFree": hessian_free(
            growing(20, 40, 3), damping_rule="scan", mode="retained-graph", max_cg_iterations=3
        ),
    }


@pytest.mark.parametrize("name", ["AdamW", "HessianFree", "L-BFGS", "Muon", "Nesterov"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(name, tmp_path):
    from benchmarks.training.run import train

    rival, ends = rivals()[name], []
    for folder, parts in (("whole", [6]), ("parts", [2, 6])):
        (tmp_path / folder).mkdir()
        for steps in parts:
            history = train(small_task(), rival, 0, 1e9, tmp_path / folder, most_steps=steps)
        saved = torch.load(tmp_path / folder / f"small-{name}-0.pt")
        ends.append((history.steps, history.rows[-1][3], saved["model"]))
    assert ends[0][:2] == ends[1][:2]
    assert all(torch.equal(a, ends[1][2][key]) for key, a in ends[0][2].items())


def test_a_task_in_bfloat16_is_measured_in_float32(tmp_path):
    from benchmarks.training.precision import in_bfloat16
    from benchmarks.training.run import train

    plain, low = small_task(), in_bfloat16(small_task())
    model, x = low.model(0), torch.randn(20, 3, generator=seeded(2))
    assert low.error(model) == plain.error(plain.model(0))
    rounding = (model(x) - model.module(x)).abs().max()
    assert 1e-5 < float(rounding) < 0.05
    history = train(low, rivals()["HessianFree"], 0, 1e9, tmp_path, most_steps=4)
    assert history.rows[-1][3] < low.error(model)


def test_the_mean_is_over_a_tenth_of_the_steps():
    from benchmarks.training.average import Average

    model, steps = nn.Linear(1, 1), 1000
    average = Average(model)
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.fill_(step)
        average.take(model, step)
    weights = torch.arange(1, steps + 1, dtype=torch.float64)
    for power in range(2, 10):  # 1 * 2 * ... : a polynomial of degree 9 in the step
        weights *= torch.arange(power, steps + power, dtype=torch.float64)
    mean = float((weights * torch.arange(1, steps + 1)).sum() / weights.sum())
    assert float(average.model.weight) == pytest.approx(mean, rel=1e-4)
    assert mean == pytest.approx(steps * (1 - 1 / 11), rel=1e-2)


def test_the_table_tells_who_reached_what(tmp_path):
    from benchmarks.training.report import plot, table
    from benchmarks.training.run import History

    task = small_task()
    runs = {("small", "AdamW", 0): History(2, 4.0, 3.0, [(2.0, 1.5, 1, 0.5), (4.0, 3.0, 2, 0.25)])}
    row = table([task], runs, thresholds=(0.5, 0.1)).splitlines()[-1]
    assert row == "| small | AdamW | 0 | 0.2500 | 2 | 4.0 | 3.0 | 2.0 | never |"
    pytest.importorskip("matplotlib")
    plot(tmp_path / "plot.png", [task], runs)
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_the_rate_with_the_least_error_is_taken(tmp_path):
    from benchmarks.training.rivals import adamw
    from benchmarks.training.tuning import Tunable

    tunable = Tunable(lambda rate: adamw(rate, 10), rates=(1e-6, 1e-2, 1e9))
    assert tunable.best(small_task(), 1.0, tmp_path, "processor").name == "AdamW, rate 0.01"


def test_muon_takes_the_matrices_between_embeddings_and_logits():
    from benchmarks.models.gpt import GPT
    from benchmarks.training.rivals import split_for_muon

    model = GPT(vocabulary=20, width=16, layers=2)
    matrices, others = split_for_muon(model)
    assert len(matrices) == 2 * 4
    assert {id(p) for p in [*matrices, *others]} == {id(p) for p in model.parameters()}
    assert any(p is model.head.weight for p in others)
    assert any(p is model.tokens.weight for p in others)


def test_the_momentum_of_nesterov_grows_as_published():
    from benchmarks.training.rivals import nesterov

    model = nn.Linear(3, 3)
    rival, task = nesterov(1e-3, 10, most=0.9), small_task()
    optimizer = rival.make(task, model, None)
    momenta = []
    for _ in range(1001):
        rival.step(optimizer, task, model, task.draw(2, seeded()))
        momenta.append(optimizer.param_groups[0]["momentum"])
    assert [momenta[t] for t in (0, 249, 250, 500, 750)] == pytest.approx(
        [0.5, 0.5, 0.75, 1 - 2 ** -(1 + math.log2(3)), 0.875]
    )
    assert momenta[1000] == 0.9


def test_the_following_character_is_to_be_told():
    from benchmarks.training.text import language, read, windows

    x, y = windows(torch.arange(1000), 30, seeded())
    assert torch.equal(y, x + 1)
    assert torch.equal(x[:, 1:], y[:, :-1])
    text = read(None)
    task = language(text, width=16, layers=1)
    uniform = math.log(len(set(text)))
    assert task.error(task.model(0)) == pytest.approx(uniform, abs=0.5)


def test_curves_vary_as_those_that_are_published():
    from benchmarks.training.images import curves

    images = curves(1000)
    assert images.min() >= 0
    assert images.max() <= 1
    centred = images - images.mean(dim=0)
    variances = torch.linalg.svdvals(centred) ** 2 / len(images)
    assert float(variances.sum()) == pytest.approx(16, rel=0.1)
    assert float(variances[18:].sum()) == pytest.approx(5.9, rel=0.1)
    assert torch.equal(images[:300], curves(300))
