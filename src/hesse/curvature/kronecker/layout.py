# SPDX-License-Identifier: Apache-2.0
"""Which blocks the parameters of a model form, from the uses that their gradients are sums of.

| kind | parameters | block |
|---|---|---|
| "kronecker" | a weight with factored uses, with the bias of the same rows | L x R, or Q d Q' |
| "rows" | biases, norms, position vectors | exact: the sum of h h' over examples |
| "scalar" | what no rule covers | c I, of the right trace on average |
| "zero" | frozen or not used | 0 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import DataError
from hesse.operators.placed_blocks import Indexed, Place, Range, WithColumn
from hesse.tracing.graph import Graph, Node
from hesse.tracing.last_operations import makers_of, row_tensor
from hesse.tracing.uses import Use

Kind = Literal["kronecker", "rows", "scalar", "zero"]


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """A block, the parameters in it, and where they lie.

    Args:
        names: of the parameters; a bias comes second.
        kind: see the module.
        place: where its entries lie in a flat vector of all parameters.
        n: the number of entries.
        uses: those of the weight, or of what has rows.
        shape: (groups, p, q) of a Kronecker block, with its bias.
        has_bias: whether a 1 is appended to the rows that do not depend on u.
        reason: why it is a multiple of the identity, or zero.
        parameter: the number of the parameter, and the entries of it that the block is of; None for
            all.
        gradient: the value of the graph that is the gradient of the parameter.
        parts: the blocks of weight and bias, if it is of both.
    """

    names: tuple[str, ...]
    kind: Kind
    place: Place
    n: int
    uses: tuple[Use, ...] = ()
    shape: tuple[int, ...] = ()
    has_bias: bool = False
    reason: str = ""
    parameter: tuple[int, Tensor | None] = (0, None)
    gradient: int | None = None
    parts: tuple[BlockLayout, ...] = ()

    def without_rule(self, reason: str) -> list[BlockLayout]:
        """Multiples of the identity, one for each parameter."""
        return [
            replace(part, kind="scalar", uses=(), shape=(), reason=reason)
            for part in self.parts or (self,)
        ]

    @property
    def rule(self) -> str:
        """What a coverage table says."""
        if self.kind in ("scalar", "zero"):
            return self.reason
        names = [use.rule or "" for use in self.uses]
        return " + ".join(
            f"{names.count(name)} {name}" if names.count(name) > 1 else name
            for name in dict.fromkeys(names)
        )


def block_layouts(
    graph: Graph,
    names: Sequence[str],
    sizes: Sequence[int],
    uses: Sequence[list[Use] | None],
    gradients: Sequence[int | None],
    *,
    single_example: bool,
) -> list[BlockLayout]:
    """The blocks of the parameters, in their order.

    Args:
        graph: that the uses were read from.
        names, sizes: of all parameters, as they lie in a flat vector.
        uses: of each; None for a frozen one.
        gradients: the values of the graph that are their gradients.
        single_example: whether a gradient is that of one example.
    """
    blocks, start = [], 0
    for k, (name, size, own) in enumerate(zip(names, sizes, uses, strict=True)):
        place = Range(start, start + size)
        found = _of_parameter(k, name, place, own, single_example) if size else []
        blocks += [replace(block, gradient=gradients[k]) for block in found]
        start += size
    return _with_biases(graph, blocks)


# -- The blocks of one parameter -------------------------------------------------------------------


def _of_parameter(
    k: int, name: str, whole: Range, uses: list[Use] | None, single_example: bool
) -> list[BlockLayout]:
    size = whole.stop - whole.start
    if not uses:
        reason = "frozen" if uses is None else "not used"
        return [BlockLayout((name,), "zero", whole, size, reason=reason, parameter=(k, None))]
    pieces = _pieces(uses, size)
    if pieces is None:
        reason = _reason(uses)
        return [_scalar(k, name, whole, None, reason)]
    return [_piece(k, name, whole, index, own, single_example) for index, own in pieces]


def _piece(
    k: int, name: str, whole: Range, index: Tensor | None, uses: list[Use], single: bool
) -> BlockLayout:
    """The block of the entries `index` of a parameter, in the order of the last operation."""
    if not uses:
        return BlockLayout(
            (name,), "zero", _place(whole, index), _length(whole, index), reason="not used",
            parameter=(k, index),
        )  # fmt: skip
    factored = all(use.is_factored for use in uses)
    has_rows = all(not use.is_factored and (single or use.rule != "own gradient") for use in uses)
    same = len({use.shape for use in uses}) == 1
    if not same or not (factored or has_rows):
        return _scalar(k, name, whole, index, _reason(uses))
    place, n = _place(whole, index), _length(whole, index)
    if factored:
        return BlockLayout(
            (name,), "kronecker", place, n, tuple(uses), uses[0].shape, parameter=(k, index)
        )
    return BlockLayout((name,), "rows", place, n, tuple(uses), uses[0].shape, parameter=(k, index))


def _scalar(k: int, name: str, whole: Range, index: Tensor | None, reason: str) -> BlockLayout:
    place, n = _place(whole, index), _length(whole, index)
    return BlockLayout((name,), "scalar", place, n, reason=reason, parameter=(k, index))


def _length(whole: Range, index: Tensor | None) -> int:
    return whole.stop - whole.start if index is None else len(index)


def _place(whole: Range, index: Tensor | None) -> Place:
    if index is None:
        return whole
    start = int(index[0])
    if torch.equal(index, torch.arange(start, start + len(index))):
        return Range(whole.start + start, whole.start + start + len(index))
    return Indexed(whole.start + index)


def _reason(uses: Sequence[Use]) -> str:
    operations = sorted({use.operation for use in uses})
    return f"no rule for {' with '.join(operations)}"


def _pieces(uses: list[Use], size: int) -> list[tuple[Tensor | None, list[Use]]] | None:
    """The uses by the entries that they are of; None where these overlap in part.

    Each piece is the entries of the parameter in the order of the operation's result.
    """
    if all(use.order is None for use in uses):
        return [(None, uses)]
    pieces: list[tuple[Tensor, list[Use]]] = []
    for use in uses:
        index = _entries(use, size)
        if index is None:
            return None
        for known, own in pieces:
            if torch.equal(known, index):
                own.append(use)
                break
        else:
            pieces.append((index, [use]))
    covered = torch.cat([index for index, _ in pieces])
    if len(torch.unique(covered)) != len(covered):
        return None
    rest = torch.ones(size, dtype=torch.bool)
    rest[covered] = False
    if bool(rest.any()):
        pieces.append((rest.nonzero()[:, 0], []))
    pieces.sort(key=lambda piece: int(piece[0].min()))
    return [(index, [replace(use, order=None) for use in own]) for index, own in pieces]


def _entries(use: Use, size: int) -> Tensor | None:
    """Entry of the result -> entry of the parameter; None where the result is not used once."""
    number = 1
    for factor in use.shape:
        number *= factor
    if use.order is None:
        return torch.arange(size) if number == size else None
    order = use.order.reshape(-1)
    used = (order >= 0).nonzero()[:, 0]
    if len(used) != number or len(torch.unique(order[used])) != number:
        return None
    index = torch.empty(number, dtype=torch.long)
    index[order[used]] = used
    return index


# -- Biases ----------------------------------------------------------------------------------------


def _with_biases(graph: Graph, blocks: list[BlockLayout]) -> list[BlockLayout]:
    """A weight and the bias of the same rows as one block."""
    makers, by_rows = makers_of(graph), dict[tuple, int]()
    for k, block in enumerate(blocks):
        if block.kind == "rows" and _is_bias(block):
            by_rows.setdefault(_rows_key(graph, makers, block), k)
    joined: dict[int, BlockLayout] = {}
    gone: set[int] = set()
    for k, block in enumerate(blocks):
        if block.kind != "kronecker" or any(use.rule == "embedding" for use in block.uses):
            continue
        b = by_rows.get(_rows_key(graph, makers, block))
        if b is not None and b not in gone:
            whole = _joined(block, blocks[b])
            if whole is not None:
                joined[k] = whole
                gone.add(b)
    return [joined.get(k, block) for k, block in enumerate(blocks) if k not in gone]


def _is_bias(block: BlockLayout) -> bool:
    rules = {use.rule for use in block.uses}
    return rules <= {"sum", "channel sum"} and isinstance(block.place, Range)


def _rows_key(graph: Graph, makers: Mapping[int, Node], block: BlockLayout) -> tuple:
    return tuple(sorted((*row_tensor(graph, makers, use), use.scale) for use in block.uses))


def _joined(weight: BlockLayout, bias: BlockLayout) -> BlockLayout | None:
    """The block [W b], or [W; b'] where the rows of g are on the right."""
    groups, p, q = weight.shape
    g_is_left = weight.uses[0].g_is_left
    if any(use.g_is_left != g_is_left for use in weight.uses):
        return None
    W, b = weight.place, bias.place
    if bias.n != groups * (p if g_is_left else q) or not isinstance(b, Range):
        return None
    names = (*weight.names, *bias.names)
    if g_is_left and isinstance(W, Range):
        place, shape = WithColumn(W, b), (groups, p, q + 1)
    elif not g_is_left and groups == 1 and isinstance(W, Range) and W.stop == b.start:
        place, shape = Range(W.start, b.stop), (groups, p + 1, q)
    elif not g_is_left and groups == 1:
        entries = [part.take(torch.arange(_end(W, b))) for part in (W, b)]
        place, shape = Indexed(torch.cat(entries)), (groups, p + 1, q)
    else:
        return None
    return replace(
        weight,
        names=names,
        place=place,
        shape=shape,
        n=weight.n + bias.n,
        has_bias=True,
        parts=(weight, bias),
    )


def _end(W: Place, b: Range) -> int:
    stop = (
        W.stop if isinstance(W, Range) else int(W.index.max()) + 1 if isinstance(W, Indexed) else 0
    )
    return max(stop, b.stop)


# -- Comparing -------------------------------------------------------------------------------------


def forms(blocks: Sequence[BlockLayout]) -> list[tuple]:
    """What is the same of blocks that are summed."""
    return [(block.names, block.kind, block.shape, block.n) for block in blocks]


def check_same_layouts(ours: Sequence[BlockLayout], theirs: Sequence[BlockLayout]) -> None:
    """Raise unless the blocks of two batches can be added up."""
    if ours is theirs or forms(ours) == forms(theirs):
        return
    pairs = zip(forms(ours), forms(theirs), strict=False)
    one, other = next((a, b) for a, b in pairs if a != b)
    raise DataError(
        expected="a model that uses its parameters alike in all batches",
        got=f"{one[:2]} in one batch, {other[:2]} in another",
        remedy="Give the batches to operators of their own, or leave parameters out.",
    )
