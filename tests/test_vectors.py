# SPDX-License-Identifier: Apache-2.0
"""Trees of tensors and flat vectors: there and back, NumPy arrays, refusals."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hesse.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    HesseError,
    ShapeError,
    StructureError,
)
from hesse.vectors import Space, as_tensor
from hesse.vectors.inner_products import dots, norm

Point = namedtuple("Point", "a b")

SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
LEAVES = st.builds(
    lambda shape, seed, dtype: torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype),
    SHAPES,
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
)
TREES = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, min_size=1, max_size=3),
        st.lists(children, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("xyzw"), children, min_size=1, max_size=3),
        st.dictionaries(st.integers(0, 9), children, min_size=1, max_size=3).map(OrderedDict),
        st.tuples(children, children).map(lambda pair: Point(*pair)),
    ),
    max_leaves=6,
)


def same(a, b):
    """Equal in structure, container types, dtypes and bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b) or len(a) != len(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b))


@given(TREES)
@settings(max_examples=100)
def test_flatten_and_unflatten_are_inverse_for_every_nesting(tree):
    space = Space.of(tree)
    flat = space.flatten(tree)
    assert flat.shape == (space.n,)
    assert flat.is_contiguous()
    assert same(space.unflatten(flat), tree)


@given(TREES)
def test_a_copy_is_equal_and_shares_nothing(tree):
    space = Space.of(tree)
    copy = space.copy(tree)
    assert same(copy, tree)
    for leaf in space.leaves(copy):
        leaf.add_(1.0)
    for moved, leaf in zip(space.leaves(copy), space.leaves(tree), strict=True):
        assert torch.equal(moved, leaf + 1.0)


def test_the_order_of_keys_is_that_of_x_whatever_that_of_v():
    space = Space.of({"b": torch.zeros(1), "a": torch.zeros(2)})
    assert space.names == ("b", "a")
    given_in_another_order = {"a": torch.tensor([2.0, 3.0]), "b": torch.tensor([1.0])}
    assert space.flatten(given_in_another_order).tolist() == [1.0, 2.0, 3.0]
    assert list(space.unflatten(torch.arange(3.0))) == ["b", "a"]


def test_names_say_where_a_leaf_lies():
    tree = {"net": [torch.zeros(1), (torch.zeros(2),)], "p": Point(torch.zeros(()), torch.zeros(1))}
    assert Space.of(tree).names == ("net.0", "net.1.0", "p.a", "p.b")


def test_a_list_serves_for_a_tuple_and_a_tuple_for_a_namedtuple():
    space = Space.of(Point(torch.zeros(1), torch.zeros(1)))
    flat = space.flatten([torch.ones(1), torch.zeros(1)])
    assert isinstance(space.unflatten(flat), Point)


def test_flat_vectors_and_trees_enter_and_leave_in_their_own_form():
    space = Space.of({"w": torch.zeros(2, 2)})
    flat, leave = space.enter(torch.arange(4.0))
    assert torch.equal(leave(flat), torch.arange(4.0))
    flat, leave = space.enter({"w": torch.ones(2, 2)})
    assert leave(flat)["w"].shape == (2, 2)


def test_a_scalar_leaf_takes_a_scalar_or_a_vector_of_length_one():
    space = Space.of(torch.tensor(3.0))
    assert space.n == 1
    assert not space.is_flat
    for v, shape in ((torch.tensor(2.0), ()), (torch.tensor([2.0]), (1,))):
        flat, leave = space.enter(v)
        assert flat.shape == (1,)
        assert leave(flat).shape == shape


def test_a_result_has_the_form_of_the_direction_and_the_dtype_of_the_point():
    half, tree = Space.of(torch.ones(2, dtype=torch.bfloat16)), Space.of({"w": torch.ones(1, 2)})
    vector = torch.tensor([1.0, 2.0])
    flat, leave = half.enter(vector)
    assert (flat.dtype, leave(flat).dtype) == (torch.float32, torch.bfloat16)
    flat, leave = Space.flat(2).enter(vector, codomain=tree)  # a point, and a result like outputs
    assert leave(flat)["w"].tolist() == [[1.0, 2.0]]
    flat, leave = tree.enter(vector, codomain=Space.of(torch.ones(2, 1)))
    assert leave(flat).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "v", [nn.Parameter(torch.ones(2)), torch.ones(4)[::2], torch.ones(2, requires_grad=True) * 1]
)
def test_a_vector_enters_without_its_graph(v):
    for space in (Space.flat(2), Space.of({"w": torch.ones(1, 2)})):
        flat, leave = space.enter(v)
        assert torch.equal(flat, torch.ones(2))
        assert not flat.requires_grad
        assert torch.equal(leave(flat), flat)


@pytest.mark.parametrize("space", [Space.flat(2), Space.of({"w": torch.ones(1, 2)})])
def test_a_vector_of_another_kind_is_refused(space):
    with pytest.raises(StructureError, match=r"inside torch\.vmap"):
        torch.vmap(lambda v: space.enter(v)[0])(torch.ones(3, 2))
    with pytest.raises(StructureError, match=r"(?s)a dense tensor.*sparse_coo.*to_dense"):
        space.enter(torch.ones(2).to_sparse())


def test_half_precision_leaves_make_a_float32_vector_and_come_back_as_they_were():
    tree = {"h": torch.ones(2, dtype=torch.bfloat16), "s": torch.ones(2)}
    space = Space.of(tree)
    flat = space.flatten(tree)
    assert flat.dtype == torch.float32
    assert same(space.unflatten(flat), tree)


def test_a_subspace_is_a_leaf_or_a_group_of_leaves():
    space = Space.of({"a": torch.zeros(2), "b.w": torch.zeros(3), "b.v": torch.zeros(2, 2)})
    below, where = space.subspace("b")
    assert (below.names, below.n, where) == (("b.w", "b.v"), 7, slice(2, 9))
    one, where = space.subspace("b.v")
    assert (one.shapes, where) == ((torch.Size((2, 2)),), slice(5, 9))
    several, where = space.subspace(["b.v", "a"])
    assert several.names == ("a", "b.v")
    assert where.tolist() == [0, 1, 5, 6, 7, 8]
    again, where = space.subspace(("b", "*.v", "a"))
    assert (again.names, where) == (space.names, slice(0, 9))
    assert space.subspace(["a"])[0].template == {"a": None}
    for name in ("c", "b.", "", "b.w.x", [], ["a", "c"], ["a", 1], 1):
        with pytest.raises(
            ArgumentError, match=r"(?s)the name of a leaf.*A.domain.names.*a pattern"
        ):
            space.subspace(name)


# --------------------------------------------------------------------------------------------------
# NumPy arrays


def test_arrays_enter_and_leave_as_arrays():
    space = Space.of({"w": np.zeros((2, 2)), "b": np.zeros(1)})
    assert space.dtype == torch.float64
    flat, leave = space.enter({"w": np.ones((2, 2)), "b": np.array([3.0])})
    assert flat.tolist() == [1.0, 1.0, 1.0, 1.0, 3.0]
    tree = leave(2 * flat)
    assert isinstance(tree["w"], np.ndarray)
    np.testing.assert_array_equal(tree["w"], 2 * np.ones((2, 2)))
    flat, leave = space.enter(np.arange(5.0))
    assert isinstance(flat, torch.Tensor)
    np.testing.assert_array_equal(leave(flat), np.arange(5.0))
    _, leave = space.enter({"w": np.ones((2, 2)), "b": torch.zeros(1).double()})
    assert isinstance(leave(flat)["w"], torch.Tensor)  # not all are arrays


def test_an_array_of_another_dtype_is_refused_with_the_remedy():
    with pytest.raises(DtypeError, match=r"float64\n.*\.astype\('float32'\) for a NumPy array"):
        Space.flat(3).enter(np.ones(3))


def test_arrays_in_a_half_precision_space_leave_in_float32():
    space = Space.of({"w": torch.zeros(2, dtype=torch.bfloat16)})
    flat, leave = space.enter({"w": np.ones(2, dtype=np.float32)})
    assert leave(flat)["w"].dtype == np.float32


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0)[::-1],
        np.arange(12.0)[::2],
        np.arange(6.0).astype(">f8"),
        np.broadcast_to(np.float64(1.0), (6,)),
    ],
    ids=["negative stride", "stride", "byte order", "read-only"],
)
def test_arrays_of_every_layout_become_tensors(array):
    assert as_tensor(array).tolist() == array.tolist()


# --------------------------------------------------------------------------------------------------
# What is refused, and how


SPACE = Space.of({"w": torch.zeros(2, 3), "b": torch.zeros(3)})
FINE = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}


@pytest.mark.parametrize(
    ("v", "error", "words"),
    [
        ({"w": FINE["w"]}, StructureError, "missing b"),
        ({**FINE, "c": torch.zeros(1)}, StructureError, "unexpected c"),
        ([FINE["w"], FINE["b"]], StructureError, "a list of 2 entries"),
        ({**FINE, "b": [torch.zeros(3)]}, StructureError, r"v\['b'\] to be a tensor"),
        ({**FINE, "b": 1.0}, StructureError, r"v\['b'\] to be a tensor.*\n.*a float"),
        (torch.zeros(2, 3), StructureError, "a dict of 2 entries"),
        ({**FINE, "b": torch.zeros(2)}, ShapeError, r"v\['b'\] of shape \(3,\)\n.*\(2,\)"),
        ({**FINE, "w": torch.zeros(3, 2)}, ShapeError, r"v\['w'\] of shape \(2, 3\)"),
        ({**FINE, "b": torch.zeros(3).double()}, DtypeError, r"v\['b'\].*float32.*\n.*float64"),
        ({**FINE, "b": torch.zeros(3).long()}, DtypeError, r"v\['b'\].*\n.*int64"),
        ({**FINE, "b": torch.zeros(3).cfloat()}, DtypeError, r"v\['b'\].*\n.*complex64"),
        ({**FINE, "b": torch.zeros(3, device="meta")}, DeviceError, r"v\['b'\] on cpu\n.*meta"),
    ],
    ids=lambda value: None,
)
def test_a_tree_that_does_not_fit_is_refused_by_name(v, error, words):
    with pytest.raises(error, match=rf"(?s)^space.flatten.*\n.*{words}.*\n  remedy: ") as caught:
        SPACE.flatten(v)
    assert isinstance(caught.value, HesseError)


@pytest.mark.parametrize(
    ("v", "error", "words"),
    [
        (
            torch.zeros(8),
            ShapeError,
            r"v of shape \(9,\), or a tree like x.*w: \(2, 3\).*\n.*\(8,\)",
        ),
        (torch.zeros(9).double(), DtypeError, r"v of dtype torch.float32\n.*float64"),
        (torch.zeros(9, device="meta"), DeviceError, r"v on cpu\n.*meta"),
    ],
)
def test_a_flat_vector_that_does_not_fit_is_refused(v, error, words):
    with pytest.raises(error, match=rf"(?s){words}"):
        SPACE.enter(v)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ({}, StructureError, "at least one tensor\n.*an empty dict"),
        ([], StructureError, "an empty list"),
        ({"a": []}, StructureError, "at least one tensor"),
        ({"a": np.array(["b"])}, DtypeError, "real floating-point.*\n.*dtype <U1"),
        ({"a": np.arange(2)}, DtypeError, r"x\['a'\].*\n.*int64"),
        (3.0, StructureError, "x to be a tensor.*\n.*float"),
        (None, StructureError, "NoneType"),
        (torch.arange(3), DtypeError, "x of a real floating-point dtype\n.*int64"),
        ({"a": torch.ones(2), "n": torch.ones(1).bool()}, DtypeError, r"x\['n'\].*\n.*bool"),
        (torch.ones(2, dtype=torch.complex64), DtypeError, "complex64"),
        ((torch.ones(2), torch.ones(2, device="meta")), DeviceError, r"x\['1'\] on cpu\n.*meta"),
    ],
    ids=lambda value: None,
)
def test_a_point_that_cannot_be_differentiated_is_refused(x, error, words):
    with pytest.raises(error, match=rf"(?s){words}"):
        Space.of(x)


DTENSOR = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor
from hesse.errors import StructureError
from hesse.vectors import Space

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
leaf = distribute_tensor(torch.ones(3), init_device_mesh("cpu", (1,)), [Replicate()])
for take in (
    lambda: Space.of({"w": leaf}),
    lambda: Space.flat(3).enter(leaf),
    lambda: Space.of({"w": torch.ones(3)}).flatten({"w": leaf}),
):
    try:
        take()
    except StructureError as error:
        print(error)
assert Space.of(leaf.full_tensor()).n == Space.of(leaf.to_local()).n == 3
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_distributed_tensor_is_refused(fresh):
    done = fresh.run(DTENSOR)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("got:      a DTensor") == 3
    assert "full_tensor()" in done.stdout
    assert "Of a hesse.Risk with group=" in done.stdout


def test_a_point_without_entries_is_a_space_of_dimension_zero():
    assert Space.of(torch.zeros(0, 3)).n == 0


@pytest.mark.parametrize("n", [1000, 70_001])
def test_dots_of_long_rows_are_right_to_a_few_roundings(n: int) -> None:
    left = torch.full((3, n), 0.1)  # equal entries: all rounding goes one way
    left[1] = torch.randn(n, generator=torch.Generator().manual_seed(0))
    right = left[:2]
    exact = left.double() @ right.double().T
    scale = left.double().norm(dim=1)[:, None] * right.double().norm(dim=1)
    assert (
        float(((dots(left, right) - exact).abs() / scale).max())
        <= 4 * torch.finfo(torch.float32).eps
    )
    assert norm(left[0]) == pytest.approx(float(left[0].double().norm()), rel=3e-7)
