# SPDX-License-Identifier: Apache-2.0
"""Data that do not fit in memory: a loader whose workers read files, anew in each sweep."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import hesse

ROWS, BATCH = 250, 40


class Rows(Dataset):
    """Examples in files, of which only those of a batch are read."""

    def __init__(self, folder):
        self.x = np.load(folder / "x.npy", mmap_mode="r")
        self.y = np.load(folder / "y.npy", mmap_mode="r")

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return torch.from_numpy(self.x[i].copy()), int(self.y[i])


@pytest.fixture
def rows(tmp_path):
    numbers = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", numbers.standard_normal((ROWS, 5)))
    np.save(tmp_path / "y.npy", numbers.integers(0, 3, ROWS))
    return Rows(tmp_path)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def risk_of(data, model=None):
    return hesse.Risk(model or network(), nn.CrossEntropyLoss(), data, weight_decay=1e-2)


@pytest.mark.slow  # each worker is a process
@pytest.mark.parametrize("budget", [None, "none"])
def test_what_workers_read_gives_what_data_in_memory_do(rows, budget):
    loader = DataLoader(rows, batch_size=BATCH, num_workers=2, persistent_workers=True)
    whole = torch.from_numpy(np.array(rows.x)), torch.from_numpy(np.array(rows.y))
    found = hesse.ggn_operator(risk_of(loader), memory_budget=budget)
    wanted = hesse.ggn_operator(risk_of(whole))
    v = wanted.domain.gaussian(torch.Generator().manual_seed(1))
    for _ in range(3):
        torch.testing.assert_close(found @ v, wanted @ v, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.flat_gradient, wanted.flat_gradient, rtol=1e-11, atol=1e-13)
    pairs = [hesse.eigsh(A, 2, generator=torch.Generator().manual_seed(2)) for A in (found, wanted)]
    torch.testing.assert_close(pairs[0].values, pairs[1].values, rtol=1e-9, atol=0.0)


def test_no_more_than_a_few_batches_are_held(rows):
    model, seen, most = network(), [], 0

    def watch(_, inputs):
        nonlocal most
        seen.append(weakref.ref(inputs[0].untyped_storage()))
        most = max(most, sum(storage() is not None for storage in seen))

    class Watched(Rows):
        read = 0

        def __getitem__(self, i):
            self.read += 1
            return super().__getitem__(i)

    watched = Watched.__new__(Watched)
    watched.x, watched.y = rows.x, rows.y
    risk = risk_of(DataLoader(watched, batch_size=BATCH), model)
    G = hesse.ggn_operator(risk, memory_budget="none")
    v = torch.ones(G.shape[0], dtype=torch.float64)
    _ = G @ v
    gc.collect()
    model.register_forward_pre_hook(watch)
    before = watched.read
    for _ in range(3):
        _ = G @ v
    assert watched.read - before >= 3 * ROWS
    assert 0 < most <= 2


PARTS = {
    "whole": lambda risk: risk,
    "subset": lambda risk: risk.subset([0, 5]),
    "weighted": lambda risk: risk.weighted(torch.ones(ROWS)),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_risk_is_released_without_the_garbage_collector(rows, part):
    """Workers that are found in a cycle of garbage are waited for, five seconds each."""
    risk = PARTS[part](risk_of(DataLoader(rows, batch_size=BATCH)))
    released = weakref.ref(risk)
    gc.disable()
    try:
        del risk
        assert released() is None
    finally:
        gc.enable()
