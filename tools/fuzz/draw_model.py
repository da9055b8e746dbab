# SPDX-License-Identifier: Apache-2.0
"""A random model, its loss and its batches."""

from __future__ import annotations

import random
from typing import Any

from tools.fuzz.cases import ModelCase

_ACTIVATIONS = ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "Softplus", "ELU", "LeakyReLU", "Mish")


def draw_model(rng: random.Random, **options: Any) -> ModelCase:
    """Layers of a family, a loss of what they return, and batches of one of the forms."""
    family = rng.choice((_dense, _dense, _dense, _convolution, _sequence, _tokens))
    inputs, layers, width = family(rng)
    loss, targets = _loss(rng, width)
    sizes = rng.choice(((5,), (4,), (3, 3), (4, 2), (2, 2, 2), (3, 1), (2, 3, 1), (4, 4, 2)))
    form = rng.choice(("list", "list", "loader", "iterator", "tuple", "dicts", "keywords"))
    if len(sizes) == 1:
        form = rng.choice(("pair", "list", "dicts", "keywords"))
    elif sizes[0] >= max(sizes) and len(set(sizes[:-1])) == 1 and rng.random() < 0.3:
        form = "data set"
    wrapper = "Named" if form in ("dicts", "keywords") else "nn.Sequential"
    if (
        wrapper == "nn.Sequential"
        and family is _dense
        and rng.random() < 0.15
        and form != "data set"
    ):
        wrapper, inputs = "Two", f"({inputs}, {inputs}.cos())"
    if form == "tuple" and len(sizes) == 2:
        form = "list"  # a tuple of two pairs is one pair
    if form == "dicts" and len(sizes) > 1 and ("=" in loss):
        form = "keywords"  # what a loss of dicts averages over is refused unless it is told
    return ModelCase(
        layers=tuple(layers), loss=loss, inputs=inputs, targets=targets, batches=sizes, form=form,
        wrapper=wrapper, weight_decay=rng.choice((0.0, 0.0, 0.1)), **options,
    )  # fmt: skip


def _activation(rng: random.Random) -> str:
    return f"nn.{rng.choice(_ACTIVATIONS)}()"


def _numbers(*shape: int) -> str:
    return f"numbers(1, TOTAL, {', '.join(map(str, shape))}, dtype=DTYPE)"


def _dense(rng: random.Random) -> tuple[str, list[str], int]:
    width = first = rng.choice((1, 2, 3))
    layers = []
    for _ in range(rng.choice((1, 2, 2))):
        new = rng.choice((2, 3))
        bias = rng.choice(("", ", bias=False"))
        layers += [rng.choice((f"nn.Linear({width}, {new}{bias})",) * 3 + (
            f"nn.utils.parametrizations.weight_norm(nn.Linear({width}, {new}))",
            f"nn.utils.parametrizations.spectral_norm(nn.Linear({width}, {new}))",
        ))]  # fmt: skip
        width = new
        layers += [_activation(rng)] if rng.random() < 0.8 else []
        extra = rng.choice((
            f"nn.LayerNorm({width})", f"nn.BatchNorm1d({width})", f"nn.RMSNorm({width}, eps=1e-5)",
            f"nn.GroupNorm(1, {width})", "nn.Dropout(0.5)",
            f"Residual(nn.Linear({width}, {width}))", f"Twice(nn.Linear({width}, {width}))",
            "nn.Identity()", "nn.PReLU()",
            f"nn.Sequential(nn.Linear({width}, {width}), nn.Tanh())",
        ))  # fmt: skip
        layers += [extra] if rng.random() < 0.4 else []
    if rng.random() < 0.3:
        layers += [f"nn.Linear({width}, {width})"]
    return _numbers(first), layers, width


def _convolution(rng: random.Random) -> tuple[str, list[str], int]:
    channels = rng.choice((1, 2))
    if rng.random() < 0.5:
        layers = [f"nn.Conv1d(1, {channels}, 2, padding={rng.choice((0, 1))})", _activation(rng)]
        layers += [rng.choice(("nn.AvgPool1d(2)", "nn.MaxPool1d(2)", "nn.AdaptiveAvgPool1d(2)"))]
        shape = (1, 4)
    else:
        layers = [f"nn.Conv2d(1, {channels}, 2)", _activation(rng)]
        layers += [
            rng.choice(("nn.AvgPool2d(2)", "nn.MaxPool2d(2)", f"nn.BatchNorm2d({channels})"))
        ]
        layers += ["nn.AdaptiveAvgPool2d((1, 2))"]
        shape = (1, 3, 3)
    layers += ["nn.AdaptiveAvgPool1d(2)"] if len(shape) == 2 else []
    layers += ["nn.Flatten()", f"nn.Linear({2 * channels}, 2)"]
    return _numbers(*shape), layers, 2


def _sequence(rng: random.Random) -> tuple[str, list[str], int]:
    layer = rng.choice((
        "Last(nn.GRU(2, 2, batch_first=True))", "Last(nn.RNN(2, 2, batch_first=True))",
        "Last(nn.LSTM(2, 1, batch_first=True))", "nn.LayerNorm(2), Pool()",
        "Last(nn.GRU(2, 1, batch_first=True, bidirectional=True))",
        "Attend(nn.MultiheadAttention(2, 1, batch_first=True)), Pool()",
        "nn.TransformerEncoderLayer(2, 1, 2, dropout=0.0, batch_first=True), Pool()",
    ))  # fmt: skip
    width = 1 if "LSTM" in layer else 2
    layers = [layer, *([f"nn.Linear({width}, 2)"] if rng.random() < 0.5 else [])]
    return _numbers(3, 2), layers, 2 if len(layers) == 2 else width


def _tokens(rng: random.Random) -> tuple[str, list[str], int]:
    inputs = "torch.arange(TOTAL * 3).reshape(TOTAL, 3) % 5"
    if rng.random() < 0.3:
        return (
            inputs,
            [f"nn.EmbeddingBag(5, 2, mode='{rng.choice(('sum', 'mean'))}')", "nn.Tanh()"],
            2,
        )
    padding = rng.choice(("", "", ", padding_idx=0"))
    layers = [f"nn.Embedding(5, 2{padding})"]
    layers += [rng.choice(("Pool()", "nn.Tanh(), Pool()", "Last(nn.GRU(2, 2, batch_first=True))"))]
    return inputs, [*layers, "nn.Linear(2, 2)"], 2


def _loss(rng: random.Random, width: int) -> tuple[str, str]:
    """A loss and its targets."""
    reduction = rng.choice(("", "", "reduction='sum'"))
    if width > 1 and rng.random() < 0.5:
        options = rng.choice((
            "", "weight=torch.linspace(0.5, 2, {width}, dtype=DTYPE)", "ignore_index=0",
            "label_smoothing=0.1",
        )).replace("{width}", str(width))  # fmt: skip
        both = ", ".join(filter(None, (options, reduction)))
        if rng.random() < 0.2:
            probabilities = f"numbers(2, TOTAL, {width}, dtype=DTYPE).softmax(-1)"
            return f"nn.CrossEntropyLoss({reduction})", probabilities
        return f"nn.CrossEntropyLoss({both})", f"torch.arange(TOTAL) % {width}"
    if rng.random() < 0.2 and width > 1:
        return f"nn.MultiMarginLoss({reduction})", f"torch.arange(TOTAL) % {width}"
    real = f"numbers(2, TOTAL, {width}, dtype=DTYPE)"
    name = rng.choice((
        "MSELoss", "MSELoss", "HuberLoss", "SmoothL1Loss", "L1Loss", "PoissonNLLLoss",
        "BCEWithLogitsLoss", "SoftMarginLoss", "KLDivLoss",
    ))  # fmt: skip
    if name == "BCEWithLogitsLoss":
        return f"nn.{name}({reduction})", f"{real}.sigmoid()"
    if name == "KLDivLoss":
        return f"nn.{name}(reduction='{rng.choice(('batchmean', 'sum'))}')", f"{real}.softmax(-1)"
    if name == "PoissonNLLLoss":
        return f"nn.{name}({reduction})", f"{real}.abs()"
    if name == "SoftMarginLoss":
        return f"nn.{name}({reduction})", f"{real}.sign()"
    return f"nn.{name}({reduction})", real
