# SPDX-License-Identifier: Apache-2.0
"""Factored curvatures in files: tensors by safetensors, names and places as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hesse.curvature.kronecker.blocks import Block
from hesse.errors import ArgumentError
from hesse.operators.batched_kronecker import Factors
from hesse.operators.placed_blocks import Indexed, Place, Range, WithColumn
from hesse.progress import FilePath, check_path
from hesse.vectors.space import Space

if TYPE_CHECKING:
    from hesse.curvature.kronecker.operator import KroneckerCurvature

_FORMAT = 1
_TENSORS = ("left", "right", "left_basis", "right_basis", "d")


def save(K: KroneckerCurvature, path: FilePath) -> None:
    """Write an operator."""
    file = check_path(path)
    space = K.domain
    if (
        file is None
        or not isinstance(space.template, Mapping)
        or list(space.template) != [*space.names]
    ):
        raise ArgumentError(
            expected="a path, and parameters that are a mapping of names to tensors",
            got=f"path {path!r}, parameters in a {type(space.template).__name__}",
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
    save_file(tensors, file, metadata={"hesse-kfac": json.dumps(header)})


def load(path: FilePath, device: torch.device | str) -> tuple[Space, list[Block], dict[str, Any]]:
    """The space, the blocks and the options of an operator that was saved."""
    file = check_path(path)
    try:
        with safe_open(str(file), framework="pt", device=str(device)) as opened:
            header = json.loads((opened.metadata() or {}).get("hesse-kfac", "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    if header is None or header.get("format") != _FORMAT:
        raise _unreadable(path, "a file without the header of this version")
    leaves = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        for name, shape, dtype in header["space"]
    }
    blocks = [_unpacked(k, packed, tensors) for k, packed in enumerate(header["blocks"])]
    names = ("weight_decay", "damping", "damping_form", "about")
    return Space.of(leaves), blocks, {name: header[name] for name in names}


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


def _unpacked(k: int, packed: dict[str, Any], tensors: dict[str, Tensor]) -> Block:
    left, right, P, Q, d = (tensors.get(f"{k}.{name}") for name in _TENSORS)
    assert left is not None and right is not None
    basis = None if P is None or Q is None else (Factors(P), Factors(Q))
    return Block(
        *(tuple(packed["names"]), packed["rule"], packed["kind"]),
        *(_place(packed["place"], tensors.get(f"{k}.index")), Factors(left), Factors(right)),
        *(basis, d),
    )


def _ranges(place: Place) -> list[list[int]]:
    if isinstance(place, Range):
        return [[place.start, place.stop]]
    if isinstance(place, WithColumn):
        return [[place.W.start, place.W.stop], [place.b.start, place.b.stop]]
    return []


def _place(ranges: list[list[int]], index: Tensor | None) -> Place:
    if index is not None:
        return Indexed(index)
    parts = [Range(*bounds) for bounds in ranges]
    return parts[0] if len(parts) == 1 else WithColumn(*parts)


def _unreadable(path: FilePath, got: str) -> ArgumentError:
    return ArgumentError(
        expected=f"path {str(path)!r} to be a file that K.save(path) wrote",
        got=got,
        remedy="Save the operator again, with this version.",
    )
