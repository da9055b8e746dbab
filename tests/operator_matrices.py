# SPDX-License-Identifier: Apache-2.0
"""Matrices that operators are compared with."""

import torch

N = 5


def matrix(seed, m=N, n=N, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64).to(dtype)


def symmetric(seed):
    return matrix(seed) + matrix(seed).T


def close(a, b, rtol=1e-13):
    return a.shape == b.shape and float((a - b).norm()) <= rtol * max(1.0, float(b.norm()))
