# SPDX-License-Identifier: Apache-2.0
r"""The last layer of a model, z = W phi + b: covariances of outputs without a Jacobian.

$J = I \otimes \tilde\phi^T$ with $\tilde\phi = (\phi, 1)$, so that the covariance of the outputs c
and k is $\tilde\phi^T V_{ck} \tilde\phi$, V the covariance of the weights. Of Kronecker factors,
$V = (U_S \otimes U_A)\, \mathrm{diag}(w)\, (U_S \otimes U_A)^T$, it is
$U_S\, \mathrm{diag}(w\, (U_A^T \tilde\phi)^2)\, U_S^T$.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesse.apps.uncertainty.chosen import Chosen
from hesse.apps.uncertainty.precision import ExactPrecision
from hesse.curvature.rank_sum import look_once
from hesse.data.batches import Batch
from hesse.errors import StructureError
from hesse.operators.batched_kronecker import BatchedKronecker
from hesse.operators.placed_blocks import PlacedBlocks
from hesse.risk.call import ModelCall, device_of
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree


@dataclass(frozen=True)
class LastLayer:
    """The linear module whose result the model returns."""

    module: nn.Linear
    names: tuple[str, ...]
    """Of its weight and, if there is one, its bias."""

    @staticmethod
    def of(risk: Risk, params: Tree) -> LastLayer:
        """That of a model, found by a forward pass."""
        name = look_once(risk, lambda here: _last_linear(here, params))
        call = ModelCall.of(risk.model)
        return LastLayer._at(call.prefix + name, _modules(call)[name], params)

    @staticmethod
    def _at(prefix: str, module: Any, params: Tree) -> LastLayer:
        parts = ["weight"] if module.bias is None else ["weight", "bias"]
        names = tuple(f"{prefix}.{part}" if prefix else part for part in parts)
        missing = [name for name in names if name not in params]
        if missing:
            raise StructureError(
                expected="params with the weight and the bias of the last layer",
                got=f"none called {missing[0]!r}",
                remedy="Give them in params: frozen, left out or tied parameters have no posterior "
                "of their own; or use structure='full' with where=.",
            )
        return LastLayer(module, names)

    def features(self, risk: Risk, params: Tree, batch: Batch) -> Tensor:
        """phi, with a 1 for the bias, (q, p)."""
        found: list[Tensor] = []
        with _Hooks({"": self.module}, lambda _, phi, __: found.append(phi)):
            risk.outputs(params, batch)
        phi = found[-1].detach()
        return phi if len(self.names) == 1 else torch.cat([phi, torch.ones_like(phi[:, :1])], 1)

    def covariance(self, precision: ExactPrecision) -> Callable[[Tensor], Tensor]:
        """phi (q, p) -> covariances of the outputs, (q, C, C)."""
        A, C = precision.A, self.module.out_features
        if isinstance(A, PlacedBlocks):
            return _of_factors(A, precision)
        assert precision.inverse is not None
        V = precision.inverse.to_dense()
        order = _joined_order(precision.chosen, self.names, C)
        V = V[order][:, order].view(C, -1, C, V.shape[0] // C)
        return lambda phi: torch.einsum("qi,cikj,qj->qck", phi, V, phi)


def _modules(call: ModelCall) -> dict[str, nn.Module]:
    return dict(call.model.named_modules()) if isinstance(call.model, nn.Module) else {}


def _last_linear(risk: Risk, params: Tree) -> str:
    """The name of the module whose result the model returns, on the first batch."""
    batch, results = risk.data.first.to(device_of(params)), list[tuple[str, Tensor]]()
    modules = _modules(ModelCall.of(risk.model))
    with _Hooks(modules, lambda name, _, z: results.append((name, z))):
        outputs = risk.outputs(params, batch)
    for name, z in results:
        if z is outputs and z.ndim == 2:
            return name
    raise StructureError(
        expected="a module that returns the result of an nn.Linear, rows of outputs",
        got=type(risk.model).__name__,
        remedy="Name the parameters: structure='full', where=['head.weight', 'head.bias'].",
    )


def _of_factors(K: PlacedBlocks, precision: ExactPrecision) -> Callable[[Tensor], Tensor]:
    (block,) = K.blocks
    assert isinstance(block, BatchedKronecker)
    Q = block.rotated.Q
    assert isinstance(Q, BatchedKronecker)
    (S,), (A,) = (_orthogonal(side) for side in (Q.left, Q.right))
    w = 1.0 / (precision.scale * block.rotated.w + precision.delta[0])
    w = w.view(len(S), len(A)).to(S.dtype)

    def covariance(phi: Tensor) -> Tensor:
        d = (phi @ A).square() @ w.T
        return torch.einsum("ca,qa,ka->qck", S, d, S)

    return covariance


def _orthogonal(side: Any) -> Tensor:
    """The matrices of eigenvectors of a side, (groups, p, p)."""
    return torch.diag_embed(side.entries) if side.is_diagonal else side.entries


def _joined_order(chosen: Chosen, names: tuple[str, ...], C: int) -> Tensor:
    """Where the entries of [W b], row by row, lie among the chosen parameters."""
    position = torch.empty(chosen.whole.n, dtype=torch.long, device=chosen.index.device)
    position[chosen.index] = torch.arange(len(chosen.index), device=position.device)
    parts = [position[chosen.whole.subspace(name)[1]].view(C, -1) for name in names]
    return torch.cat(parts, 1).reshape(-1)


class _Hooks:
    """Within it, a function (name, input, result) sees the calls of all linear modules."""

    def __init__(self, modules: dict[str, Any], see: Callable[[str, Tensor, Tensor], Any]) -> None:
        self._modules, self._see, self._handles = modules, see, []

    def __enter__(self) -> None:
        for name, module in self._modules.items():
            if isinstance(module, nn.Linear):
                self._handles.append(module.register_forward_hook(self._hook(name)))

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Tensor, ...], z: Tensor) -> None:
            self._see(name, inputs[0], z)

        return hook
