"""Runs of `HessianFree` in one process, on replicated parameters and on shards."""

import torch
from torch import nn

import hesse
from tests.ranks_pool import SPLITS, batches, model
from tests.shards_fsdp import _named_mesh

OPTIONS = {
    "ekfac": {},
    "kfac": {"preconditioner": "kfac", "refresh_every": 2},
    "nystrom": {"preconditioner": "nystrom", "max_cg_iterations": 5},
    "diagonal": {"preconditioner": "diagonal", "damping_rule": "scan"},
    "none": {"preconditioner": "none", "curvature": "hessian"},
    "operator": {"curvature": hesse.kfac_operator, "preconditioner": "none"},
}
_SHARED = {"mode": "retained-graph", "damping": 0.1, "damping_bounds": (1e-3, 1e8)}


def risk(place, kind, split="ragged"):
    """The risk of a model and the data of a rank, and the model; without a place of all data."""
    if place is None:
        there = model()
        data = [batch for rank in range(len(SPLITS[split])) for batch in batches(split, rank)]
        return hesse.Risk(there, nn.CrossEntropyLoss(), data, 0.05), there
    group = place.ranks()
    there = model()
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        group = _named_mesh(place)
        for layer in (there[0], there[2]):
            fully_shard(layer, mesh=group)
        fully_shard(there, mesh=group)
    data = batches(split, place.rank)
    return hesse.Risk(there, nn.CrossEntropyLoss(), data, 0.05, group=group), there


def parameters(there):
    """All parameters, flat."""
    whole = [p.detach() for p in there.parameters()]
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in whole]
    return torch.cat([p.reshape(-1) for p in whole]).clone()


def steps(place, kind, name, count, split="ragged", **options):
    """The losses, counts, damping and parameters of a run, which may go on from a file."""
    there_risk, there = risk(place, kind, split)
    optimizer = hesse.HessianFree(there_risk, **_SHARED, **OPTIONS[name], **options)
    values = [float(optimizer.step()) for _ in range(count - optimizer.param_groups[0]["steps"])]
    counts = optimizer.counts
    return {
        "values": values,
        "counts": [counts.nfev, counts.njev, counts.nhev],
        "damping": optimizer.param_groups[0]["damping"],
        "status": optimizer.status.name,
        "x": parameters(there),
    }


def several(place, kind, names, count):
    return {name: steps(place, kind, name, count) for name in names}
