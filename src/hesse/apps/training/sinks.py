# SPDX-License-Identifier: Apache-2.0
"""Where measurements go as they are taken: a file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hesse.apps.training.history import CurvatureMeasurement
from hesse.boundary import warn
from hesse.errors import ArgumentError, kind_of

Sink = Callable[[CurvatureMeasurement], Any]

_PREFIX = "curvature/"


def sinks_of(file: Any, writer: Any) -> list[Sink]:
    """What a tracker calls with every measurement."""
    sinks: list[Sink] = []
    if file is not None:
        sinks.append(_file_of(file))
    if writer is not None:
        sinks.append(_writer_of(writer))
    return sinks


def _file_of(file: Any) -> Sink:
    path = Path(file) if isinstance(file, (str, Path)) else None
    kinds: dict[str, type] = {".jsonl": JsonLines, ".csv": CsvLines}
    if path is None or path.suffix not in kinds or not path.parent.is_dir():
        raise ArgumentError(
            expected="file as the path of a .jsonl or a .csv file, in a folder that exists",
            got=repr(file) if path is None else str(path),
            remedy="Give, for instance, 'curvature.jsonl'.",
        )
    return kinds[path.suffix](path)


@dataclass
class _Lines:
    """Appends lines to a file; one that cannot be written does not end a training."""

    path: Path
    has_warned: bool = False

    def append(self, text: str) -> None:
        """Write at once, so that a training that is killed leaves what it had."""
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError as error:
            if not self.has_warned:
                warn(f"file={str(self.path)!r} could not be written ({error}).")
            self.has_warned = True


class JsonLines(_Lines):
    """One JSON object a line; NaN is null."""

    def __call__(self, row: CurvatureMeasurement) -> None:
        entries = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.to_dict().items()
        }
        self.append(json.dumps(entries) + "\n")


class CsvLines(_Lines):
    """A header, and one line a measurement; the columns are those of the first measurement."""

    def __call__(self, row: CurvatureMeasurement) -> None:
        scalars = [f.name for f in fields(row) if f.name not in ("eigenvalues", "layers")]
        numbers = row.numbers()
        columns = [*scalars, *(name for name in numbers if name not in scalars)]
        header = ",".join(columns)
        if not self.path.exists() or self.path.stat().st_size == 0:
            self.append(header + "\n")
        known = self._header() or header
        if not set(columns) <= set(known.split(",")):
            raise ArgumentError(
                expected=f"file={str(self.path)!r} to have the columns of this tracker, {header}",
                got=known,
                remedy="Give another file; that one is of a tracker with other options.",
            )
        self.append(",".join(str(numbers.get(name, "")) for name in known.split(",")) + "\n")

    def _header(self) -> str:
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                return ",".join(next(csv.reader(file), []))
        except OSError:
            return ""


def _writer_of(writer: Any) -> Sink:
    """By what the object can do: `add_scalar` of TensorBoard, `log` of W&B, or a call."""
    if callable(getattr(writer, "add_scalar", None)):

        def to_tensorboard(row: CurvatureMeasurement) -> None:
            for name, value in row.numbers().items():
                if name != "step":
                    writer.add_scalar(_PREFIX + name, value, row.step)

        return to_tensorboard
    if callable(getattr(writer, "log", None)):

        def to_wandb(row: CurvatureMeasurement) -> None:
            named = {_PREFIX + name: value for name, value in row.numbers().items()}
            writer.log(named, step=row.step)

        return to_wandb
    if callable(writer):
        return writer
    raise ArgumentError(
        expected="writer as a SummaryWriter of TensorBoard, a run of Weights & Biases, or a "
        "function of a CurvatureMeasurement",
        got=kind_of(writer),
        remedy="Give torch.utils.tensorboard.SummaryWriter(), or wandb.init(...).",
    )
