"""Convolutional networks: a plain one, and a ResNet-18 with BatchNorm in eval mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models.seeded import integers, normal, seeded
from benchmarks.problem import ModelAndLoss, Problem


def convnet() -> Problem:
    """Three convolutions with pooling and a linear layer; 64 images of 3 x 32 x 32."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1024, 10),
        )  # fmt: skip

    return _classification("convnet", seeded(build), batch=64, jax="convnet")


def resnet18() -> Problem:
    """ResNet-18 for images of 3 x 32 x 32 (stem of stride 1), 4 of them."""
    return _classification("resnet18", seeded(_settled_resnet18), batch=4)


def _classification(name: str, model: nn.Module, batch: int, **options) -> Problem:
    images, labels = normal(batch, 3, 32, 32), integers(10, batch)
    parts = ModelAndLoss(model, nn.CrossEntropyLoss(), images, labels)
    return Problem.of(name, parts, **options)


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut (He et al. 2016, doi:10.1109/CVPR.2016.90)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            projection = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def _resnet18() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)]
    layers.append(nn.ReLU())
    width_in = 64
    for width in (64, 128, 256, 512):
        layers += [BasicBlock(width_in, width, 1 if width == 64 else 2)]
        layers += [BasicBlock(width, width, 1)]
        width_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def _settled_resnet18() -> nn.Module:
    """With running statistics that are those of some data, not 0 and 1."""
    model = _resnet18()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    return model
