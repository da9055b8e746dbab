# SPDX-License-Identifier: Apache-2.0
"""Operations that write entries to places of a tensor, of which two may be the same.

One of the entries is there afterwards, but torch's backward pass gives the slope of that place to
all of them. Where a place is written twice, the result is composed as a choice of entries. torch
documents that it does not say which one stays; on a processor it is always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hesse.dispatch import is_recorded


@dataclass(frozen=True)
class Overwriting:
    """An operation (tensor, ..., entries) as a choice of entries where places repeat.

    Args:
        function: of torch; an overload that adds, multiplies or writes a number is left to it.
        position: of the argument that has the entries.
        name: of the same argument as a keyword.
        in_place: whether it writes to the tensor itself.

    >>> write = Overwriting(torch.Tensor.index_put, 2, "values")
    >>> x = torch.ones(2, requires_grad=True)
    >>> z = write(torch.zeros(3), (torch.tensor([1, 1]),), x)
    >>> torch.autograd.grad(z.sum(), x)
    (tensor([0., 1.]),)
    """

    function: Callable[..., Any]
    position: int
    name: str
    in_place: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the operation."""
        is_named = len(args) <= self.position
        entries: Any = kwargs.get(self.name) if is_named else args[self.position]
        chosen = None
        # A trace takes torch's, is compared with this, and not used if they differ.
        if _is_differentiated(entries) and self._may_repeat(args, kwargs) and not is_recorded():
            with torch.no_grad(), suppress(RuntimeError):  # within vmap no number can be read
                chosen = self._chosen(args[0], entries, args, kwargs)
        if chosen is None:
            return self.function(*args, **kwargs)
        tensor = args[0]
        both = torch.cat([tensor.reshape(-1), entries.reshape(-1).to(tensor.dtype)])
        result = both.index_select(0, chosen.reshape(-1)).reshape(tensor.shape)
        return tensor.copy_(result) if self.in_place else result

    def _may_repeat(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether it writes, and to places that may be the same."""
        others = [*args[self.position + 1 :], *map(kwargs.get, ("accumulate", "reduce", "out"))]
        if not args or any(others):
            return False
        return not self._broadcasts or _has_numbers(self._index(args, kwargs))

    def _index(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The index, as between brackets."""
        index = args[1] if len(args) > 1 else kwargs["indices"]
        return index if self.name == "value" else tuple(index)

    def _chosen(
        self, tensor: Tensor, entries: Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Which of all entries, those written being the last, is where; None if no two meet."""
        size = tensor.numel()
        numbers = torch.arange(size + entries.numel(), device=tensor.device)
        old, new = numbers[:size].view(tensor.shape), numbers[size:].view(entries.shape)
        written = old[self._index(args, kwargs)].numel() if self._broadcasts else entries.numel()
        old, rest = old.clone(), [new if part is entries else part for part in args[1:]]
        named = {key: new if part is entries else part for key, part in kwargs.items()}
        result = self.function(old, *rest, **named)
        chosen = old if self.in_place else result
        return chosen if int((chosen >= size).sum()) < written else None

    @property
    def _broadcasts(self) -> bool:
        """Whether an entry may be written to several places."""
        return self.name in ("values", "value")


def _is_differentiated(entries: Any) -> bool:
    if not isinstance(entries, Tensor):
        return False
    return entries.requires_grad or forward_ad.unpack_dual(entries).tangent is not None


def _has_numbers(index: Any) -> bool:
    """Whether an index has lists or tensors of numbers, in which one may be there twice."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, list)
        or (isinstance(part, Tensor) and part.numel() > 1 and part.dtype is not torch.bool)
        for part in parts
    )


OVERWRITING = {
    function: Overwriting(function, position, name, in_place=is_in_place)
    for function, position, name, is_in_place in [
        (torch.Tensor.__setitem__, 2, "value", True),
        (torch.index_put, 2, "values", False),
        (torch.Tensor.index_put, 2, "values", False),
        (torch.index_put_, 2, "values", True),
        (torch.Tensor.index_put_, 2, "values", True),
        (torch.scatter, 3, "src", False),
        (torch.Tensor.scatter, 3, "src", False),
        (torch.Tensor.scatter_, 3, "src", True),
        (torch.index_copy, 3, "source", False),
        (torch.Tensor.index_copy, 3, "source", False),
        (torch.Tensor.index_copy_, 3, "source", True),
        (torch.put, 2, "source", False),
        (torch.Tensor.put, 2, "source", False),
        (torch.Tensor.put_, 2, "source", True),
    ]
}
"""What stands for each of these operations."""
