"""What goes wrong with vectors that are cut over processes, and what is refused."""

from unittest import mock

import numpy
import scipy.sparse.linalg
import torch
from torch import nn

import hesse
from hesse.distributed import shard
from hesse.krylov import lanczos_process
from hesse.krylov.preconditioners import block_jacobi, pivoted_cholesky
from hesse.testing import Traffic
from hesse.vectors.space import Space
from tests.ranks_faults import BAD, FAULTS, _error, _Switch
from tests.ranks_pool import batches, model, shared, vector
from tests.shards_jobs import Problem, columns, mesh, seed

FEW = [130, 0, 66]  # places of entries


def _operator(place, loss=None, **options):
    loss = nn.CrossEntropyLoss() if loss is None else loss
    there = hesse.Risk(model(), loss, batches("ragged", place.rank), 0.05, group=place.ranks())
    return hesse.hessian_operator(there, shard(there.params, mesh(place)), **options)


def in_a_product(place, fault):
    """The errors of a product in which a rank fails, and whether the next one is right."""
    loss = _Switch()
    H = _operator(place, loss, mode="reverse-over-reverse")
    v = H.domain.part(vector())
    before = H @ v
    loss.fault = FAULTS[fault] if place.rank == BAD else None
    error = _error(lambda: H @ v)
    loss.fault = None
    return error, bool((H @ v == before).all())


def a_missing_call(place):
    there = hesse.Risk(
        *(model(), nn.CrossEntropyLoss(), batches("ragged", place.rank)),
        group=place.ranks(seconds=5),
    )
    H = hesse.hessian_operator(there, shard(there.params, mesh(place)))
    return _error(lambda: None if place.rank == BAD else H @ H.domain.zeros())


def ended(place, how):
    """The status and the number of products of a run that one rank wants to end."""
    H = _operator(place, mode="retained-graph")
    steps = []

    def callback(state):
        steps.append(state)
        return how == "callback" and place.rank == BAD and len(steps) == 2

    seconds = 1e-9 if how == "late" and place.rank == BAD else None
    found = hesse.eigsh(H, 3, rtol=1e-14, callback=callback, max_seconds=seconds)
    return found.status.name, found.products


def refusals(place):
    """What is not done with sharded vectors, by name."""
    there = shared(place, "empty")
    there_mesh = mesh(place)
    params = shard(there.params, there_mesh)
    H = hesse.hessian_operator(there, params)
    v = H.domain.zeros()
    mixed = {**params, "0.bias": there.params["0.bias"]}
    turned = {name: leaf.redistribute(placements=[_along(1)]) if leaf.ndim == 2 else leaf
              for name, leaf in params.items()}  # fmt: skip
    calls = {
        "a part of another length": lambda: H @ torch.zeros(H.shape[0] + 1, dtype=H.dtype),
        "a whole tree": lambda: H @ there.params,
        "some of the tensors": lambda: hesse.hessian_operator(there, mixed),
        "another cut": lambda: H @ turned,
        "no group": lambda: hesse.hessian_operator(lambda p: sum(p.values()), params),
        "other indices": lambda: H.restrict([place.rank]),
        "indices and masks": lambda: H.restrict([0] if place.rank == BAD else v == v),
        "no entry": lambda: H.restrict(v != v),
        "a mask that does not fit": lambda: H.restrict((v == v)[place.rank == BAD :]),
        "whole masks": lambda: H.restrict({k: leaf == leaf for k, leaf in there.params.items()}),
        "other vectors of scipy": lambda: H.to_scipy() @ numpy.full(H.shape[0], place.rank),
        "a start of each process": lambda: scipy.sparse.linalg.eigsh(H.to_scipy(), 2),
        "blocks of zeros": lambda: block_jacobi(0.0 * H, 2, probes=1),
        "no diagonal": lambda: pivoted_cholesky(H),
        "zeros": lambda: pivoted_cholesky(0.0 * H, diagonal=v),
        "a negative pivot": lambda: pivoted_cholesky(H, 9, diagonal=v + 0.05 + 1e-9),
        "whole and sharded": lambda: H + hesse.hessian_operator(there, there.params),
        "bounds": lambda: hesse.minimize(there, params, bounds=(0.0, {"0.bias": 1.0})),
        "optimiser": lambda: hesse.HessianFree(params.values()),
        "shard": lambda: shard({"w": torch.zeros(())}, there_mesh),
        "mesh": lambda: shard({"w": torch.zeros(2)}, place.group),
    }
    return {name: _error(call) for name, call in calls.items()}


def _along(dim):
    from torch.distributed.tensor import Shard

    return Shard(dim)


def traffic(place):
    """What a product, a block, a gradient and what is computed of vectors send."""
    H = _operator(place)
    v, space = H.domain.part(vector()), H.domain
    block, few = torch.stack([v] * 5, dim=1), H.restrict(FEW)
    M = block_jacobi(H, 5, probes=1)
    calls = {
        "restricted": lambda: few @ torch.ones(len(FEW), dtype=torch.float64),
        "blocks": lambda: M @ v,
        "product": lambda: H @ v,
        "block": lambda: H @ block,
        "gradient": lambda: H.flat_gradient,
        "norm": lambda: space.norm(v),
        "inner": lambda: space.inner_pairs((v, v), (v, v)),
        "gram": lambda: space.gram(block.T, block.T),
    }
    found = {name: _sent(call) for name, call in calls.items()}
    return found, space.shards.width


def _sent(call):
    with Traffic() as one:
        call()
    return one.calls, one.numbers


def reductions(place):
    """The all-reduces of ten steps of each method, and of as many products."""
    H = _operator(place, mode="retained-graph")
    v = H.domain.part(vector())
    G = H + 10.0 * hesse.identity_operator(H.shape[0])
    D = hesse.operators.diagonal.DiagonalOperator(H.domain, 1.0 + v**2)
    options = {"rtol": 0.0, "generator": torch.Generator().manual_seed(0)}
    methods = {
        "cg": lambda k: hesse.solve(G, v, "cg", max_iterations=k, **options),
        "with a preconditioner": lambda k: hesse.solve(G, v, "cg", D, max_iterations=k, **options),
        "minres": lambda k: hesse.solve(H, v, "minres", max_iterations=k, **options),
        "minres with a preconditioner": lambda k: hesse.solve(
            H, v, "minres", D, max_iterations=k, **options
        ),
        "lanczos": lambda k: hesse.eigsh(H, 2, v0=v, max_products=k, **options),
    }
    gmres = _of_ten_steps(lambda k: hesse.solve(G, v, "gmres", max_iterations=k, **options))
    assert gmres <= 40, gmres  # A v is mostly v: each vector is orthogonalised twice
    found = {name: _of_ten_steps(method) for name, method in methods.items()}
    with mock.patch.object(lanczos_process, "LONG", 1):  # as of long vectors
        found["with predicted overlaps"] = _of_ten_steps(methods["lanczos"])
    return found


def _of_ten_steps(method):
    few, many = (_sent(lambda k=k: method(k))[0] for k in (8, 18))
    assert many["all-gather"] == few["all-gather"] + 10
    return many["all-reduce"] - few["all-reduce"]


def turned(place):
    """What is computed at parameters that are cut along their last dimensions."""
    there = shared(place, "ragged")
    params = {
        name: leaf.redistribute(placements=[_along(leaf.ndim - 1)])
        for name, leaf in shard(there.params, mesh(place)).items()
    }
    H = hesse.hessian_operator(there, params)
    space = Space.of(params, ranks=there.ranks)
    product, few = H @ space.unflatten(space.part(vector())), H.restrict(FEW)
    M = block_jacobi(H, 5, probes=2, generator=torch.Generator().manual_seed(3))
    return {
        "product": torch.cat([leaf.full_tensor().flatten() for leaf in product.values()]),
        "drawn": space.whole(space.gaussian(torch.Generator().manual_seed(3))[None])[0],
        "restricted": few.to_dense(),
        "random": few.domain.gaussian(),
        "by scipy": torch.as_tensor(H.to_scipy() @ columns(space.n).numpy()),
        "by blocks": space.whole((M @ space.part(vector()))[None])[0],
    }


def shown(place):
    """What the first rank alone sees of results and operators, and what it sends for that."""
    p = Problem("ragged", place)
    A = hesse.nystrom_operator(p.ggn, 4, generator=seed())
    tree = hesse.solve(A + hesse.identity_operator(A.shape[0]), p.hessian.gradient)
    found = [tree, A, p.hessian]
    with Traffic() as traffic:
        texts = [repr(each) for each in found] if place.rank == 0 else []
    return traffic.calls, texts
