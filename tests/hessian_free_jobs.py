"""`HessianFree` and K-FAC in one process, on replicated parameters and on shards."""

import contextlib
import io
import os
import signal
import warnings
from unittest import mock

import torch
from torch import nn

import hesse
from hesse.curvature.kronecker import programs
from hesse.distributed import shard
from hesse.testing import Traffic
from hesse.tracing.graph import UntraceableError
from tests.hessian_free_problems import Cliff
from tests.ranks_faults import BAD, _error
from tests.ranks_pool import SPLITS, batches, model, vector
from tests.shards_fsdp import _named_mesh, _step
from tests.shards_jobs import mesh

OPTIONS = {
    "ekfac": {},
    "kfac": {"preconditioner": "kfac", "refresh_every": 2},
    "nystrom": {"preconditioner": "nystrom"},
    "diagonal": {"preconditioner": "diagonal", "damping_rule": "scan"},
    "none": {"preconditioner": "none"},
    "hessian": {"curvature": "hessian"},
    "structural": {"preconditioner": "none"},
    "growing": {"preconditioner": "none"},  # of few examples factors are degenerate
    "without CG": {"max_cg_iterations": 0},
    "operator": {"curvature": hesse.kfac_operator, "preconditioner": hesse.ekfac_operator},
}
_SHARED = {
    "mode": "retained-graph",
    "damping": 0.1,
    "damping_bounds": (1e-3, 1e8),
    "max_cg_iterations": 6,
}


def risk(place, kind, split="ragged"):
    """The risk of a model and the data of a rank, and the model; without a place of all data."""
    if place is None:
        there = model()
        data = [batch for rank in range(len(SPLITS[split])) for batch in batches(split, rank)]
        return hesse.Risk(there, nn.CrossEntropyLoss(), data, 0.05), there
    group = place.ranks()
    there = model()
    if kind != "replicated":
        from torch.distributed.fsdp import fully_shard

        group = _named_mesh(place) if kind == "fsdp" else hybrid(place)
        for layer in (there[0], there[2]):
            fully_shard(layer, mesh=group)
        fully_shard(there, mesh=group)
    data = batches(split, place.rank)
    return hesse.Risk(there, nn.CrossEntropyLoss(), data, 0.05, group=group), there


def hybrid(place):
    """Parameters are cut over two ranks, and replicated over as many pairs as there are."""
    from torch.distributed.device_mesh import init_device_mesh

    shape = place.size // 2, 2
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))


def parameters(there):
    """All parameters, flat."""
    whole = [p.detach() for p in there.parameters()]
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in whole]
    return torch.cat([p.reshape(-1) for p in whole]).clone()


def steps(place, kind, name, count, split="ragged", **options):
    """The losses, counts, damping and parameters of a run, which may go on from a file."""
    there_risk, there = risk(place, kind, split)
    if name == "structural":
        options["structural_damping"] = {there[0]: 0.5}
    source = hesse.Growing(there_risk, 0.4) if name == "growing" else there_risk
    optimizer = hesse.HessianFree(source, **(_SHARED | OPTIONS[name]), **options)
    values = [float(optimizer.step()) for _ in range(count - optimizer.param_groups[0]["steps"])]
    counts = optimizer.counts
    return {
        "values": values,
        "counts": [counts.nfev, counts.njev, counts.nhev],
        "damping": optimizer.param_groups[0]["damping"],
        "status": optimizer.status.name,
        "x": parameters(there),
    }


def taken_back(place):
    """The parameter after steps on data that want other ones; rank 0 alone sees no cliff."""
    there, x = Cliff(), torch.linspace(-1.0, 1.0, 20) * (0.5 + 0.5 * place.rank)
    optimizer = hesse.HessianFree(
        hesse.Risk(there, nn.MSELoss(), (x, x), group=place.ranks()), preconditioner="none",
        max_cg_iterations=0, mode="retained-graph",
    )  # fmt: skip
    found = []
    for wanted in (0.9, 0.1, 0.8, 0.8):
        optimizer.step(data=(x, wanted * x))
        found.append(there.w.item())
    return found


def resumed(place, split="ragged"):
    """The bits after three steps, and after one and two that go on from the saved states."""
    whole = steps(place, "fsdp", "ekfac", 3)["x"]
    there_risk, there = risk(place, "fsdp", split)
    one = hesse.HessianFree(there_risk, **_SHARED)
    one.step()
    file = io.BytesIO()
    torch.save((there.state_dict(), one.state_dict()), file)
    file.seek(0)
    states = torch.load(file)
    there_risk, there = risk(place, "fsdp", split)
    there.load_state_dict(states[0])
    two = hesse.HessianFree(there_risk, **_SHARED)
    two.load_state_dict(states[1])
    for _ in range(2):
        two.step()
    kinds = {type(part).__name__ for part in (two.state[p]["start"] for p in there.parameters())}
    return bool((parameters(there) == whole).all()), kinds


def trained_on(place):
    """A step of SGD by FSDP after two of `HessianFree`: the parameters before and after it."""
    there_risk, there = risk(place, "fsdp")
    optimizer = hesse.HessianFree(there_risk, **_SHARED)
    for _ in range(2):
        optimizer.step()
    before = parameters(there)
    after = _step(there, batches("ragged", place.rank), torch.optim.SGD(there.parameters(), 0.1))
    return before, torch.cat([p.reshape(-1) for p in after.values()])


def trained_alone(before):
    """That step in one process, of the mean over ranks of their gradients."""
    there = model()
    nn.utils.vector_to_parameters(torch.tensor(before), there.parameters())
    for x, y in (batches("ragged", rank)[0] for rank in range(3)):
        (nn.functional.cross_entropy(there(x), y) / 3).backward()
    torch.optim.SGD(there.parameters(), 0.1).step()
    return parameters(there)


def ended(place, how):
    """The status, the steps taken and the products of a run that one rank wants to end."""
    there_risk, there = risk(place, "fsdp")
    bad, seconds = place.rank == BAD, None
    if how == "late" and bad:
        seconds = 1e-9
    limits = {"max_products": 11} if how == "products" else {"max_seconds": seconds}
    optimizer = hesse.HessianFree(there_risk, **_SHARED, **limits)
    before, error = parameters(there), "none"
    if how == "SIGINT" and bad:
        there[0].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    if how == "late SIGINT" and bad:
        write = optimizer._parts.write  # after the last product of a step
        late = [write, lambda _: os.kill(os.getpid(), signal.SIGINT)]
        optimizer._parts.write = lambda x: [each(x) for each in late]
    for _ in range(3):
        try:
            optimizer.step()
        except KeyboardInterrupt as interrupt:
            error = type(interrupt).__name__
            break
    changed = bool((parameters(there) != before).any())
    taken = optimizer.param_groups[0]["steps"]
    return optimizer.status.name, error, taken, optimizer.counts.nhev, changed


def without_factors(place):
    """The warnings and the values of a model that cannot be traced on one rank."""
    there_risk, there = risk(place, "replicated")
    optimizer = hesse.HessianFree(there_risk, **_SHARED)
    trace = mock.patch.object(programs, "trace", side_effect=UntraceableError("a test"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with trace if place.rank == BAD else contextlib.nullcontext():
            optimizer.step()
    optimizer.step()
    return [str(warning.message)[:19] for warning in caught], parameters(there)


def moved(place):
    """The error where the parameters of one rank have changed between two steps."""
    there_risk, there = risk(place, "replicated")
    optimizer = hesse.HessianFree(there_risk, **_SHARED)
    optimizer.step()
    if place.rank == BAD:
        there[0].bias.detach().add_(1.0)
    return _error(optimizer.step)


class _UsesItsWeightTwice(nn.Module):
    """In batches of seven examples alone, by an operation for which K-FAC has no rule."""

    def __init__(self):
        super().__init__()
        self.layers = model()

    def forward(self, x):
        more = 0.0 * self.layers[2].weight.square().sum() if len(x) == 7 else 0.0
        return self.layers(x) + more


def otherwise(place):
    """The warnings of a step where one rank uses the parameters otherwise than the others."""
    there = _UsesItsWeightTwice()
    data = batches("ragged", place.rank)[:1]
    shared = hesse.Risk(there, nn.CrossEntropyLoss(), data, group=place.ranks())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hesse.HessianFree(shared, **_SHARED).step()
    return [str(warning.message) for warning in caught], parameters(there)


class _Reader:
    """Batches that are read anew in every sweep, until that fails."""

    def __init__(self, given):
        self.given, self.fails = given, False

    def __iter__(self):
        for batch in self.given:
            if self.fails:
                raise OSError("the disk is gone")
            yield batch


def unread(place, grows):
    """The error of a step in which one rank cannot read its data, and the step after it."""
    reader = _Reader(batches("ragged", place.rank))
    shared = hesse.Risk(model(), nn.CrossEntropyLoss(), reader, group=place.ranks())
    of = hesse.Growing(shared, 0.5) if grows else shared
    optimizer = hesse.HessianFree(of, preconditioner="none", **_SHARED)
    reader.fails = place.rank == BAD
    error = _error(optimizer.step)
    reader.fails = False
    return error, optimizer.step()


# -- K-FAC -----------------------------------------------------------------------------------------


def factored(place, split, kind):
    """What K-FAC and EK-FAC operators give, in one process or in several."""
    if place is None:
        whole = [batch for rank in range(len(SPLITS[split])) for batch in batches(split, rank)]
        there, params = hesse.Risk(model(), nn.CrossEntropyLoss(), whole, 0.05), None
    else:
        there = risk(place, "replicated", split)[0]
        params = shard(there.params, mesh(place)) if kind == "shards" else None
    makes = {"kfac": hesse.kfac_operator, "ekfac": hesse.ekfac_operator}
    return {
        (name, fisher): _of_factored(make, there, params, fisher)
        for name, make in makes.items()
        for fisher in ("exact", "sampled", "empirical")
    }


def _of_factored(make, there, params, fisher):
    generator = torch.Generator().manual_seed(3)
    K = make(there, params, fisher=fisher, damping=0.1, generator=generator)
    space, v = K.domain, K.domain.part(vector())

    def whole(part):
        return space.whole(part[None])[0]

    x = space.unflatten(1.5 * space.flatten(there.params if params is None else params))
    return {
        "product": whole(K @ v),
        "block": space.whole((K @ torch.stack([v, 2 * v], dim=1)).T.contiguous()),
        "inverse": whole(hesse.inverse_operator(K) @ v),
        "diagonal": whole(hesse.diagonal(K).value),
        "eigenvalues": K.eigenvalues(),
        "trace": hesse.trace(K).value,
        "logdet": hesse.logdet(K).value,
        "elsewhere": whole(K.at(x) @ v),
        "about": K.about,
    }


def sent_by_factors(place):
    """The messages of one refreshment of K-FAC and of EK-FAC, and the numbers in the largest."""
    there = risk(place, "replicated")[0]
    found = []
    for make in (hesse.kfac_operator, hesse.ekfac_operator):
        K = make(there)
        with Traffic() as traffic:
            K = K.at(there.params)
        entries = sum(side.entries.numel() for b in K.blocks for side in (b.left, b.right))
        diagonals = sum(b.d.numel() for b in K.blocks if b.d is not None)
        found.append((traffic.calls, traffic.numbers, entries, diagonals))
    return found
