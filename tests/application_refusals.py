"""What the applications refuse, beside the tables of their own tests."""

import math

import torch
from torch import nn

import hesse
from hesse.apps import (
    alignment,
    fixed_point,
    hypergradient,
    lds,
    profile,
    response,
    root,
    saddle,
    self_influence,
)
from tests.influence_problem import CE, FIRST, THETA, X, Y, losses, net, risk_of

FLOAT = {"dtype": torch.float64}
PAIR = torch.zeros(2, **FLOAT)


def quadratic(x, l):
    return ((x - l) ** 2).sum()


def away(x, l):
    return x - l


def total(x, l):
    return x.sum()


def wells(x):
    return x[0] ** 4 / 4 - x[0] ** 2 / 2 + 2 * x[1] ** 2


def pulled(x, q):
    return ((x - 1) ** 2).sum() + q * x.sum()


def poisson(b):
    return b.exp() - torch.arange(1.0, 5.0, **FLOAT)[:, None] * b


SCORES, HALVES = torch.rand(2, 4, **FLOAT), torch.eye(4).bool()
OUTCOMES = torch.rand(4, 2, **FLOAT)
KERNEL = torch.eye(4, **FLOAT)
COUNTS = torch.full((1,), math.log(2.5), **FLOAT)


def implicit(function):
    """What `root` and `fixed_point` refuse alike."""
    return {
        "no function": (lambda: function(3, PAIR), "function of"),
        "a start that is no tensor": (lambda: function(away, "x"), "tensor"),
        "a start of integers": (lambda: function(away, torch.zeros(2).long()), "float"),
        "a solver that is no function": (lambda: function(away, PAIR, solve=3), "solve"),
        "another method": (lambda: function(away, PAIR, method="newton"), "method"),
        "a negative tolerance": (lambda: function(away, PAIR, rtol=-1.0), "rtol"),
        "no iterations": (lambda: function(away, PAIR, max_iterations=0), "max_iterations"),
        "a start that is no flag": (lambda: function(away, PAIR, warm_start="no"), "warm_start"),
        "a bar that is no flag": (lambda: function(away, PAIR, progress=3), "progress"),
    }


MORE = {
    "root": implicit(root),
    "fixed_point": implicit(fixed_point),
    "hypergradient": {
        "an inner value that is no function": (
            lambda: hypergradient(total, None, PAIR, PAIR),
            "inner",
        ),
        "a point of integers": (
            lambda: hypergradient(total, quadratic, torch.zeros(2).long(), PAIR),
            "float",
        ),
        "parameters of integers": (
            lambda: hypergradient(total, quadratic, PAIR, torch.zeros(2).long()),
            "float",
        ),
        "another method": (
            lambda: hypergradient(total, quadratic, PAIR, PAIR, method="newton"),
            "method",
        ),
        "a negative tolerance": (
            lambda: hypergradient(total, quadratic, PAIR, PAIR, rtol=-1.0),
            "rtol",
        ),
        "no iterations": (
            lambda: hypergradient(total, quadratic, PAIR, PAIR, max_iterations=0),
            "max_iterations",
        ),
        "a saddle point": (
            lambda: hypergradient(total, lambda x, l: x[0] ** 2 - x[1] ** 2 + l.sum(), PAIR, PAIR),
            "minimum",
        ),
        "a minimum that is not isolated": (
            lambda: hypergradient(total, lambda x, l: (x[0] - l[0]) ** 2 + 0 * x[1], PAIR, PAIR),
            "regular Jacobian|minimum",
        ),
    },
    "self_influence": {
        "a function for a risk": (lambda: self_influence(losses, THETA), "hesse.Risk"),
        "a name of no curvature": (
            lambda: self_influence(FIRST, THETA, curvature="fisher"),
            "curvature",
        ),
        "an operator of another size": (
            lambda: self_influence(FIRST, THETA, curvature=hesse.identity_operator(3)),
            "symmetric operator",
        ),
        "a damping that is negative": (
            lambda: self_influence(FIRST, THETA, damping=-1.0),
            "mu >= 0",
        ),
        "no gradients at a time": (lambda: self_influence(FIRST, THETA, most=0), "most"),
        "a negative tolerance": (lambda: self_influence(FIRST, THETA, rtol=-1.0), "rtol"),
        "one example": (
            lambda: self_influence(hesse.Risk(net(), CE, (X[:1], Y[:1])), THETA),
            "two training examples",
        ),
        "an indefinite Hessian": (
            lambda: self_influence(
                risk_of(decay=0.0), {k: 3 * v for k, v in THETA.items()}, curvature="hessian",
                rtol=1e-9,
            ),
            "positive definite",
        ),
        "a checkpoint in no folder": (
            lambda: self_influence(FIRST, THETA, checkpoint="no/such/folder/file"),
            "folder that exists",
        ),
    },
    "lds": {
        "scores that are a vector": (lambda: lds(SCORES[0], HALVES, OUTCOMES), "a matrix"),
        "subsets that are a list": (lambda: lds(SCORES, [True], OUTCOMES), "a matrix"),
        "a subset of other examples": (lambda: lds(SCORES, HALVES[:, :3], OUTCOMES), "subsets"),
        "scores that are not finite": (
            lambda: lds(SCORES * math.nan, HALVES, OUTCOMES),
            "finite scores",
        ),
    },
    "alignment": {
        "a kernel that is a vector": (lambda: alignment(KERNEL[0], PAIR), "matri"),
        "targets that are a list": (lambda: alignment(KERNEL, [1.0]), "floating-point targets"),
        "centred that is no flag": (lambda: alignment(KERNEL, KERNEL[0], "no"), "centred"),
        "a kernel that is zero": (lambda: alignment(0 * KERNEL, KERNEL[0]), "zero"),
        "a negative tolerance": (lambda: alignment(KERNEL, KERNEL[0], rtol=-1.0), "rtol"),
    },
    "profile": {
        "no function": (lambda: profile(3, COUNTS), "function|Risk"),
        "no parameters": (lambda: profile(poisson), "params"),
        "an outlying place": (lambda: profile(poisson, COUNTS, 7), "an entry"),
        "an entry that is a number": (lambda: profile(poisson, COUNTS, 0.5), "an entry"),
        "a level of zero": (lambda: profile(poisson, COUNTS, level=0.0), "level"),
        "a maximum": (lambda: profile(lambda b: -poisson(b).sum(), COUNTS), "minimum"),
        "no minimum": (lambda: profile(lambda b: -(b**2), PAIR), "minimum"),
        "NaN": (lambda: profile(lambda b: b**2 * math.nan, COUNTS), "finite"),
    },
    "saddle": {
        "a function that is none": (lambda: saddle(3, PAIR), "function"),
        "an energy that is no number": (lambda: saddle(lambda x: x, PAIR), "scalar"),
        "motions of no name": (lambda: saddle(wells, PAIR, rigid="some"), "rigid"),
        "no steps": (lambda: saddle(wells, PAIR, max_iterations=0), "max_iterations"),
        "a largest radius of zero": (lambda: saddle(wells, PAIR, max_radius=0.0), "max_radius"),
        "a bar that is no flag": (lambda: saddle(wells, PAIR, progress=3), "progress"),
    },
    "response": {
        "motions of no name": (
            lambda: response(pulled, torch.zeros(2, 3), torch.zeros(()), rigid="some"),
            "rigid",
        ),
        "a point that is no tensor": (lambda: response(pulled, "x", torch.zeros(())), "tensor"),
        "a parameter of integers": (lambda: response(pulled, PAIR, torch.tensor(1)), "float"),
        "an energy that is no number": (
            lambda: response(lambda x, q: x * q, PAIR, torch.zeros((), **FLOAT)),
            "scalar",
        ),
        "a checkpoint in no folder": (
            lambda: response(
                pulled, torch.ones(2, **FLOAT), torch.zeros((), **FLOAT), checkpoint="no/such/f"
            ),
            "folder that exists",
        ),
    },
    "modes": {
        "kinds that are no integers": (
            lambda: hesse.apps.modes(lambda x: torch.pdist(x).sum(), torch.rand(3, 3),
                                     kinds=torch.rand(3)),
            "an integer for each atom",
        ),
    },
    "linearised": {
        "a checkpoint of a fit for a time": (
            lambda: hesse.apps.linearised(nn.Linear(2, 1)).fit(
                torch.rand(3, 2), torch.rand(3, 1), time=1.0, checkpoint="file"
            ),
            "no checkpoint",
        ),
    },
}  # fmt: skip
