"""What goes wrong on one rank, and what each rank then sees."""

import os
import signal
import warnings
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import hesse
from hesse.distributed import shard
from tests.ranks_pool import batches, examples, model, risk, shared, vector
from tests.shards_jobs import mesh

BAD = 1  # the rank on which something goes wrong


def _error(compute):
    """The error of compute() as (kind, text)."""
    try:
        compute()
    except Exception as error:
        return type(error).__name__, str(error)
    return "none", ""


class _Switch:
    """A cross entropy that fails when it is told to."""

    reduction = "mean"

    def __init__(self):
        self.fault = None

    def __call__(self, outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        if self.fault == "nan":
            return loss * torch.nan
        if self.fault is not None:
            raise self.fault
        return loss


FAULTS = {
    "error": KeyError("the disk is gone"),
    "memory": torch.OutOfMemoryError("too large"),
    "domain": ValueError("a negative rate"),
    "nan": "nan",
}


def in_a_product(place, fault):
    """The errors of a product in which a rank fails, and the product after that."""
    loss = _Switch()
    there = hesse.Risk(model(), loss, batches("ragged", place.rank), 0.05, group=place.ranks())
    H = hesse.hessian_operator(there, mode="reverse-over-reverse")
    v = vector()
    before = H @ v
    loss.fault = FAULTS[fault] if place.rank == BAD else None
    error = _error(lambda: H @ v)
    loss.fault = None
    return error, bool((H @ v == before).all())


def other_vectors(place):
    H = hesse.hessian_operator(shared(place, "ragged"))
    return _error(lambda: H @ vector(place.rank // 2))


def other_quantities(place):
    H = hesse.hessian_operator(shared(place, "ragged"))
    return _error(lambda: H.flat_gradient if place.rank == BAD else H @ vector())


def other_operators(place):
    one, two = (hesse.hessian_operator(shared(place, "ragged")) for _ in range(2))
    one @ vector()
    return _error(lambda: (two if place.rank == BAD else one) @ vector())


def a_missing_call(place):
    there = risk(batches("ragged", place.rank), group=place.ranks(seconds=2))
    H = hesse.hessian_operator(there)
    return _error(lambda: None if place.rank == BAD else H @ vector())


def other_parameters(place):
    there = shared(place, "ragged")
    params = {name: p.clone() for name, p in there.params.items()}
    if place.rank == BAD:
        params["0.weight"][0, 0] += 1e-12
    return _error(lambda: hesse.ggn_operator(there, params))


def other_settings(place):
    decay = 0.1 if place.rank == BAD else 0.2
    return _error(lambda: shared(place, "ragged", weight_decay=decay))


def at_construction(place, fault):
    data = batches("ragged", place.rank)
    if fault == "no data":
        return _error(lambda: risk([], group=place.ranks()))
    if fault == "classes" and place.rank == BAD:
        data = [(x, y + 7) for x, y in data]
    if fault == "form" and place.rank == BAD:
        data = 7
    return _error(lambda: risk(data, group=place.ranks()))


def same_data(place):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        risk(batches("ragged", 0), group=place.ranks())
    return [str(warning.message) for warning in caught]


def other_constants(place):
    """The errors where the model of one rank has other constants than those of the others."""
    found = {}
    for name in ("frozen", "running_mean", "num_batches_tracked", "later"):
        layers = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        there = nn.Sequential(*layers).double().eval()
        for whole in there.parameters():
            whole.detach().fill_(0.5)
        there[0].requires_grad_(False)
        changed = {"frozen": there[0].weight, "later": there[1].running_var}
        changed |= {
            key: there[1].get_buffer(key) for key in ("running_mean", "num_batches_tracked")
        }

        def make(there=there):
            data = batches("ragged", place.rank)
            return hesse.Risk(there, nn.CrossEntropyLoss(), data, group=place.ranks())

        risk = make() if name == "later" else None
        if place.rank == BAD:
            changed[name].detach().add_(1)
        found[name] = _error(make if risk is None else lambda risk=risk: hesse.ggn_operator(risk))
    return found


def outside(place):
    """The errors where a group, and a mesh, are of the first process alone."""
    groups = distributed.new_group([0]), DeviceMesh("cpu", [0])
    return [_error(lambda group=group: risk(examples(), group=group)) for group in groups]


def padded(place, count):
    data = TensorDataset(*(part[:count] for part in examples()))
    sampler = DistributedSampler(data, place.size, place.rank, shuffle=False)
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    found = []
    error = _error(lambda: found.append(risk(loader, group=place.ranks())))
    product = hesse.hessian_operator(found[0]) @ vector() if found else torch.zeros(())
    return error, product


def refusals(place):
    """What is not summed over ranks, by name."""
    there = shared(place, "empty")
    return {
        "sparse": _error(lambda: hesse.sparse_hessian_operator(there)),
        "batches": _error(lambda: list(there.batches())),
        "summands": _error(lambda: list(there.summands())),
    }


# -- The end of a run ------------------------------------------------------------------------------


def in_a_callback(place, is_sharded):
    """The errors of runs whose callback raises one on one rank, and whether the ranks go on."""
    there = shared(place, "ragged")
    params = shard(there.params, mesh(place)) if is_sharded else there.params
    H = hesse.hessian_operator(there, params)
    v = H.domain.gaussian(torch.Generator().manual_seed(3))
    before, found = H @ v, {}
    shifted = H + hesse.identity_operator(H.shape[0])
    for name, run in {
        "eigsh": lambda **more: hesse.eigsh(H, 2, **more),
        "cg": lambda **more: hesse.solve(shifted, v, "cg", **more),
        "trace": lambda **more: hesse.trace(H, block_size=2, max_products=40, **more),
        "minimize": lambda **more: hesse.minimize(there, params, **more),
    }.items():
        steps = []

        def callback(state, steps=steps):
            steps.append(state)
            if place.rank == BAD and len(steps) == 2:
                raise KeyError("the disk is gone")

        found[name] = _error(lambda run=run, callback=callback: run(callback=callback))
    return found, torch.allclose(H @ v, before, rtol=1e-10)


def ended(place, how, function):
    """The status and the number of products of a run that one rank wants to end."""
    there = shared(place, "ragged")
    bad = place.rank == BAD
    steps = []

    def callback(state):
        steps.append(state)
        if bad and len(steps) == 2:
            if how in ("SIGINT", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, how))
            return how == "callback"
        return False

    seconds = {"late": 1e-9, "a little late": 0.02}.get(how) if bad else None
    options = {"callback": callback, "max_seconds": seconds}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    if function == "eigsh":
        A = hesse.hessian_operator(there, mode="retained-graph")
        found = hesse.eigsh(A, 4, rtol=1e-14, **options)
        answer = found.status.name, found.products
    elif function == "cg":
        A = hesse.ggn_operator(there, mode="retained-graph")
        found = hesse.solve(A, vector(), "cg", rtol=1e-14, **options)
        answer = found.status.name, found.products
    elif function == "trace":
        A = hesse.ggn_operator(there, mode="retained-graph")
        found = hesse.trace(A, method="hutchinson", rtol=1e-9, block_size=2, **options)
        answer = found.status.name, found.products
    elif function == "function":
        A = hesse.ggn_operator(there, mode="retained-graph")
        found = hesse.matrix_function(torch.sqrt, A, vector(), rtol=1e-14, **options)
        answer = found.status.name, found.products
    else:
        found = hesse.minimize(there, there.params, "newton-cg", **options)
        answer = found.status.name, found.nhev
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return *answer, handlers == after


class _Rate:
    """-log of a rate times the inputs, which is not defined below zero."""

    reduction = "sum"

    def __call__(self, outputs, targets):
        if bool((outputs <= 0).any()):
            raise ValueError("a negative rate")
        return (outputs - targets * outputs.log()).sum()


def _rates(params, inputs):
    return inputs @ params


def rate_risk(place=None):
    """A sum over two examples, of which the second is not defined at the first trial point."""
    x = torch.tensor([[1.0, 0.0], [1.0, -3.0]], dtype=torch.float64)
    y = torch.tensor([0.5, 9.0], dtype=torch.float64)
    params = torch.tensor([3.0, 0.9], dtype=torch.float64)
    if place is None:
        return hesse.Risk(_rates, _Rate(), (x, y), params=params)
    part = slice(place.rank, place.rank + 1)
    return hesse.Risk(_rates, _Rate(), [(x[part], y[part])], params=params, group=place.ranks())


def minimised_rate(place=None):
    there = rate_risk(place)
    found = hesse.minimize(there, there.params, "newton-cg", max_iterations=6)
    return found.x, found.fun, found.nfev, found.nhev, "raised" in found.message


# -- Checkpoints -----------------------------------------------------------------------------------


def resumed(place, folder):
    """The products of a run that was stopped and resumed, and whether its bits are those of one."""
    A = hesse.hessian_operator(shared(place, "ragged"), mode="retained-graph")

    def find(path, stop=None):
        steps = []
        return hesse.eigsh(
            A, 3, rtol=1e-12, checkpoint=path, generator=torch.Generator().manual_seed(1),
            callback=lambda state: steps.append(state) or len(steps) == stop,
        )  # fmt: skip

    path = Path(folder) / "run"
    stopped = find(path, 5)
    there = path.exists()
    again, whole = find(path), find(Path(folder) / "other")
    same = bool((again.values == whole.values).all() and (again.vectors == whole.vectors).all())
    return stopped.status.name, stopped.products, again.products, whole.products, same, there


def other_checkpoints(place, folder):
    """Resuming where only rank 0 sees the file."""
    A = hesse.hessian_operator(shared(place, "ragged"), mode="retained-graph")
    path = Path(folder) / f"run-{place.rank}"
    generator = torch.Generator().manual_seed(1)
    hesse.eigsh(A, 3, checkpoint=path, generator=generator, callback=lambda _: True)
    return _error(lambda: hesse.eigsh(A, 3, checkpoint=path, generator=generator))


def lone_checkpoints(place, folder):
    """The errors where only rank 0 is given a path, and what comes after them."""
    there = shared(place, "ragged")
    A = hesse.hessian_operator(there, mode="retained-graph")
    path = Path(folder) / "lone" if place.rank == 0 else None
    runs = {
        "eigsh": lambda: hesse.eigsh(A, 3, checkpoint=path),
        "trace": lambda: hesse.trace(A, max_products=9, checkpoint=path),
        "cg": lambda: hesse.solve(A, vector(), "cg", checkpoint=path),
        "HessianFree": lambda: hesse.HessianFree(there, checkpoint=path),
        "logdet": lambda: hesse.logdet(A, checkpoint=path),
        "minimize": lambda: hesse.minimize(there, there.params, checkpoint=path),
        "prune": lambda: hesse.apps.prune(there, there.params, 0.5, checkpoint=path),
        "self_influence": lambda: hesse.apps.self_influence(there, checkpoint=path),
        "influence": lambda: hesse.apps.influence(there, None, queries=(), checkpoint=path),
        "landscape": lambda: hesse.apps.landscape(there, grid=3, checkpoint=path),
    }
    return {name: _error(run) for name, run in runs.items()}, A @ vector()


def lone_callbacks(place):
    """Answers and the numbers of calls where only rank 0 has a callback."""
    G = hesse.ggn_operator(shared(place, "ragged", weight_decay=0.1))
    calls = []
    own = {"callback": lambda state: calls.append(state.products)} if place.rank == 0 else {}
    generator = torch.Generator().manual_seed(0)
    density = hesse.spectral_density(G, probes=2, generator=generator, **own)
    return hesse.logdet(G, generator=generator, **own).value, density.density, len(calls)


def lone_limits(place):
    """The errors where ranks are given other numbers of products."""
    A = hesse.hessian_operator(shared(place, "ragged"))
    return _error(lambda: hesse.eigsh(A, 2, max_products=50 + place.rank))


def drawn_after(place):
    torch.manual_seed(3)
    shared(place, "ragged")
    return torch.rand(2)
