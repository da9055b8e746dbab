# SPDX-License-Identifier: Apache-2.0
"""K-FAC and EK-FAC: Kronecker-factored approximations of Fisher and Gauss-Newton matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.curvature.kronecker.blocks import DampingForm
from hesse.curvature.kronecker.estimate import Approximation, Estimator, Fisher, Settings
from hesse.curvature.kronecker.operator import Damping, KroneckerCurvature
from hesse.curvature.kronecker.saved import load
from hesse.curvature.point import point_of
from hesse.curvature.rank_sum import check_same_point, look_here
from hesse.curvature.same_likelihood import with_likelihood
from hesse.errors import ArgumentError, FunctionError, check_choice, kind_of
from hesse.progress import FilePath
from hesse.ranks import alike
from hesse.risk.held import check_same_buffers
from hesse.risk.risk import Risk
from hesse.vectors.random import drawn_seed
from hesse.vectors.space import Space, Tree


@public("hesse.kfac_operator(risk, params)")
def kfac_operator(
    risk: Risk | Any,
    params: Tree | None = None,
    *,
    fisher: Fisher = "exact",
    approximation: Approximation = "expand",
    damping: Damping = 0.0,
    damping_form: DampingForm = "exact",
    samples: int = 5,
    likelihood: Callable[[Any, Any], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> KroneckerCurvature:
    r"""The Kronecker-factored approximation (K-FAC) of the Fisher or Gauss-Newton matrix of a risk.

    $$ K = \operatorname{diag}_W(S_W \otimes A_W) + \lambda I, \qquad
       S_W = \sum_b c_b \sum_u \sum_r g_r g_r^T, \quad A_W = \tfrac1R \sum_r a_r a_r^T $$

    with one block for each weight W and its bias. Rows a are what the weight is applied to (with a
    1 for the bias), rows g the derivatives of u'z in the result, for vectors u at the outputs z
    with sum u u' = F. Both are read off the traced program of J'u: layers, attention, recurrent
    cells, experts, embeddings, tied weights and plain tensors alike, whatever module they are in.
    Biases and norms that are not with a weight have their exact block. A parameter that no rule
    covers has a multiple of the identity, whose trace is right on average over random
    signs of the examples, and is named in the `repr`.

    Args:
        risk: a `Risk`. Its loss is a likelihood (see `fisher_operator`), or any loss that is convex
            in the outputs of the model, whose Hessian then stands for F.
        params: as in `ggn_operator`.
        fisher: "exact": all columns of the roots of F, up to 256 outputs of an example (places
            times classes); beyond, as "sampled", and the `repr` says so. "sampled": `samples`
            vectors of random signs. "empirical": the observed targets.
        approximation: of weights that are applied at several places of an example (tokens, pixels):
            "expand" takes every place as a row; "reduce" one row for an example, the sum of its g
            and the mean of its a, which is exact for a deep linear network under a mean over
            places (Eschenhagen et al. 2023).
        damping, damping_form: see `KroneckerCurvature.damped`.
        samples: vectors, of "sampled" and "empirical". With few, K is singular far from the
            sampled directions, and small damping fragile.
        likelihood: as in `fisher_operator`.
        generator: of the random signs, the same ones at all points.

    Returns:
        An operator K with `K.damped`, `K.at`, `K.eigenvalues`, `K.power`, `K.sample`, `K.save` and
        `K.coverage`. Its inverse, `hesse.inverse_operator(K)`, is exact; so is that of K + c I.

    Cost: one trace for each shape of batch. A forward pass, and a backward pass without weight
    gradients for each vector u: 1/3 + 1/3 gradients each, and 1/3 for the products of rows. A
    product, and a product with the inverse, take (out + in) / 2 B of a Gauss-Newton product over B
    examples. Memory: the factors.

    Raises:
        HesseError: a model that cannot be traced; inputs whose first dimension does not count the
            examples; for an inverse, singular blocks, which are named.

    References: Martens & Grosse 2015, arXiv:1503.05671; Grosse & Martens 2016, arXiv:1602.01407;
    Eschenhagen et al. 2023, arXiv:2311.00636.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> kfac_operator(Risk(model, torch.nn.MSELoss(), (x, x[:, :1]))).to_dense()   # 2 x'x / 2
    tensor([[1., 0.],
            [0., 4.]])
    """
    settings = _settings(risk, fisher, approximation, samples, generator, rotated=False)
    return _operator(risk, params, settings, likelihood, damping, damping_form)


@public("hesse.ekfac_operator(risk, params)")
def ekfac_operator(
    risk: Risk | Any,
    params: Tree | None = None,
    *,
    fisher: Fisher = "exact",
    approximation: Approximation = "expand",
    damping: Damping = 0.0,
    damping_form: DampingForm = "exact",
    samples: int = 5,
    likelihood: Callable[[Any, Any], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> KroneckerCurvature:
    r"""The eigenvalue-corrected K-FAC (EK-FAC) of the Fisher or Gauss-Newton matrix of a risk.

    $$ E = \operatorname{diag}_W(Q_W\, \operatorname{diag}(d_W)\, Q_W^T) + \lambda I, \qquad
       Q_W = U_S \otimes U_A, \quad d_W = \sum_b c_b \sum_u \sum_n (Q_W^T g_n)^2 $$

    The basis Q is that of K-FAC; d is the exact diagonal of the block in it, from the gradients g_n
    of single examples, which are never formed where a weight is applied once. Of all matrices with
    this basis it is the nearest to the block in the Frobenius norm: with the exact roots never
    farther than K-FAC, and of the same trace as the block.

    Args:
        risk, params, fisher, approximation, damping, samples, likelihood, generator: as in
            `kfac_operator`.
        damping_form: "exact" or "relative".

    Returns:
        As `kfac_operator`. `E.at(x)` refreshes the bases instead of computing them.

    Cost: that of `kfac_operator`, an eigendecomposition of each factor, and the projections: about
    as much as the factors again. A product takes twice that of K-FAC.

    Raises:
        HesseError: as `kfac_operator`.

    References: George et al. 2018, arXiv:1806.03884.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> E = ekfac_operator(Risk(model, torch.nn.MSELoss(), (x, x[:, :1])), damping=1.0)
    >>> E.eigenvalues()
    tensor([2., 5.])
    """
    settings = _settings(risk, fisher, approximation, samples, generator, rotated=True)
    return _operator(risk, params, settings, likelihood, damping, damping_form)


@public("hesse.load_kfac(path)")
def load_kfac(path: FilePath, *, device: torch.device | str = "cpu") -> KroneckerCurvature:
    """A K-FAC or EK-FAC operator from the file that its `save` wrote.

    It does all but `at`, for which it would need the risk.

    Args:
        path: the file.
        device: where to.

    Raises:
        HesseError: no such file, or one of another kind.

    >>> import tempfile
    >>> x = torch.ones(1, 1)
    >>> K = kfac_operator(Risk(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), (x, x)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     K.save(folder + "/kfac.safetensors")
    ...     load_kfac(folder + "/kfac.safetensors").to_dense()
    tensor([[2.]])
    """
    space, blocks, options = load(path, device)
    return KroneckerCurvature(space, blocks, **options)


def _seed(risk: Any, generator: torch.Generator | None) -> int:
    """Of the random signs: the same in all processes, which number their batches one by one."""
    ranks = risk.ranks if isinstance(risk, Risk) else None
    return drawn_seed(ranks.generator if ranks and generator is None else generator)


def _settings(
    risk: Any,
    fisher: Fisher,
    approximation: Approximation,
    samples: int,
    generator: torch.Generator | None,
    *,
    rotated: bool,
) -> Settings:
    check_choice("fisher", fisher, ["exact", "sampled", "empirical"])
    check_choice("approximation", approximation, ["expand", "reduce"])
    if not (isinstance(samples, int) and samples >= 1):
        raise ArgumentError(
            expected="samples to be a positive integer", got=repr(samples), remedy="Give 1 or more."
        )
    return Settings(fisher, samples, approximation, rotated, _seed(risk, generator))


def _operator(
    risk: Any,
    params: Tree | None,
    settings: Settings,
    likelihood: Callable[[Any, Any], Tensor] | None,
    damping: Damping,
    damping_form: DampingForm,
) -> KroneckerCurvature:
    if not isinstance(risk, Risk):
        raise FunctionError(
            expected="risk to be a hesse.Risk, which knows its outputs, its loss and its batches",
            got=kind_of(risk),
            remedy="Build hesse.Risk(model, loss, data).",
        )
    params = point_of(risk, params, "params")
    ranks = risk.ranks
    with alike(ranks):
        space = Space.of(params, what="params", ranks=ranks)
    if ranks is not None:
        check_same_point(ranks, space, params, "params")
        check_same_buffers(ranks, risk.model)
    whole = risk.share.whole(params)

    def look(here: Risk) -> None:
        here.check_at(whole)
        if likelihood is not None:
            with_likelihood(here, whole, likelihood)

    look_here(risk, look)
    risk = risk if likelihood is None else risk.with_loss(likelihood)
    estimator = Estimator(risk, settings)
    blocks = estimator.blocks(params)
    return KroneckerCurvature(
        space,
        blocks,
        weight_decay=risk.weight_decay,
        damping=damping,
        damping_form=damping_form,
        about=estimator.about,
        estimator=estimator,
    )
