# SPDX-License-Identifier: Apache-2.0
"""A run with a checkpoint, and files of tensors by their bytes."""

import json
import struct

import torch

from hesse.krylov import eigsh

DOUBLE, N = torch.float64, 60


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix():
    M = torch.randn(N, N, generator=seeded(), dtype=DOUBLE)
    return M @ M.T / N + 0.1 * torch.eye(N, dtype=DOUBLE)


def run(path, **limits):
    """A run with a checkpoint, and its numbers."""
    return eigsh(matrix(), 3, generator=seeded(1), checkpoint=path, **limits).values


# -- Files that are no checkpoints -----------------------------------------------------------------


def tensors_file(header, data=b"", length=None):
    """The bytes of a safetensors file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one_tensor(**changes):
    entry = {"dtype": "F64", "shape": [4], "data_offsets": [0, 32], **changes}
    return tensors_file({"__metadata__": {"hesse": "{}"}, "x": entry}, bytes(32))
