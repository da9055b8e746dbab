# SPDX-License-Identifier: Apache-2.0
r"""A Kronecker-factored preconditioner for the damped Gauss-Newton systems of a network.

For a linear layer with inputs a (a 1 appended for the bias) and pre-activations s the Gauss-Newton
block of its weights [W b] is E[g g' (x) a a'], g the back-propagated root of the loss Hessian. With
the eigenvectors of A = E[a a'] and of S = E[g g'] as a basis (Martens & Grosse 2015, section 3) and
the exact diagonal of the block in that basis (George et al. 2018), its damped inverse is

$$ V \mapsto U_S \Big[ \frac{(U_S^T V U_A)_{ij}}{d_{ij} + \lambda} \Big] U_A^T, \qquad
   d_{ij} = \mathbb{E}\,(U_S^T g)_i^2 (U_A^T a)_j^2 . $$

Parameters outside of linear layers get the multiple 1 / (c + lambda) of the identity, with c the
mean of all d.

The vectors g are back-propagated from vectors u with E[u u'] = H_L at the outputs: u = H_L^{1/2} z
with z Gaussian, by Lanczos, for any convex loss. The usual samples of targets from the model would
need the likelihood behind the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hesse.ad.double_backward import derivative, twice_differentiable
from hesse.ad.loss import LossHessian
from hesse.ad.variables import tracked
from hesse.data.batches import Batch
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import function_operator
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

# Lanczos steps for H_L^{1/2} z: an error of a few per cent, enough for a preconditioner.
_ROOT_STEPS = 10


@dataclass(frozen=True)
class Layer:
    """A linear layer and where its parameters lie in a flat vector."""

    name: str
    module: nn.Linear
    weight: slice
    bias: slice | None


@dataclass(frozen=True)
class Factors:
    """A and S of one layer, and the diagonal d of its block in their eigenbases."""

    A: Tensor
    S: Tensor
    d: Tensor


Records = dict[str, list[tuple[Tensor, Tensor]]]
"""For every layer, (a, g) of each of its calls: inputs and back-propagated vectors, as rows."""


class KroneckerPreconditioner:
    """lambda -> an approximation of the inverse of G + lambda I, by the formula of the module.

    Args:
        risk: its model's `nn.Linear` layers are used.
        space: the space of its parameters.
    """

    def __init__(self, risk: Risk, space: Space) -> None:
        self.space, self._decay = space, risk.weight_decay
        self.layers = list(_linear_layers(risk.model, space))
        self.factors: dict[str, Factors] = {}
        self.bases: dict[str, tuple[Tensor, Tensor]] = {}
        self.mean_curvature = 0.0

    def refresh(self, risk: Risk, params: Tree, seed: int, past: float) -> None:
        """Estimate the factors at `params`; A and S are averaged with weight `past` on the old."""
        sweep = _Sweep(risk, params, self.layers, seed)
        moments = {
            name: _average(self.factors.get(name), A, S, past)
            for name, (A, S) in _second_moments(sweep).items()
        }
        bases = {name: (_eigenvectors(A), _eigenvectors(S)) for name, (A, S) in moments.items()}
        diagonals = _diagonals(sweep, bases)
        factors = {name: Factors(A, S, diagonals[name]) for name, (A, S) in moments.items()}
        self._use(factors, bases)

    def restore(self, factors: dict[str, Factors], bases: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Use factors and bases that it had before."""
        self._use(factors, bases)

    def load(self, factors: dict[str, Factors]) -> None:
        """Use these factors."""
        bases = {name: (_eigenvectors(f.A), _eigenvectors(f.S)) for name, f in factors.items()}
        self._use(factors, bases)

    def _use(self, factors: dict[str, Factors], bases: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.factors, self.bases = factors, bases
        count = sum(f.d.numel() for f in factors.values())
        self.mean_curvature = sum(float(f.d.sum()) for f in factors.values()) / max(count, 1)

    def __call__(self, damping: float) -> LinearOperator:
        """The approximate inverse of G + damping I."""
        return _DampedInverse(self, damping + self._decay)


class _DampedInverse(LinearOperator):
    """The module's formula, layer by layer."""

    def __init__(self, parent: KroneckerPreconditioner, damping: float) -> None:
        super().__init__(parent.space, symmetric=True)
        self._parent, self._damping = parent, damping

    def _matvec(self, v: Tensor) -> Tensor:
        result = v / (self._damping + self._parent.mean_curvature)
        for layer in self._parent.layers:
            if layer.name in self._parent.factors:
                U_A, U_S = self._parent.bases[layer.name]
                rotated = U_S.T @ _matrix(v, layer) @ U_A
                scaled = rotated / (self._parent.factors[layer.name].d + self._damping)
                _write(result, layer, U_S @ scaled @ U_A.T)
        return result


class _Sweep:
    """The records of every batch, equal in every sweep; those of a single batch are kept."""

    def __init__(self, risk: Risk, params: Tree, layers: list[Layer], seed: int) -> None:
        self._risk, self._params, self._layers, self._seed = risk, params, layers, seed
        self._kept = list(self._records()) if risk.num_summands == 1 else None

    def __iter__(self) -> Iterator[tuple[float, Records]]:
        return iter(self._kept) if self._kept is not None else self._records()

    def _records(self) -> Iterator[tuple[float, Records]]:
        generator = torch.Generator().manual_seed(self._seed)
        for coefficient, batch in self._risk.batches():
            yield (
                coefficient,
                _batch_records(self._risk, self._params, batch, self._layers, generator),
            )


def _second_moments(sweep: _Sweep) -> dict[str, tuple[Tensor, Tensor]]:
    """A, the mean of a a' over rows, and S, the sum of g g', for every layer that was called."""
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    total: dict[str, float] = {}
    for coefficient, records in sweep:
        for name, calls in records.items():
            for a, g in calls:
                A, S = coefficient * (a.T @ a) / len(a), coefficient * (g.T @ g)
                old = sums.get(name)
                sums[name] = (A, S) if old is None else (old[0] + A, old[1] + S)
                total[name] = total.get(name, 0.0) + coefficient
    return {name: (A / total[name], S) for name, (A, S) in sums.items()}


def _diagonals(sweep: _Sweep, bases: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """d, for every layer: the sum over rows of (U_S' g)_i^2 (U_A' a)_j^2."""
    sums: dict[str, Tensor] = {}
    for coefficient, records in sweep:
        for name, calls in records.items():
            U_A, U_S = bases[name]
            for a, g in calls:
                d = coefficient * ((g @ U_S) ** 2).T @ ((a @ U_A) ** 2)
                sums[name] = sums[name] + d if name in sums else d
    return sums


def _batch_records(
    risk: Risk, params: Tree, batch: Batch, layers: list[Layer], generator: torch.Generator
) -> Records:
    names, leaves = list(params), list(params.values())
    batch = batch.to(leaves[0].device)
    with twice_differentiable(), _recorded_calls(layers) as calls:
        outputs = risk.outputs(dict(zip(names, tracked(leaves), strict=True)), batch)
        loss = LossHessian(outputs, lambda z: risk.batch_loss(z, batch))
        u = _root_of_loss_hessian(loss, generator)
        used = [record for record in calls if record[2].requires_grad]
        back = derivative(loss.tensors, [s for _, _, s in used], u) if used else []
    records: Records = {}
    for (name, a, _), g in zip(used, back, strict=True):
        records.setdefault(name, []).append((a.flatten(0, -2), g.flatten(0, -2)))
    return records


@contextmanager
def _recorded_calls(layers: list[Layer]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
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
    z = space.gaussian(generator)
    lanczos = LanczosProcess(H, min(_ROOT_STEPS, space.n), z, generator)
    for size in range(1, min(_ROOT_STEPS, space.n) + 1):
        lanczos.extend(size)
        if lanczos.beta == 0.0:  # an invariant subspace: the root is exact
            break
    values, coordinates, _ = lanczos.ritz()
    root = coordinates @ (values.clamp(min=0.0).sqrt() * coordinates[0])
    return space.split(space.norm(z) * lanczos.combine(root[:, None])[0])


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


def _average(old: Factors | None, A: Tensor, S: Tensor, past: float) -> tuple[Tensor, Tensor]:
    if old is None:
        return A, S
    return past * old.A + (1 - past) * A, past * old.S + (1 - past) * S


def _eigenvectors(factor: Tensor) -> Tensor:
    """Eigenvectors as columns; computed in float64, where eigh is reliable."""
    return torch.linalg.eigh(factor.double()).eigenvectors.to(factor.dtype)
