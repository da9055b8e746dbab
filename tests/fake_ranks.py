"""Many ranks in one process: torch's fake backend, in which each rank is like the first one.

A sum over ranks is what this process gives, and all rows that are gathered are its own. The backend
is private to torch: without it the tests are skipped.
"""

import contextlib
from unittest import mock

import pytest
import torch
from torch import distributed

import hesse
from hesse.ranks import Ranks
from hesse.testing import Traffic
from tests.ranks_pool import examples, model


@contextlib.contextmanager
def fake_ranks(size):
    """Within it this process is the first of so many, which seem to have said nothing."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    distributed.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=size)
    try:
        with mock.patch.object(Ranks, "_check_steps"):
            yield
    finally:
        distributed.destroy_process_group()


def first_parts(params, mesh):
    """Tensors of which this rank has the first part."""
    from torch.distributed.tensor import DTensor, Shard

    return {
        name: DTensor.from_local(
            *(leaf.chunk(mesh.size())[0], mesh, [Shard(0)]),
            run_check=False,
            shape=leaf.shape,
            stride=leaf.stride(),
        )
        for name, leaf in params.items()
    }


def counts(size):
    """What a product and ten steps of CG send, replicated and sharded."""
    found = {}
    with fake_ranks(size):
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (size,))
        # All other ranks seem to have a risk without settings, and no data.
        loss = torch.nn.CrossEntropyLoss(reduction="sum")
        risk = hesse.Risk(model(), loss, [examples()], group=distributed.group.WORLD)
        G = hesse.ggn_operator(risk, first_parts(risk.params, mesh))
        v = G.domain.gaussian(torch.Generator().manual_seed(0))
        shifted = G + hesse.identity_operator(G.shape[0])
        calls = {
            "product": lambda: G @ v,
            "cg": lambda: hesse.solve(shifted, v, "cg", rtol=0.0, max_iterations=10),
        }
        for name, call in calls.items():
            with Traffic() as traffic:
                call()
            found[name] = traffic.calls, traffic.numbers
        return found, G.domain.shards.width
