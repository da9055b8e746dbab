# SPDX-License-Identifier: Apache-2.0
"""Trees of tensors and flat vectors: there and back, inner products, probes, refusals."""

import math
from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    HesseError,
    ShapeError,
    StructureError,
)
from hesse.vectors.inner_products import dot, dots, norm
from hesse.vectors.space import Space

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
    flat, leave = space.enter(torch.arange(4.0), call="f")
    assert torch.equal(leave(flat), torch.arange(4.0))
    flat, leave = space.enter({"w": torch.ones(2, 2)}, call="f")
    assert leave(flat)["w"].shape == (2, 2)


def test_a_scalar_leaf_takes_a_scalar_or_a_vector_of_length_one():
    space = Space.of(torch.tensor(3.0))
    assert space.n == 1
    assert not space.is_flat
    for v, shape in ((torch.tensor(2.0), ()), (torch.tensor([2.0]), (1,))):
        flat, leave = space.enter(v, call="f")
        assert flat.shape == (1,)
        assert leave(flat).shape == shape


def test_half_precision_leaves_make_a_float32_vector_and_come_back_as_they_were():
    tree = {"h": torch.ones(2, dtype=torch.bfloat16), "s": torch.ones(2)}
    space = Space.of(tree)
    flat = space.flatten(tree)
    assert flat.dtype == torch.float32
    assert same(space.unflatten(flat), tree)


def test_a_subspace_is_a_leaf_or_a_group_of_leaves():
    space = Space.of({"a": torch.zeros(2), "b.w": torch.zeros(3), "b.v": torch.zeros(2, 2)})
    below, where = space.subspace("b", call="f")
    assert (below.names, below.n, where) == (("b.w", "b.v"), 7, slice(2, 9))
    one, where = space.subspace("b.v", call="f")
    assert (one.shapes, where) == ((torch.Size((2, 2)),), slice(5, 9))
    for name in ("c", "b.", "", "b.w.x"):
        with pytest.raises(ArgumentError, match=r"expected: the name of a leaf"):
            space.subspace(name, call="f")


# --------------------------------------------------------------------------------------------------
# Inner products and probes


@given(st.integers(0, 99), st.integers(1, 3000))
@settings(max_examples=20)
def test_dot_of_float32_vectors_has_float64_accuracy(seed, n):
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, n, generator=generator)
    exact = math.fsum((u.double() * v.double()).tolist())
    # Products of two float32 are exact in float64; the sum rounds at most n times.
    bound = n * torch.finfo(torch.float64).eps * float((u.double() * v.double()).abs().sum())
    assert abs(dot(u, v) - exact) <= bound


def test_dot_over_several_chunks_keeps_its_accuracy():
    n = 3 * 2**20 + 5
    u = torch.full((n,), 0.1)
    exact = n * float(u[0].double()) ** 2
    rounding = 2 * torch.finfo(torch.float32).eps  # of equal entries: all goes one way
    assert dot(u, u) == pytest.approx(exact, rel=rounding)
    assert norm(u) == pytest.approx(math.sqrt(exact), rel=rounding)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_dot_and_norm_are_better_than_their_vectors(scale: float):
    u, v = scale * torch.randn(2, 300_007, generator=torch.Generator().manual_seed(0))
    left, right = u.double(), v.double()
    assert norm(u) == pytest.approx(float(left.norm()), rel=1e-8)
    assert dot(u, v) == pytest.approx(float(left @ right), abs=1e-8 * norm(u) * norm(v))
    assert dot(u, u) == pytest.approx(float(left @ left), rel=1e-8)


def test_norm_neither_overflows_nor_underflows_in_float32():
    assert norm(torch.full((4,), 1e30)) == pytest.approx(2e30, rel=1e-6)
    assert norm(torch.full((4,), 1e-30)) == pytest.approx(2e-30, rel=1e-6)


@pytest.mark.parametrize("draw", [Space.gaussian, Space.rademacher])
def test_probes_are_reproducible_and_leave_the_global_generator_alone(draw):
    space = Space.of({"a": torch.zeros(50, dtype=torch.float64)})
    before = torch.get_rng_state()
    first = draw(space, torch.Generator().manual_seed(1))
    again = draw(space, torch.Generator().manual_seed(1))
    other = draw(space, torch.Generator().manual_seed(2))
    assert first.dtype == torch.float64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_probes_have_the_moments_that_they_promise():
    space = Space.flat(100_000, torch.float64)
    generator = torch.Generator().manual_seed(0)
    signs, normal = space.rademacher(generator), space.gaussian(generator)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    standard_error = space.n**-0.5
    assert abs(float(signs.mean())) < 4 * standard_error
    assert abs(float(normal.mean())) < 4 * standard_error
    assert abs(float((normal**2).mean()) - 1.0) < 4 * math.sqrt(2) * standard_error


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
    with pytest.raises(error, match=rf"(?s)^hvp\(f, x, v\)\n.*{words}.*\n  remedy: ") as caught:
        SPACE.flatten(v, call="hvp(f, x, v)")
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
        SPACE.enter(v, call="hvp(f, x, v)")


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ({}, StructureError, "at least one tensor\n.*an empty dict"),
        ([], StructureError, "an empty list"),
        ({"a": []}, StructureError, "at least one tensor"),
        ({"a": torch.ones(2).numpy()}, StructureError, r"x\['a'\].*\n.*numpy.*\n.*from_numpy"),
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


class _Sharded(torch.Tensor):
    """What a DTensor is known by."""

    device_mesh = "a mesh"


def test_a_dtensor_is_refused_with_a_remedy():
    leaf = torch.ones(3).as_subclass(_Sharded)
    with pytest.raises(StructureError, match=r"(?s)a DTensor.*full_tensor\(\)"):
        Space.of({"w": leaf})
