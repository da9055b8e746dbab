"""Images to be reconstructed: digits, a file such as MNIST, or curves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

PIXELS = 784
"""Of an image of 28 by 28."""

_SIZE, _MARGIN, _PEN = 28, 6.7, 0.68
_SAMPLES = 100  # of a curve
_AT_ONCE = 500  # images that are drawn together


def load(path: Path) -> Tensor:
    """Pixels in [0, 1], one image a row, from an .npz file with the images of MNIST."""
    import numpy as np

    with np.load(path) as file:
        name = next(n for n in ("x_train", "train_images", "images", *file) if n in file)
        images = torch.from_numpy(file[name])
    images = images.reshape(len(images), -1).float()
    return images / 255 if images.max() > 1 else images


def curves(count: int = 20_000, seed: int = 0) -> Tensor:
    """CURVES-R: curves through three random points, like the data CURVES of Hinton & Salakhutdinov.

    Their program is not published. These are parabolas t -> (x, y) through three uniform points,
    drawn with a Gaussian pen whose width is such that the pixels vary by 16 in all and 18 principal
    components leave an error of 6, as it is known of theirs.
    """
    generator = torch.Generator().manual_seed(seed)
    span = _SIZE - 2 * _MARGIN
    points = _MARGIN + span * torch.rand(count, 3, 2, generator=generator)
    return torch.cat([_drawn(part) for part in points.split(_AT_ONCE)])


def _drawn(points: Tensor) -> Tensor:
    """The darkest of what the pen leaves along the Bezier curve; (count, 3, 2) to (count, 784)."""
    start, middle, end = points.unbind(1)
    control = 2.0 * middle - 0.5 * (start + end)
    t = torch.linspace(0.0, 1.0, _SAMPLES)[:, None]
    first, second, third = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
    path = first * start[:, None] + second * control[:, None] + third * end[:, None]
    centres = torch.arange(_SIZE) + 0.5
    x, y = ((-((path[..., i, None] - centres) ** 2) / (2 * _PEN**2)).exp() for i in (0, 1))
    ink = torch.zeros(len(points), _SIZE, _SIZE)
    for across, down in zip(x.unbind(1), y.unbind(1), strict=True):
        torch.maximum(ink, down[:, :, None] * across[:, None, :], out=ink)
    return ink.flatten(1)
