# SPDX-License-Identifier: Apache-2.0
"""Sparse initialisation: every unit begins with a few large incoming weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hesse.boundary import public
from hesse.errors import ArgumentError, check_count, check_positive, kind_of

Model = TypeVar("Model", bound=nn.Module)

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@public("hesse.sparse_init_(model)")
@torch.no_grad()
def sparse_init_(
    model: Model,
    *,
    connections: int = 15,
    std: float = 1.0,
    bias: float = 0.0,
    spectral_radius: float | None = None,
    generator: torch.Generator | None = None,
) -> Model:
    r"""Give every unit a few random incoming weights, and zeros elsewhere, in place.

    $$ W_{ij} \sim N(0, \sigma^2) \text{ for } j \in J_i, \; |J_i| = k, \qquad W_{ij} = 0
       \text{ otherwise} $$

    The input of a unit then varies as much in a wide layer as in a narrow one, and units differ
    from each other, so that deep and recurrent networks start off the plateau on which they
    predict the mean.

    Args:
        model: its linear, convolutional and recurrent layers are set; all others stay as they are.
        connections: k; units with fewer inputs have weights from all of them.
        std: sigma.
        bias: all biases of these layers; 0.5 for tanh units in Martens' code.
        spectral_radius: to which the recurrent matrices are scaled, such as 1.1 (Sutskever et
            al. 2013); None leaves them as drawn.
        generator: of the random numbers, on the CPU.

    Returns:
        The model.

    Cost: no product.

    Raises:
        ArgumentError: the model has no such layer.

    References: Martens 2010 (ICML, "Deep learning via Hessian-free optimization"), section 5;
        Sutskever, Martens, Dahl & Hinton 2013 (ICML, "On the importance of initialization and
        momentum in deep learning").

    >>> layer = sparse_init_(nn.Linear(100, 8), connections=3)
    >>> layer.weight.count_nonzero(dim=1).tolist(), layer.bias.count_nonzero().item()
    ([3, 3, 3, 3, 3, 3, 3, 3], 0)
    """
    check_count("connections", connections, 1)
    check_positive(std=std)
    if spectral_radius is not None:
        check_positive(spectral_radius=spectral_radius)
    layers = [m for m in model.modules() if isinstance(m, (*_MATRICES, nn.RNNBase, nn.RNNCellBase))]
    if not layers:
        raise ArgumentError(
            expected="a model with linear, convolutional or recurrent layers",
            got=f"{kind_of(model)} without",
            remedy="Initialise layers of your own with torch.nn.init.sparse_.",
        )
    for name, parameter in _parameters(layers):
        # Only in inference mode can one write to what was made in it.
        with torch.inference_mode() if parameter.is_inference() else torch.no_grad():
            if "bias" in name:
                parameter.fill_(bias)
                continue
            parameter.copy_(_sparse(parameter, connections, std, generator))
            if "weight_hh" in name and spectral_radius is not None:
                for gate in parameter.split(parameter.shape[1]):
                    gate.mul_(_scale(gate, spectral_radius))
    return model


def _parameters(layers: Sequence[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for layer in layers:
        yield from layer.named_parameters(recurse=False)


def _sparse(
    like: Tensor, connections: int, std: float, generator: torch.Generator | None
) -> Tensor:
    """Rows with so many entries that are not zero, in places drawn without replacement."""
    rows, inputs = like.shape[0], like[0].numel()
    count = min(connections, inputs)
    # The same numbers whatever the default device and dtype are.
    options: Any = {"generator": generator, "device": "cpu", "dtype": torch.float64}
    places = torch.rand(rows, inputs, **options).argsort(dim=1)[:, :count]
    values = std * torch.randn(rows, count, **options)
    return values.new_zeros(rows, inputs).scatter_(1, places, values).view(like.shape)


def _scale(matrix: Tensor, spectral_radius: float) -> float:
    """What gives the matrix this spectral radius; 1 where all eigenvalues are zero."""
    radius = float(torch.linalg.eigvals(matrix.double().cpu()).abs().max())
    return spectral_radius / radius if radius > 0.0 else 1.0
