# SPDX-License-Identifier: Apache-2.0
"""The entries of a pattern from the terms of a product.

Where each entry is one factor times a number, plus a number, a single gather picks all of them.
Elsewhere the contributions to those of the upper triangle are added up first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hesse.tracing.sparsity.patterns import Pattern
from hesse.tracing.sparsity.runs import Run, runs
from hesse.tracing.sparsity.terms import Arrays, Term, picked


class Places:
    """The entries of a symmetric pattern: those in the upper triangle, and all others from these.

    Args:
        pattern: a CSR matrix with sorted indices.
    """

    def __init__(self, pattern: Pattern) -> None:
        self._n = pattern.shape[0]
        rows = np.repeat(np.arange(self._n, dtype=np.int64), np.diff(pattern.indptr))
        columns = pattern.indices.astype(np.int64)
        upper = rows <= columns
        self._keys = rows[upper] * self._n + columns[upper]
        low, high = np.minimum(rows, columns), np.maximum(rows, columns)
        self.origins = np.searchsorted(self._keys, low * self._n + high).astype(np.int32)
        """Of all entries, that of the upper triangle which each is equal to."""

    @property
    def count(self) -> int:
        """The number of entries in the upper triangle; where anything else goes."""
        return len(self._keys)

    def of(self, rows: Any, columns: Any) -> Any:
        """Where contributions to these entries go."""
        keys = rows.astype(np.int64) * self._n + columns
        found = np.minimum(np.searchsorted(self._keys, keys), self.count - 1)
        return np.where(self._keys[found] == keys, found, self.count)


class _Group(NamedTuple):
    """scale * total, whose entries go to the places `targets`."""

    targets: Any
    scale: float
    total: Tensor


def collected(
    terms: Sequence[Term],
    places: Places,
    varying: Any,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """The entries of the pattern, and a sum that is finite only if all of them are.

    Args:
        terms: of a product.
        places: of the entries.
        varying: the row of the matrix for every entry of the product.
        dtype, device: of the result.
    """
    fixed = np.zeros(places.count + 1)
    with_targets = []
    for term in terms:
        targets = places.of(varying[term.rows], term.columns)
        if term.factors is None:
            fixed += term.scale * np.bincount(targets, minlength=len(fixed))
        elif (targets < places.count).any():
            with_targets.append((term, targets))
    groups = _groups(with_targets, places)
    found = runs([group.targets for group in groups], places.count)
    if found is not None:
        parts = [(run.places, _run(run, groups, fixed, dtype, device)) for run in found]
        return _gathered(parts, fixed, places, dtype, device)
    hits = np.zeros(places.count + 1, dtype=np.int64)
    for group in groups:
        hits += np.bincount(group.targets, minlength=len(hits))
    if (hits[:-1] > 1).any():
        return _added_up(groups, fixed, places, dtype, device)
    parts = [(group.targets, _whole(group, fixed, places, dtype, device)) for group in groups]
    return _gathered(parts, fixed, places, dtype, device)


def _groups(terms: Sequence[tuple[Term, Any]], places: Places) -> list[_Group]:
    """Contributions that go to the same places, added up."""
    arrays = Arrays()
    sums: dict[int, tuple[Any, list[tuple[float, Tensor]]]] = {}
    for factors, scale, numbers, targets in _merged(terms):
        own, part = _targets_of_factors(factors, numbers, targets, places)
        own = arrays.one(own)
        sums.setdefault(id(own), (own, []))[1].append((scale, part))
    groups = []
    for targets, parts in sums.values():
        (scale, total), *rest = parts
        for c, factors in rest:
            total = total.add(factors, alpha=c / scale)
        groups.append(_Group(targets, scale, total))
    return groups


def _merged(terms: Sequence[tuple[Term, Any]]) -> list[tuple[Tensor, float, Any, Any]]:
    """(factors, scale, numbers, targets), where other numbers of the same factors are together."""
    merged: dict[Any, list[tuple[Tensor, float, Any, Any]]] = {}
    for term, targets in terms:
        assert term.factors is not None
        known = merged.setdefault((id(term.factors), term.scale), [])
        for k, (factors, scale, numbers, theirs) in enumerate(known):
            together = np.concatenate([numbers, term.numbers])
            if len(together) <= len(factors) and np.bincount(together).max() == 1:
                known[k] = factors, scale, together, np.concatenate([theirs, targets])
                break
        else:
            known.append((term.factors, term.scale, term.numbers, targets))
    return [part for parts in merged.values() for part in parts]


def _targets_of_factors(
    factors: Tensor, numbers: Any, targets: Any, places: Places
) -> tuple[Any, Tensor]:
    """Where factors are added, and these: all of them, where most are used once."""
    used = targets < places.count
    if used.sum() > len(factors) // 2 and np.bincount(numbers).max() == 1:
        whole = np.full(len(factors), places.count)
        whole[numbers] = targets
        return whole, factors
    return targets[used], picked(factors, numbers[used])


def _run(
    run: Run, groups: Sequence[_Group], fixed: Any, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The entries in places that the same groups reach."""
    total = _numbers(fixed[run.places], dtype, device)
    for k, start in run.starts.items():
        part = groups[k].total[start : start + len(run.places)]
        total = total.add(part, alpha=groups[k].scale)
    return total


def _whole(
    group: _Group, fixed: Any, places: Places, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The entries in the places of a group that no other one reaches."""
    shift, used = fixed[group.targets], group.targets < places.count
    shift[~used] = shift[used][0]  # anything: so that one number may do for all
    return _numbers(shift, dtype, device).add(group.total, alpha=group.scale)


def _numbers(numbers: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """These numbers; one, if all are the same."""
    numbers = numbers[0] if (numbers == numbers[0]).all() else numbers
    return torch.as_tensor(numbers, dtype=dtype, device=device)


def _gathered(
    parts: Sequence[tuple[Any, Tensor]],
    fixed: Any,
    places: Places,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """The entries, from parts (places, entries in these) of which no two meet."""
    position, end, values = np.full(places.count + 1, -1), 0, []
    for targets, entries in parts:
        position[targets] = end + np.arange(len(targets))
        end += len(targets)
        values.append(entries)
    rest = position[:-1] < 0
    numbers, index = np.unique(fixed[:-1][rest], return_inverse=True)
    position[:-1][rest] = end + index
    values.append(torch.from_numpy(numbers).to(dtype).to(device))
    index = torch.from_numpy(position[places.origins].astype(np.int32)).to(device)
    different = torch.cat(values)
    return [different.index_select(0, index), different.sum()]


def _added_up(
    groups: Sequence[_Group], fixed: Any, places: Places, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """The entries, from sums over the contributions to those of the upper triangle."""
    upper = torch.from_numpy(fixed).to(dtype).to(device)
    for targets, scale, total in groups:
        upper = upper.index_add(0, torch.from_numpy(targets).to(device), total, alpha=scale)
    return [upper.index_select(0, torch.from_numpy(places.origins).to(device)), upper.sum()]
