# SPDX-License-Identifier: Apache-2.0
"""Small problems of learning with data in several forms."""

import torch
from torch import nn

from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.vectors.inner_products import norm

EXAMPLES = 23


def regression():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return net, nn.MSELoss(), torch.randn(EXAMPLES, 3).double(), torch.randn(EXAMPLES, 2).double()


def classification():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return net, nn.CrossEntropyLoss(), torch.randn(EXAMPLES, 3).double(), torch.arange(EXAMPLES) % 3


def binary():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    y = (torch.arange(EXAMPLES) % 2).double()[:, None]
    return net, nn.BCEWithLogitsLoss(), torch.randn(EXAMPLES, 3).double(), y


TASKS = [regression, classification, binary]


def cut(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def batches_of(x, y, size):
    return cut(x, y, [min(size, len(x) - i) for i in range(0, len(x), size)])


def measurements(risk, params=None):
    """Value, gradient, a Hessian and a Gauss-Newton product, in one vector."""
    params = risk.params if params is None else params
    H, G = hessian_operator(risk, params), ggn_operator(risk, params)
    v = torch.linspace(-1, 1, H.shape[0]).double()
    parts = [H.value.view(1), H.flat_gradient, H @ v, G.value.view(1), G.flat_gradient, G @ v]
    return torch.cat([*parts, hvp(risk, params, v)])


def assert_same(a, b, rtol=1e-10):
    assert norm(a - b) <= rtol * norm(b)
