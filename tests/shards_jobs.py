"""What the tests of sharded vectors compute, of a problem whose parameters may be sharded."""

import numpy
import scipy.sparse.linalg
import torch
from torch import nn

import hesse
from hesse.distributed import shard
from hesse.krylov.preconditioners import block_jacobi, pivoted_cholesky
from hesse.testing import CountingOperator
from hesse.vectors.space import Space

EXAMPLES, INPUTS = 24, 6


def _linear(params, x):
    """One layer, whose parameters have a single row: all but the first rank have none of them."""
    return x @ params["weight"].view(INPUTS, -1) + params["bias"][0]


def _network(hidden, outputs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
        ).double()


def _row(outputs):
    generator = torch.Generator().manual_seed(8)
    shapes = {"weight": (1, INPUTS * outputs), "bias": (1, outputs)}
    draw = {"generator": generator, "dtype": torch.float64}
    return _linear, {name: torch.randn(*shape, **draw) / 3 for name, shape in shapes.items()}


# How leaves are cut: evenly on 1 to 3 ranks, unevenly, or so that some ranks have nothing.
LAYOUTS = {
    "even": lambda: (_network(12, 6), None),
    "ragged": lambda: (_network(13, 5), None),
    "empty": lambda: _row(25),
    "few": lambda: _row(5),
}


class Problem:
    """A risk, and vectors as its operators take them: whole, or the parts of a rank."""

    def __init__(self, layout, place=None):
        model, params = LAYOUTS[layout]()
        x, y = self.examples()
        options = {"weight_decay": 0.05, "params": params}
        if place is None:
            self.risk = hesse.Risk(model, nn.CrossEntropyLoss(), (x, y), **options)
            self.params = self.risk.params
        else:
            ends = [*range(0, 7 * place.size, 7), EXAMPLES]  # 7 examples, the rest on the last rank
            mine = slice(ends[place.rank], ends[place.rank + 1])
            options["group"] = place.ranks()
            self.risk = hesse.Risk(model, nn.CrossEntropyLoss(), [(x[mine], y[mine])], **options)
            self.params = shard(self.risk.params, mesh(place))
        self.hessian = hesse.hessian_operator(self.risk, self.params)
        self.ggn = hesse.ggn_operator(self.risk, self.params)
        self.space = self.hessian.domain

    @staticmethod
    def examples():
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(EXAMPLES, INPUTS, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, 5, (EXAMPLES,), generator=generator)

    def vector(self, seed=5):
        """This process's part of a vector."""
        generator = torch.Generator().manual_seed(seed)
        return self.space.part(torch.randn(self.space.n, generator=generator, dtype=torch.float64))

    def block(self, columns):
        return torch.stack([self.vector(9 + i) for i in range(columns)], dim=1)

    def whole(self, part):
        """All entries of a vector, of the columns of a block, or of the leaves of a tree."""
        if isinstance(part, dict):
            return {name: leaf.full_tensor() if hasattr(leaf, "full_tensor") else leaf
                    for name, leaf in part.items()}  # fmt: skip
        rows = part[None] if part.ndim == 1 else part.T.contiguous()
        rows = self.space.whole(rows)
        return rows[0] if part.ndim == 1 else rows.T


def mesh(place):
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(place.group, "cpu")


def columns(n):
    """Two whole vectors."""
    return torch.linspace(-1.0, 1.0, 2 * n, dtype=torch.float64).view(n, 2)


def seed(number=7):
    return torch.Generator().manual_seed(number)


# -- Answers ---------------------------------------------------------------------------------------


def _counted(compute, of="ggn"):
    """compute(A, problem), and the number of products."""

    def answer(p):
        A = CountingOperator(getattr(p, of))
        return {"found": compute(A, p), "products": A.products}

    return answer


def _shifted(A, c=1.0):
    return A + c * hesse.identity_operator(A.shape[0])


def _solved(method="auto", shift=0.1, rtol=1e-6, b=None, **options):
    def compute(A, p):
        given = p.vector() if b is None else b(p)
        found = hesse.solve(
            _shifted(A, shift), given, method, rtol=rtol, generator=seed(), **options
        )
        return p.whole(found.x), found.iterations, found.status.name

    return compute


def _pairs(*args, **options):
    def compute(A, p):
        found = hesse.eigsh(A, *args, generator=seed(), **options)
        return found.values, p.whole(found.vectors).abs()

    return compute


def _estimate(function, *args, shift=None, is_vector=False, **options):
    def compute(A, p):
        found = function(
            A if shift is None else _shifted(A, shift), *args, **options, generator=seed()
        )
        numbers = found.value, found.standard_error
        return [p.whole(x) if is_vector else x for x in numbers]

    return compute


def _density(**options):
    return lambda A, p: hesse.spectral_density(A, generator=seed(), **options).density


def _inverse(A, p):
    inverse = hesse.inverse_operator(_shifted(A), rtol=1e-3)
    return p.whole(inverse @ p.vector())


def _function(A, p):
    return p.whole(hesse.matrix_function("sqrt", A, p.vector(), rtol=1e-2).value)


def _normal(A, p):
    draws = hesse.sample_normal(_shifted(A), 2, generator=seed(), rtol=1e-2)
    return p.whole(draws.value)


def _blocks(size, probes):
    def compute(A, p):
        M = block_jacobi(A, size, probes=probes, generator=seed())
        return p.whole(M @ p.vector()), p.whole(M @ p.block(2)), M.products

    return compute


def _pivoted(A, p):
    M = pivoted_cholesky(A, 4, diagonal=p.space.part(p.ggn.to_dense().diagonal()))
    return p.whole(M @ p.vector()), M.products


def _structured(p):
    """What is known of a matrix of low rank plus a diagonal one, with and without products."""
    space = p.space
    d = p.space.part(torch.linspace(1.0, 2.0, space.n, dtype=torch.float64))
    D = hesse.operators.diagonal.DiagonalOperator(space, d)
    N = hesse.nystrom_operator(p.ggn, 4, generator=seed())
    answers = {}
    for name, A in {"diagonal": D, "shifted": _shifted(N), "sum": N + D}.items():
        answers[name] = [
            p.whole(A @ p.vector()),
            p.whole(hesse.inverse_operator(A) @ p.vector()),
            p.whole(hesse.diagonal(A).value),
            hesse.trace(A).value,
            hesse.logdet(A).value,
            hesse.norm(A, 2).value if name != "sum" else 0.0,
            A.to_dense(),
            hesse.inverse_operator(A.restrict(_places(p))).to_dense(),
            p.whole(pivoted_cholesky(A, 3) @ p.vector()),
        ]
    return answers


def _svds(A, p):
    found = hesse.svds(A, 2, generator=seed(), max_products=40)
    return found.S, p.whole(found.U).abs()


def _places(p):
    """Some places of a whole vector, in any order."""
    return [p.space.n - 1, 0, p.space.n // 2, 3]


def _restricted(A, p):
    large = p.space.unflatten(p.vector())
    few, b = A.restrict(_places(p)), torch.arange(1.0, 5.0, dtype=torch.float64)
    return {
        "product": few @ b,
        "block": few @ torch.stack([b, -b], dim=1),
        "curvature": few.curvature(b),
        "solution": hesse.solve(_shifted(few), b, "cg").x,
        "trace": hesse.trace(few, method="hutchinson", max_products=2, generator=seed()).value,
        "mask": A.restrict(p.vector().abs() > 1.5).to_dense(),
        "masks": A.restrict({name: leaf.abs() > 1.5 for name, leaf in large.items()}).to_dense(),
    }


def _by_scipy(A, p):
    """Eigenvalues by SciPy, whose vectors are whole in each process."""
    B, start = A.to_scipy(), numpy.linspace(-1.0, 1.0, A.shape[0])
    values, vectors = scipy.sparse.linalg.eigsh(B, 2, v0=start, ncv=8, tol=1e-2)
    return torch.as_tensor(values), torch.as_tensor(vectors).abs(), torch.as_tensor(B @ vectors)


def _minimised(method):
    def answer(p):
        found = hesse.minimize(p.risk, p.params, method, max_iterations=4)
        return p.whole(found.x), found.fun, found.nit

    return answer


def _products(p):
    H = p.hessian
    return {
        "product": p.whole(H @ p.vector()),
        "tree": p.whole(H @ H.domain.unflatten(p.vector())),
        "block": p.whole(H @ p.block(3)),
        "curvature": [H.curvature(p.vector()), p.ggn.curvature(p.vector())],
        "value": H.value,
        "largest": list(H.domain.argmax(p.vector().round())),
        "gradient": [p.whole(H.flat_gradient), p.whole(H.gradient)],
        "at": p.whole(H.at(H.domain.unflatten(2 * H.domain.flatten(p.params))) @ p.vector()),
        "hvp": p.whole(hesse.hvp(p.risk, p.params, p.vector())),
        "dense": H.to_dense(),
        "random": [p.whole(H.domain.gaussian(seed())), p.whole(H.domain.rademacher(seed()))],
    }


def _derivatives(p):
    """The risk as a function that is differentiated twice."""
    params = {name: leaf.detach().clone().requires_grad_() for name, leaf in p.params.items()}
    leaves, value = list(params.values()), p.risk(params)
    gradient = torch.autograd.grad(value, leaves, create_graph=True)
    v = p.space.unflatten(p.vector())
    product = torch.autograd.grad(gradient, leaves, list(v.values()))
    return {
        "value": value,
        "gradient": p.whole(dict(zip(params, gradient, strict=True))),
        "product": p.whole(dict(zip(params, product, strict=True))),
    }


def _others(p):
    v = p.vector()
    fisher = hesse.fisher_operator(p.risk, p.params, "empirical")
    moment = hesse.gradient_covariance_operator(p.risk, p.params, centered=True)
    name = next(iter(p.params))
    block = p.ggn.block(name)
    return {
        "fisher": p.whole(fisher @ v),
        "moment": p.whole(moment @ v),
        "budget": p.whole(hesse.ggn_operator(p.risk, p.params, memory_budget="none") @ v),
        "block": block.domain.whole((block @ v[: block.domain.size])[None]),
    }


# Short runs: what differs between shards and one process shows in a few steps.
AUDIT = {
    "products": _products,
    "derivatives": _derivatives,
    "others": _others,
    "eigsh": _counted(_pairs(2, max_products=24), "hessian"),
    "eigsh of blocks": _counted(
        _pairs(2, "SA", method=hesse.Lanczos(block_size=2), max_products=16), "hessian"
    ),
    "lobpcg": _counted(_pairs(2, method="lobpcg", max_products=15)),
    "svds": _counted(_svds),
    "cg": _counted(_solved("cg", max_iterations=8)),
    "radius": _counted(_solved(hesse.CG(radius=0.5)), "hessian"),
    "block-cg": _counted(_solved(b=lambda p: p.block(3), max_iterations=5)),
    "minres": _counted(_solved("minres", shift=-0.2, max_iterations=8), "hessian"),
    "minres to its limit": _counted(_solved("minres", shift=-0.2, max_products=9), "hessian"),
    "gmres": _counted(_solved("gmres", max_iterations=8)),
    "lsmr": _counted(_solved("lsmr", max_iterations=6)),
    "shifts": _counted(_solved(hesse.MultiShiftCG([0.1, 1.0]), max_iterations=6)),
    "jacobi": _counted(_solved("cg", preconditioner="jacobi", max_iterations=4)),
    "nystrom": _counted(_solved("cg", preconditioner="nystrom", max_iterations=3)),
    "inverse": _counted(_inverse),
    "trace": _counted(_estimate(hesse.trace, method="hutchinson", max_products=8)),
    "hutch++": _counted(_estimate(hesse.trace, method="hutch++", max_products=18)),
    "xtrace": _counted(_estimate(hesse.trace, method="xtrace", max_products=16)),
    "xnystrace": _counted(_estimate(hesse.trace, method="xnystrace", max_products=8, shift=1.0)),
    "diagonal": _counted(_estimate(hesse.diagonal, max_products=24, is_vector=True), "hessian"),
    "xdiag": _counted(
        _estimate(hesse.diagonal, method="xdiag", max_products=16, is_vector=True), "hessian"
    ),
    "norm 2": _counted(_estimate(hesse.norm, 2, rtol=0.1)),
    "norm": _counted(_estimate(hesse.norm, "fro", max_products=16)),
    "logdet": _counted(_estimate(hesse.logdet, shift=1.0, max_products=60)),
    "count": _counted(_estimate(hesse.count_eigenvalues, 0.06, 10.0, max_products=60)),
    "density": _counted(_density(probes=1)),
    "polynomials": _counted(_density(probes=1, method="kernel-polynomial")),
    "function": _counted(_function),
    "normal": _counted(_normal),
    "restrict": _counted(_restricted),
    "scipy": _counted(_by_scipy),
    "block-jacobi": _counted(_blocks(5, 2), "hessian"),
    "pivoted-cholesky": _counted(_pivoted),
    "low rank": lambda p: p.whole(hesse.nystrom_operator(p.ggn, 8, generator=seed()) @ p.vector()),
    "newton-cg": _minimised("newton-cg"),
    "trust-krylov": _minimised("trust-krylov"),
}

# From all columns, or from structure.
EXACT = {
    "exact trace": _counted(_estimate(hesse.trace)),
    "exact diagonal": _counted(_estimate(hesse.diagonal, is_vector=True), "hessian"),
    "exact norm": _counted(_estimate(hesse.norm)),
    "exact logdet": _counted(_estimate(hesse.logdet, shift=1.0)),
    "exact blocks": _counted(_blocks(4, None), "hessian"),
    "by block-jacobi": _counted(_solved("cg", preconditioner="block-jacobi", max_iterations=3)),
    "exact count": _counted(_estimate(hesse.count_eigenvalues, 0.06, 10.0)),
    "structured": _structured,
}


def audited(place, layout, names):
    """What each of these gives: on shards, or in one process with whole vectors."""
    problem = Problem(layout, place)
    return {name: (AUDIT | EXACT)[name](problem) for name in names}


def drawn(place):
    """Long random vectors of a space whose leaves are cut along several dimensions."""
    from torch.distributed.tensor import Shard

    whole = {"a": torch.zeros(30_000, 3), "b": torch.zeros(7), "c": torch.zeros(3, 25_000)}
    parts = shard(whole, mesh(place))
    parts["c"] = parts["c"].redistribute(placements=[Shard(1)])
    space = Space.of(parts, ranks=place.ranks())
    draws = {"normal": space.gaussian, "signs": space.rademacher}
    return {name: space.whole(draw(seed())[None])[0] for name, draw in draws.items()}
