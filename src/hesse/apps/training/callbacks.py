# SPDX-License-Identifier: Apache-2.0
"""Callbacks of trainers that call a tracker after every step of the optimizer.

The trainers' packages are imported when a callback is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hesse.errors import MissingExtraError


def lightning_callback(tracker: Any) -> Any:
    """A `lightning.pytorch.Callback`."""
    module = _first_of(("lightning.pytorch", "pytorch_lightning"), "lightning")

    class CurvatureCallback(module.Callback):
        """Steps the tracker where the global step has advanced, not for every micro-batch."""

        seen = -1

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step != self.seen:
                self.seen = trainer.global_step
                tracker.step(None, trainer.optimizers[0] if trainer.optimizers else None)

        def state_dict(self) -> dict[str, Any]:
            return tracker.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            tracker.load_state_dict(state_dict)

    return CurvatureCallback()


def transformers_callback(tracker: Any) -> Any:
    """A `transformers.TrainerCallback`."""
    module = _first_of(("transformers",), "transformers")

    class CurvatureCallback(module.TrainerCallback):
        """Steps the tracker at the end of every step of the optimizer."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tracker.step(None, kwargs.get("optimizer"))

    return CurvatureCallback()


def _first_of(names: tuple[str, ...], package: str) -> Any:
    """The first of these modules that is installed."""
    missing = ""
    for name in names:
        try:
            return import_module(name)
        except ImportError as error:
            missing = str(error)
    raise MissingExtraError(expected=package, got=missing, remedy=f"pip install {package}")
