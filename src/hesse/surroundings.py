# SPDX-License-Identifier: Apache-2.0
"""The contexts of a user around a public call: autocast, a default device, inference mode.

Hesse's own arithmetic runs without them and the user's functions run within them: a public function
sets them aside, and what calls a function of the user's puts them back.

>>> def f():
...     with users_contexts():
...         return torch.ones(1) @ torch.ones(1)
>>> with torch.autocast("cpu", torch.bfloat16), set_aside():
...     (torch.ones(1) @ torch.ones(1)).dtype, f().dtype
(torch.float32, torch.bfloat16)

The only file that looks at these settings of torch, some of which are private; tried on torch 2.13
and 2.15. A torch without them is asked device by device, and keeps its hooks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.backends import cuda
from torch.utils import checkpoint


@dataclass(frozen=True)
class Surroundings:
    """What was set when a public function was called.

    Args:
        autocasts: (device type, dtype) for every device with autocast.
        device: the default device, None for none.
    """

    autocasts: tuple[tuple[str, torch.dtype], ...] = ()
    device: torch.device | None = None


_users: ContextVar[Surroundings | None] = ContextVar("hesse_surroundings", default=None)


def _some_device_casts() -> bool:
    return any(map(_casts, ("cpu", "cuda", "mps", "xpu")))


def _casts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", _some_device_casts)


_num_function_modes = getattr(torch._C, "_len_torch_function_stack", lambda: 1)


_hooks = getattr(torch._C, "_autograd", None)
_top_hooks = getattr(_hooks, "_top_saved_tensors_default_hooks", lambda _: None)
_pop_hooks = getattr(_hooks, "_pop_saved_tensors_default_hooks", None)
_push_hooks = getattr(_hooks, "_push_saved_tensors_default_hooks", None)
_num_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)


@contextmanager
def without_saved_tensor_hooks() -> Iterator[None]:
    """Within it, no hooks of the user's around a call change what graphs save, as `save_on_cpu`.

    They look as if f computed activations again, and torch.func does not take them. Hooks that
    belong to a dispatch mode, as those that allow writes to saved tensors do, stay.
    """
    aside = []
    if _pop_hooks is not None and _push_hooks is not None and not _num_dispatch_modes():
        while (pair := _top_hooks(True)) is not None:
            _pop_hooks()
            aside.append(pair)
    try:
        yield
    finally:
        for pair in reversed(aside):
            assert _push_hooks is not None
            _push_hooks(*pair)


def is_checkpointed() -> bool:
    """Whether `torch.utils.checkpoint` runs what is called now, and runs it again when it is read.

    Then no mode of a surrounding call is active, and the same tensors must be saved.
    """
    pair = _top_hooks(True)
    return pair is not None and pair[0].__module__ == checkpoint.__name__


# How to read and to set whether a kernel of attention may be used.
_FUSED_ATTENTION = [
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
]
_MATH_ATTENTION = (cuda.math_sdp_enabled, cuda.enable_math_sdp)
_other_fused = getattr(torch._C, "_get_overrideable_sdp_enabled", None)
_use_other_fused = getattr(torch._C, "_set_sdp_use_overrideable", None)
if _other_fused is not None and _use_other_fused is not None:
    _FUSED_ATTENTION.append((_other_fused, _use_other_fused))


class WhileAnyone:
    """A setting of the process that holds while any thread is within.

    The first to enter sets it, and the last to leave puts back what was there. If each thread did
    so for itself, one would take the setting from another, or leave it behind.

    >>> @WhileAnyone
    ... @contextmanager
    ... def light():
    ...     print("on")
    ...     yield
    ...     print("off")
    >>> with light(), light():
    ...     print("within")
    on
    within
    off
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make, self._lock, self._count = make, threading.Lock(), 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The context."""
        with self._lock:
            if self._count == 0:
                self._setting = self._make()
                self._setting.__enter__()
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if self._count == 0:
                    self._setting.__exit__(None, None, None)


@WhileAnyone
@contextmanager
def math_attention() -> Iterator[None]:
    """Within it, attention is computed by matrix products, which have second derivatives.

    As `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`, which takes some 30 microseconds.
    """
    changed = [(use, True) for is_used, use in _FUSED_ATTENTION if is_used()]
    changed += [] if _MATH_ATTENTION[0]() else [(_MATH_ATTENTION[1], False)]
    for use, before in changed:
        use(not before)
    try:
        yield
    finally:
        for use, before in changed:
            use(before)


def _default_device() -> torch.device | None:
    """The default device if it is another one than the CPU; it is a function mode of torch."""
    if not _num_function_modes():
        return None
    device = torch.get_default_device()
    return None if device.type == "cpu" else device


def is_surrounded() -> bool:
    """Whether there is something to set aside; takes a quarter of a microsecond."""
    return (
        _any_autocast()
        or _default_device() is not None
        or torch.is_anomaly_enabled()
        or torch.is_inference_mode_enabled()
    )


def is_watched() -> bool:
    """Whether a mode of the user's sees, and may change, what functions call of torch."""
    return bool(_num_function_modes() or _num_dispatch_modes())


@contextmanager
def set_aside() -> Iterator[None]:
    """Within it there is no autocast, no default device, no anomaly detection.

    Inference mode becomes `no_grad`: what a function makes and keeps, such as a copy of x, has to
    go through autograd later, which takes no inference tensors.
    """
    found = _found()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device, _ in found.autocasts:
            stack.enter_context(torch.autocast(device, enabled=False))
        if found.device is not None:
            stack.enter_context(torch.device("cpu"))
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        token = _users.set(found)
        try:
            yield
        finally:
            _users.reset(token)


def users_contexts() -> AbstractContextManager[None]:
    """Within it, autocast and the default device are those of the user."""
    users = _users.get()
    return nullcontext() if users is None else _restored(users)


def users_autocasts() -> tuple[tuple[str, torch.dtype], ...]:
    """(device type, dtype) for every device for which the user has switched autocast on."""
    return (_users.get() or _found()).autocasts


def recorded_contexts() -> tuple[torch.dtype, tuple[tuple[str, torch.dtype], ...]]:
    """What a program depends on: the default dtype, and the user's autocast."""
    return torch.get_default_dtype(), users_autocasts()


@contextmanager
def _restored(users: Surroundings) -> Iterator[None]:
    with ExitStack() as stack:
        for device, dtype in users.autocasts:
            stack.enter_context(torch.autocast(device, dtype))
        if users.device is not None:
            stack.enter_context(torch.device(users.device))
        token = _users.set(None)
        try:
            yield
        finally:
            _users.reset(token)


def _found() -> Surroundings:
    devices = [d for d in ("cpu", "cuda", "mps", "xpu") if _casts(d)] if _any_autocast() else []
    autocasts = tuple((device, torch.get_autocast_dtype(device)) for device in devices)
    return Surroundings(autocasts, _default_device())
