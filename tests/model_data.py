# SPDX-License-Identifier: Apache-2.0
"""Data and losses for the models of the zoo."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import functional
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import hesse

VOCABULARY, LENGTH, WIDTH = 11, 5, 8


@dataclass
class Case:
    """A model in eval mode and float64, the loss of its `head`, and batches of data.

    `rounds`: the model computes something in float32 whatever its dtype, and is compared less
    strictly with an oracle that does not.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    batch: Callable[[torch.Generator], tuple[Any, Any]]
    rounds: bool = False

    def __post_init__(self):
        self.model.double().eval()
        self.x = {name: p.detach() for name, p in self.model.named_parameters()}
        self.near = {name: 1.05 * p + 0.01 for name, p in self.x.items()}
        self.sizes = [p.numel() for p in self.x.values()]
        self.tolerance = 1e-5 if self.rounds else 1e-8

    def data(self, seed):
        return self.batch(torch.Generator().manual_seed(seed))

    def outputs(self, params, inputs):
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
        return torch.func.functional_call(self.model, params, args, kwargs)

    def f(self, seed):
        inputs, targets = self.data(seed)
        return lambda params: self.loss(self.outputs(params, inputs), targets)

    def risk(self, seed):
        return hesse.Risk(self.model, self.loss, self.data(seed))

    def gradient(self, seed, x):
        """The flat gradient by plain autograd, of a copy of the model with the parameters x."""
        model, (inputs, targets) = copy.deepcopy(self.model), self.data(seed)
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            parameter.data = x[name]
        outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        return flat_gradient(self.loss(outputs, targets), list(parameters.values()))

    def product(self, seed, x, v):
        """H v: the slope of the gradient along v."""
        with self.exactly():
            return slope(lambda t: self.gradient(seed, self.moved(x, v, t)), 1e-4 / float(v.norm()))

    def gauss_newton_product(self, v):
        """J' H_L J v: J v is the slope of what the loss is of, the rest plain autograd."""
        inputs, targets = self.data(0)

        def z(x):
            return head(self.outputs(x, inputs))

        with self.exactly():
            Jv = slope(lambda t: z(self.moved(self.x, v, t)), 3e-4 / float(v.norm()))
            leaves = {name: leaf.clone().requires_grad_() for name, leaf in self.x.items()}
            outputs = z(leaves)
            _, HJv = functional.hvp(lambda z: self.loss(z, targets), outputs.detach(), Jv)
            return flat_gradient(outputs, list(leaves.values()), HJv)

    def moved(self, x, v, t):
        """x + t v, as a tree."""
        parts = zip(x.items(), v.split(self.sizes), strict=True)
        return {name: leaf + t * part.view_as(leaf) for (name, leaf), part in parts}

    def exactly(self):
        return NoFloat32() if self.rounds else nullcontext()


class NoFloat32(TorchFunctionMode):
    """Within it, a model that casts to float32 casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def wide(argument):
            return torch.float64 if argument is torch.float32 else argument

        func = Tensor.double if func is Tensor.float else func
        kwargs = {key: wide(argument) for key, argument in (kwargs or {}).items()}
        return func(*map(wide, args), **kwargs)


def flat_gradient(outputs, leaves, weights=None):
    parts = torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def slope(path, h):
    """The derivative at 0 by a central difference, with its first error term removed."""
    near, far = ((path(t) - path(-t)).detach() / (2 * t) for t in (h, 2 * h))
    return (4 * near - far) / 3


def direction(x, seed=0):
    n = sum(leaf.numel() for leaf in x.values())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64)


def assert_close(a, b, tolerance):
    assert a.shape == b.shape
    assert float((a - b).norm()) <= tolerance * float(b.norm())


# --------------------------------------------------------------------------------------------------
# Losses and data


def head(outputs):
    """What the loss is of, in the outputs of whichever model."""
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs[0] if isinstance(outputs, tuple) else outputs


def cross_entropy(outputs, targets):
    logits = head(outputs)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.flatten())


def squares(outputs, targets):
    return F.mse_loss(head(outputs), targets)


def own_loss(outputs, targets):
    return outputs.loss


def numbers(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tokens(generator):
    """No token 0: it is padding to BERT, whose gradient torch leaves out: then it is none of f."""
    return torch.randint(1, VOCABULARY, (2, LENGTH), generator=generator)


def text(generator):
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[0, -1] = 0
    return {"input_ids": tokens(generator), "attention_mask": mask}, tokens(generator)


def images(generator):
    return {"pixel_values": numbers(generator, 3, 1, 8, 8)}, torch.tensor([0, 2, 1])


def labelled(batch):
    """The same batch, with the targets given to the model, which computes the loss itself."""

    def with_labels(generator):
        inputs, targets = batch(generator)
        return {**inputs, "labels": targets}, targets

    return with_labels


def next_tokens(generator):
    return tokens(generator), tokens(generator)


def pictures(generator):
    return numbers(generator, 3, 2, 6, 6), torch.tensor([0, 2, 1])


def sequences(generator, width=WIDTH):
    return numbers(generator, 3, LENGTH, WIDTH), numbers(generator, 3, LENGTH, width)


def wide_sequences(generator):
    return sequences(generator, 2 * WIDTH)


def queries(generator):
    x, y = sequences(generator)
    return {"query": x, "key": x, "value": x + 1}, y


def times(generator):
    return numbers(generator, 7, 1), numbers(generator, 7, 1)
