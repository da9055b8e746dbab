# SPDX-License-Identifier: Apache-2.0
"""The pictures of the guides, drawn by Hesse from small problems: name -> function -> SVG text."""

import io

import matplotlib
import torch
from matplotlib.figure import Figure

import hesse
from hesse.testing.surfaces import mueller_brown

GREY = "#808080"  # readable on a light page and on a dark one
STYLE = {
    "svg.hashsalt": "hesse",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def spectral_density():
    """The spectrum of a classifier's Hessian: a bulk at zero and a few outliers."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
    data = torch.randn(200, 10), torch.randint(0, 3, (200,))
    risk = hesse.Risk(model, torch.nn.CrossEntropyLoss(), data)
    H = hesse.hessian_operator(risk, risk.params)
    generator = torch.Generator().manual_seed(0)
    density = hesse.spectral_density(
        H, probes=8, method=hesse.LanczosDensity(steps=60), generator=generator
    )
    low, high = density.interval

    def plot(axes):
        axes.fill_between(density.grid, low.clamp(min=1e-4), high.clamp(min=1e-4), alpha=0.25)
        axes.plot(density.grid, density.density)
        axes.set(yscale="log", ylim=(1e-3, None), xlabel="eigenvalue", ylabel="density")

    return _svg(plot)


def convergence():
    """Residuals of CG and of MINRES on one system."""
    eigenvalues = torch.logspace(0, 3, 200, dtype=torch.float64)
    A = hesse.diagonal_operator(eigenvalues)
    b = torch.ones(200, dtype=torch.float64)

    def plot(axes):
        for method in ("cg", "minres"):
            solution = hesse.solve(A, b, method, rtol=1e-8)
            axes.semilogy([norm / solution.history[0] for norm in solution.history], label=method)
        axes.set(xlabel="iteration", ylabel="|b - A x| / |b|")
        axes.legend()

    return _svg(plot)


def curvature_along_a_direction():
    """A function along an eigenvector, and the parabola that the eigenvalue gives."""

    def f(x):
        return torch.sin(x[0]) * torch.cos(x[1]) + 0.1 * (x @ x)

    x = torch.tensor([1.0, 0.5], dtype=torch.float64)
    H = hesse.hessian_operator(f, x)
    pair = hesse.eigsh(H, 1, "SA")
    v, eigenvalue = pair.vectors[:, 0], float(pair.values[0])
    slope, value = float(H.flat_gradient @ v), float(H.value)
    t = torch.linspace(-1.5, 1.5, 101, dtype=torch.float64)

    def plot(axes):
        axes.plot(t, [float(f(x + step * v)) for step in t], label="f(x + t v)")
        model = value + slope * t + 0.5 * eigenvalue * t**2
        axes.plot(t, model, "--", label="f(x) + t g'v + t² v'Hv / 2")
        axes.set(xlabel="t")
        axes.legend()

    return _svg(plot)


def sparse_hessian():
    """The entries of the Hessian of an energy on a 6 x 6 grid, in the colours of their columns."""

    def f(u):
        g = torch.nn.functional.pad(u.view(6, 6), (1, 1, 1, 1))
        return (g.diff(dim=0) ** 4).sum() + (g.diff(dim=1) ** 4).sum()

    S = hesse.sparse_hessian_operator(f, torch.ones(36, dtype=torch.float64))
    entries = S.to_scipy().tocoo()
    colours = S.structure.compression.colouring.colours

    def plot(axes):
        for colour in range(S.num_products):
            chosen = colours[entries.col] == colour
            axes.plot(entries.col[chosen], entries.row[chosen], "s", markersize=3)
        axes.set(xlabel="column", ylabel="row", aspect="equal", ylim=(36, -1))

    return _svg(plot)


def hypergradient():
    """The error of a hypergradient and its estimate, by the tolerance of both problems."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(80, 10, dtype=torch.float64, generator=generator)
    y = (X[:, 0] + torch.randn(80, dtype=torch.float64, generator=generator)).sign()

    def loss(x, part):
        return torch.nn.functional.softplus(-y[part] * (X[part] @ x)).mean()

    def inner(x, logs):
        return loss(x, slice(40)) + (logs.exp() * x**2).sum() / 2

    def outer(x, logs):
        return loss(x, slice(40, 80))

    logs = torch.full((10,), -4.0, dtype=torch.float64)

    def at(tolerance):
        f, x0 = (lambda x: inner(x, logs)), torch.zeros_like(logs)
        x = hesse.minimize(f, x0, rtol=0.0, atol=tolerance).x
        return hesse.apps.hypergradient(outer, inner, x, logs, rtol=10 * tolerance)

    exact = at(1e-13).gradient
    tolerances = [10.0 ** (-k / 2) for k in range(3, 15)]
    found = [at(tolerance) for tolerance in tolerances]

    def plot(axes):
        errors = [float((h.gradient - exact).norm()) for h in found]
        axes.loglog(tolerances, errors, "o", label="error")
        axes.loglog(tolerances, [h.error for h in found], "x", label="estimate")
        axes.set(xlabel="|gradient of the inner problem| below", ylabel="error of the gradient")
        axes.legend()

    return _svg(plot)


def profile():
    """The profile likelihood of a rate from 5 events, and the quadratic at its maximum."""
    events = torch.tensor(5.0, dtype=torch.float64)

    def f(rate):
        return rate - events * rate.log()

    interval = hesse.apps.profile(f, events)

    def plot(axes):
        rate = torch.linspace(0.8, 12.5, 200, dtype=torch.float64)
        axes.plot(rate, 2 * (f(rate) - f(events)), label="profile")
        axes.plot(rate, (rate - events) ** 2 / events, "--", label="quadratic (Wald)")
        axes.axhline(3.841, color=GREY, linewidth=0.8)
        axes.plot([interval.low, interval.high], [3.841, 3.841], "o", color="C0")
        axes.plot(interval.wald, [3.841, 3.841], "x", color="C1")
        axes.set(xlabel="rate", ylabel="2 (l - min l)", ylim=(0.0, 8.0))
        axes.legend()

    return _svg(plot)


def influences():
    """Predicted and actual changes of a loss, of a logistic regression with few examples."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(80, 3, generator=g, dtype=torch.float64)
    y = (X[:, 0] + 0.5 * torch.randn(80, generator=g, dtype=torch.float64) > 0).long()
    model = torch.nn.Linear(3, 2).double()
    loss = torch.nn.CrossEntropyLoss()
    risk = hesse.Risk(model, loss, (X[:40], y[:40]), weight_decay=0.01)
    params = hesse.minimize(risk, risk.params, atol=1e-9, rtol=0.0).x

    def query(p):
        return loss(torch.func.functional_call(model, p, (X[40:],)), y[40:])

    def retrained(i):
        weights = torch.ones(40)
        weights[i] = 0.0
        again = hesse.minimize(risk.weighted(weights), params, atol=1e-9, rtol=0.0).x
        return float(query(again) - query(params))

    actual = [retrained(i) for i in range(40)]
    common = {"curvature": "hessian", "groups": torch.arange(40), "rtol": 1e-8}
    first = hesse.apps.influence(risk, params, query, **common).scores[0]
    newton = hesse.apps.influence(risk, params, query, removal="newton", **common).scores[0]

    def plot(axes):
        axes.axline((0.0, 0.0), slope=1.0, color=GREY, linewidth=0.8)
        axes.plot(actual, first, "o", label="first order")
        axes.plot(actual, newton, "x", label="one Newton step")
        axes.set(xlabel="change of the loss, retrained", ylabel="predicted")
        axes.legend()

    return _svg(plot)


def uncertainty():
    """A curve through points with a gap, and the spread of new points about it."""
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.linspace(-2.0, -0.7, 14), torch.linspace(0.9, 1.6, 10)]).double()[:, None]
    y = torch.sin(2.0 * x) + 0.1 * torch.randn(24, 1, dtype=torch.float64, generator=g)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1))
    risk = hesse.Risk(model.double(), torch.nn.MSELoss(), (x, y), weight_decay=1e-3)
    params = hesse.minimize(risk, risk.params, atol=1e-8, rtol=0.0, max_iterations=300).x
    grid = torch.linspace(-3.0, 2.6, 120, dtype=torch.float64)[:, None]
    mean, variance = hesse.apps.laplace(risk, params, prior="evidence").predict(grid)
    at, middle, width = grid[:, 0], mean[:, 0], 2.0 * variance[:, 0].sqrt()

    def plot(axes):
        axes.fill_between(at, middle - width, middle + width, alpha=0.25)
        axes.plot(at, middle)
        axes.plot(x[:, 0], y[:, 0], "o", color="C1")
        axes.set(xlabel="x", ylabel="y", ylim=(-3.0, 3.0))

    return _svg(plot)


def pruning():
    """The loss of a small network by its sparsity, pruned in four ways."""
    torch.manual_seed(0)
    X = torch.randn(300, 10, dtype=torch.float64)
    y = (X[:, :3].norm(dim=1) > 1.5).long()
    layers = torch.nn.Linear(10, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2)
    model = torch.nn.Sequential(*layers).double()
    risk = hesse.Risk(model, torch.nn.CrossEntropyLoss(), (X, y), weight_decay=1e-3)
    params = hesse.minimize(risk, risk.params, "lbfgs", max_iterations=200).x
    ways = {
        "magnitude": {"score": "magnitude", "repair": False},
        "optimal brain damage": {"score": "obd", "repair": False},
        "with repair": {"score": "obd"},
        "with exchanges": {},
    }
    levels = [0.3, 0.5, 0.6, 0.7, 0.8, 0.9]

    def plot(axes):
        for (name, options), style in zip(ways.items(), "sx^o", strict=True):
            pruned = [hesse.apps.prune(risk, params, level, **options) for level in levels]
            axes.plot(levels, [float(risk(p.params)) for p in pruned], f"{style}-", label=name)
        axes.axhline(float(risk(params)), color=GREY, linewidth=0.8)
        axes.set(xlabel="sparsity", ylabel="loss")
        axes.legend()

    return _svg(plot)


def saddles():
    """Walks from a minimum of the surface of Mueller and Brown to its two transition states."""
    start = hesse.minimize(mueller_brown, torch.tensor([-0.05, 0.467], dtype=torch.float64)).x
    u = hesse.apps.modes(mueller_brown, start, rigid="none").vectors[:, 0]
    x = torch.linspace(-1.4, 1.1, 90, dtype=torch.float64)
    y = torch.linspace(-0.3, 1.9, 90, dtype=torch.float64)
    grid = torch.cartesian_prod(x, y)
    values = torch.vmap(mueller_brown)(grid).reshape(90, 90)

    def plot(axes):
        levels = torch.linspace(-145, 40, 22)
        axes.contour(x, y, values.T, levels=levels, colors=GREY, linewidths=0.5)
        for k, sign in enumerate((1.0, -1.0)):
            path = [start]
            found = hesse.apps.saddle(
                mueller_brown,
                start,
                sign * u,
                radius=0.03,
                callback=lambda s, path=path: path.append(s.x),
            )
            points = torch.stack([*path, found.x])
            axes.plot(points[:, 0], points[:, 1], ".-", color=f"C{k}")
            axes.plot(*found.x, "o", color=f"C{k}")
        axes.plot(*start, "s", color=GREY)
        axes.set(xlabel="x", ylabel="y")

    return _svg(plot)


def small_regression():
    """A network of 141 parameters, the data that it is trained on, and its loss."""
    torch.manual_seed(0)
    x = torch.randn(60, 5, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    layers = torch.nn.Linear(5, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1)
    return torch.nn.Sequential(*layers).double(), x, y, torch.nn.MSELoss()


def descend(model, x, y, loss, rate, steps, each=None):
    """Gradient descent with all data; `each` is called with the optimizer before every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        if each is not None:
            each(optimizer)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def edge_of_stability():
    """The sharpness of a network under gradient descent, and the limit of stability."""
    model, x, y, loss = small_regression()
    tracker = hesse.apps.CurvatureTracker([(x, y)], model, loss, every=25, budget=None)
    descend(model, x, y, loss, 0.15, 1001, lambda optimizer: tracker.step(model, optimizer))
    return _svg(tracker.history.plot)


def landscape():
    """The loss of a trained network along the eigenvectors of both ends of the spectrum."""
    model, x, y, loss = small_regression()
    descend(model, x, y, loss, 0.05, 500)
    risk = hesse.Risk(model, loss, (x, y))
    plane = hesse.apps.landscape(risk, directions="ends", radius=(1.0, 4.0), grid=31)
    return _svg(plane.plot)


def linearised():
    """The squared error of a network in training, and of its linearisation at the same time."""
    torch.manual_seed(0)
    x = torch.rand(60, 2, dtype=torch.float64) * 4 - 2
    y = torch.stack([torch.sin(2 * x[:, 0]), x[:, 0] * x[:, 1]], 1)
    rate, steps = 5e-5, [10 * 2**k for k in range(9)]
    curves = {}
    for width in (20, 200):
        layers = torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, 2)
        model = torch.nn.Sequential(*layers).double()
        line = hesse.apps.linearised(model)
        fits = [line.fit(x, y, time=rate * k, rtol=1e-4).predict(x) for k in steps]
        errors = []

        def each(optimizer, model=model, errors=errors):
            errors.append(float((model(x) - y).detach().square().mean()))

        half = torch.nn.MSELoss(reduction="sum")
        descend(model, x, y, lambda f, y, half=half: 0.5 * half(f, y), rate, steps[-1] + 1, each)
        linear = [float((fit - y).square().mean()) for fit in fits]
        curves[width] = [errors[k] for k in steps], linear

    def plot(axes):
        times = [rate * k for k in steps]
        for k, (width, (trained, linear)) in enumerate(curves.items()):
            axes.plot(times, trained, "o-", color=f"C{k}", label=f"network, width {width}")
            axes.plot(times, linear, "x--", color=f"C{k}", label="linearised")
        axes.set(xlabel="steps times learning rate", ylabel="mean squared error", xscale="log")
        axes.legend()

    return _svg(plot)


PICTURES = {
    "edge-of-stability": edge_of_stability,
    "landscape": landscape,
    "linearised": linearised,
    "influence": influences,
    "laplace": uncertainty,
    "pruning": pruning,
    "saddles": saddles,
    "profile": profile,
    "hypergradient": hypergradient,
    "sparse-hessian": sparse_hessian,
    "spectral-density": spectral_density,
    "convergence": convergence,
    "curvature": curvature_along_a_direction,
}


def _svg(plot):
    """The picture that `plot` draws into axes, the same text for the same numbers."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 3.2), layout="constrained")
        plot(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()
