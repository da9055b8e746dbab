# SPDX-License-Identifier: Apache-2.0
r"""A preconditioner of tangent kernels: the outputs of an example taken as independent.

At initialisation, and roughly after it, K(x, x') is nearly a multiple of the identity of the C
outputs, K ~ Kbar x I. So what random directions show of the trace kernel Kbar, an N x N matrix,
they show of C directions of K each: rank r C for the price of r products,

$$ M = (U \Lambda U^T + \mu I)^{-1} \otimes I_C . $$
"""

from __future__ import annotations

import torch

from hesse.apps.kernels.ntk import directions, num_outputs, trace_kernel
from hesse.apps.kernels.over_outputs import ForEachOutput
from hesse.krylov.preconditioners import Preconditioner, nystrom
from hesse.operators.algebra import LinearOperator

# The first rank of sketches that double until the ridge covers the rest, and the last one. That of
# a trace kernel is an approximation already, which more directions do not mend.
_RANK, _MOST, _MOST_OF_TRACE = 20, 160, 80


def trace_kernel_preconditioner(
    J: LinearOperator, ridge: float, generator: torch.Generator | None
) -> Preconditioner:
    """M, close to the inverse of J J' + ridge I up to a factor; it took `M.products`."""
    C = num_outputs(J)
    T = trace_kernel(J, J, directions(C, 1, J, generator))
    M = sketched(T, ridge, generator, _MOST_OF_TRACE)
    return Preconditioner(ForEachOutput(M, J.codomain), products=M.products)


def sketched(
    A: LinearOperator, ridge: float, generator: torch.Generator | None, most: int = _MOST
) -> Preconditioner:
    """The Nystrom preconditioner of A + ridge I."""
    rank, most = (min(number, A.shape[0]) for number in (_RANK, most))
    return nystrom(A, rank, max_rank=most, damping=ridge, generator=generator)
