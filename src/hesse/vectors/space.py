# SPDX-License-Identifier: Apache-2.0
"""Vectors: a tree of tensors outside, one flat contiguous tensor inside.

A user's point is a tensor or any nesting of dicts, lists, tuples and namedtuples of tensors. A
`Space` is fixed by such a tree: it knows the names, shapes and dtypes of the leaves, turns trees
into flat vectors of length n and back, and says precisely what is wrong with a tree that does not
fit. Krylov methods see flat vectors only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    NonFiniteError,
    ShapeError,
    StructureError,
)
from hesse.vectors.inner_products import dot, dots, norm
from hesse.vectors.random import normal_entries, random_signs
from hesse.vectors.rows import joined
from hesse.vectors.trees import Tree, fill, map_leaves, match, subscript, walk


@dataclass(frozen=True)
class Space:
    """The vector space of trees shaped like one tree: R^n with names.

    >>> space = Space.of({"w": torch.zeros(2, 3), "b": torch.zeros(3)})
    >>> space.n, space.names
    (9, ('w', 'b'))
    >>> space.flatten({"b": torch.ones(3), "w": torch.zeros(2, 3)})
    tensor([0., 0., 0., 0., 0., 0., 1., 1., 1.])
    """

    template: Tree
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tree: Tree, *, call: str = "hesse.Space.of(tree)", what: str = "x") -> Space:
        """The space of `tree`; raises HesseError for leaves that cannot be differentiated."""
        leaves = list(walk(tree, call, what))
        if not leaves:
            raise StructureError(
                call,
                expected=f"{what} with at least one tensor",
                got=f"an empty {type(tree).__name__}",
                remedy="Give the tensors to differentiate with respect to (a model whose "
                "parameters are all frozen has none).",
            )
        for name, leaf in leaves:
            _check_leaf(call, f"{what}{subscript(name)}", leaf, leaves[0][1].device)
        dtypes = tuple(leaf.dtype for _, leaf in leaves)
        return Space(
            template=map_leaves(lambda _: None, tree),
            names=tuple(name for name, _ in leaves),
            shapes=tuple(leaf.shape for _, leaf in leaves),
            dtypes=dtypes,
            dtype=_vector_dtype(dtypes),
            device=leaves[0][1].device,
        )

    @staticmethod
    def flat(n: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Space:
        """The space of plain vectors of length n."""
        dtype = dtype or torch.get_default_dtype()
        return Space(None, ("",), (torch.Size((n,)),), (dtype,), dtype, torch.device(device))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each leaf, in order."""
        return [math.prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """Number of entries of a flat vector in this process."""
        return sum(self.sizes)

    @property
    def n(self) -> int:
        """Dimension of the space, over all processes that share its vectors."""
        return self.size

    @property
    def is_flat(self) -> bool:
        """Whether the user's vectors are plain 1-D tensors."""
        return self.template is None and len(self.shapes[0]) == 1

    # -- Vectors and their inner products ----------------------------------------------------------
    # Whatever a Krylov method does with whole vectors. Only these would have to talk to other
    # processes if the vectors were shared among several.

    def zeros(self) -> Tensor:
        """The flat zero vector."""
        return torch.zeros(self.size, dtype=self.dtype, device=self.device)

    def gaussian(self, generator: torch.Generator | None = None) -> Tensor:
        """A flat vector of independent N(0, 1) entries."""
        return normal_entries(self.size, self.dtype, self.device, generator)

    def rademacher(self, generator: torch.Generator | None = None) -> Tensor:
        """A flat vector of independent signs, +1 or -1 with probability 1/2 each."""
        return random_signs(self.size, self.dtype, self.device, generator)

    def inner(self, u: Tensor, v: Tensor) -> float:
        """u'v of flat vectors, accumulated in float64."""
        return dot(u, v)

    def inner_pairs(self, *pairs: tuple[Tensor, Tensor]) -> list[float]:
        """u'v of several pairs of flat vectors at once."""
        return [dot(u, v) for u, v in pairs]

    def inners(self, basis: Tensor, v: Tensor) -> Tensor:
        """The inner products of the rows of `basis`, (j, n), with v or its rows: (j,) or (j, k)."""
        return dots(basis, v)

    def gram(self, left: Tensor, right: Tensor) -> Tensor:
        """The inner products of all rows with all rows, (j, k): float64, on the CPU."""
        return self.inners(left, right).to("cpu", torch.float64)

    def norm(self, v: Tensor) -> float:
        """The Euclidean norm of a flat vector, accumulated in float64."""
        return norm(v)

    def column_norms(self, block: Tensor) -> Tensor:
        """The norms of the columns of a block (n, k), accumulated in float64: (k,), on the CPU."""
        return torch.linalg.vector_norm(block, dim=0, dtype=torch.float64).cpu()

    def any(self, v: Tensor) -> bool:
        """Whether an entry of a vector or block is not zero."""
        return bool(v.any())

    def all_finite(self, v: Tensor) -> bool:
        """Whether a vector or block has no NaN or Inf."""
        return all_finite(v)

    def leaves(
        self, tree: Tree, *, call: str = "hesse.Space.leaves", what: str = "v"
    ) -> list[Tensor]:
        """The leaves of `tree` in this space's order; raises HesseError where it does not fit."""
        leaves: list[Tensor] = []
        match(self.template, tree, leaves, call, what)
        for name, shape, dtype, leaf in zip(
            self.names, self.shapes, self.dtypes, leaves, strict=True
        ):
            label = f"{what}{subscript(name)}"
            if leaf.shape != shape:
                raise ShapeError(
                    call,
                    expected=f"{label} of shape {tuple(shape)}",
                    got=f"shape {tuple(leaf.shape)}",
                    remedy="Give one tensor for each tensor of x, of the same shape"
                    + (f", or one flat vector of length {self.n}." if leaf.ndim == 1 else "."),
                )
            _check_leaf(call, label, leaf, self.device)
            if leaf.dtype not in (dtype, self.dtype):
                raise DtypeError(
                    call,
                    expected=f"{label} of dtype {dtype}, like x",
                    got=str(leaf.dtype),
                    remedy=f"Convert it: .to({dtype}).",
                )
        return leaves

    def flatten(self, tree: Tree, *, call: str = "hesse.Space.flatten", what: str = "v") -> Tensor:
        """The flat vector of `tree`, shape (n,). May share memory with it."""
        leaves = self.leaves(tree, call=call, what=what)
        return self.join(leaves)

    def copy(self, tree: Tree) -> Tree:
        """A copy of a tree of this space, without history; frozen parameters stay frozen."""

        def copied(leaf: Tensor) -> Tensor:
            fresh = leaf.detach().clone()
            frozen = isinstance(leaf, torch.nn.Parameter) and not leaf.requires_grad
            return torch.nn.Parameter(fresh, requires_grad=False) if frozen else fresh

        return self.build([copied(leaf) for leaf in self.leaves(tree, what="x")])

    def join(self, leaves: Sequence[Tensor]) -> Tensor:
        """The flat vector of leaves that are known to fit. May share memory with a single leaf."""
        parts = [leaf.detach().reshape(-1).to(self.dtype) for leaf in leaves]
        return joined(parts) if len(parts) > 1 else parts[0]

    def is_point(self, v: Tensor) -> bool:
        """Whether v looks like x itself, where x is a single tensor."""
        return self.template is None and v.shape == self.shapes[0]

    def enter(
        self, v: Tree, *, call: str, what: str = "v"
    ) -> tuple[Tensor, Callable[[Tensor], Tree]]:
        """The flat vector of v, flat already or a tree, and the way back to the form of v."""
        if isinstance(v, Tensor) and v.ndim == 1 and not self.is_point(v):
            return self.check_vector(v.detach(), call=call, what=what), lambda flat: flat
        return self.flatten(v, call=call, what=what), self.unflatten

    def split(self, vector: Tensor) -> list[Tensor]:
        """The leaves of a flat vector: views where the dtypes agree."""
        parts = vector.split(self.sizes)
        return [
            part.view(shape).to(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]

    def build(self, leaves: list[Tensor]) -> Tree:
        """The tree with these leaves."""
        return fill(self.template, iter(leaves))

    def unflatten(self, vector: Tensor) -> Tree:
        """The tree of a flat vector; its leaves are views where the dtypes agree."""
        return self.build(self.split(vector))

    def subspace(self, name: str, *, call: str) -> tuple[Space, slice]:
        """The space of the leaves named `name` or below it, and where they lie in a flat vector."""
        chosen = [i for i, leaf in enumerate(self.names) if f"{leaf}.".startswith(f"{name}.")]
        if not chosen or not name:
            raise ArgumentError(
                call,
                expected=f"the name of a leaf or of a group of leaves, such as {self.names[:4]}",
                got=repr(name),
                remedy="See space.names for all of them.",
            )
        first, last = chosen[0], chosen[-1] + 1  # leaves below one name are neighbours in a tree
        names = self.names[first:last]
        space = Space(
            template=None if names == (name,) else dict.fromkeys(names),
            names=names,
            shapes=self.shapes[first:last],
            dtypes=self.dtypes[first:last],
            dtype=self.dtype,
            device=self.device,
        )
        start = sum(self.sizes[:first])
        return space, slice(start, start + space.n)

    def check_vector(self, vector: Tensor, *, call: str, what: str = "v", ndim: int = 1) -> Tensor:
        """`vector` itself if it is a flat vector (or, with ndim=2, a block) of this space."""
        expected = f"({self.n},)" if ndim == 1 else f"({self.n}, k)"
        if not isinstance(vector, Tensor):
            raise StructureError(
                call,
                expected=f"{what} to be a tensor of shape {expected}",
                got=f"{type(vector).__module__}.{type(vector).__name__}",
                remedy="Convert it with torch.as_tensor.",
            )
        if vector.ndim != ndim or vector.shape[0] != self.n:
            raise ShapeError(
                call,
                expected=f"{what} of shape {expected}" + self._tree_hint(ndim),
                got=f"shape {tuple(vector.shape)}",
                remedy="Give a flat vector, or a tree like x; V @ and matmat take (n, k).",
            )
        if vector.dtype != self.dtype:
            raise DtypeError(
                call,
                expected=f"{what} of dtype {self.dtype}",
                got=str(vector.dtype),
                remedy=f"Convert it: {what}.to({self.dtype}).",
            )
        _check_leaf(call, what, vector, self.device)
        return vector

    def common(self, other: Space, call: str) -> Space:
        """The space of two operators that meet: of this and `other` the one that has a tree."""
        if self.n != other.n:
            raise ShapeError(
                call,
                expected="operators of matching shapes",
                got=f"dimensions {self.n} and {other.n}",
                remedy="Check the order of the factors, or transpose one.",
            )
        if self.dtype != other.dtype:
            raise DtypeError(
                call,
                expected="operators of one dtype",
                got=f"{self.dtype} and {other.dtype}",
                remedy="Make both from tensors of the same dtype.",
            )
        if self.device != other.device:
            raise DeviceError(
                call,
                expected="operators on one device",
                got=f"{self.device} and {other.device}",
                remedy="Move the tensors that one of them is made from.",
            )
        return other if self.is_flat else self

    def first_bad_name(self, vector: Tensor) -> str | None:
        """Name of the first leaf of a flat vector that holds NaN or Inf, or None."""
        for name, part in zip(self.names, vector.split(self.sizes), strict=True):
            if not bool(torch.isfinite(part).all()):
                return name or "x"
        return None

    def _tree_hint(self, ndim: int) -> str:
        return "" if ndim == 2 or self.is_flat else f", or a tree like x ({self.describe()})"

    def describe(self, limit: int = 4) -> str:
        """The leaves in words, for messages."""
        words = [
            f"{name or 'x'}: {tuple(shape)}"
            for name, shape in zip(self.names[:limit], self.shapes, strict=False)
        ]
        more = len(self.names) - limit
        return ", ".join(words) + (f", and {more} more" if more > 0 else "")


# --------------------------------------------------------------------------------------------------
# Inner products and random probes


def unshared(product: Tensor, given: Tensor) -> Tensor:
    """The product, or a copy of it where an operator returned what it was given, or a part of that.

    >>> v = torch.ones(2)
    >>> unshared(v, v) is v, unshared(2 * v, v) is v
    (False, False)
    """
    shared = product.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    return product.clone() if shared else product


def all_finite(v: Tensor) -> bool:
    """Whether there is no NaN or Inf. One sum tells, unless the numbers are huge."""
    return math.isfinite(float(v.sum())) or bool(torch.isfinite(v).all())


def check_finite(name: str, v: Tensor, call: str) -> Tensor:
    """The argument of that name, or an error for NaN and Inf in it."""
    if all_finite(v):
        return v
    expected, remedy = f"a finite {name}", f"Check what {name} was computed from."
    raise NonFiniteError(call, expected=expected, got="NaN or Inf", remedy=remedy)


def _check_leaf(call: str, label: str, leaf: Tensor, device: torch.device) -> None:
    if hasattr(leaf, "device_mesh"):  # its flat memory is that of one rank, and not initialised
        raise StructureError(
            call,
            expected=f"{label} to be a plain tensor",
            got="a DTensor: vectors that are shared among processes are not supported yet",
            remedy="Give leaf.full_tensor(), or leaf.to_local() for the part of this process.",
        )
    if torch._C._functorch.is_batchedtensor(leaf):  # pyright: ignore[reportAttributeAccessIssue]
        raise StructureError(
            call,
            expected=f"{label} to be a plain tensor, whose entries can be looked at",
            got="a tensor that torch.vmap stands in the place of many",
            remedy="Take several directions at once with hessian_operator(f, x).matmat(V), V of "
            "shape (n, k); go through several points in a loop, operator.at(x).",
        )
    if not leaf.dtype.is_floating_point:
        raise DtypeError(
            call,
            expected=f"{label} of a real floating-point dtype",
            got=str(leaf.dtype),
            remedy="Convert it with .float() or .double(); leave integer tensors out of x and "
            "close over them instead.",
        )
    if leaf.device != device:
        raise DeviceError(
            call,
            expected=f"{label} on {device}",
            got=str(leaf.device),
            remedy=f"Move it: .to('{device}').",
        )


def _vector_dtype(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    """One dtype for the flat vector: at least float32, so that sums of half-precision survive."""
    result = torch.float32
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result
