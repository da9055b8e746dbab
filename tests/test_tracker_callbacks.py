# SPDX-License-Identifier: Apache-2.0
"""A tracker as a callback of Lightning and of transformers."""

import sys
import types

import pytest
import torch

from hesse import HesseError
from hesse.apps import CurvatureTracker
from tests.tracked_risks import forever, net, risk


def test_the_lightning_callback_steps_with_the_optimizer(monkeypatch):
    package = types.ModuleType("lightning.pytorch")
    package.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", package)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    tracker = CurvatureTracker(risk(model), every=1, budget=None)
    callback = tracker.lightning()
    assert isinstance(callback, package.Callback)
    for global_step in (1, 1, 2):  # two micro-batches make the first step
        trainer = types.SimpleNamespace(global_step=global_step, optimizers=[optimizer])
        callback.on_train_batch_end(trainer, model, None, None, 0)
    assert [row.learning_rate for row in tracker.history] == [0.25, 0.25]
    other = CurvatureTracker(risk(model), every=1)
    other.lightning().load_state_dict(callback.state_dict())
    assert len(other.history) == 2


def test_the_transformers_callback_steps_with_the_optimizer(monkeypatch):
    package = types.ModuleType("transformers")
    package.TrainerCallback = type("TrainerCallback", (), {})
    monkeypatch.setitem(sys.modules, "transformers", package)
    model = net()
    tracker = CurvatureTracker(risk(model), every=1, budget=None)
    callback = tracker.transformers()
    inner = torch.optim.SGD(model.parameters(), lr=0.25)
    accelerated = types.SimpleNamespace(optimizer=inner, param_groups=inner.param_groups)
    callback.on_step_end(None, None, None, optimizer=accelerated)
    assert tracker.history[0].learning_rate == 0.25


@pytest.mark.slow
def test_the_handler_of_transformers_calls_it():
    """What `transformers.Trainer` hands its callbacks to."""
    transformers = pytest.importorskip("transformers")
    from transformers.trainer_callback import CallbackHandler

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    tracker = CurvatureTracker(risk(model), every=2, budget=None)
    handler = CallbackHandler([tracker.transformers()], model, None, optimizer, None)
    for _ in range(5):
        handler.on_step_end(None, transformers.TrainerState(), transformers.TrainerControl())
    assert [(row.step, row.learning_rate) for row in tracker.history] == [
        (k, 0.25) for k in (0, 2, 4)
    ]


def test_a_missing_trainer_names_the_command_that_installs_it(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    for make, package in (
        (forever().lightning, "lightning"),
        (forever().transformers, "transformers"),
    ):
        with pytest.raises(ImportError, match=f"pip install {package}") as caught:
            make()
        assert isinstance(caught.value, HesseError)
