"""Problems on which a recurrent network must remember: addition, multiplication, five bits.

From Hochreiter & Schmidhuber 1997 as in Martens & Sutskever 2011, with sequences of one length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

import hesse
from benchmarks.training.task import Batch, Task

UNITS = 100
_TOLERANCE = 0.04  # of a sum or a product
_TESTS, _TEST_SEED = 1000, 12345
_BITS, _BLANK, _CUE = 5, 2, 3


def two_numbers(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences (count, length, 2) with two numbers marked, and these numbers (count, 2).

    The first channel holds numbers from [0, 1), the second the marks: 1 at a place in the first
    tenth and at one between there and the middle, -1 at the first place and at the third from the
    end, else 0.
    """
    values = torch.rand(count, length, generator=generator)
    tenth, half = max(2, length // 10), length // 2
    first = torch.randint(1, tenth, (count, 1), generator=generator)
    second = torch.randint(tenth, half, (count, 1), generator=generator)
    marks = torch.zeros(count, length)
    marks[:, 0] = marks[:, -3] = -1.0
    places = torch.cat([first, second], dim=1)
    marks.scatter_(1, places, 1.0)
    return torch.stack([values - 0.5, marks], dim=2), values.gather(1, places)


def addition(count: int, length: int, generator: torch.Generator) -> Batch:
    """The sum of the two marked numbers, less its mean; shape (count, 1, 1)."""
    x, pair = two_numbers(count, length, generator)
    return x, pair.sum(dim=1)[:, None, None] - 1.0


def multiplication(count: int, length: int, generator: torch.Generator) -> Batch:
    """The product of the two marked numbers, less its mean; shape (count, 1, 1)."""
    x, pair = two_numbers(count, length, generator)
    return x, pair.prod(dim=1)[:, None, None] - 0.25


def five_bits(count: int, length: int, generator: torch.Generator) -> Batch:
    """Five bits, blanks, and a cue, after which the bits are to be repeated; labels (count, 5).

    Inputs (count, length + 10, 4) are one-hot, less their mean of 1/4.
    """
    bits = torch.randint(0, 2, (count, _BITS), generator=generator)
    symbols = torch.full((count, length + 2 * _BITS), _BLANK)
    symbols[:, :_BITS], symbols[:, -_BITS - 1] = bits, _CUE
    return one_hot(symbols, 4).float() - 0.25, bits


class Recurrent(nn.Module):
    """A recurrent layer, and a linear one on its last states: (N, T, inputs) to (N, last, outputs).

    Args:
        kind: nn.RNN or nn.LSTM.
        inputs, outputs: sizes.
        last: how many states are read.
    """

    def __init__(self, kind: type[nn.RNNBase], inputs: int, outputs: int, last: int) -> None:
        super().__init__()
        self.recurrent = kind(inputs, UNITS, batch_first=True)
        self.readout = nn.Linear(UNITS, outputs)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(x)
        return self.readout(states[:, -self.last :])


def elman(inputs: int, outputs: int, last: int, seed: int, input_scale: float) -> Recurrent:
    """100 tanh units, begun as in Sutskever et al. 2013: sparse, with spectral radius 1.1."""
    generator = torch.Generator().manual_seed(seed)
    model = Recurrent(nn.RNN, inputs, outputs, last)
    hesse.sparse_init_(model.recurrent, spectral_radius=1.1, generator=generator)
    with torch.no_grad():
        for weight, scale in (
            (model.recurrent.weight_ih_l0, input_scale),
            (model.readout.weight, 0.1),
        ):
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
        model.readout.bias.zero_()
    return model


def lstm(inputs: int, outputs: int, last: int, seed: int) -> Recurrent:
    """100 cells, whose forget gates begin open."""
    torch.manual_seed(seed)
    model = Recurrent(nn.LSTM, inputs, outputs, last)
    with torch.no_grad():
        model.recurrent.bias_ih_l0[UNITS : 2 * UNITS] = 1.0
    return model


def sizes_of(name: str) -> tuple[int, int, int]:
    """Inputs, outputs, and how many states are read."""
    return (4, 2, _BITS) if name == "five-bits" else (2, 1, 1)


def memory_task(name: str, length: int) -> Task:
    """One of LENGTHS, with sequences of this length."""
    make = {"addition": addition, "multiplication": multiplication, "five-bits": five_bits}[name]
    bits = name == "five-bits"
    x, target = make(_TESTS, length, torch.Generator().manual_seed(_TEST_SEED))

    @torch.no_grad()
    def error(model: nn.Module) -> float:
        z = model(x)
        wrong = z.argmax(-1) != target if bits else (z - target).abs() > _TOLERANCE
        return float(wrong.flatten(1).any(dim=1).double().mean())

    def loss(z: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(z.transpose(1, 2), target) if bits else mse_loss(z, target)

    return Task(
        name=f"{name}-{length}",
        model=lambda seed: elman(*sizes_of(name), seed, 0.1 if bits else 1e-3),
        loss=loss,
        draw=lambda count, generator: make(count, length, generator),
        error=error,
        error_name="wrong",
        solved=0.01,
    )


LENGTHS = {"addition": 80, "multiplication": 80, "five-bits": 100}
"""The tasks, and the steps of time of their sequences."""
