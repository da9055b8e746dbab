"""What the tests of ranks compute, of a risk that may be shared or not."""

from unittest import mock

import torch
from torch import nn

import hesse
from hesse.curvature import dry_run
from hesse.distributed import shard
from hesse.testing import CountingOperator, Traffic
from tests.ranks_pool import batches, examples, model, shared, vector
from tests.shards_jobs import mesh


def _seed(number=7):
    return torch.Generator().manual_seed(number)


def _matrix(make):
    def answer(risk):
        A = make(risk)
        v, block = vector(), vector(6, 3)
        return {
            "product": A @ v,
            "block": A @ block,
            "curvature": A.curvature(v),
            "value": A.value,
            "gradient": A.flat_gradient,
        }

    return answer


def _counted(compute, make=hesse.ggn_operator):
    """compute(A), and the number of products."""

    def answer(risk):
        A = CountingOperator(make(risk))
        found = compute(A)
        return {"found": found, "products": A.products}

    return answer


def _minimised(method):
    def answer(risk):
        part = hesse.minimize(risk, risk.params, method, max_iterations=4)
        x = torch.cat([part.flatten() for part in part.x.values()])
        # The first step within a trust radius ends just there: rounding decides on which side.
        counts = part.nit, part.nfev, part.njev, part.nhev if method == "newton-cg" else 0
        found = hesse.minimize(risk, risk.params, method)
        # Near the minimum rounding errors grow: its value is as exact as any other.
        return {"x": x, "counts": counts, "fun": found.fun, "status": found.status.name}

    return answer


def _twice(risk):
    params = {name: p.clone().requires_grad_() for name, p in risk.params.items()}
    leaves = list(params.values())
    value = risk(params)
    gradient = torch.autograd.grad(value, leaves, create_graph=True)
    v = vector().split([leaf.numel() for leaf in leaves])
    along = sum((g.flatten() * part).sum() for g, part in zip(gradient, v, strict=True))
    product = torch.autograd.grad(along, leaves, create_graph=True)
    third = sum((p**2).sum() for p in product)
    slope = torch.autograd.grad(third, leaves)
    return {
        "value": value,
        "gradient": torch.cat([g.flatten() for g in gradient]),
        "product": torch.cat([p.flatten() for p in product]),
        "slope": torch.cat([p.flatten() for p in slope]),
    }


def _hvp(risk):
    found = hesse.hvp(risk, risk.params, vector(), value_and_gradient=True)
    return [*found, hesse.hvp(risk, risk.params, vector(), mode="forward-over-reverse")]


def _block(risk):
    H = hesse.hessian_operator(risk)
    part = hesse.hessian_operator(risk, risk.params, with_respect_to="0")
    v = vector()[:80]
    return [H.block("0") @ v, part @ v, part.flat_gradient]


def _pairs(find):
    def compute(A):
        found = find(A)
        return found.values, found.vectors.abs() if hasattr(found, "vectors") else ()

    return compute


def _solved(method, **options):
    return lambda A: hesse.solve(A, vector(), method, rtol=1e-12, generator=_seed(), **options).x


def _estimate(function, *args, **options):
    return lambda A: function(A, *args, generator=_seed(), **options).value


MATRICES = {
    "hessian": _matrix(hesse.hessian_operator),
    "ggn": _matrix(hesse.ggn_operator),
    "fisher": _matrix(hesse.fisher_operator),
    "empirical": _matrix(lambda risk: hesse.fisher_operator(risk, kind="empirical")),
    "empirical by example": _matrix(
        lambda risk: hesse.fisher_operator(risk, kind="empirical", per="example")
    ),
    "moment": _matrix(hesse.gradient_covariance_operator),
    "within a budget": _matrix(lambda risk: hesse.hessian_operator(risk, memory_budget="20MB")),
    "no residuals": _matrix(lambda risk: hesse.hessian_operator(risk, memory_budget="none")),
}

OTHERS = {
    "covariance": lambda risk: hesse.gradient_covariance_operator(risk, centered=True) @ vector(),
    "value": _twice,
    "hvp": _hvp,
    "blocks": _block,
    "shift": lambda risk: (
        hesse.nystrom_operator(hesse.ggn_operator(risk), 8, generator=_seed()) @ vector()
    ),
    "trace": _counted(_estimate(hesse.trace, method="hutchinson", max_products=40)),
    "trace by sketch": _counted(_estimate(hesse.trace, method="hutch++", max_products=42)),
    "diagonal": _counted(_estimate(hesse.diagonal, max_products=30)),
    "norm": _counted(_estimate(hesse.norm, 2)),
    "logdet": _counted(_estimate(hesse.logdet, max_products=120)),
    "density": _counted(lambda A: hesse.spectral_density(A, probes=3, generator=_seed()).density),
    "function": _counted(lambda A: hesse.matrix_function("sqrt", A, vector()).value),
    "eigsh": _counted(_pairs(lambda A: hesse.eigsh(A, 4, generator=_seed()))),
    "lobpcg": _counted(
        _pairs(lambda A: hesse.eigsh(A, 2, method="lobpcg", rtol=1e-9, generator=_seed()))
    ),
    "svds": _counted(lambda A: hesse.svds(A, 3, generator=_seed()).S),
    "cg": _counted(_solved("cg")),
    "minres": _counted(_solved("minres", damping=0.5), hesse.hessian_operator),
    "gmres": _counted(_solved("gmres")),
    "lsmr": _counted(_solved("lsmr")),
    "auto": _counted(_solved("auto")),
    "newton-cg": _minimised("newton-cg"),
    "trust-cg": _minimised("trust-cg"),
}

LOSSES = {
    "sum": {"reduction": "sum"},
    "class weights": {"loss": "weighted"},
    "no decay": {"weight_decay": 0.0},
}

WEIGHTED = {name: MATRICES[name] for name in ("hessian", "fisher", "moment")}


def answers(risk, names=None):
    """What all of these give, by name."""
    table = {**MATRICES, **OTHERS}
    return {name: table[name](risk) for name in names or table}


def of_shared(place, split, options, names=None):
    return answers(shared(place, split, **options), names)


def weights():
    return torch.linspace(0.0, 2.0, len(examples()[0]), dtype=torch.float64)


def of_weighted(place, split):
    risk = shared(place, split)
    sizes = [sum(len(y) for _, y in risk.data._batches)]
    start = round(sum(row[0] for row in risk.ranks.gather(*sizes)[: place.rank]))
    there = risk.weighted(weights()[start : start + sizes[0]])
    return {name: answer(there) for name, answer in WEIGHTED.items()}


def sampled(place, samples):
    """Two Fisher matrices of drawn targets, the seeds of the ranks alike, and the exact one."""
    torch.manual_seed(0)
    there = shared(place, "ragged")
    F = hesse.fisher_operator(there, kind="sampled", samples=samples)
    by_example = hesse.fisher_operator(there, kind="sampled", per="example", samples=samples)
    return F.to_dense(), by_example.to_dense(), hesse.fisher_operator(there).to_dense()


def traffic(place, split, kind):
    A = {"hessian": hesse.hessian_operator, "ggn": hesse.ggn_operator}[kind](shared(place, split))
    with Traffic() as one:
        A @ vector()
    with Traffic() as block:
        A @ vector(6, 5)
    with Traffic() as gradient:
        _ = A.flat_gradient
    with Traffic() as curvature:
        A.curvature(vector())
    return [(each.calls, each.numbers) for each in (one, block, gradient, curvature)]


def first_batches():
    """Those of the first and the last of three ranks, of which the second has none."""
    x, y = examples()
    return [(x[:10], y[:10]), (x[14:], y[14:])]


def planned(place, is_sharded):
    """A dry run on ranks that take one second more than their number for all that is timed."""
    there = shared(place, "empty")
    params = shard(there.params, mesh(place)) if is_sharded else there.params

    def timed(function, device):
        function()
        return 1.0 + place.rank

    with mock.patch.object(dry_run, "_timed", timed):
        run = hesse.plan(there, params, curvature="ggn")
    return dict(run.items()), repr(run)


class _Head(nn.Module):
    """A body that may be wrapped, and a layer behind it."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(3, 3).double()
        for p in self.head.parameters():
            p.detach().fill_(0.3)

    def forward(self, x):
        return self.head(self.body(x))


class _Wrapper(nn.parallel.DistributedDataParallel):
    """As training frameworks derive theirs."""


def of_wrapped(place, how):
    """A product and a value of a model with buffers that a DistributedDataParallel is a part of."""
    body = nn.Sequential(model(), nn.BatchNorm1d(3, affine=False).double())
    if place is not None:
        wrapper = _Wrapper if how == "derived" else nn.parallel.DistributedDataParallel
        body = wrapper(body)
    there = (body if how == "derived" else _Head(body)).eval()
    if place is None:
        risk = hesse.Risk(there, nn.CrossEntropyLoss(), examples())
    else:
        data = batches("empty", place.rank)
        risk = hesse.Risk(there, nn.CrossEntropyLoss(), data, group=place.ranks())
    G = hesse.ggn_operator(risk)
    return G @ torch.linspace(-1.0, 1.0, G.shape[1], dtype=torch.float64), G.value
