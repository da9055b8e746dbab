# SPDX-License-Identifier: Apache-2.0
"""`Space`: vectors that are a tree of tensors outside and one flat contiguous tensor inside.

A user's point is a tensor or any nesting of dicts, lists, tuples and namedtuples of tensors. A
`Space` is fixed by such a tree: it knows the names, shapes and dtypes of the leaves, converts trees
to flat vectors and back, and says what is wrong with a tree that does not fit. Krylov methods see
flat vectors only; what they compute from whole vectors are methods of its own (whole_vectors.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import StructureError, check_count
from hesse.ranks import Ranks
from hesse.result import OneLine
from hesse.vectors import checks
from hesse.vectors.aliasing import unshared as unshared
from hesse.vectors.arrays import as_array, as_tensor
from hesse.vectors.chosen_leaves import chosen_leaves
from hesse.vectors.division import Division
from hesse.vectors.rows import joined
from hesse.vectors.shards import Shards, is_sharded
from hesse.vectors.trees import Tree, fill, is_of_arrays, map_leaves, match, subscript, walk
from hesse.vectors.whole_vectors import WholeVectors


@dataclass(frozen=True, repr=False)
class Space(OneLine, WholeVectors):
    """The vector space of all trees that are shaped like one tree: R^n with names.

    Made by `Space.of(tree)` or `Space.flat(n)`. A flat vector is a contiguous tensor (n,) that
    holds the leaves one after the other, in the order of the tree. Its dtype is the common dtype of
    the leaves, but at least float32.

    Attributes:
        names: the path of each leaf, such as "layer.weight"; "" for a tree that is one tensor.
        shapes: the shape of each leaf.
        dtypes: the dtype of each leaf.
        dtype: the dtype of flat vectors.
        device: the device of all vectors.
        template: the tree with None in the place of the leaves.
        ranks: the processes that hold the same vectors, or parts of them, if there are several.
        shards: how the leaves are cut over these processes; `shapes` are then those of the parts
            in this process, and so are flat vectors. None if each process has whole vectors.

    >>> space = Space.of({"w": torch.zeros(2, 3), "b": torch.zeros(3)})
    >>> space.n, space.names
    (9, ('w', 'b'))
    >>> space
    Space(w: (2, 3), b: (3,); n = 9, torch.float32, cpu)
    >>> space.flatten({"b": torch.ones(3), "w": torch.zeros(2, 3)})
    tensor([0., 0., 0., 0., 0., 0., 1., 1., 1.])
    """

    template: Tree
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    dtype: torch.dtype
    device: torch.device
    ranks: Ranks | None = field(default=None, compare=False)
    shards: Division | None = None

    @staticmethod
    @public("hesse.Space.of({tree})", nested=False)
    def of(tree: Tree, *, what: str = "x", ranks: Ranks | None = None) -> Space:
        """The space of the trees like this one; NumPy arrays may stand for tensors.

        Args:
            tree: a tensor, or a nesting of dicts, lists, tuples and namedtuples of tensors.
            what: what a message calls the tree.
            ranks: the processes that have the same leaves or, if these are `DTensor`s, parts.

        Raises:
            StructureError: there is no tensor, or a leaf is not a plain tensor.
            DtypeError: a leaf is not of a real floating-point dtype.
            DeviceError: leaves on different devices.

        >>> Space.of([torch.zeros(2), torch.zeros(())]).n
        3
        """
        leaves = list(walk(tree, what))
        if not leaves:
            raise StructureError(
                expected=f"{what} with at least one tensor",
                got=f"an empty {type(tree).__name__}",
                remedy="Give the tensors to differentiate with respect to (a model whose "
                "parameters are all frozen has none).",
            )
        shards, parts = None, [leaf for _, leaf in leaves]
        if ranks is not None and any(map(is_sharded, parts)):
            labelled = [(f"{what}{subscript(name)}", leaf) for name, leaf in leaves]
            shards = Shards.of(labelled)
            ranks.check_are(shards.mesh)
            parts = shards.parts(labelled)
        device = parts[0].device
        for (name, _), part in zip(leaves, parts, strict=True):
            checks.check_leaf(f"{what}{subscript(name)}", part, device)
        dtypes = tuple(leaf.dtype for _, leaf in leaves)
        return Space(
            template=map_leaves(lambda _: None, tree),
            names=tuple(name for name, _ in leaves),
            shapes=tuple(part.shape for part in parts),
            dtypes=dtypes,
            dtype=_vector_dtype(dtypes),
            device=device,
            ranks=ranks,
            shards=shards,
        )

    @staticmethod
    def flat(n: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Space:
        """The space of plain vectors of length n, by default of torch's default dtype.

        >>> Space.flat(3).zeros()
        tensor([0., 0., 0.])
        """
        n, dtype = check_count("n", n, 0), dtype or torch.get_default_dtype()
        return Space(None, ("",), (torch.Size((n,)),), (dtype,), dtype, torch.device(device))

    def __repr__(self) -> str:
        return f"Space({self.describe()}; n = {self.n}, {self.dtype}, {self.device})"

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each leaf, in order."""
        return [math.prod(shape) for shape in self.shapes]

    @cached_property
    def is_flat(self) -> bool:
        """Whether the user's vectors are plain 1-D tensors."""
        return self.template is None and len(self.shapes[0]) == 1 and self.shards is None

    @cached_property
    def is_plain(self) -> bool:
        """Whether the user's vectors are plain 1-D tensors of the dtype of flat vectors."""
        return self.is_flat and self.dtypes == (self.dtype,)

    # -- Trees and flat vectors --------------------------------------------------------------------

    @public("space.leaves({tree})", nested=False)
    def leaves(self, tree: Tree, *, what: str = "v") -> list[Tensor]:
        """The leaves of a tree in the order of this space; raises HesseError if it does not fit.

        Of `DTensor`s the parts in this process.
        """
        leaves = list(match(self.template, tree, what, self.device))
        if self.shards is not None:
            labels = (f"{what}{subscript(name)}" for name in self.names)
            leaves = self.shards.parts(list(zip(labels, leaves, strict=True)))
        for name, shape, dtype, leaf in zip(
            self.names, self.shapes, self.dtypes, leaves, strict=True
        ):
            checks.check_leaf_like(
                f"{what}{subscript(name)}",
                leaf,
                shape=shape,
                dtypes=(dtype, self.dtype),
                device=self.device,
            )
        return leaves

    @public("space.flatten({tree})", nested=False)
    def flatten(self, tree: Tree, *, what: str = "v") -> Tensor:
        """The flat vector (n,) of a tree. It may share memory with the tree.

        Raises:
            StructureError, ShapeError, DtypeError, DeviceError: the tree does not fit; the message
                names the leaf.
        """
        leaves = self.leaves(tree, what=what)
        checks.check_constant(what, leaves)
        return self.join(leaves)

    def unflatten(self, vector: Tensor) -> Tree:
        """The tree of a flat vector; its leaves are views where the dtypes agree, of shards copies.

        >>> Space.of({"w": torch.zeros(2, 1)}).unflatten(torch.tensor([1.0, 2.0]))
        {'w': tensor([[1.],
                [2.]])}
        """
        return self.build(self.split(vector))

    @public("space.enter({v})", nested=False)
    def enter(
        self, v: Tree, *, what: str = "v", codomain: Space | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tree]]:
        """The flat vector of v, and a function that gives results in the form of v.

        Args:
            v: a flat vector or a tree, of tensors or of NumPy arrays. An array must have the dtype
                that a tensor must have.
            what: what a message calls v.
            codomain: the space of the results, this one by default.

        >>> flat, leave = Space.of({"w": torch.zeros(2, 1)}).enter({"w": torch.ones(2, 1)})
        >>> flat, leave(2 * flat)["w"].shape
        (tensor([1., 1.]), torch.Size([2, 1]))
        """
        results = self if codomain is None else codomain
        if self.is_vector(v):
            as_given = not self.is_flat or results.is_plain
            return v.detach(), _unchanged if as_given else results.unflatten
        given = as_tensor(v, self.device)
        if isinstance(given, Tensor) and given.ndim == 1 and not self.is_point(given):
            flat, leave = self.check_vector(given, what=what).detach(), _unchanged
        else:
            flat = self.flatten(given, what=what)
            leave = results.unflatten
        if not is_of_arrays(v):
            return flat, leave
        return flat, lambda result: map_leaves(as_array, leave(result))

    def is_vector(self, v: Tree) -> bool:
        """Whether v is a flat vector of this space, an ordinary tensor of its dtype and device.

        Then no check has anything to say; of anything else `check_vector` and `leaves` say what is
        wrong with it, if something is.
        """
        return (
            type(v) is Tensor
            and v.ndim == 1
            and len(v) == self.size
            and v.dtype == self.dtype
            and v.device == self.device
            and v.layout == torch.strided
            and not checks.is_transformed(v)
        )

    def is_point(self, v: Tensor) -> bool:
        """Whether v has the shape of x itself, where x is a single tensor."""
        if self.shards is not None:
            return self.template is None and self.shards.is_leaf(v, self.shapes[0])
        return self.template is None and v.shape == self.shapes[0]

    def copy(self, tree: Tree) -> Tree:
        """A copy of a tree without its autograd graph; frozen parameters stay frozen."""
        leaves = self.leaves(tree, what="x")
        checks.check_constant("x", leaves)
        return self.build([_as_frozen(leaf.detach().clone(), leaf) for leaf in leaves])

    def whole_tree(self, tree: Tree) -> Tree:
        """The tree of whole tensors, on every process that has a part of them; frozen ones stay so.

        One all-gather.
        """
        if self.shards is None:
            return tree
        given = match(self.template, tree, "x", self.device)
        (whole,) = self.whole(self.flatten(tree, what="x")[None])
        parts = whole.split([math.prod(shape) for shape in self.shards.shapes])
        leaves = [
            _as_frozen(part.view(leaf.shape).to(leaf.dtype), leaf)
            for part, leaf in zip(parts, given, strict=True)
        ]
        return fill(self.template, iter(leaves))

    def join(self, leaves: Sequence[Tensor]) -> Tensor:
        """The flat vector of leaves that are known to fit. May share memory with a single leaf."""
        parts = [leaf.detach().reshape(-1).to(self.dtype) for leaf in leaves]
        return joined(parts) if len(parts) > 1 else parts[0]

    def split(self, vector: Tensor) -> list[Tensor]:
        """The leaves of a flat vector: views where the dtypes agree."""
        parts = vector.split(self.sizes)
        return [
            part.view(shape).to(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]

    def build(self, leaves: list[Tensor]) -> Tree:
        """The tree with these leaves; `DTensor`s of these parts of theirs, if they are sharded."""
        if self.shards is not None:
            leaves = self.shards.whole(leaves)
        if self._keys is not None:
            return dict(zip(self._keys, leaves, strict=True))
        return fill(self.template, iter(leaves))

    @property
    def whole_space(self) -> Space:
        """The space of whole vectors, of which each process has a copy."""
        if self.shards is None:
            return self
        return replace(self, shapes=self.shards.shapes, ranks=None, shards=None)

    @property
    def _whole_shapes(self) -> tuple[torch.Size, ...]:
        return self.shapes if self.shards is None else self.shards.shapes

    @cached_property
    def _keys(self) -> list | None:
        """The keys of a dict whose values are all tensors, as the parameters of a module are."""
        if type(self.template) is not dict or any(v is not None for v in self.template.values()):
            return None
        return list(self.template)

    @public("space.check_vector({vector})", nested=False)
    def check_vector(self, vector: Tensor, *, what: str = "v", ndim: int = 1) -> Tensor:
        """`vector` itself if it is a flat vector of this space or, with ndim=2, a block (n, k)."""
        tree = "" if ndim == 2 or self.is_flat else f", or a tree like x ({self.describe()})"
        if self.shards is not None:
            tree = f", the part of this process of {self.n} entries{tree}"
        checks.check_vector(
            what, vector, n=self.size, ndim=ndim, dtype=self.dtype, device=self.device, tree=tree
        )
        return vector

    # -- Several spaces ----------------------------------------------------------------------------

    @public("space.subspace({name})", nested=False)
    def subspace(self, name: str | Collection[str]) -> tuple[Space, slice | Tensor]:
        """The space of the leaves named `name` or below it, and where they lie in a flat vector.

        A pattern, "encoder.*" or "*.weight", stands for all leaves whose names it matches, and a
        list for all that its members mean, in the order of this space; where these are not
        neighbours, the second is a tensor of indices.

        >>> space = Space.of({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)})
        >>> space.subspace("b")[1], space.subspace("[ac]")[1]
        (slice(2, 5, None), tensor([0, 1, 5]))
        """
        chosen = chosen_leaves(self.names, name)
        names = tuple(self.names[i] for i in chosen)
        space = Space(
            template=None if names == (name,) else dict.fromkeys(names),
            names=names,
            shapes=tuple(self.shapes[i] for i in chosen),
            dtypes=tuple(self.dtypes[i] for i in chosen),
            dtype=self.dtype,
            device=self.device,
            ranks=self.ranks,
            shards=None if self.shards is None else self.shards.some(chosen),
        )
        ends = [0, *accumulate(self.sizes)]
        if chosen[-1] - chosen[0] == len(chosen) - 1:
            return space, slice(ends[chosen[0]], ends[chosen[-1] + 1])
        ranges = [torch.arange(ends[i], ends[i + 1], device=self.device) for i in chosen]
        return space, torch.cat(ranges)

    def common(self, other: Space) -> Space:
        """Of two spaces, which must agree in dimension, dtype and device, the one with a tree."""
        checks.check_same((self.n, other.n), (self.dtype, other.dtype), (self.device, other.device))
        checks.check_same_shards(self.shards, other.shards)
        space, ranks = other if self.is_flat else self, self.ranks or other.ranks
        return space if space.ranks is ranks else replace(space, ranks=ranks)

    def in_dtype(self, dtype: torch.dtype) -> Space:
        """The space of the same vectors in another dtype."""
        return replace(self, dtype=dtype, dtypes=(dtype,) * len(self.dtypes))

    def first_bad_name(self, vector: Tensor) -> str | None:
        """Name of the first leaf of a flat vector that holds NaN or Inf, or None."""
        for name, part in zip(self.names, vector.split(self.sizes), strict=True):
            if not self.all_finite(part):
                return name or "x"
        return None

    def describe(self, limit: int = 4) -> str:
        """The names and shapes of the first leaves, for messages."""
        words = [
            f"{name or 'x'}: {tuple(shape)}"
            for name, shape in zip(self.names[:limit], self._whole_shapes, strict=False)
        ]
        more = len(self.names) - limit
        return ", ".join(words) + (f", and {more} more" if more > 0 else "")


def _as_frozen(fresh: Tensor, leaf: Tensor) -> Tensor:
    """A fresh tensor as a frozen parameter, if the leaf is one."""
    frozen = isinstance(leaf, torch.nn.Parameter) and not leaf.requires_grad
    return torch.nn.Parameter(fresh, requires_grad=False) if frozen else fresh


def _unchanged(vector: Tensor) -> Tensor:
    return vector


def _vector_dtype(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    """One dtype for the flat vector: at least float32, so that sums of half-precision survive."""
    result = torch.float32
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result
