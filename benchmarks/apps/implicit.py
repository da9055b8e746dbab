"""Implicit gradients: what tolerances cost and give, against differences, TorchOpt and by MAML.

Softmax regression on the digits of scikit-learn, 1,437 to train and 360 to validate, a logarithm of
a weight decay for each of 650 parameters. Then iMAML on sinusoids (amplitude 0.1 to 5, phase 0 to
pi, ten points, MLP 1-40-40-1 of tanh, lambda 0.1), the test error after adaptation to 50 tasks.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

import hesse
from hesse.apps import argmin, hypergradient

LOG_DECAY = -6.0
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks apps implicit", description=__doc__)
    parser.add_argument("--meta-steps", type=int, default=200, help="of iMAML; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(options.threads)
    torch.set_default_dtype(torch.float64)
    problem = Digits()
    tolerances(problem)
    differences(problem)
    warm_starts(problem)
    if importlib.util.find_spec("torchopt") is not None:
        torchopt(problem)
    if options.meta_steps:
        Sinusoids().train(options.meta_steps)


class Digits:
    """Training and validation loss of flat parameters."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
        X, y = torch.tensor(digits.data / 16)[order], torch.tensor(digits.target)[order]
        self.X, self.y, self.X_valid, self.y_valid = X[:1437], y[:1437], X[1437:], y[1437:]
        self.n = 650
        self.logs = torch.full((self.n,), LOG_DECAY)
        self.x = self.minimum(self.logs)
        self.exact = hypergradient(self.outer, self.inner, self.x, self.logs, rtol=1e-13).gradient

    @staticmethod
    def loss(x: Tensor, X: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(X @ x[:640].view(10, 64).T + x[640:], y)

    def inner(self, x: Tensor, logs: Tensor) -> Tensor:
        return self.loss(x, self.X, self.y) + (logs.exp() * x * x).sum() / 2

    def outer(self, x: Tensor, logs: Tensor | None = None) -> Tensor:
        return self.loss(x, self.X_valid, self.y_valid)

    def minimum(self, logs: Tensor, atol: float = 1e-13, start: Tensor | None = None) -> Tensor:
        start = torch.zeros(self.n) if start is None else start
        return hesse.minimize(lambda x: self.inner(x, logs), start, rtol=0.0, atol=atol).x

    def error(self, gradient: Tensor) -> float:
        return float((gradient - self.exact).norm() / self.exact.norm())


def tolerances(problem: Digits) -> None:
    """The relative error by the tolerance of the adjoint system, and by |df/dx|."""
    size = float(problem.exact.norm())
    print("adjoint rtol   products   error      estimate")
    for rtol in TOLERANCES:
        plain = hypergradient(
            *(problem.outer, problem.inner, problem.x, problem.logs),
            rtol=rtol,
            estimate_error=False,
        )
        known = hypergradient(problem.outer, problem.inner, problem.x, problem.logs, rtol=rtol)
        error = problem.error(plain.gradient)
        print(f"{rtol:12.0e}   {plain.products:8d}   {error:.1e}    {known.error / size:.1e}")
    print("\n|df/dx| below  |df/dx|    error      estimate")
    for atol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        x = problem.minimum(problem.logs, atol)
        known = hypergradient(problem.outer, problem.inner, x, problem.logs, rtol=1e-12)
        error = problem.error(known.gradient)
        print(f"{atol:13.0e}  {known.residual:.1e}    {error:.1e}    {known.error / size:.1e}")


def differences(problem: Digits) -> None:
    """The largest entry beside central differences of the fourth order."""
    i, h = int(problem.exact.abs().argmax()), 1e-3
    shift = torch.zeros(problem.n)
    shift[i] = h
    L = [float(problem.outer(problem.minimum(problem.logs + k * shift))) for k in (1, -1, 2, -2)]
    estimate = (8 * (L[0] - L[1]) - (L[2] - L[3])) / (12 * h)
    exact = float(problem.exact[i])
    print(f"\nentry {i}: {exact:.9e}, differences {estimate:.9e}, {abs(estimate / exact - 1):.1e}")


def warm_starts(problem: Digits) -> None:
    """Products of the adjoint systems in 20 steps of gradient descent on the decays."""
    for warm in (False, True):
        x = argmin(problem.inner, torch.zeros(problem.n), rtol=1e-4, warm_start=warm)
        logs = problem.logs.clone().requires_grad_()
        for _ in range(20):
            (g,) = torch.autograd.grad(problem.outer(x(logs)), logs)
            logs = (logs - 20.0 * g).detach().requires_grad_()
        loss = float(problem.outer(x(logs.detach())))
        label = "warm" if warm else "cold"
        print(f"{label} starts: {x.report.products} adjoint products, validation {loss:.5f}")


def torchopt(problem: Digits) -> None:
    """TorchOpt's implicit gradients of the same problem, and of a scalar parameter."""
    from torchopt import linear_solve  # pyright: ignore
    from torchopt.diff.implicit import custom_root  # pyright: ignore

    def solve(x: Tensor, logs: Tensor) -> Tensor:
        return problem.minimum(logs.detach())

    solvers = {"default": {}, "cg": {"solve": linear_solve.solve_cg()}}
    for name, options in solvers.items():
        warnings.simplefilter("ignore")
        function = custom_root(grad(problem.inner, argnums=0), argnums=1, **options)(solve)
        logs = problem.logs.clone().requires_grad_()
        start = time.process_time()
        problem.outer(function(torch.zeros(problem.n), logs)).backward()
        seconds = time.process_time() - start
        print(f"TorchOpt, {name}: error {problem.error(logs.grad):.1e}, {seconds:.1f} s")

    def distance(x: Tensor, a: Tensor) -> Tensor:
        return (x - a) ** 2 / 2

    a = torch.tensor(2.0, requires_grad=True)
    custom_root(grad(distance), argnums=1)(lambda _, a: a.detach().clone())(a * 0, a).backward()
    ours = torch.tensor(2.0, requires_grad=True)
    argmin(distance, torch.tensor(0.0))(ours).backward()
    print(f"scalar parameter, slope 1: TorchOpt {float(a.grad)}, Hesse {float(ours.grad)}")


class Sinusoids:
    """iMAML: the minimiser of loss + lambda/2 |x - theta|^2 as a function of theta."""

    lam, points = 0.1, 10

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(
            *(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
        )
        self.theta = {name: p.detach().clone() for name, p in self.net.named_parameters()}

    def task(self, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """Points to adapt with, and points to test with."""
        amplitude = 0.1 + 4.9 * torch.rand(1, generator=generator)
        phase = math.pi * torch.rand(1, generator=generator)
        x = torch.rand(2, self.points, 1, generator=generator) * 10 - 5
        return [(part, amplitude * torch.sin(part - phase)) for part in x]

    def mse(self, params: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return ((functional_call(self.net, params, (data[0],)) - data[1]) ** 2).mean()

    def inner(self, data: tuple[Tensor, Tensor]) -> Callable[[Any, Any], Tensor]:
        """loss + lambda/2 |x - theta|^2 of a task."""

        def f(params: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
            away = sum(((p - theta[name]) ** 2).sum() for name, p in params.items())
            return self.mse(params, data) + self.lam / 2 * away

        return f

    def adapted(
        self, data: tuple[Tensor, Tensor], theta: Any, atol: float, limit: int
    ) -> dict[str, Tensor]:
        """Its minimiser, or what is found of it in so many steps."""
        f = self.inner(data)
        limits = {"rtol": 0.0, "atol": atol, "max_iterations": limit}
        return hesse.minimize(lambda p: f(p, theta), theta, "trust-cg", **limits).x

    def test_error(self, theta: dict[str, Tensor]) -> float:
        """Of 50 tasks after adaptation."""
        generator = torch.Generator().manual_seed(99)
        errors = []
        for _ in range(50):
            adapt, test = self.task(generator)
            errors.append(float(self.mse(self.adapted(adapt, theta, 1e-4, 60), test)))
        return sum(errors) / len(errors)

    def train(self, steps: int) -> None:
        """Adam on theta, four tasks a step."""
        start, products, refused = time.process_time(), 0, 0
        theta = {name: p.clone().requires_grad_() for name, p in self.theta.items()}
        optimizer = torch.optim.Adam(theta.values(), lr=5e-3)
        generator = torch.Generator().manual_seed(0)
        print(f"\niMAML: adapted test error {self.test_error(self.theta):.3f} at the start")
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            for _ in range(4):
                adapt, test = self.task(generator)
                x = argmin(
                    *(self.inner(adapt), self.theta),
                    solve=lambda _, theta, adapt=adapt: self.adapted(adapt, theta, 1e-3, 20),
                    rtol=1e-2,
                    max_iterations=20,
                )
                try:
                    (self.mse(x(theta), test) / 4).backward()
                except hesse.HesseError:  # adapted to a saddle point: no minimum, no gradient
                    refused += 1
                    continue
                products += x.report.products
            nn.utils.clip_grad_norm_(theta.values(), 10.0)
            optimizer.step()
            if step % 100 == 0 or step == steps:
                error = self.test_error({name: p.detach() for name, p in theta.items()})
                seconds = time.process_time() - start
                mean = products / (4 * step - refused)
                print(f"step {step}: adapted test error {error:.3f}, {mean:.1f} products a task, "
                      f"{refused} tasks refused, {seconds:.0f} s", flush=True)  # fmt: skip
