# SPDX-License-Identifier: Apache-2.0
"""Models with losses that are likelihoods, one for each form of outputs and targets, and oracles.

The oracles take a risk, of which they use the data, the loss and the outputs of the model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.result import OneLine
from hesse.testing.oracles import dense_ggn, dense_jacobian
from hesse.vectors.space import Tree

CLASSES = 6
"""Classes and tokens."""


def normal(*shape: int) -> Tensor:
    """Gaussian numbers in float64, from the global generator."""
    return torch.randn(*shape, dtype=torch.float64)


def labels(*shape: int) -> Tensor:
    """Classes, from the global generator."""
    return torch.randint(0, CLASSES, shape)


# -- Models ----------------------------------------------------------------------------------------


class TinyGPT(nn.Module):
    """A transformer of one block whose embedding is its head too; logits (batch, time, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 4)
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x @ self.embedding.weight.T


class Recurrent(nn.Module):
    """An LSTM, with logits at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.lstm(x)[0])


class Attention(nn.Module):
    """`nn.MultiheadAttention` and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs at every place."""
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Dictionary(nn.Module):
    """Takes the whole batch, of which it reads two entries, and gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, CLASSES)

    def forward(self, left: Tensor, right: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The logits."""
        return {"logits": self.b(torch.tanh(self.a(left) + right))}


class OwnLoss(nn.Module):
    """A model that computes its own loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt = TinyGPT()

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss and the logits."""
        logits = self.gpt(input_ids)
        loss = next_token_loss(logits, labels)
        return {"loss": loss, "logits": logits}


def mlp() -> nn.Sequential:
    """A network 4-5-6."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def conv() -> nn.Sequential:
    """Two convolutions, the second in groups."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip


# -- Losses ----------------------------------------------------------------------------------------


def next_token_loss(z: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of the next token at all places but the last."""
    return F.cross_entropy(z[:, :-1].reshape(-1, CLASSES), y[:, 1:].reshape(-1))


def flattened(z: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy over all places."""
    return F.cross_entropy(z.reshape(-1, CLASSES), y.reshape(-1))


def in_two_halves(z: Tensor, y: Tensor) -> Tensor:
    """The same, half of it with the classes in the second dimension; written to in place."""
    loss = 0.5 * F.cross_entropy(z.transpose(1, 2), y)
    loss += 0.5 * flattened(z, y)
    return loss


def _of_logits(z: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(z["logits"], y["y"])


def _padded(*shape: int) -> Tensor:
    y = labels(*shape)
    y.view(shape[0], -1)[0, -1] = -100
    return y


def _tokens_that_count(inputs: Any, targets: Tensor) -> float:
    return float((targets != -100).sum())


# -- Cases -----------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class LikelihoodCase(OneLine):
    """A model, a loss, how a batch of n examples is drawn, and the options of a risk of them."""

    name: str
    model: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    batch: Callable[[int], Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"LikelihoodCase({self.name!r})"

    def make(self, sizes: Sequence[int] = (5, 3)) -> tuple[nn.Module, Any, list[Any]]:
        """(model, loss, batches) in float64; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = self.model().double()
            torch.default_generator.manual_seed(1)
            return model, self.loss, [self.batch(n) for n in sizes]


_STEPS = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
LIKELIHOODS = {
    case.name: case
    for case in (
        LikelihoodCase("mlp", mlp, nn.CrossEntropyLoss(), lambda n: (normal(n, 4), labels(n))),
        LikelihoodCase(
            "conv", conv, nn.CrossEntropyLoss(), lambda n: (normal(n, 2, 4, 4), labels(n))
        ),
        LikelihoodCase(
            "class weights",
            mlp,
            nn.CrossEntropyLoss(_STEPS, ignore_index=1, label_smoothing=0.1),
            lambda n: (normal(n, 4), labels(n)),
        ),
        LikelihoodCase(
            "gpt",
            TinyGPT,
            flattened,
            lambda n: (labels(n, 3), _padded(n, 3)),
            {"weight": _tokens_that_count},
        ),
        LikelihoodCase("lstm", Recurrent, in_two_halves, lambda n: (normal(n, 3, 3), labels(n, 3))),
        LikelihoodCase(
            "attention",
            Attention,
            nn.MSELoss(reduction="sum"),
            lambda n: (normal(n, 3, 4), normal(n, 3, CLASSES)),
        ),
        LikelihoodCase(
            "dictionary",
            Dictionary,
            _of_logits,
            lambda n: {"left": normal(n, 3), "right": normal(n, 4), "y": labels(n)},
        ),
        LikelihoodCase(
            "bernoulli",
            mlp,
            nn.BCEWithLogitsLoss(pos_weight=torch.linspace(1, 3, CLASSES, dtype=torch.float64)),
            lambda n: (normal(n, 4), labels(n, CLASSES) % 2 + 0.0 * normal(n, CLASSES)),
        ),
        LikelihoodCase(
            "poisson",
            mlp,
            nn.PoissonNLLLoss(),
            lambda n: (normal(n, 4), labels(n, CLASSES).double()),
        ),
    )
}


# -- Oracles ---------------------------------------------------------------------------------------


def logits_of(risk: Any, batch: Any) -> Callable[[Tree], Tensor]:
    """The logits of a batch as a function of the parameters."""

    def logits(params: Tree) -> Tensor:
        z = risk.outputs(params, batch)
        return z["logits"] if isinstance(z, dict) else z

    return logits


def dense_ggn_of(risk: Any) -> Tensor:
    """The Gauss-Newton matrix of a risk in its parameters, without its weight decay."""
    total = 0.0
    for coefficient, batch in risk.batches():

        def loss(z: Tensor, batch: Any = batch) -> Tensor:
            outputs = {"logits": z} if isinstance(batch.targets, dict) else z
            return risk.loss(outputs, batch.targets)

        total = total + coefficient * dense_ggn(logits_of(risk, batch), loss, risk.params)
    assert isinstance(total, Tensor)
    return total


def row_gradients(risk: Any, batch: Any) -> Tensor:
    """The gradient of each term of an unreduced cross-entropy, (rows, n)."""

    def rows(params: Tree) -> Tensor:
        y = batch.targets["y"] if isinstance(batch.targets, dict) else batch.targets
        z = logits_of(risk, batch)(params).reshape(-1, CLASSES)
        return F.cross_entropy(z, y.reshape(-1), reduction="none")

    return dense_jacobian(rows, risk.params)
