# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a leaf, a flat vector or a pair of spaces that does not fit, as an error."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd.forward_ad import unpack_dual

from hesse.errors import DeviceError, DtypeError, NonFiniteError, ShapeError, StructureError
from hesse.vectors.division import Division
from hesse.vectors.shards import is_sharded

# Whether a tensor stands for the batch of tensors of a `torch.vmap` around.
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
is_batched = _functorch.is_batchedtensor
# Whether it stands for that, or for one in which another transform of `torch.func` differentiates.
is_transformed = _functorch.is_functorch_wrapped_tensor


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a transform of `torch.func` around takes a derivative in this tensor.

    >>> seen = []
    >>> _ = torch.func.grad(lambda x: seen.append(is_differentiated(x)) or 2 * x)(torch.ones(()))
    >>> seen, is_differentiated(torch.ones((), requires_grad=True))
    ([True], False)
    """
    while _functorch.is_gradtrackingtensor(tensor):
        if tensor.requires_grad or _has_tangent(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)  # what another transform further out made
    return False


def _has_tangent(tensor: Tensor) -> bool:
    """Whether the transform that made this tensor takes a directional derivative in it.

    Transforms further in do not see that, and are set aside.
    """
    with ExitStack() as inner:
        while _functorch.peek_interpreter_stack().level() > _functorch.maybe_get_level(tensor):
            inner.enter_context(temporarily_pop_interpreter_stack())
        return unpack_dual(tensor).tangent is not None


def check_constant(what: str, leaves: Iterable[Tensor]) -> None:
    """Raise if a derivative in one of these is wanted: results carry none."""
    if any(map(is_differentiated, leaves)):
        raise StructureError(
            expected=f"{what} to be a constant of the transforms of torch.func around the call",
            got="a tensor in which one of them differentiates",
            remedy="Results carry no derivative: it would be zero. Write the product with "
            "torch.func.jvp and grad; differentiate minima, roots and fixed points with "
            "hesse.apps.argmin, root and fixed_point.",
        )


def check_leaf(label: str, leaf: Tensor, device: torch.device) -> None:
    """Raise unless the leaf is a plain real floating-point tensor on this device."""
    if is_batched(leaf):
        raise StructureError(
            expected=f"{label} to be a plain tensor, whose entries can be read",
            got="a batched tensor inside torch.vmap",
            remedy="Take several directions at once with hessian_operator(f, x).matmat(V), V of "
            "shape (n, k); go through several points in a loop, operator.at(x).",
        )
    if is_sharded(leaf):
        raise StructureError(
            expected=f"{label} to be a plain tensor",
            got="a DTensor (torch.distributed.tensor)",
            remedy="Of a hesse.Risk with group= the parameters may be sharded; elsewhere give "
            "leaf.full_tensor().",
        )
    if leaf.layout != torch.strided:
        raise StructureError(
            expected=f"{label} to be a dense tensor",
            got=f"one of layout {leaf.layout}",
            remedy="Give leaf.to_dense(); a function of x may make sparse tensors from it.",
        )
    if not leaf.dtype.is_floating_point:
        raise DtypeError(
            expected=f"{label} of a real floating-point dtype",
            got=str(leaf.dtype),
            remedy=_as_real(label)
            if leaf.is_complex()
            else "Convert it with .float() or .double(); leave integer tensors out of x and close "
            "over them instead.",
        )
    if leaf.device != device:
        raise DeviceError(
            expected=f"{label} on {device}",
            got=str(leaf.device),
            remedy=f"Move it: .to('{device}').",
        )


def _as_real(label: str) -> str:
    """What to do about the complex tensor of this name: an argument, or a result as g(x) is."""
    if "(" in label.partition("[")[0]:
        return "Return its real and imaginary parts, torch.view_as_real(z)."
    return (
        "Take its real and imaginary parts as x, torch.view_as_real(x), and compute "
        "torch.view_as_complex(x) in f."
    )


def check_leaf_like(
    label: str,
    leaf: Tensor,
    *,
    shape: torch.Size,
    dtypes: tuple[torch.dtype, torch.dtype],
    device: torch.device,
) -> None:
    """Raise unless a leaf has this shape, this device, and the dtype of x or of flat vectors."""
    check_leaf(label, leaf, device)
    if leaf.shape != shape:
        flat = ", or one flat vector (n,)" if leaf.ndim == 1 else ""
        raise ShapeError(
            expected=f"{label} of shape {tuple(shape)}",
            got=f"shape {tuple(leaf.shape)}",
            remedy=f"Give one tensor for each tensor of x, of the same shape{flat}.",
        )
    if leaf.dtype not in dtypes:
        raise DtypeError(
            expected=f"{label} of dtype {dtypes[0]}, like x",
            got=str(leaf.dtype),
            remedy=_conversion("it", dtypes[0]),
        )


def check_vector(
    what: str,
    vector: Any,
    *,
    n: int,
    ndim: int,
    dtype: torch.dtype,
    device: torch.device,
    tree: str = "",
) -> None:
    """Raise unless this is a flat vector (n,), or with ndim=2 a block (n, k).

    `tree` says what else could have been given.
    """
    expected = f"({n},)" if ndim == 1 else f"({n}, k)"
    if not isinstance(vector, Tensor):
        raise StructureError(
            expected=f"{what} to be a tensor or a NumPy array of shape {expected}",
            got=f"{type(vector).__module__}.{type(vector).__name__}",
            remedy="Convert it with torch.as_tensor.",
        )
    if vector.ndim != ndim or vector.shape[0] != n:
        raise ShapeError(
            expected=f"{what} of shape {expected}{tree}",
            got=f"shape {tuple(vector.shape)}",
            remedy="Give a flat vector (n,) or a tree like x; a block of k vectors is (n, k).",
        )
    if vector.dtype != dtype:
        raise DtypeError(
            expected=f"{what} of dtype {dtype}",
            got=str(vector.dtype),
            remedy=_conversion(what, dtype),
        )
    check_leaf(what, vector, device)
    check_constant(what, [vector])


def _conversion(name: str, dtype: torch.dtype) -> str:
    array = f".astype('{str(dtype).removeprefix('torch.')}')"
    return f"Convert {name}: .to({dtype}) for a tensor, {array} for a NumPy array."


def check_same(
    n: tuple[int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    devices: tuple[torch.device, torch.device],
) -> None:
    """Raise unless two spaces agree in dimension, dtype and device."""
    if n[0] != n[1]:
        raise ShapeError(
            expected="operators of matching shapes",
            got=f"dimensions {n[0]} and {n[1]}",
            remedy="Check the order of the factors, or transpose one.",
        )
    if dtypes[0] != dtypes[1]:
        raise DtypeError(
            expected="operators of one dtype",
            got=f"{dtypes[0]} and {dtypes[1]}",
            remedy="Make both from tensors of the same dtype.",
        )
    if devices[0] != devices[1]:
        raise DeviceError(
            expected="operators on one device",
            got=f"{devices[0]} and {devices[1]}",
            remedy="Move the tensors that one of them is made from.",
        )


def check_same_shards(one: Division | None, other: Division | None) -> None:
    """Raise unless two spaces of one dimension are cut over processes in the same way."""
    if one == other:
        return
    raise StructureError(
        expected="operators whose vectors are sharded alike",
        got="whole vectors and sharded ones" if one is None or other is None else "other shards",
        remedy="Make both at parameters that are sharded over one mesh.",
    )


def check_whole(shards: Division | None, what: str, remedy: str) -> None:
    """Raise for sharded vectors, where there is no `what`."""
    if shards is not None:
        raise StructureError(
            expected=f"vectors that are whole in each process, for {what}",
            got="vectors that are sharded over processes",
            remedy=remedy,
        )


def check_finite(what: str, is_finite: bool) -> None:
    """Raise unless a vector was found finite."""
    if not is_finite:
        raise NonFiniteError(
            expected=f"a finite {what}",
            got="NaN or Inf",
            remedy=f"Check what {what} was computed from.",
        )
