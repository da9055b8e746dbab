"""What the tests of outputs that ranks share compute: of one process, or of several."""

from unittest import mock

import scipy.sparse.linalg
import torch
from torch import nn

import hesse
from hesse.distributed import shard
from hesse.optimize.squares import fit, sketched_family
from hesse.testing import CountingOperator, Traffic, check_operator
from hesse.vectors.space import Space
from tests.shards_jobs import mesh, seed

INPUTS, OUTPUTS, EXAMPLES = 4, 3, 22

# The batches of each rank, by their sizes.
SPLITS = {
    "one": [[9, 13]],
    "even": [[11], [5, 6]],
    "ragged": [[7, 3], [1], [5, 4, 2]],
    "empty": [[10, 4], [], [8]],
    "first empty": [[], [22]],
    "four": [[5, 2], [8], [], [7]],
}
SIZES = {split: len(sizes) for split, sizes in SPLITS.items()}


def _network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(INPUTS, 5), nn.Tanh(), nn.Linear(5, OUTPUTS)).double()


def examples(loss):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(EXAMPLES, INPUTS, generator=generator, dtype=torch.float64)
    if loss == "squares":
        noise = torch.randn(EXAMPLES, OUTPUTS, generator=generator, dtype=torch.float64)
        return x, torch.sin(2 * x[:, :OUTPUTS]) + 0.1 * noise
    return x, torch.randint(0, OUTPUTS, (EXAMPLES,), generator=generator)


LOSSES = {"squares": nn.MSELoss, "classes": nn.CrossEntropyLoss}


class Problem:
    """A risk at a point, whose parameters may be whole in each process, or sharded."""

    def __init__(self, place=None, split="one", *, is_sharded=False, loss="classes", decay=0.05):
        self.place, (x, y) = place, examples(loss)
        criterion = LOSSES[loss]() if isinstance(loss, str) else loss
        if place is None:
            self.mine = slice(0, EXAMPLES)
            self.risk = hesse.Risk(_network(), criterion, (x, y), decay)
        else:
            start = sum(map(sum, SPLITS[split][: place.rank]))
            data = []
            for size in SPLITS[split][place.rank]:
                data.append((x[start : start + size], y[start : start + size]))
                start += size
            self.mine = slice(start - sum(len(part) for part, _ in data), start)
            self.risk = hesse.Risk(_network(), criterion, data, decay, group=place.ranks())
        self.inputs, self.sharded = x[self.mine], None
        self.params = self.risk.params
        self.space = Space.of(self.params, ranks=self.risk.ranks)
        if is_sharded:
            self.shard(mesh(place))

    def shard(self, over):
        """Shard the parameters over a mesh."""
        self.params, self.sharded = shard(self.risk.params, over), over
        self.space = Space.of(self.params, ranks=self.risk.ranks)

    def vector(self, number=5):
        """This process's part of parameters."""
        return self.space.gaussian(seed(number))

    def whole(self, v):
        """All entries of a vector of parameters, or of a tree."""
        return self.space.whole((v if isinstance(v, torch.Tensor) else self.space.flatten(v))[None])


def outputs(A, u):
    """All entries of a vector of outputs, of which each process has its own."""
    return A.codomain.whole(u[None])[0]


# -- Answers ---------------------------------------------------------------------------------------


def _jacobian(p):
    J = hesse.jacobian_operator(p.risk, p.params)
    v, u = p.vector(), J.codomain.gaussian(seed())
    block = torch.stack([v, p.vector(6)], dim=1)
    rows = torch.stack([u, J.codomain.rademacher(seed())], dim=1)
    further = p.space.unflatten(2 * p.space.flatten(p.params))
    return {
        "shape": list(J.shape),
        "product": outputs(J, J @ v),
        "tree": outputs(J, J.codomain.flatten(J @ p.space.unflatten(v))),
        "block": J.codomain.whole((J @ block).T.contiguous()),
        "adjoint": p.whole(J.T @ u),
        "adjoint of a tree": p.whole(J.T @ J.codomain.unflatten(u)),
        "adjoint of a block": p.space.whole((J.T @ rows).T.contiguous()),
        "at": outputs(J, J.at(further) @ v),
        "matrix": [J.to_dense(), J.T.to_dense()],
        "norms": [J.codomain.norm(u), *J.codomain.extremes(u), J.codomain.inner(u, J @ v)],
        "is right": check_operator(J).adjoint < 1e-12,
    }


def _counted(compute):
    """compute(J, p), and the number of products."""

    def answer(p):
        J = CountingOperator(hesse.jacobian_operator(p.risk, p.params))
        return {"found": compute(J, p), "products": J.products}

    return answer


def _solved(method, **options):
    def compute(J, p):
        b = J.codomain.gaussian(seed())
        found = hesse.solve(J, b, method, max_iterations=6, **options)
        return p.whole(found.x), found.residual_norm, found.iterations

    return compute


def _svds(k):
    def compute(J, p):
        found = hesse.svds(J, k, generator=seed(), max_products=40)
        return found.S, p.space.whole(found.V.T.contiguous()).abs()

    return compute


def _by_scipy(J, p):
    """A fit by LSQR, whose vectors are whole in each process."""
    b = torch.linspace(-1.0, 1.0, J.shape[0], dtype=torch.float64).numpy()
    x, _, iterations, norm, *_ = scipy.sparse.linalg.lsqr(J.to_scipy(), b, iter_lim=5)
    return torch.as_tensor(x), iterations, float(norm)


def _eigsh(J, p):
    found = hesse.eigsh(J.T @ J, 2, generator=seed(), max_products=20)
    return found.values, p.space.whole(found.vectors.T.contiguous()).abs()


def _root(p):
    R = hesse.fisher_root_operator(p.risk, p.params)
    e = R.domain.gaussian(seed())
    F = hesse.fisher_operator(p.risk, p.params)
    return {
        "product": p.whole(R @ e),
        "adjoint": outputs(R.T, R.T @ p.vector()),
        "matrix": R.to_dense(),
        "square": (R @ R.T + p.risk.weight_decay * hesse.identity_operator(p.space.n)).to_dense(),
        "fisher": F.to_dense(),
        "is right": check_operator(R).adjoint < 1e-12,
    }


def _kernel(p):
    K = hesse.ntk_operator(p.risk, p.params)
    u = K.domain.gaussian(seed())
    G = hesse.ggn_operator(p.risk, p.params)
    S = hesse.inverse_operator(G + 0.1 * hesse.identity_operator(p.space.n), rtol=1e-12)
    pairs = hesse.eigsh(K, 2, generator=seed(), max_products=24)
    return {
        "product": outputs(K, K @ u),
        "matrix": K.to_dense(),
        "of few outputs": K.restrict([K.shape[0] - 1, 0, 30]).to_dense(),
        "inputs": hesse.ntk_operator(p.risk, p.params, p.inputs).to_dense(),
        "with a covariance": outputs(K, hesse.ntk_operator(p.risk, p.params, S=S) @ u),
        "eigenvalues": [pairs.values, pairs.products],
        "trace": hesse.trace(K, method="hutchinson", max_products=8, generator=seed()).value,
        "is right": check_operator(K).symmetry < 1e-12,
    }


def _inputs(p):
    H = hesse.hessian_operator(p.risk, p.params, with_respect_to="inputs")
    u = H.domain.gaussian(seed())
    rows = torch.stack([u, H.domain.rademacher(seed())], dim=1)
    further = p.space.unflatten(2 * p.space.flatten(p.params))
    budget = hesse.hessian_operator(
        p.risk, p.params, with_respect_to="inputs", memory_budget="none"
    )
    pairs = hesse.eigsh(H, 2, generator=seed(), max_products=24)
    shifted = H + 0.3 * hesse.identity_operator(H.shape[0])
    solved = hesse.solve(shifted, u, "minres", max_iterations=6)
    return {
        "shape": list(H.shape),
        "value": H.value,
        "gradient": outputs(H, H.flat_gradient),
        "trees": outputs(H, H.domain.flatten(H.gradient)),
        "product": outputs(H, H @ u),
        "tree": outputs(H, H.domain.flatten(H @ H.domain.unflatten(u))),
        "block": H.domain.whole((H @ rows).T.contiguous()),
        "curvature": H.curvature(u),
        "budget": outputs(H, budget @ u),
        "at": [outputs(H, H.at(further) @ u), H.at(further).value],
        "eigenvalues": [pairs.values, pairs.products],
        "solution": [outputs(H, solved.x), solved.residual_norm],
        "trace": hesse.trace(H, method="hutchinson", max_products=8, generator=seed()).value,
        "is right": check_operator(H).symmetry < 1e-12,
    }


def _fitted(method, **options):
    def answer(p):
        seen = []
        part = hesse.least_squares(
            *(p.risk, p.params, method),
            max_iterations=2,
            callback=lambda state: seen.append(p.whole(state.x)) and False,
            **{name: value(p) if callable(value) else value for name, value in options.items()},
        )
        C = part.covariance
        return {
            "x": p.whole(part.x),
            "seen": seen,
            "held": p.whole(part.active_mask),
            "of few": None if method == "lsmr" else C.restrict([40, 0, 7]).to_dense(),
            "covariance": None if method == "lsmr" else p.whole(C @ p.vector()),
            "counts": [part.nfev, part.njev, part.nhev, part.nit, part.products],
            "gradient": p.whole(part.grad),
            "residuals": outputs_sorted(part.fun, p),
            "cost": part.cost,
            "errors": None if part.standard_errors is None else p.whole(part.standard_errors),
            "jacobian": p.whole(part.jac.T @ (part.jac @ p.vector())),
            "rank": part.rank,
        }

    return answer


def _bounds(p):
    """Numbers for leaves below, and a tree above, which hold some variables."""
    lower = {name: -0.6 if name == "0.weight" else None for name in p.params}
    return lower, p.space.unflatten(p.space.flatten(p.params) + 0.01)


def _sizes(p):
    """A scale of the variables as a tree."""
    return p.space.unflatten(1.0 + p.space.flatten(p.params) ** 2)


def _sketched(p):
    """A fit whose steps come from a few columns of J, as those of large matrices do."""
    with (
        mock.patch.object(fit, "_LEAST_SKETCHED", 8),
        mock.patch.object(sketched_family, "_FIRST", 4),
    ):
        return _fitted("svd")(p)


def outputs_sorted(fun, p):
    """The squares of all residuals, which lie in another order in one process."""
    parts = [leaf.reshape(-1) for leaf in (fun if isinstance(fun, list) else [fun])]
    squares = torch.cat(parts) ** 2
    if p.place is None:
        return squares.sort().values
    most = 2 * EXAMPLES * OUTPUTS + p.space.n
    padded = torch.full((most,), -1.0, dtype=squares.dtype)
    padded[: len(squares)] = squares
    rows = p.risk.ranks.gather_rows(padded).reshape(-1)
    return rows[rows >= 0].sort().values


JACOBIANS = {
    "jacobian": _jacobian,
    "root": _root,
    "kernel": _kernel,
    "inputs": _inputs,
    "lsmr": _counted(_solved("lsmr")),
    "lsmr with a penalty": _counted(_solved(hesse.LSMR(tikhonov=0.1))),
    "svds": _counted(_svds(2)),
    "scipy": _counted(_by_scipy),
    "all singular values": lambda p: (
        hesse.svds(hesse.jacobian_operator(p.risk, p.params), p.space.n, generator=seed()).S
    ),
    "eigsh": _counted(_eigsh),
    "norm": _counted(lambda J, p: hesse.norm(J, 2, rtol=0.1, generator=seed()).value),
}
DIAGONALS = {
    "ggn": lambda p: _diagonal(hesse.ggn_operator(p.risk, p.params)),
    "shifted": lambda p: _diagonal(2.0 * hesse.fisher_operator(p.risk, p.params)),
    "empirical": lambda p: _diagonal(hesse.fisher_operator(p.risk, p.params, "empirical")),
    "moment": lambda p: _diagonal(hesse.gradient_covariance_operator(p.risk, p.params)),
}


def _diagonal(A):
    found = hesse.diagonal(A)
    assert float(found.standard_error.max()) == 0.0
    return found.value, found.products, found.about


FITS = {
    "fit by svd": _fitted("svd"),
    "fit by auto": _fitted("auto"),
    "fit by lsmr": _fitted("lsmr"),
    "robust svd": _fitted("svd", loss="cauchy", f_scale=0.1),
    "robust lsmr": _fitted("lsmr", loss="huber", f_scale=0.1),
    "svd within bounds": _fitted("svd", bounds=_bounds),
    "lsmr within bounds": _fitted("lsmr", bounds=_bounds),
    "long steps": _fitted("svd-long", x_scale=_sizes),
    "sketched": _sketched,
}


def answered(place, split, names, is_sharded=False, loss="classes"):
    """What each of these gives, by name."""
    p = Problem(place, split, is_sharded=is_sharded, loss=loss)
    return {name: {**JACOBIANS, **DIAGONALS, **FITS}[name](p) for name in names}


# -- Communication ---------------------------------------------------------------------------------


def traffic(place, split, is_sharded):
    """What products with a Jacobian and with what is made of it send, and the size of a message."""
    p = Problem(place, split, is_sharded=is_sharded)
    J, R = (
        make(p.risk, p.params) for make in (hesse.jacobian_operator, hesse.fisher_root_operator)
    )
    v, u = p.vector(), J.codomain.gaussian(seed())
    block, rows = torch.stack([v] * 5, dim=1), torch.stack([u] * 5, dim=1)
    calls = {
        "product": lambda: J @ v,
        "block": lambda: J @ block,
        "adjoint": lambda: J.T @ u,
        "adjoint of a block": lambda: J.T @ rows,
        "root": lambda: R @ R.domain.zeros(),
        "norm": lambda: J.codomain.norm(u),
        "inner": lambda: J.codomain.inner_pairs((u, u), (u, u)),
    }
    width = p.space.n if p.space.shards is None else p.space.shards.width
    return {name: _sent(call) for name, call in calls.items()}, width


def _sent(call):
    with Traffic() as one:
        call()
    return [dict(one.calls), dict(one.numbers)]
