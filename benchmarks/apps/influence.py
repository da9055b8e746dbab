"""Influences against exact retraining: leave-one-out, groups, the datamodelling score, MNIST.

Digits of scikit-learn, 1,437 to train and 360 to test, float64. Leave-one-out and groups are those
of softmax regression (n = 650, weight decay 0.01) at its minimum, retrained exactly; the score
(LDS) that of an MLP 64-16-10 (n = 1,210, weight decay 0.001) over random halves retrained from
the same start, 120 queries, with models of another start as the ceiling. Every start has a minimum
and halves of its own; the mean over starts is printed with its standard error. `--mnist FILE`
(x_train, y_train, x_test, y_test in an .npz file) adds softmax regression on 55,000 images, and the
LDS of an MLP 784-128-64-10 (n = 109,386, float32) on 5,000, trained by 20 epochs of SGD, which end
at no minimum, for 100 queries. `--only NAME ...` takes some of the parts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.apps import influence, lds, self_influence

CE = nn.CrossEntropyLoss()
PARTS = ["leave-one-out", "groups", "lds", "mnist-lds", "mnist"]


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks apps influence", description=__doc__
    )
    parser.add_argument("--examples", type=int, default=100, help="left out one by one")
    parser.add_argument("--groups", type=int, default=6, help="of each kind")
    parser.add_argument("--subsets", type=int, default=50, help="of the LDS")
    parser.add_argument("--starts", type=int, default=3, help="of the digits MLP")
    parser.add_argument("--mnist", help="path of an .npz file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(options.threads)
    torch.set_default_dtype(torch.float64)
    with hesse.deterministic():  # a network has many minima: rounding decides which is found
        for part in options.only:
            if part == "leave-one-out":
                leave_one_out(Trained(Digits(), [64, 10], 1e-2), options.examples)
            elif part == "groups":
                groups(Trained(Digits(), [64, 10], 1e-2), options.groups)
            elif part == "lds":
                datamodels(Digits(), options.subsets, options.starts)
            elif options.mnist and part == "mnist-lds":
                mnist_network(options.mnist, options.subsets)
            elif options.mnist:
                mnist(options.mnist)


class Digits:
    """The data."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
        X, y = torch.tensor(digits.data / 16)[order], torch.tensor(digits.target)[order]
        self.X, self.y, self.X_test, self.y_test = X[:1437], y[:1437], X[1437:], y[1437:]


class Trained:
    """A network at a minimum of its risk."""

    def __init__(self, digits: Digits, widths: list[int], decay: float, seed: int = 0) -> None:
        self.digits, self.widths, self.decay = digits, widths, decay
        self.risk = self.risk_on(digits.X, digits.y)
        self.theta = self.minimised(self.risk, self.start(seed), 1e-9)
        self.test = self.risk.on((digits.X_test, digits.y_test)).per_example

    def network(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def risk_on(self, X: Tensor, y: Tensor) -> hesse.Risk:
        return hesse.Risk(self.network(), CE, (X, y), weight_decay=self.decay)

    def start(self, seed: int) -> Any:
        torch.manual_seed(seed)
        return {name: p.detach().clone() for name, p in self.network().named_parameters()}

    @staticmethod
    def minimised(risk: hesse.Risk, start: Any, atol: float) -> Any:
        return hesse.minimize(risk, start, atol=atol, rtol=0.0, max_iterations=500).x

    def without(self, places: Any) -> Tensor:
        """The losses of the test examples after exact retraining without some examples."""
        weights = torch.ones(len(self.digits.X))
        weights[places] = 0.0
        return self.test.losses(self.minimised(self.risk.weighted(weights), self.theta, 1e-9))


def leave_one_out(model: Trained, count: int) -> None:
    """The most influential examples on the worst test example."""
    start, data = time.process_time(), model.digits
    before = model.test.losses(model.theta)
    worst = int(before.argmax())
    queries = (data.X_test, data.y_test)
    result = influence(model.risk, model.theta, queries, curvature="hessian", rtol=1e-6)
    seconds = time.process_time() - start
    assert result.scores is not None
    chosen = result.scores[worst].abs().topk(count).indices.tolist()
    actual = torch.stack([model.without(i)[worst] - before[worst] for i in chosen])
    print(f"leave-one-out, {count} examples; {result.products} products for all 360 queries,")
    print(f"{seconds:.1f} s; retraining {time.process_time() - start - seconds:.1f} s")
    one = (data.X_test[[worst]], data.y_test[[worst]])
    rows: dict[str, dict[str, Any]] = {
        "Hessian": {"curvature": "hessian"},
        "Gauss-Newton": {},
        "Gauss-Newton + 0.1": {"damping": 0.1},
        "EK-FAC": {"curvature": "ekfac"},
        "gradients alone": {"curvature": hesse.identity_operator(650)},
    }
    for name, options in rows.items():
        scores = influence(model.risk, model.theta, one, rtol=1e-6, **options).scores
        assert scores is not None
        print_row(name, scores[0, chosen], actual)
    some = min(count, 20)
    step = influence(
        *(model.risk, model.theta, one),
        curvature="hessian",
        rtol=1e-6,
        removal="newton",
        groups=[[i] for i in chosen[:some]],
    ).scores
    assert step is not None
    print_row(f"a Newton step ({some})", step[0], actual[:some])
    ragged = model.risk.on(list(zip(data.X.split(100), data.y.split(100), strict=True)))
    again = influence(ragged, model.theta, one, curvature="hessian", rtol=1e-12).scores
    exact = influence(model.risk, model.theta, one, curvature="hessian", rtol=1e-12).scores
    assert again is not None
    assert exact is not None
    print(f"batches of 100, the last of 37: relative error {relative(again, exact):.1e}")


def groups(model: Trained, count: int) -> None:
    """Groups: first order and one Newton step, on the mean test loss."""
    data, g = model.digits, torch.Generator().manual_seed(0)

    def query(params: Any) -> Tensor:
        weight, bias = params["0.weight"], params["0.bias"]
        return F.cross_entropy(data.X_test @ weight.T + bias, data.y_test)

    print("groups, relative error  first order  Newton step  products a group")
    for share in (0.01, 0.05, 0.2):
        for kind in ("random", "one class"):
            sets = []
            for k in range(count):
                all_ = torch.arange(1437)
                pool = all_ if kind == "random" else all_[data.y == k % 10]
                order = torch.randperm(len(pool), generator=g)
                sets.append(pool[order[: min(int(share * 1437), len(pool) - 5)]])
            before = model.test.losses(model.theta).mean()
            actual = torch.stack([model.without(s).mean() - before for s in sets])
            common: dict[str, Any] = {"curvature": "hessian", "groups": sets, "rtol": 1e-3}
            first = influence(model.risk, model.theta, query, **common)
            newton = influence(model.risk, model.theta, query, removal="newton", **common)
            assert first.scores is not None
            assert newton.scores is not None
            errors = [relative(r.scores[0], actual) for r in (first, newton)]
            print(
                f"{kind} {share:<14g}".ljust(24)
                + f"{errors[0]:<13.3f}{errors[1]:<13.3f}{newton.products / count:.0f}"
            )


def datamodels(digits: Digits, count: int, starts: int) -> None:
    """LDS of an MLP over random halves."""
    rows: dict[str, dict[str, Any]] = {
        "Hessian + 1e-3, rtol .1": {"curvature": "hessian", "damping": 1e-3, "rtol": 0.1},
        "Hessian + 1e-3, rtol .01": {"curvature": "hessian", "damping": 1e-3},
        "the same by EK-FAC, .2": {
            "curvature": "hessian",
            "damping": 1e-3,
            "rtol": 0.2,
            "preconditioner": "ekfac",
        },
        "Hessian + 5e-4": {"curvature": "hessian", "damping": 5e-4},
        "Hessian + 2e-3": {"curvature": "hessian", "damping": 2e-3},
        "Hessian + 4e-3": {"curvature": "hessian", "damping": 4e-3},
        "Hessian": {"curvature": "hessian"},
        "Gauss-Newton + 1e-3": {"damping": 1e-3},
        "EK-FAC": {"curvature": "ekfac"},
        "EK-FAC + 1e-3": {"curvature": "ekfac", "damping": 1e-3},
        "gradients alone": {"curvature": hesse.identity_operator(1210)},
    }
    values: dict[str, list[float]] = {name: [] for name in rows}
    products: dict[str, list[int]] = {name: [] for name in rows}
    queries = (digits.X_test[:120], digits.y_test[:120])
    begin = time.process_time()
    models = [Trained(digits, [64, 16, 10], 1e-3, seed) for seed in range(starts)]
    for seed, model in enumerate(models):
        test = model.risk.on(queries).per_example
        g = torch.Generator().manual_seed(1 + seed)
        masks = torch.stack([torch.randperm(1437, generator=g) < 718 for _ in range(count)])
        outcomes = torch.stack([test.losses(retrained(model, mask, seed)) for mask in masks])
        if seed == 0:
            others = torch.stack([test.losses(retrained(model, mask, starts)) for mask in masks])
            print(f"LDS, {count} halves of {starts} starts")
            print(f"{'another start':26}{lds_of_outcomes(outcomes, others):.3f}")
        for name, options in rows.items():
            try:
                result = influence(model.risk, model.theta, queries, **options)
            except hesse.HesseError as error:  # an end of the training that is no minimum
                print(f"start {seed}, {name}: got {error.got}")
                continue
            assert result.scores is not None
            values[name].append(float(lds(result.scores, masks, outcomes)))
            products[name].append(result.products)
    for name, scores in values.items():
        error = np.std(scores, ddof=1) / len(scores) ** 0.5 if starts > 1 else np.nan
        each = ", ".join(f"{score:.3f}" for score in scores)
        print(f"{name:26}{np.mean(scores):.3f} +- {error:.3f}  ({each})", end="")
        print(f"  at most {max(products[name])} products")
    print(f"{time.process_time() - begin:.0f} s, most of it to retrain")
    begin = time.process_time()
    own = self_influence(models[0].risk, models[0].theta, damping=1e-3)
    print(f"self-influence of all: {own.products} products, {time.process_time() - begin:.1f} s")


def retrained(model: Trained, mask: Tensor, seed: int) -> Any:
    risk = model.risk_on(model.digits.X[mask], model.digits.y[mask])
    return model.minimised(risk, model.start(seed), 1e-5)


def lds_of_outcomes(a: Tensor, b: Tensor) -> float:
    """The mean rank correlation of two sets of outcomes: each outcome as its own prediction."""
    one_removed = ~torch.eye(len(a), dtype=torch.bool)
    return float(lds(b.T, one_removed, a))


def mnist_network(path: str, count: int) -> None:
    """LDS of an MLP that was trained by SGD."""
    start, d = time.process_time(), np.load(path)

    def images(name: str, number: int) -> tuple[Tensor, Tensor]:
        pixels = d[f"x_{name}"][:number].reshape(number, -1) / 255.0
        labels = d[f"y_{name}"][:number].astype(np.int64)
        return torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)

    (X, y), queries = images("train", 5000), images("test", 100)
    g = torch.Generator().manual_seed(1)
    masks = torch.stack([torch.randperm(5000, generator=g) < 2500 for _ in range(count)])
    model = trained_by_sgd(X, y, 0)

    def outcome(mask: Tensor, seed: int) -> Tensor:
        outputs = trained_by_sgd(X[mask], y[mask], seed)(queries[0])
        return F.cross_entropy(outputs, queries[1], reduction="none").detach()

    first, second = (torch.stack([outcome(mask, seed) for mask in masks]) for seed in (0, 1))
    print(f"MNIST MLP: LDS, {count} halves, retrained in {time.process_time() - start:.0f} s")
    print(f"{'another start':26}{lds_of_outcomes(first, second):.3f}")
    risk = hesse.Risk(model, CE, (X, y), weight_decay=1e-3)
    rows: dict[str, dict[str, Any]] = {
        "EK-FAC + 1e-3": {"curvature": "ekfac", "damping": 1e-3},
        "Gauss-Newton + 1e-2": {"damping": 1e-2},
        "the same by EK-FAC": {"damping": 1e-2, "preconditioner": "ekfac"},
    }
    for name, options in rows.items():
        begin = time.process_time()
        result = influence(risk, None, queries, rtol=0.1, **options)
        assert result.scores is not None
        score = lds(result.scores, masks, first)
        print(f"{name:26}{score.value:.3f} +- {score.standard_error:.3f}", end="")
        print(f"  {result.products} products, {time.process_time() - begin:.0f} s")


def trained_by_sgd(X: Tensor, y: Tensor, seed: int) -> nn.Module:
    """20 epochs of batches of 64, momentum 0.9, cosine learning rate from 0.05."""
    torch.manual_seed(seed)
    sizes = (784, 128), (128, 64), (64, 10)
    a, b, c = (nn.Linear(*size, dtype=torch.float32) for size in sizes)
    model = nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), c)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    steps, g = len(X) // 64, torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20 * steps)
    for _ in range(20):
        order = torch.randperm(len(X), generator=g)
        for k in range(steps):
            batch = order[64 * k : 64 * k + 64]
            optimizer.zero_grad()
            F.cross_entropy(model(X[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model


def mnist(path: str, count: int = 15) -> None:
    """Softmax regression without bias on 55,000 images, weight decay 0.01."""
    start, N = time.process_time(), 55000
    d = np.load(path)
    X = torch.tensor(d["x_train"][:N].reshape(N, -1) / 255.0)
    y = torch.tensor(d["y_train"][:N].astype(np.int64))
    X_test = torch.tensor(d["x_test"].reshape(-1, 784) / 255.0)
    y_test = torch.tensor(d["y_test"].astype(np.int64))
    zero = torch.zeros(10, 784)
    risk = hesse.Risk(lambda w, x: x @ w.T, CE, (X, y), weight_decay=0.01, params=zero)
    w = hesse.minimize(risk, zero, atol=1e-8, rtol=0.0).x
    test = risk.on((X_test, y_test)).per_example
    before = test.losses(w)
    worst = int(before.argmax())
    print(f"MNIST: minimised in {time.process_time() - start:.0f} s")
    query, begin = (X_test[[worst]], y_test[[worst]]), time.process_time()
    result = influence(risk, w, query, curvature="hessian", top=count)
    assert result.top is not None
    print(f"influences: {result.products} products, {time.process_time() - begin:.1f} s")
    actual = []
    one = risk.on(query).per_example
    for i in result.top.indices[0].tolist():
        weights = torch.ones(N)
        weights[i] = 0.0
        again = hesse.minimize(risk.weighted(weights), w, atol=1e-8, rtol=0.0).x
        actual.append(one.losses(again)[0] - before[worst])
    print_row(f"MNIST, {count} examples", result.top.values[0], torch.stack(actual))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def print_row(name: str, predicted: Tensor, actual: Tensor) -> None:
    """Correlation, relative error and slope of a prediction."""
    r = float(torch.corrcoef(torch.stack([predicted, actual]))[0, 1])
    slope = float(np.polyfit(actual, predicted, 1)[0])
    print(f"{name:26}r {r:.5f}  relative error {relative(predicted, actual):.3f}", end="")
    print(f"  slope {slope:.3f}")
