# SPDX-License-Identifier: Apache-2.0
"""The diagonal from products with random signs: the methods, and the choice between them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import check_choice
from hesse.estimators.arguments import Arguments, Budget
from hesse.estimators.deflation import Deflation
from hesse.estimators.estimate import Estimate
from hesse.estimators.orthonormal import project_out
from hesse.estimators.probes import products, signs
from hesse.estimators.sampling import Sampler, Stream, Target
from hesse.estimators.xdiag import xdiag
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback

DiagonalMethod = Literal["auto", "hutchinson", "xdiag"]


@public("hesse.diagonal({A})")
def diagonal(
    A: LinearOperator | Tensor,
    *,
    method: DiagonalMethod = "auto",
    rtol: float = 0.01,
    atol: float = 0.0,
    max_products: int = 1000,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
    block_size: int | None = None,
    memory_budget: Budget = None,
) -> Estimate:
    r"""The diagonal of a square operator from products with random signs, with standard errors.

    $$ \operatorname{diag} A = \operatorname{diag}(QQ^T A)
       + \mathbb{E}\, z \odot (I - QQ^T) A z, \qquad z \in \{-1, 1\}^n $$

    Args:
        A: square operator (or matrix).
        method: "hutchinson" has no Q: the mean of z * A z, whose entry i has the variance
            sum_{j != i} a_ij^2. "auto" begins with ten signs; where deflation pays it makes Q of
            these ten products, adds to it while that pays, and samples the rest. "xdiag" lets each
            probe test what the others span: the most accurate where singular values decay fast.
        rtol, atol: stop when the norm of the standard error is at most max(rtol |estimate|, atol).
            This is checked at 16, 24, 36, ... probes.
        max_products, max_seconds: stop in any case.
        generator: of the signs.
        callback: called with the running `Estimate`; a true result stops.
        progress: show a bar.
        checkpoint: a file to save the state in; a killed run goes on from it to the same bits.
        block_size: probes that are multiplied together; default 8, for n > 2^16 one.
        memory_budget: bytes, or a text such as "1GB", for the vectors of the estimator.

    Returns:
        Estimate whose value and standard_error are flat vectors (n,), in the order of
        `A.domain.names`: `A.domain.unflatten` makes trees of them. Exact for n <= 10. Ctrl-C
        returns the estimate so far.

        The entries of `interval` hold the truth in 95 of 100 cases, over the entries taken
        together; an entry with few neighbours (of size) in its row has samples far from normal.

    Cost: a product a probe, and 3 block_size + 7 vectors; with deflation a product with A and one
        with A' and a vector for each direction of Q, and three more for each of ten while it grows.
        "xdiag": one with A and one with A' a probe, and three vectors, with four to six more in
        all. A checkpoint takes one more product.

    Raises:
        HesseError: not square; NaN; a budget that is too small; no adjoint where one is needed.

    References: Bekas, Kokiopoulou & Saad 2007, doi:10.1016/j.apnum.2007.01.003; Baston &
        Nakatsukasa 2022, arXiv:2201.10684 (deflation); Epperly, Tropp & Webber 2024,
        doi:10.1137/23M1548323.

    >>> diagonal(torch.tensor([[1.0, 2.0], [2.0, 3.0]])).value
    tensor([1., 3.])
    """
    A = aslinearoperator(A)
    A._check_square("diagonal")
    call = f"hesse.diagonal({A}, method={method!r})"
    check_choice("method", method, ["auto", "hutchinson", "xdiag"], call)
    arguments = Arguments(
        max_products=max_products,
        max_seconds=max_seconds,
        generator=generator,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
        block_size=block_size,
        memory_budget=memory_budget,
    )
    target = Target(rtol, atol)
    sampler = Sampler.of(A, call, "diagonal", target, arguments, method=method)
    if sampler.is_small:
        value = A.to_dense().diagonal().clone()
        return Estimate(value, torch.zeros_like(value), A.shape[0])
    A.announce(target.least_samples(max_products))
    if method == "xdiag":
        return xdiag(sampler)
    if method == "hutchinson":
        return _hutchinson(sampler)
    return DiagonalDeflation(sampler, always=False).estimate()


def _hutchinson(sampler: Sampler) -> Estimate:
    """The mean of z * A z."""
    state = Stream(sampler.generator)

    def step() -> bool:
        probes = signs(sampler.A, sampler.block(state), state.generator)
        images = products(sampler.A, probes, sampler.block_size, sampler.call)
        state.add(list(probes * images), len(probes))
        return True

    return sampler.sample(state, step)


class DiagonalDeflation(Deflation):
    """diag A = diag(QQ'A) + the mean of z * (I - QQ') A z."""

    spread = 1.0

    def plain(self, probes: Tensor, images: Tensor) -> list[Tensor]:
        return list(probes * images)

    def captured(self, basis: Tensor) -> Tensor:
        images = products(self.A.T, basis, self.sampler.block_size, self.sampler.call)
        return (basis * images).sum(dim=0)

    def rest(self, probes: Tensor) -> list[Tensor]:
        images = products(self.A, probes, self.sampler.block_size, self.sampler.call)
        return list(probes * project_out(self.A, self.state.basis, images))
