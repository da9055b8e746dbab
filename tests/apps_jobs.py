"""What the tests of applications over ranks compute: in one process, or in several."""

import time
import warnings

import torch

import hesse
from hesse.apps import influence, self_influence
from hesse.curvature.point import point_of
from hesse.distributed import shard
from tests.outputs_jobs import EXAMPLES, INPUTS, Problem, _network, examples
from tests.ranks_faults import BAD, _error
from tests.shards_jobs import mesh, seed


def of_all(p, rows, dim=0):
    """Rows of examples, of which each process has its own, of all of them."""
    if p.place is None:
        return rows
    return p.risk.ranks.concatenated(rows.movedim(dim, 0).contiguous()).movedim(0, dim)


# -- Losses of examples ----------------------------------------------------------------------------


def _per_example(p):
    each = p.risk.per_example
    v, block = p.vector(), torch.stack([p.vector(6), p.vector(7)], 1)
    u = torch.linspace(-1.0, 1.0, len(each), dtype=torch.float64)[each.places.start :]
    u = torch.stack([u, u**2], 1)[: len(each.places)]
    rows = torch.cat([torch.zeros(0, p.space.n, dtype=torch.float64), *each.gradients(p.params, 4)])
    J = hesse.jacobian_operator(each, p.params)
    return {
        "number": len(each),
        "losses": of_all(p, each.losses(p.params)),
        "jvp": of_all(p, each.jvp(p.params, v)),
        "jvp of a tree": of_all(p, each.jvp(p.params, p.space.unflatten(v))),
        "jvp of a block": of_all(p, each.jvp(p.params, block)),
        "jvps": of_all(
            p, torch.cat([torch.zeros(0, 2, dtype=torch.float64), *each.jvps(p.params, block)])
        ),
        "vjp": p.whole(each.vjp(p.params, u[:, 0])),
        "vjp of a block": p.space.whole(each.vjp(p.params, u).T.contiguous()),
        "gradients": of_all(p, rows),
        "of all": p.space.whole(torch.cat(list(each.gradients_of_all(p.params, 4)))),
        "jacobian": J.to_dense(),
    }


# -- Influences ------------------------------------------------------------------------------------


def _part(p, *whole):
    """The part of this process in data that are not those of the risk, as batches."""
    if p.place is None:
        return [whole]
    parts = (tensor.tensor_split(p.place.size)[p.place.rank] for tensor in whole)
    batch = tuple(parts)
    return [batch] if len(batch[0]) else []


def _influences(**options):
    def answer(p):
        x, y = examples("classes")
        queries = _part(p, x[:4] + 0.1, y[:4])
        found = influence(p.risk, p.params, queries, **options)
        is_of_examples = found.scores is not None and found.scores.shape[1] == len(p.inputs)
        return {
            "scores": of_all(p, found.scores, 1) if is_of_examples else found.scores,
            "top": found.top and [found.top.values, found.top.indices.tolist()],
            "solution": p.space.whole(found.solution.x.T.contiguous()),
            "products": found.products,
        }

    return answer


def _margin(z, y):
    return z[:, 1] - z[:, 0]


def _in_clusters(p):
    labels = torch.arange(EXAMPLES)[p.mine] % 3 - 1
    return _influences(groups=labels.int(), removal="renormalise")(p)


def _of_weights(p):
    found = influence(p.risk, p.params, lambda q: q["0.weight"].square().sum(1), damping=0.1)
    return of_all(p, found.scores, 1), found.products


def _own(**options):
    def answer(p):
        found = self_influence(p.risk, p.params, **options)
        return of_all(p, found.scores), found.products

    return answer


# -- Statistics ------------------------------------------------------------------------------------


def _logistic(p):
    """A risk of few parameters near its minimum."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = torch.nn.Linear(2, 1, bias=False).double()
    x, y = examples("classes")
    batches = [(x[p.mine, :2], (y[p.mine, None] > 0).double())]
    options = {} if p.place is None else {"group": p.place.ranks()}
    loss = torch.nn.BCEWithLogitsLoss()
    risk = hesse.Risk(model, loss, batches if len(p.inputs) else [], **options)
    params = hesse.minimize(risk, risk.params, "newton-cg", rtol=1e-12).x
    return risk, params if p.sharded is None else shard(params, p.sharded)


def _errors(**options):
    def answer(p):
        risk, params = _logistic(p)
        mine = {name: robust(p) for name, robust in options.items()}
        found = hesse.apps.standard_errors(risk, params, **mine)
        low, high = found.interval(0.9)
        return {
            "error": found.standard_error,
            "covariance": found.covariance,
            "interval": [low["weight"], high["weight"]],
            "contrast": hesse.apps.standard_errors(risk, params, of=torch.ones(2)).z,
        }

    return answer


def _weighted_errors(p):
    risk, params = _logistic(p)
    w = torch.linspace(0.5, 1.5, EXAMPLES, dtype=torch.float64)[p.mine]
    with warnings.catch_warnings():  # the minimum is that without weights
        warnings.simplefilter("ignore")
        return hesse.apps.standard_errors(risk.weighted(w), params, robust="HC0").covariance


def _profile(p):
    found = hesse.apps.profile(*_logistic(p), 1, level=0.8)
    return [found.name, found.low, found.high, found.points]


# -- Training --------------------------------------------------------------------------------------


def _landscape(**options):
    def answer(p):
        found = hesse.apps.landscape(p.risk, p.params, grid=3, generator=seed(), **options)
        values = [found.values, found.quadratic, found.eigenvalues, found.a, found.b]
        return values, p.space.whole(found.directions.T.contiguous()).abs(), found.products

    return answer


def _along(p):
    directions = p.vector(), p.space.unflatten(p.vector(6))
    return _landscape(directions=directions, radius=(0.5, 1.0))(p)


def _tracked(p):
    tracker = hesse.apps.CurvatureTracker(
        p.risk, every=1, trace=True, noise=6, per_layer=["0"], budget=None, generator=seed()
    )
    rows = [tracker.step(p.params, learning_rate=0.1) for _ in range(2)]
    found = []
    for row in rows:
        fields = row.to_dict()
        del fields["seconds"]
        found.append(fields)
    return found


# -- Kernels ---------------------------------------------------------------------------------------


def _all_outputs(space, u):
    return space.whole(u[None])


def _kernel(**options):
    def answer(p):
        K = hesse.apps.ntk(p.risk, p.params, generator=seed(), **options)
        u = K.domain.gaussian(seed())
        return {
            "shape": list(K.shape),
            "product": K.codomain.whole((K @ u)[None]),
            "block": K.codomain.whole((K @ torch.stack([u, u**2], 1)).T.contiguous()),
            "matrix": K.to_dense(),
        }

    return answer


def _between(p):
    x2 = torch.linspace(-1.0, 1.0, 5 * INPUTS, dtype=torch.float64).view(5, INPUTS)
    x2 = x2 if p.place is None else x2.tensor_split(p.place.size)[p.place.rank]
    return [
        hesse.apps.ntk(p.risk, p.params, p.inputs, x2, trace=trace, generator=seed()).to_dense()
        for trace in (False, True)
    ]


def _alignments(p):
    y = torch.nn.functional.one_hot(examples("classes")[1], 3).double()[p.mine]
    found = []
    for K in (
        hesse.apps.ntk(p.risk, p.params, trace=True, generator=seed()),
        hesse.apps.ntk(p.risk, p.params),
    ):
        for centred in (True, False):
            one = hesse.apps.alignment(K, y, centred, generator=seed(), rtol=0.3)
            found.append([one.value, one.standard_error, one.products])
    return found


def _fit(*, first=None, **options):
    def answer(p):
        x2 = torch.ones(2, INPUTS, dtype=torch.float64)
        y = torch.sin(2 * p.inputs[:, :3])
        data = [(p.inputs, y)] if len(y) else []
        squares = torch.nn.MSELoss()
        group = {} if p.place is None else {"group": p.risk.ranks}
        risk = hesse.Risk(p.risk.model, squares, data, **group)
        there = slice(0, max(0, (first or 0) - p.mine.start))
        given = () if first is None else (p.inputs[there], y[there])
        f = hesse.apps.linearised(risk, p.params)
        fit = f.fit(*given, max_products=40, generator=seed(), **options)
        return {
            "change": p.whole(fit.change),
            "residual": fit.residual_norm,
            "prediction": fit.predict(x2),
            "about": [fit.products, fit.space, fit.status.name],
        }

    return answer


# -- Minima within bounds --------------------------------------------------------------------------


def _bounded(method):
    def answer(p):
        lower = dict.fromkeys(p.risk.params, -0.3)
        upper = p.space.unflatten(p.space.flatten(p.params).abs() * 0.5)
        upper["2.weight"] = torch.inf
        with warnings.catch_warnings():  # the start is outside
            warnings.simplefilter("ignore")
            found = hesse.minimize(
                p.risk, p.params, method, bounds=(lower, upper), max_iterations=4
            )
        return {
            "x": p.whole(found.x),
            "counts": [found.nit, found.nfev, found.njev, found.nhev],
            "fun": found.fun,
        }

    return answer


# -- Pruning ---------------------------------------------------------------------------------------


def _pruned(**options):
    def answer(p):
        found = hesse.apps.prune(p.risk, p.params, 0.5, generator=seed(), **options)
        counts = [found.sparsity, found.products, found.status.name]
        return {
            "params": p.whole(found.params),
            "mask": p.whole({name: mask.double() for name, mask in found.mask.items()}),
            "increase": [found.predicted_increase, found.damping, found.held_out_loss],
            "history": torch.tensor(found.history).nan_to_num(-1.0),
            "counts": counts,
        }

    return answer


def _stopped(p):
    found = _pruned(damping=0.1, steps=4, callback=lambda state: state.step == 2)(p)
    return found["counts"]


# -- Implicit functions ----------------------------------------------------------------------------


def _penalised(p):
    """A function of parameters and of a penalty, in which there is a risk that is shared."""

    def f(x, l):
        return p.risk(x) + 0.5 * l.exp() * sum((leaf**2).sum() for leaf in x.values())

    return f


def _hypergradient(p):
    l = torch.tensor(-1.0, dtype=torch.float64)
    f, params = _penalised(p), p.risk.params

    def slow(x, l):  # one process would trace it before the others
        if p.place is not None and p.place.rank == 1:
            time.sleep(0.02)
        return f(x, l)

    found = hesse.apps.hypergradient(lambda x, l: p.risk(x), slow, params, l, rtol=1e-8)
    return [found.value, found.gradient, found.products]


def _argmin(p):
    l = torch.tensor(-4.0, dtype=torch.float64, requires_grad=True)
    risk, start = _logistic(p)

    def f(x, l):
        return risk(x) + 0.5 * l.exp() * x["weight"].square().sum()

    def solve(x0, l):  # to rounding, for what comes before depends on it
        return hesse.minimize(lambda x: f(x, l), x0, "newton-cg", rtol=1e-13).x

    x = hesse.apps.argmin(f, start, solve=solve, rtol=1e-10)(l)
    risk(x).backward()
    return x["weight"].detach(), l.grad


def _response(p):
    q = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    risk, start = _logistic(p)

    def f(x, q):
        return risk(x) + 0.5 * x["weight"].square().sum() + (q * x["weight"]).sum()

    x = hesse.minimize(lambda x: f(x, q), start, "newton-cg", rtol=1e-13).x
    found = hesse.apps.response(f, x, q, rtol=1e-10)
    return found.derivative, found.slope, found.second


def _with_slopes(risk):
    """The gradient of a risk and of a penalty, as a function that can be differentiated."""

    def F(x, l):
        with torch.enable_grad():
            weight = x["weight"] if x["weight"].requires_grad else x["weight"].requires_grad_()
            value = risk({"weight": weight}) + 0.5 * l.exp() * weight.square().sum()
            return {"weight": torch.autograd.grad(value, weight, create_graph=True)[0]}

    return F


def _root(p):
    l = torch.tensor(-4.0, dtype=torch.float64, requires_grad=True)
    risk, start = _logistic(p)
    x = hesse.apps.root(_with_slopes(risk), start, rtol=1e-10)(l)
    x["weight"].sum().backward()
    return x["weight"].detach(), l.grad


def _fixed_point(p):
    l = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    risk, start = _logistic(p)
    F = _with_slopes(risk)
    x = hesse.apps.fixed_point(
        lambda x, l: {"weight": x["weight"] - 0.5 * F(x, l)["weight"]}, start, rtol=1e-10
    )(l)
    x["weight"].sum().backward()
    return x["weight"].detach(), l.grad


def _eigenvalues(p):
    l = torch.tensor(0.0, dtype=torch.float64)
    H = hesse.hessian_operator(lambda x: _penalised(p)(x, l), p.risk.params)
    return hesse.eigsh(H, 2, generator=seed()).values


SETS = [[0, 5], [3, 12, 20]]
APPS = {
    "examples": {"per example": _per_example},
    "statistics": {
        "errors": _errors(),
        "by the fisher matrix": _errors(information=lambda p: "fisher"),
        "sandwich": _errors(robust=lambda p: "HC1"),
        "clusters": _errors(robust=lambda p: torch.arange(EXAMPLES)[p.mine] // 4),
        "weights": _weighted_errors,
        "profile": _profile,
    },
    "training": {
        "landscape of the gradient": _landscape(directions="gradient"),
        "landscape along": _along,
        "tracker": _tracked,
    },
    "kernels": {
        "kernel": _kernel(),
        "trace kernel": _kernel(trace=True, signs=2),
        "between two sets": _between,
        "alignments": _alignments,
        "ridge of few examples": _fit(ridge=0.5, first=8),
        "ridge of one kernel": _fit(ridge=0.5, first=8, preconditioner="nystrom"),
        "least squares": _fit(rtol=0.1),
        "for a time": _fit(time=2.0, rtol=0.1),
    },
    "bounds": {
        "trust-cg": _bounded("trust-cg"),
        "lbfgs": _bounded("lbfgs"),
        "enriched": _bounded("auto"),
    },
    "pruning": {
        "damage": _pruned(damping=0.1, curvature="hessian", score="obd", repair=False),
        "search": _pruned(score="obd"),
        "refit": _pruned(repair=hesse.apps.Repair(refit=1, examples=12), score="obd"),
        "surgery": _pruned(damping=0.1, score="obs", curvature="fisher"),
        "layers": _pruned(damping=0.1, score="obs", curvature="layers"),
        "stopped": _stopped,
    },
    "implicit": {
        "hypergradient": _hypergradient,
        "minimiser": _argmin,
        "response": _response,
        "root": _root,
        "fixed point": _fixed_point,
        "eigenvalues": _eigenvalues,
    },
    "influence": {
        "renormalised": _influences(removal="renormalise"),
        "on margins": _influences(of=_margin, curvature="ekfac"),
        "the top": _influences(top=3, preconditioner="ekfac"),
        "of groups": _in_clusters,
        "on weights": _of_weights,
    },
    "influence on examples": {
        "by newton": _influences(groups=SETS, removal="newton"),
        "on themselves": _own(most=5),
        "by the hessian": _own(curvature="hessian", damping=0.5),
    },
}


# -- A model of fully_shard ------------------------------------------------------------------------


def of_fsdp(place):
    """Losses and influences of a model, whose parameters FSDP2 shards."""
    model, (x, y), options = _network(), examples("classes"), {}
    if place is not None:
        from torch.distributed.fsdp import fully_shard

        options["group"] = over = mesh(place)
        fully_shard(model, mesh=over)
        x, y = (part.tensor_split(place.size)[place.rank] for part in (x, y))
    risk = hesse.Risk(model, torch.nn.CrossEntropyLoss(), [(x, y)], 0.05, **options)
    found = influence(risk, None, lambda p: p["0.weight"].square().sum())
    losses = risk.per_example.losses(point_of(risk, None))
    if place is None:
        return losses, found.scores, found.products
    both = torch.cat([losses[None], found.scores]).T
    both = risk.ranks.concatenated(both).T
    return both[0], both[1:], found.products


# -- Faults ----------------------------------------------------------------------------------------


def faults(place):
    """The errors of calls that one rank cannot make, by name; and what they compute afterwards."""
    p = Problem(place, "ragged")
    bad, here = place.rank == BAD, len(p.inputs)
    few = here - 1 if bad else here
    x, y = examples("classes")
    queries = _part(p, x[:6], y[:6])

    def margin(z, y):
        if bad:
            raise KeyError("a margin")
        return z[:, 0]

    def influences(**options):
        return influence(p.risk, p.params, queries, **options)

    labels, clusters = torch.zeros(few).int(), torch.arange(few)
    of_examples = p.risk.per_example
    found = {
        "queries": _error(lambda: influences(of=margin)),
        "labels": _error(lambda: influences(groups=labels)),
        "sets": _error(lambda: influences(groups=[[place.rank]])),
        "weights": _error(lambda: of_examples.vjp(p.params, torch.ones(few))),
        "clusters": _error(lambda: hesse.apps.standard_errors(_logistic(p)[0], robust=clusters)),
        "targets": _error(
            lambda: hesse.apps.alignment(hesse.apps.ntk(p.risk, p.params), torch.ones(few, 2))
        ),
    }
    return found, float(p.risk(p.params))


# Those that differ where parameters are sharded: others gather them first.
SHARDED = {
    "examples": ["per example"],
    "statistics": ["errors"],
    "training": ["landscape along", "tracker"],
    "kernels": ["trace kernel", "between two sets", "alignments", "ridge of few examples"],
    "bounds": ["trust-cg", "enriched"],
    "pruning": ["damage"],
    "influence": ["renormalised", "the top", "of groups", "on weights"],
    "influence on examples": ["on themselves"],
}


def answered(place, split, family, names, is_sharded=False):
    """What some applications of a family give, by name."""
    p = Problem(place, split, is_sharded=is_sharded)
    return {name: APPS[family][name](p) for name in names}
