"""A script for torchrun: its second process is killed by SIGKILL, but not when it is started again.

It takes the number of the callback at which that happens and the path of the checkpoint.
"""

import hashlib
import os
import signal
import sys
from unittest import mock

import torch
from torch import distributed, nn

import hesse
from hesse import checkpoint


def main(at, path):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    dies = rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    calls = []

    def callback(state):
        calls.append(state.products)
        if dies and len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    H = hesse.hessian_operator(_risk(rank))
    with mock.patch.object(checkpoint, "_PAUSE", 0):  # each step is saved
        pairs = hesse.eigsh(H, 4, rtol=1e-8, checkpoint=path, callback=callback)
    bits = pairs.values.numpy().tobytes() + pairs.vectors.numpy().tobytes()
    found = hashlib.sha256(bits).hexdigest()
    print(f"{rank} {len(calls)} {found}\n", end="", flush=True)
    distributed.destroy_process_group()


def _risk(rank):
    """Other data on each rank, one model."""
    draws = torch.Generator().manual_seed(rank)
    rows = 60 + 7 * rank
    data = torch.randn(rows, 8, generator=draws), torch.randint(0, 3, (rows,), generator=draws)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    return hesse.Risk(
        model, nn.CrossEntropyLoss(), data, weight_decay=1e-3, group=distributed.group.WORLD
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
