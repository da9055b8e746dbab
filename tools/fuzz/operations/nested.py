# SPDX-License-Identifier: Apache-2.0
"""Functions that differentiate, vectorise, recompute or branch on their own."""

from __future__ import annotations

NESTED = (
    "inner_gradient({0})",
    "inner_hessian({0}.reshape(-1)[:3])",
    "torch.func.grad(lambda t: (t.sin() * {0}).sum())({0})",
    "torch.func.vmap(torch.sin)({0})",
    "torch.func.vmap(lambda t: t * t.sum())({0})",
    "torch.func.jvp(lambda t: t.sin() * {0}, ({0},), (torch.ones_like({0}),))[1]",
    "torch.func.vjp(torch.sin, {0})[1]({0})[0]",
    "torch.func.jacrev(lambda t: t ** 3)({0}.reshape(-1)[:3])",
    "torch.func.hessian(lambda t: t.pow(3).sum())({0}.reshape(-1)[:2])",
    "torch.utils.checkpoint.checkpoint(lambda t: t.sin() * t, {0}, use_reentrant=False)",
    "squared({0})",
    "squared_once({0})",
    "{0} * 2 if float({0}.detach().sum()) > 0 else {0} ** 2",
    "sum(part ** (i + 2) for i, part in enumerate({0}))",
    "fixed_point({0})",
    "{0} * {0}.detach().max().ceil()",
    "{0} / ({0}.detach().abs().max() * 0 + 2)",
    "torch.compiler.disable(torch.sin)({0})",
    "no_gradient_part({0})",
    "torch.nn.utils.parameters_to_vector([{0}, {0} ** 2])",
    "torch.nn.utils.rnn.pad_sequence([{0}, {0}[:1]])",
)
