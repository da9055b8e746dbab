# SPDX-License-Identifier: Apache-2.0
"""Likelihoods and robust fits whose minimum is known because the data follow the model exactly.

The inputs are cosines of integers, not random numbers, and the targets are the means that the model
gives at known parameters: these are then the maximum of the likelihood. McCullagh & Nelder 1989,
Generalized linear models, for the likelihoods.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.testing.problems import Problem
from hesse.testing.smooth.build import count, full, least_squares, sized, smooth


def _inputs(m: int, n: int) -> Tensor:
    """An (m, n) matrix with entries in [-1, 1]; its first column is one."""
    X = torch.cos(count(m)[:, None] * count(n).sqrt() * 1.7)
    X[:, 0] = 1
    return X


def _parameters(n: int) -> Tensor:
    return torch.sin(count(n))


def logistic(n: int = 5, m: int = 40) -> Problem:
    """sum log(1 + exp z) - p z, z = X w, for probabilities p = sigmoid(X w*); w0 = 0."""
    X, w = _inputs(m, n), _parameters(n)
    p = torch.sigmoid(X @ w)

    def f(x: Tensor) -> Tensor:
        z = X.to(x) @ x
        return (torch.nn.functional.softplus(z) - p.to(x) * z).sum()

    least = -float((torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum())
    return smooth(sized("logistic", n), f, full(n, 0), least, w)


def multinomial(n: int = 4, classes: int = 3, m: int = 40) -> Problem:
    """Cross entropy of probabilities softmax(X W*); flat along shifts of the classes; W0 = 0."""
    X, W = _inputs(m, n), _parameters(n * classes).view(n, classes)
    p = torch.softmax(X @ W, 1)

    def f(x: Tensor) -> Tensor:
        z = X.to(x) @ x.view(n, classes)
        return (torch.logsumexp(z, 1) - (p.to(x) * z).sum(1)).sum()

    least = -float(torch.xlogy(p, p).sum())
    return smooth(sized("multinomial", n * classes), f, full(n * classes, 0), least, W.reshape(-1))


def poisson(n: int = 5, m: int = 40) -> Problem:
    """sum exp z - mu z, z = X w, for means mu = exp(X w*); w0 = 0."""
    X, w = _inputs(m, n), _parameters(n)
    mu = torch.exp(X @ w)

    def f(x: Tensor) -> Tensor:
        z = X.to(x) @ x
        return (torch.exp(z) - mu.to(x) * z).sum()

    return smooth(sized("poisson", n), f, full(n, 0), float((mu - mu * mu.log()).sum()), w)


def gamma(n: int = 5, m: int = 40) -> Problem:
    """sum mu exp(-z) + z, z = X w, for means mu = exp(X w*); w0 = 0."""
    X, w = _inputs(m, n), _parameters(n)
    mu = torch.exp(X @ w)

    def f(x: Tensor) -> Tensor:
        z = X.to(x) @ x
        return (mu.to(x) * torch.exp(-z) + z).sum()

    return smooth(sized("gamma", n), f, full(n, 0), float(m + mu.log().sum()), w)


def normal_distribution(m: int = 20) -> Problem:
    """sum log sigma + (y - mu)^2 / (2 sigma^2) in mu and log sigma, at mean and deviation of y."""
    y = torch.cos(count(m))

    def f(x: Tensor) -> Tensor:
        return m * x[1] + ((y.to(x) - x[0]) ** 2).sum() * torch.exp(-2 * x[1]) / 2

    deviation = y.std(correction=0)
    minimiser = torch.stack([y.mean(), deviation.log()])
    least = float(m * deviation.log() + m / 2)
    return smooth("normal_distribution", f, full(2, 1), least, minimiser)


def student_regression(n: int = 5, m: int = 40) -> Problem:
    """sum log(1 + r^2), r = X (w - w*): not convex; w0 = 0."""
    X, w = _inputs(m, n), _parameters(n)

    def f(x: Tensor) -> Tensor:
        return torch.log1p((X.to(x) @ (x - w.to(x))) ** 2).sum()

    return smooth(sized("student_regression", n), f, full(n, 0), 0.0, w)


def pseudo_huber_regression(n: int = 5, m: int = 40) -> Problem:
    """sum sqrt(1 + r^2) - 1, r = X (w - w*); w0 = 0."""
    X, w = _inputs(m, n), _parameters(n)

    def f(x: Tensor) -> Tensor:
        return (torch.sqrt(1 + (X.to(x) @ (x - w.to(x))) ** 2) - 1).sum()

    return smooth(sized("pseudo_huber_regression", n), f, full(n, 0), 0.0, w)


def sum_of_exponentials(m: int = 30) -> Problem:
    """r = a exp(-b t) + c exp(-d t) - y for y at (2, 0.5, 1, 3): nearly exchangeable rates."""
    t = count(m) / 10

    def model(x: Tensor) -> Tensor:
        s = t.to(x)
        return x[0] * torch.exp(-x[1] * s) + x[2] * torch.exp(-x[3] * s)

    w = torch.tensor([2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    y = model(w)
    x = torch.tensor([1.0, 0.3, 1.0, 2.0], dtype=torch.float64)
    return least_squares("sum_of_exponentials", lambda x: model(x) - y.to(x), x, 0.0, w)


def neural_network(m: int = 30, width: int = 3) -> Problem:
    """r = v' tanh(a t + b) - y for y of a network of the same width: ill-conditioned."""
    t = torch.linspace(-1, 1, m, dtype=torch.float64)[:, None]

    def model(x: Tensor) -> Tensor:
        a, b, v = x.view(3, width)
        return torch.tanh(t.to(x) * a + b) @ v

    w = _parameters(3 * width) * 2
    y = model(w)
    start = w + 0.3 * torch.cos(2 * count(3 * width))
    return least_squares("neural_network", lambda x: model(x) - y.to(x), start, 0.0, w)


def problems() -> list[Problem]:
    """All of them, the linear models in two sizes."""
    linear = [logistic, multinomial, poisson, gamma, student_regression, pseudo_huber_regression]
    return [
        *(build() for build in linear),
        *(build(20, m=100) for build in linear if build is not multinomial),
        normal_distribution(),
        sum_of_exponentials(),
        neural_network(),
    ]
