"""Parameters that are cut over some ranks and replicated over others (HSDP)."""

from pathlib import Path

import torch
from torch import nn

import hesse
from hesse.distributed import shard
from hesse.testing import Traffic
from tests import hessian_free_jobs, outputs_jobs
from tests.apps_jobs import APPS
from tests.outputs_posteriors import POSTERIORS
from tests.ranks_faults import BAD, _error, _Switch
from tests.ranks_pool import _plain, batches, bits, model, vector
from tests.shards_files import RUNS
from tests.shards_fsdp import _computed
from tests.shards_jobs import AUDIT, Problem


def computed(place):
    """What is computed with a model of `fully_shard`, whose data no two ranks share."""
    there_risk, there = hessian_free_jobs.risk(place, "hybrid", "four")
    found = _computed(there_risk)
    optimizer = hesse.HessianFree(there_risk, mode="retained-graph", max_cg_iterations=4)
    for _ in range(2):
        optimizer.step()
    return {**found, "trained": hessian_free_jobs.parameters(there)}


def audited(place, names):
    """Methods that reduce by all kinds of sums, on shards of tensors."""
    problem = _problem(place)
    return {name: AUDIT[name](problem) for name in names}


def _problem(place):
    problem = Problem("ragged", place)
    if place is not None:
        problem.params = shard(problem.risk.params, hessian_free_jobs.hybrid(place))
        problem.hessian = hesse.hessian_operator(problem.risk, problem.params)
        problem.ggn = hesse.ggn_operator(problem.risk, problem.params)
        problem.space = problem.hessian.domain
    return problem


def outputs(place, names):
    """What is made of a Jacobian, whose rows no two ranks share."""
    problem = outputs_jobs.Problem(place, "four")
    if place is not None:
        problem.shard(hessian_free_jobs.hybrid(place))
    return {name: outputs_jobs.JACOBIANS[name](problem) for name in names}


def applied(place, names):
    """What applications give at shards of which two ranks have copies."""
    found = {}
    for family, name in names:
        problem = outputs_jobs.Problem(place, "four")
        if place is not None:
            problem.shard(hessian_free_jobs.hybrid(place))
        found[name] = {**APPS, "posteriors": POSTERIORS}[family][name](problem)
    return found


def sent(place):
    """What a product and a norm send, the size of a part, and how often."""
    H = _problem(place).hessian
    v = H @ H.domain.gaussian(torch.Generator().manual_seed(0))  # makes the groups
    calls = []
    for call in (lambda: H @ v, lambda: H.domain.norm(v)):
        with Traffic() as traffic:
            call()
        calls.append((traffic.calls, traffic.numbers))
    return calls, H.domain.shards.width


def failed(place):
    """The errors of a product that fails on one rank, and the product after that."""
    loss, mesh = _Switch(), hessian_free_jobs.hybrid(place)
    there = hesse.Risk(model(), loss, batches("four", place.rank), group=mesh)
    H = hesse.hessian_operator(there, shard(there.params, mesh), mode="reverse-over-reverse")
    v = H.domain.part(vector())
    before = H @ v
    loss.fault = KeyError("the disk is gone") if place.rank == BAD else None
    error = _error(lambda: H @ v)
    loss.fault = None
    return error, bool((H @ v == before).all())


def differing(place):
    """The error where one pair of ranks has other parameters than the other pair."""
    mesh = hessian_free_jobs.hybrid(place)
    there = hesse.Risk(model(), nn.CrossEntropyLoss(), batches("four", place.rank), group=mesh)
    params = shard(there.params, mesh)
    if place.rank >= 2:
        params["0.bias"] = params["0.bias"] + 1e-12
    return _error(lambda: hesse.ggn_operator(there, params))


def saved(place, folder):
    """Whether a run that was stopped goes on to the bits of one that was not; the files."""
    p = _problem(place)
    H = hesse.hessian_operator(p.risk, p.params, mode="retained-graph")
    whole = RUNS["eigsh"](H, p)
    file, steps = {"checkpoint": Path(folder) / "run"}, []
    RUNS["eigsh"](H, p, **file, callback=lambda state: steps.append(state) or len(steps) == 4)
    found = RUNS["eigsh"](H, p, **file)
    names = sorted(path.name.split(".")[-1] for path in Path(folder).iterdir())
    return bits(_plain(found)) == bits(_plain(whole)), names
