# SPDX-License-Identifier: Apache-2.0
r"""A Kronecker-factored preconditioner for the damped Gauss-Newton systems of a network.

For a linear layer with inputs a (a 1 appended for the bias) and pre-activations s the Gauss-Newton
block of its weights [W b] is E[g g' (x) a a'], g the back-propagated factor of the loss Hessian. It
is approximated by S (x) A with A = E[a a'] and S = E[g g'] (Martens & Grosse 2015, section 3),
whose damped inverse is exact in the eigenbases of the factors:

$$ (S \otimes A + \lambda I)^{-1} V = U_S \Big[ (U_S^T V U_A)_{ij} / (s_i a_j + \lambda) \Big] U_A^T
. $$

Parameters that belong to no linear layer get the multiple 1 / (c + lambda) of the identity, c the
mean eigenvalue of the blocks.

The factor g needs vectors u with E[u u'] = H_L at the outputs. They are u = H_L^{1/2} z with
Gaussian z, by Lanczos, for any convex loss; sampling targets from the model, as is usual, would
need to know the likelihood behind the loss.

As a preconditioner for the exact matrix it only has to be close: CG corrects the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hesse.ad.evaluate import derivative, tracked, twice_differentiable
from hesse.ad.gauss_newton import LossHessian
from hesse.data import Batch
from hesse.krylov.lanczos import Lanczos
from hesse.operators.base import LinearOperator
from hesse.operators.dense import function_operator
from hesse.risk import Risk
from hesse.vectors import Space, Tree, gaussian, norm

_ROOT_STEPS = (
    10  # Lanczos steps for H_L^{1/2} z: a few per cent of error, as a preconditioner needs
)


@dataclass(frozen=True)
class Layer:
    """A linear layer and where its parameters lie in a flat vector."""

    name: str
    module: nn.Linear
    weight: slice
    bias: slice | None


Spectra = tuple[Tensor, Tensor, Tensor, Tensor]
"""Eigenvalues and eigenvectors of A, then of S."""


@dataclass(frozen=True)
class Factors:
    """A, S of one layer."""

    A: Tensor
    S: Tensor


class KroneckerPreconditioner:
    """lambda -> an approximation of the inverse of G + lambda I; see the module.

    Args:
        risk: whose model's `nn.Linear` layers are used.
        space: the space of its parameters.
    """

    def __init__(self, risk: Risk, space: Space) -> None:
        self.space, self._decay = space, risk.weight_decay
        self.layers = list(_linear_layers(risk.model, space))
        self.factors: dict[str, Factors] = {}
        self._spectra: dict[str, Spectra] = {}
        self.mean_eigenvalue = 0.0

    def refresh(
        self, risk: Risk, params: Tree, generator: torch.Generator | None, past: float
    ) -> None:
        """Estimate the factors at `params` and average them in, with weight `past` on the old."""
        fresh = estimate_factors(risk, params, self.layers, generator)
        self.load(
            {name: _average(self.factors.get(name), new, past) for name, new in fresh.items()}
        )

    def load(self, factors: dict[str, Factors]) -> None:
        """Use these factors."""
        self.factors = factors
        self._spectra = {name: _spectrum(f.A) + _spectrum(f.S) for name, f in factors.items()}
        self.mean_eigenvalue = _mean_eigenvalue(self._spectra)

    def __call__(self, damping: float) -> LinearOperator:
        """The approximate inverse of G + damping I."""
        return _DampedInverse(self, damping + self._decay)


class _DampedInverse(LinearOperator):
    """The module's formula, layer by layer."""

    def __init__(self, parent: KroneckerPreconditioner, damping: float) -> None:
        super().__init__(parent.space, symmetric=True)
        self._parent, self._damping = parent, damping

    def _matvec(self, v: Tensor) -> Tensor:
        result = v / (self._damping + self._parent.mean_eigenvalue)
        for layer in self._parent.layers:
            if layer.name not in self._parent._spectra:
                continue
            a, U_A, s, U_S = self._parent._spectra[layer.name]
            V = _matrix(v, layer)
            scaled = (U_S.T @ V @ U_A) / (torch.outer(s, a) + self._damping)
            _write(result, layer, U_S @ scaled @ U_A.T)
        return result


def estimate_factors(
    risk: Risk, params: Tree, layers: list[Layer], generator: torch.Generator | None
) -> dict[str, Factors]:
    """A and S of every layer that took part, at `params`, over all batches."""
    sums: dict[str, Factors] = {}
    total = 0.0
    for coefficient, batch in risk.batches():
        total += coefficient
        for name, (A, S) in _batch_factors(risk, params, batch, layers, generator).items():
            old = sums.get(name, Factors(torch.zeros_like(A), torch.zeros_like(S)))
            sums[name] = Factors(old.A + coefficient * A, old.S + coefficient * S)
    return {name: Factors(f.A / total, f.S) for name, f in sums.items()}


def _batch_factors(
    risk: Risk, params: Tree, batch: Batch, layers: list[Layer], generator: torch.Generator | None
) -> dict[str, tuple[Tensor, Tensor]]:
    call = "hesse.HessianFree: Kronecker factors"
    names, leaves = list(params), list(params.values())
    batch = batch.to(leaves[0].device)
    with twice_differentiable(), _recording(layers) as records:
        outputs = risk.outputs(dict(zip(names, tracked(leaves), strict=True)), batch)
        loss = LossHessian(outputs, lambda z: risk.batch_loss(z, batch), call)
        u = _root_of_loss_hessian(loss, generator)
        used = [(name, a, s) for name, a, s in records if s.requires_grad]
        back = derivative(loss.tensors, [s for _, _, s in used], u)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for (name, a, _), g in zip(used, back, strict=True):
        a, g = a.flatten(0, -2), g.flatten(0, -2)
        A, S = a.T @ a / len(a), g.T @ g
        if name in factors:  # a layer that is used more than once
            A, S = (A + factors[name][0]) / 2, S + factors[name][1]
        factors[name] = A, S
    return factors


@contextmanager
def _recording(layers: list[Layer]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Record (name, inputs with a 1 appended for the bias, outputs) whenever a layer is called."""
    records: list[tuple[str, Tensor, Tensor]] = []

    def hook(layer: Layer):
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            a = args[0].detach()
            if layer.bias is not None:
                a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
            records.append((layer.name, a, output))

        return record

    handles = [layer.module.register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _root_of_loss_hessian(loss: LossHessian, generator: torch.Generator | None) -> list[Tensor]:
    """u = H_L^{1/2} z with Gaussian z, so that E[u u'] = H_L; negative eigenvalues are zeroed."""
    space = Space.of(loss.tensors, what="outputs")
    H = function_operator(lambda u: space.join(loss.product(space.split(u))), space, symmetric=True)
    z = gaussian(space, generator)
    lanczos = Lanczos(H, min(_ROOT_STEPS, space.n), z, generator)
    for size in range(1, min(_ROOT_STEPS, space.n) + 1):
        lanczos.extend(size)
        if lanczos.beta == 0.0:  # an invariant subspace: the root is exact
            break
    values, coordinates, _ = lanczos.ritz()
    root = coordinates @ (values.clamp(min=0.0).sqrt() * coordinates[0])
    return space.split(norm(z) * lanczos.combine(root[:, None])[0])


def _linear_layers(model: object, space: Space) -> Iterator[Layer]:
    """The linear layers whose weight is among the parameters, each parameter once."""
    where: dict[str, slice] = {}
    start = 0
    for name, size in zip(space.names, space.sizes, strict=True):
        where[name] = slice(start, start + size)
        start += size
    modules = model.named_modules() if isinstance(model, nn.Module) else []
    for name, module in modules:
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Linear) and f"{prefix}weight" in where:
            yield Layer(name, module, where[f"{prefix}weight"], where.get(f"{prefix}bias"))


def _matrix(v: Tensor, layer: Layer) -> Tensor:
    """[W b] of a layer, from a flat vector."""
    W = v[layer.weight].view(layer.module.out_features, layer.module.in_features)
    return W if layer.bias is None else torch.cat([W, v[layer.bias][:, None]], dim=1)


def _write(v: Tensor, layer: Layer, matrix: Tensor) -> None:
    """Put [W b] into a flat vector."""
    W = matrix if layer.bias is None else matrix[:, :-1]
    v[layer.weight] = W.reshape(-1)
    if layer.bias is not None:
        v[layer.bias] = matrix[:, -1]


def _average(old: Factors | None, new: Factors, past: float) -> Factors:
    if old is None:
        return new
    return Factors(past * old.A + (1 - past) * new.A, past * old.S + (1 - past) * new.S)


def _mean_eigenvalue(spectra: dict[str, Spectra]) -> float:
    """The mean eigenvalue of all blocks S (x) A; 0 if there are none."""
    pairs = [(a, s) for a, _, s, _ in spectra.values()]
    count = sum(len(a) * len(s) for a, s in pairs)
    return sum(float(a.sum() * s.sum()) for a, s in pairs) / count if count else 0.0


def _spectrum(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, clipped at zero, and eigenvectors; in float64, where eigh is reliable."""
    values, vectors = torch.linalg.eigh(factor.double())
    return values.clamp(min=0.0).to(factor.dtype), vectors.to(factor.dtype)
