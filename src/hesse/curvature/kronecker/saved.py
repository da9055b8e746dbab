# SPDX-License-Identifier: Apache-2.0
"""Factored curvatures in files: tensors by safetensors, names and places as JSON in its header.

A file may come from a stranger. What is read takes no more memory than the file has bytes, and
blocks that do not cover the vector, or tensors that do not belong together, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from hesse.curvature.kronecker.blocks import Block
from hesse.curvature.kronecker.layout import Kind
from hesse.errors import ArgumentError, kind_of
from hesse.operators.batched_kronecker import Factors
from hesse.operators.placed_blocks import Indexed, Place, Range, WithColumn
from hesse.progress import FilePath
from hesse.saving.tensor_file import DamagedFile, Header, read, write
from hesse.vectors.space import Space

if TYPE_CHECKING:
    from hesse.curvature.kronecker.operator import KroneckerCurvature

_FORMAT = "kfac 2"
_OPTIONS = ("weight_decay", "damping", "damping_form", "about")
_TENSORS = ("left", "right", "left_basis", "right_basis", "d")


def save(K: KroneckerCurvature, path: FilePath) -> None:
    """Write an operator in one step: at any moment there is the file before, or this one."""
    space = K.domain.whole_space
    if not isinstance(space.template, Mapping) or list(space.template) != [*space.names]:
        raise ArgumentError(
            expected="parameters that are a mapping of names to tensors",
            got=f"parameters in {kind_of(space.template)}",
            remedy="Give the parameters as a dict of tensors, as dict(model.named_parameters()).",
        )
    tensors: dict[str, Tensor] = {}
    header = {
        "format": _FORMAT,
        "space": [
            [name, list(shape), str(dtype).removeprefix("torch.")]
            for name, shape, dtype in zip(space.names, space.shapes, space.dtypes, strict=True)
        ],
        "blocks": [_packed(k, block, tensors) for k, block in enumerate(K.blocks)],
        "weight_decay": K.weight_decay,
        "damping": dict(K.damping) if isinstance(K.damping, Mapping) else K.damping,
        "damping_form": K.damping_form,
        "about": K.about,
    }
    try:
        write(_path(path), header, tensors)
    except OSError as error:
        raise ArgumentError(
            expected=f"path {str(path)!r} to be where a file can be written",
            got=str(error),
            remedy="Give the path of a file in a folder that exists and has room.",
        ) from error


def load(path: FilePath, device: torch.device | str) -> tuple[Space, list[Block], dict[str, Any]]:
    """The space, the blocks and the options of an operator that was saved."""
    try:
        return _unpacked(*read(_path(path), _check_format), torch.device(device))
    except DamagedFile as error:
        raise ArgumentError(
            expected=f"path {str(path)!r} to be a file that K.save(path) wrote",
            got=str(error),
            remedy="Save the operator again, with this version.",
        ) from error


def _path(path: FilePath) -> Path:
    if isinstance(path, str | PathLike):
        return Path(path)
    raise ArgumentError(
        expected="the path of a file: a str or a pathlib.Path",
        got=kind_of(path),
        remedy='Give one, such as "kfac.safetensors".',
    )


# -- Packed ----------------------------------------------------------------------------------------


def _packed(k: int, block: Block, tensors: dict[str, Tensor]) -> dict[str, Any]:
    basis = (None, None) if block.basis is None else [side.entries for side in block.basis]
    parts = (block.left.entries, block.right.entries, *basis, block.d)
    for name, tensor in zip(_TENSORS, parts, strict=True):
        if tensor is not None:
            tensors[f"{k}.{name}"] = tensor.detach().cpu().clone().contiguous()
    place = block.place
    if isinstance(place, Indexed):
        tensors[f"{k}.index"] = place.index.cpu().contiguous()
    return {
        "names": list(block.names),
        "rule": block.rule,
        "kind": block.kind,
        "place": _ranges(place),
    }


def _ranges(place: Place) -> list[list[int]]:
    if isinstance(place, Range):
        return [[place.start, place.stop]]
    if isinstance(place, WithColumn):
        return [[place.W.start, place.W.stop], [place.b.start, place.b.stop]]
    return []


# -- Read, and tested ------------------------------------------------------------------------------


def _check_format(header: Header) -> None:
    if header.get("format") != _FORMAT:
        raise DamagedFile("a file without the header of this version")


def _unpacked(
    header: Header, tensors: dict[str, Tensor], device: torch.device
) -> tuple[Space, list[Block], dict[str, Any]]:
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        space = _space(header["space"], device)
        blocks = [
            _block(k, packed, tensors, space.dtype) for k, packed in enumerate(header["blocks"])
        ]
        options = {name: header[name] for name in _OPTIONS}
        _check_cover(blocks, space.n)
        _check_options(options)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFile(f"a header that does not fit: {error}") from error
    return space, blocks, options


def _space(packed: list[tuple[str, list[int], str]], device: torch.device) -> Space:
    """The space of leaves that take no memory."""
    leaves = {}
    for name, shape, dtype in packed:
        leaf = torch.empty((), dtype=getattr(torch, dtype), device=device)
        leaves[_text(name)] = leaf.expand(shape)
    if len(leaves) < len(packed) or any(size < 0 for _, shape, _ in packed for size in shape):
        raise DamagedFile("parameters of the same name, or of negative size")
    return Space.of(leaves)


def _block(k: int, packed: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype) -> Block:
    left, right, P, Q, d = (tensors.get(f"{k}.{name}") for name in _TENSORS)
    if left is None or right is None or len({P is None, Q is None, d is None}) > 1:
        raise DamagedFile(f"block {k} without all of its tensors")
    if packed["kind"] not in get_args(Kind):
        raise DamagedFile(f"block {k} of an unknown kind")
    basis = None if P is None or Q is None else (_factors(P, dtype), _factors(Q, dtype))
    block = Block(
        *(tuple(map(_text, packed["names"])), _text(packed["rule"]), packed["kind"]),
        _place(packed["place"], tensors.get(f"{k}.index")),
        *(_factors(left, dtype), _factors(right, dtype), basis, d),
    )
    _check_shapes(k, block)
    return block


def _factors(entries: Tensor, dtype: torch.dtype) -> Factors:
    if entries.dtype != dtype or entries.ndim not in (2, 3):
        raise DamagedFile(f"a factor of shape {tuple(entries.shape)} and dtype {entries.dtype}")
    if entries.ndim == 3 and entries.shape[-2] != entries.shape[-1]:
        raise DamagedFile(f"a factor of shape {tuple(entries.shape)}, which is not square")
    return Factors(entries)


def _check_shapes(k: int, block: Block) -> None:
    """Raise unless the tensors of a block belong together."""
    groups, p, q = block.shape
    sides = [block.left, block.right, *(block.basis or ())]
    sizes = [(len(side.entries), side.size) for side in sides]
    size = sum(stop - start for start, stop in _ranges(block.place))
    if isinstance(block.place, Indexed):
        size = block.place.index.numel()
    if sizes != [(groups, p), (groups, q)] * (len(sides) // 2) or size != block.n:
        raise DamagedFile(f"block {k} with factors of the sizes {sizes} for {size} entries")
    if block.d is not None and (block.d.numel() != size or not block.d.is_floating_point()):
        raise DamagedFile(f"block {k} with {block.d.numel()} eigenvalues for {size} entries")


def _place(ranges: list[list[int]], index: Tensor | None) -> Place:
    if index is not None:
        if index.ndim != 1 or index.dtype != torch.int64 or ranges:
            raise DamagedFile(f"indices of shape {tuple(index.shape)} and dtype {index.dtype}")
        return Indexed(index)
    if any(type(bound) is not int for bounds in ranges for bound in bounds):
        raise DamagedFile("places that are no integers")
    parts = [Range(start, stop) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else _with_column(*parts)


def _with_column(W: Range, b: Range) -> WithColumn:
    if (W.stop - W.start) % max(1, b.stop - b.start):
        raise DamagedFile(f"a bias of {b.stop - b.start} entries beside {W.stop - W.start} weights")
    return WithColumn(W, b)


def _check_cover(blocks: list[Block], n: int) -> None:
    """Raise unless every entry of a vector belongs to exactly one block."""
    places = [block.place for block in blocks]
    ranges = [r for place in places for r in _ranges(place) if r[0] != r[1]]
    bounds = torch.tensor(ranges, dtype=torch.int64).reshape(-1, 2)
    index = [place.index.cpu() for place in places if isinstance(place, Indexed)]
    starts, order = torch.cat([bounds[:, 0], *index]).sort()
    stops = torch.cat([bounds[:, 1], *(i + 1 for i in index)])[order]
    edges = torch.tensor([0]), torch.tensor([n])
    if not torch.equal(torch.cat([edges[0], stops]), torch.cat([starts, edges[1]])):
        raise DamagedFile(f"blocks that do not cover {n:,} entries once each")


def _check_options(options: dict[str, Any]) -> None:
    damping = options["damping"]
    numbers = [*damping.values()] if isinstance(damping, dict) else [damping]
    for number in [options["weight_decay"], *numbers]:
        if type(number) not in (int, float) or not (isfinite(number) and number >= 0.0):
            raise DamagedFile("a damping or a weight decay that is no number from 0 on")
    _text(options["about"])
    if options["damping_form"] not in ("exact", "factored", "relative"):
        raise DamagedFile("an unknown form of damping")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DamagedFile(f"{kind_of(value)} in the place of a text")
    return value
