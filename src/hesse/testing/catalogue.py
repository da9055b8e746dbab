# SPDX-License-Identifier: Apache-2.0
"""All test problems."""

from __future__ import annotations

import torch

from hesse.testing import networks, problems
from hesse.testing.problems import Problem


def all_problems(dtype: torch.dtype = torch.float64) -> list[Problem]:
    """One of each kind, in `dtype`.

    >>> {"rosenbrock", "lstm", "pinn"} <= {problem.name for problem in all_problems()}
    True
    """
    return [
        problems.polynomial_sine(dtype),
        problems.rosenbrock(6, dtype),
        problems.quadratic(5, dtype),
        problems.logistic_regression(dtype),
        problems.nested_tree(dtype),
        problems.linear(dtype),
        problems.linear_in_one_leaf(dtype),
        problems.unused_leaf(dtype),
        problems.stop_gradient(dtype),
        problems.in_place(dtype),
        problems.log_determinant(dtype),
        problems.spectrum(dtype),
        networks.mlp("Tanh", dtype),
        networks.mlp("GELU", dtype),
        networks.mlp("Softplus", dtype),
        networks.classifier(dtype),
        networks.conv_net(dtype),
        networks.attention(dtype),
        networks.multihead_attention(dtype),
        networks.recurrent("LSTM", dtype),
        networks.recurrent("GRU", dtype),
        networks.pinn(dtype),
        networks.pinn_autograd(dtype),
        networks.tied_autoencoder(dtype),
        networks.embedding(dtype),
    ]
