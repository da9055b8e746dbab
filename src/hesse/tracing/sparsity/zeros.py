# SPDX-License-Identifier: Apache-2.0
"""Which entries of the residuals are zero at every point.

The derivative of (x**4)[::2].sum() multiplies v by 12 x^2 and by a padded vector, zero where x is
not used: a residual that depends on x and has zeros all the same. Zeros come from constants, fills
and paddings; products keep them, and operations that move entries move them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.graph import Node, TensorMeta, Value, substitute
from hesse.tracing.sparsity.rules.indexing import FILLS, STORAGE, moves_entries
from hesse.tracing.sparsity.tape import is_integer

_aten = torch.ops.aten

_ZEROS = frozenset([_aten.zeros.default, _aten.zeros_like.default, _aten.new_zeros.default])

# They put zeros beside the entries of their argument.
_PADDING = frozenset(
    [
        *(_aten.slice_backward.default, _aten.select_backward.default, _aten.tril.default),
        *(_aten.diagonal_backward.default, _aten.constant_pad_nd.default, _aten.triu.default),
        _aten.diag_embed.default,
    ]
)

# Zero where their first argument is.
_KEEP_ZEROS = frozenset(
    [
        *(_aten.neg.default, _aten.abs.default, _aten.sin.default, _aten.tanh.default),
        *(_aten.sqrt.default, _aten.sgn.default, _aten.relu.default, _aten.expm1.default),
        *(_aten.mul.Scalar, _aten.div.Scalar, _aten.div.Tensor, _aten.clone.default),
    ]
)


class Zeros:
    """The values that have entries which are always zero.

    Args:
        metas: of all values.
        constants: by number; those with zeros are looked at.

    Attributes:
        nonzeros: by number, True where a value may differ from zero; only for those with zeros.
        looked_at: the numbers of the constants in which there are zeros.
    """

    def __init__(self, metas: Mapping[int, TensorMeta], constants: Mapping[int, Tensor]) -> None:
        self._metas, self._constants = metas, constants
        self.nonzeros: dict[int, Tensor] = {}
        self.looked_at: set[int] = set()
        for number, tensor in constants.items():
            if tensor.is_floating_point() and bool((tensor == 0).any()):
                self.nonzeros[number] = (tensor != 0).cpu()
                self.looked_at.add(number)

    def visit(self, nodes: Iterable[Node]) -> None:
        """Follow the zeros through some nodes."""
        for node in nodes:
            mask = self._nonzeros(node) if node.single else None
            (result, *_) = node.results
            if mask is not None and result is not None and not bool(mask.all()):
                self.nonzeros[result] = mask

    def _nonzeros(self, node: Node) -> Tensor | None:
        function, args = node.function, node.args
        if function in _ZEROS:
            (result,) = node.results
            return (
                None if result is None else torch.zeros(self._metas[result].shape, dtype=torch.bool)
            )
        if function in _PADDING:
            return self._moved(node)
        if self.nonzeros.keys().isdisjoint(node.reads()):
            return None
        if function in _KEEP_ZEROS:
            return self._broadcast(node, self._mask(args[0]))
        if function is _aten.mul.Tensor:
            return self._broadcast(node, self._mask(args[0]) & self._mask(args[1]))
        if function in (_aten.add.Tensor, _aten.sub.Tensor):
            return self._broadcast(node, self._mask(args[0]) | self._mask(args[1]))
        if function is _aten.pow.Tensor_Scalar and args[1] > 0:
            return self._mask(args[0])
        if moves_entries(node) and function not in FILLS:
            return self._moved(node)
        return None

    def _mask(self, argument: Any) -> Tensor:
        """Where an argument may differ from zero, as far as that is known."""
        if isinstance(argument, Value):
            mask = self.nonzeros.get(argument.index)
            if mask is not None:
                return mask
            return torch.ones(self._metas[argument.index].shape, dtype=torch.bool)
        return torch.tensor(argument != 0)

    def _broadcast(self, node: Node, mask: Tensor) -> Tensor | None:
        (result,) = node.results
        return None if result is None else mask.expand(self._metas[result].shape)

    def _moved(self, node: Node) -> Tensor | None:
        """The mask after an operation that moves entries by indices that are constants."""
        values = {}
        for number in node.reads():
            if not is_integer(self._metas[number]):
                values[number] = self._mask(Value(number)).to(torch.float64)
            elif number in self._constants:
                values[number] = self._constants[number].cpu()
                self.looked_at.add(number)
            else:
                return None
        kwargs = {
            key: substitute(argument, values.__getitem__)
            for key, argument in node.kwargs.items()
            if key not in STORAGE
        }
        return node.function(*substitute(node.args, values.__getitem__), **kwargs) != 0
