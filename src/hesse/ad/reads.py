# SPDX-License-Identifier: Apache-2.0
"""`Reads`: what a function reads besides its argument, as far as its bytecode tells.

It is told for functions that are made of those of torch, of Python's arithmetic, and of functions
like them. All else that they read has a place: a cell of a closure, a name of a module, a key of a
dict, an attribute of a plain object. As long as the same numbers, functions and tensors are in
these places, the function is what it was, and nobody needs to call it to find out. Of whatever else
a function may read, as a draw of NumPy, a file or the clock, nothing is known, and there are no
`Reads`.
"""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from numbers import Number
from operator import getitem
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hesse.ad.pure_functions import attributes, is_pure

Place = tuple[Callable[[Any, Any], Any], Any, Any, Any]
"""(get, holder, key, value): get(holder, key) is that value."""

# Modules of numbers that never change, whose operators are known.
_OF_NUMBERS = ("builtins", "numpy")

_CONSTANTS = (torch.dtype, torch.device, torch.layout, torch.memory_format, type(None), type(...))

# Instructions that move values, compute, branch, and make local things. Unknown ones, as those of
# later Pythons, are none of these.
_HARMLESS = re.compile(
    r"(BINARY|UNARY|INPLACE|BUILD|UNPACK|CALL|RETURN|JUMP|POP_JUMP|LIST|SET|DICT|MAP|DUP_TOP|"
    r"ROT|POP_TOP|COPY|SWAP|LOAD_FAST|STORE_FAST|LOAD_SMALL_INT)(_\w+)?|PUSH_NULL|NOP|NOT_TAKEN|RESUME|"
    r"CACHE|EXTENDED_ARG|PRECALL|KW_NAMES|COMPARE_OP|IS_OP|CONTAINS_OP|TO_BOOL|MAKE_FUNCTION|MAKE_CELL|"
    r"LOAD_CLOSURE|LOAD_CONST|FOR_ITER|GET_ITER|END_FOR|POP_ITER|STORE_SUBSCR|STORE_SLICE|GEN_START|"
    r"DELETE_FAST|YIELD_VALUE|LOAD_ASSERTION_ERROR|LOAD_COMMON_CONSTANT|RAISE_VARARGS|RERAISE|"
    r"STORE_DEREF"
)
# How ordinary objects look up their attributes.
_ORDINARY = {object.__getattribute__, SimpleNamespace.__getattribute__}

# Of an object that is called, what no operator and no builtin function reads.
_PASSIVE = frozenset(
    [
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__"),
        *("__firstlineno__", "__static_attributes__", "__slots__", "__init__", "__new__"),
        *("__call__", "__repr__", "__str__", "__reduce__", "__getstate__", "__setstate__"),
        *("__annotations_cache__", "__annotate_func__", "__init_subclass__"),
    ]
)

_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD"}
_CELL = {"LOAD_DEREF", "LOAD_CLASSDEREF"}
_LOCAL = re.compile(r"(LOAD|STORE)_FAST")


class _UnknownError(Exception):
    """Something of which it is not known what it reads."""


@dataclass(frozen=True)
class Reads:
    """See the module.

    >>> scale = 2.0
    >>> def f(x):
    ...     return scale * x.sin().sum()
    >>> reads = Reads.of(f)
    >>> reads.are_as_found
    True
    >>> scale = 3.0
    >>> reads.are_as_found
    False
    >>> Reads.of(lambda x: print(x)) is None
    True
    """

    places: tuple[Place, ...]
    tensors: tuple[Tensor, ...]
    forms: tuple[Any, ...]

    @staticmethod
    def of(function: Any) -> Reads | None:
        """What a function reads now; None if that cannot be told."""
        scan = _Scan()
        try:
            scan.called(function)
        except _UnknownError:
            return None
        tensors = tuple(scan.tensors.values())
        return Reads(tuple(scan.places), tensors, tuple(map(_form, tensors)))

    @property
    def are_as_found(self) -> bool:
        """Whether the same things are in all places; the entries of tensors may be others."""
        try:
            same = all(get(holder, key) is value for get, holder, key, value in self.places)
        except (LookupError, AttributeError, ValueError):  # an empty cell is a ValueError
            return False
        return same and tuple(map(_form, self.tensors)) == self.forms


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, bool(vars(tensor))


class _Step(NamedTuple):
    """An instruction; whether another one may jump to it."""

    name: str
    argument: Any
    is_target: bool

    @property
    def is_subscript(self) -> bool:
        return self.name == "BINARY_SUBSCR" or (self.name == "BINARY_OP" and self.argument == "[]")


def _steps(code: CodeType) -> Iterator[_Step]:
    """The instructions, those that load or store two variables one by one."""
    for found in dis.get_instructions(code):
        if found.opname in ("CACHE", "EXTENDED_ARG", "NOP"):
            continue
        argument = found.argrepr if found.opname == "BINARY_OP" else found.argval
        if isinstance(argument, tuple) and len(moves := _LOCAL.findall(found.opname)) == 2:
            for move, name in zip(moves, argument, strict=True):
                yield _Step(f"{move}_FAST", name, found.is_jump_target)
            continue
        # Pythons have several ways to load a variable, as LOAD_FAST_BORROW.
        name = "LOAD_FAST" if found.opname.startswith("LOAD_FAST_") else found.opname
        yield _Step(name, argument, found.is_jump_target)


class _Names(NamedTuple):
    """What the free names of a piece of code stand for.

    Args:
        function: which it belongs to.
        cells: of the closure.
        owners: objects whose method it is.
    """

    function: Any
    cells: dict[str, Any]
    owners: dict[str, Any]


class _Scan:
    """Goes through the code of a function, and of the functions in it."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.tensors: dict[int, Tensor] = {}
        self._seen: dict[tuple[int, int], Any] = {}

    def value(self, value: Any) -> None:
        """A value that f hands on: it is a constant, or is looked into."""
        if is_pure(value) or isinstance(value, _CONSTANTS):
            return
        kind = type(value)
        if issubclass(kind, Number | str | bytes | range) and kind.__module__ in _OF_NUMBERS:
            return
        if kind in (Tensor, nn.Parameter):
            self._tensor(value)
        elif kind in (tuple, torch.Size):
            for part in value:
                self.value(part)
        elif kind is FunctionType:
            self._function(value)
        elif kind is MethodType:
            self._function(value.__func__, value.__self__)
        elif kind is partial:
            self._partial(value)
        elif _is_called(value) and not _does_more(value):
            self._object(value)
        else:
            raise _UnknownError(value)

    def called(self, function: Any) -> None:
        """A function of which nothing is asked but to be called."""
        if _is_called(function):
            self._object(function)
        else:
            self.value(function)

    def _object(self, held: Any) -> None:
        kind = self._read(getattr, held, "__class__")
        self._function(self._read(getattr, kind, "__call__"), held)

    def _read(self, get: Callable[[Any, Any], Any], holder: Any, key: Any) -> Any:
        try:
            value = get(holder, key)
        except (LookupError, AttributeError, ValueError):
            raise _UnknownError(key) from None
        self.places.append((get, holder, key, value))
        return value

    def _tensor(self, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided or tensor.is_inference() or vars(tensor):
            raise _UnknownError(tensor)
        self.tensors[id(tensor)] = tensor

    def _partial(self, value: partial) -> None:
        self.value(self._read(getattr, value, "func"))
        self.value(self._read(getattr, value, "args"))
        keywords = self._read(getattr, value, "keywords")
        self._read(_length, keywords, None)
        for key in keywords:
            self.value(self._read(getitem, keywords, key))

    def _function(self, function: Any, owner: Any = None) -> None:
        """A function of Python; `owner` is the object whose method it is."""
        if type(function) is not FunctionType or vars(function):
            raise _UnknownError(function)
        if (id(function), id(owner)) in self._seen:
            return
        self._seen[id(function), id(owner)] = function, owner
        code = self._read(getattr, function, "__code__")
        self.value(self._read(getattr, function, "__defaults__"))
        keywords = self._read(getattr, function, "__kwdefaults__") or {}
        for key in keywords:
            self.value(self._read(getitem, keywords, key))
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        owners = {} if owner is None else {code.co_varnames[0]: owner}
        self._code(code, _Names(function, cells, owners))

    # -- Code --------------------------------------------------------------------------------------

    def _code(self, code: CodeType, names: _Names) -> None:
        steps = list(_steps(code))
        position = 0
        while position < len(steps):
            step, position = steps[position], position + 1
            if step.name == "LOAD_GLOBAL":
                held = self._read(_global, names.function, step.argument)
                position = self._follow(held, steps, position)
            elif step.argument in names.owners and step.name in {"LOAD_FAST", *_CELL}:
                position = self._follow(names.owners[step.argument], steps, position)
            elif step.name in _CELL:
                if step.argument in names.cells:
                    held = self._read(getattr, names.cells[step.argument], "cell_contents")
                    position = self._follow(held, steps, position)
            else:
                self._check(step, names)
            if step.name == "LOAD_CONST" and isinstance(step.argument, CodeType):
                self._code(step.argument, _inner(names, code, step.argument))

    def _check(self, step: _Step, names: _Names) -> None:
        """Raise for an instruction that may read or write anything else."""
        if step.name in _ATTRIBUTE:
            is_known = step.argument in attributes()
            if hasattr(Tensor, step.argument):
                self._read(getattr, Tensor, step.argument)
        else:
            is_known = _HARMLESS.fullmatch(step.name) is not None
        writes = step.name.startswith(("STORE", "DELETE")) and isinstance(step.argument, str)
        if not is_known or (writes and step.argument in names.cells.keys() | names.owners.keys()):
            raise _UnknownError(step)

    def _follow(self, held: Any, steps: list[_Step], position: int) -> int:
        """Where to go on, after the attributes and keys by which a value is reached from `held`."""
        while True:
            first, second = steps[position], steps[position + 1 : position + 2]
            if first.name in _ATTRIBUTE and not isinstance(held, Tensor):
                if first.is_target:
                    raise _UnknownError(first)
                held, position = self._attribute(held, first.argument), position + 1
            elif type(held) in (dict, list, tuple) and second and second[0].is_subscript:
                if first.name not in ("LOAD_CONST", "LOAD_SMALL_INT") or first.is_target:
                    break
                held, position = self._read(getitem, held, first.argument), position + 2
            else:
                break
        self.value(held)
        return position

    def _attribute(self, held: Any, name: str) -> Any:
        """An attribute of a module or of a plain object."""
        if type(held) is ModuleType:
            return self._read(getitem, vars(held), name)
        if not _is_plain(held):
            raise _UnknownError(held)
        of_class = _static(type(held), name)
        if isinstance(of_class, FunctionType) and name not in vars(held):
            self._read(_method, held, name)
            return of_class.__get__(held)
        if hasattr(of_class, "__get__") and not inspect.ismemberdescriptor(of_class):
            raise _UnknownError(name)
        return self._read(getattr, held, name)


def _inner(names: _Names, code: CodeType, inner: CodeType) -> _Names:
    """The names of a function inside of another one, as far as they are not its own variables."""
    free = set(inner.co_freevars)
    cells = {name: cell for name, cell in names.cells.items() if name in free}
    owners = {name: owner for name, owner in names.owners.items() if name in free}
    return _Names(names.function, cells, owners)


def _is_plain(held: Any) -> bool:
    """Whether attributes of an object are what they are said to be in Python's reference."""
    kind = type(held)
    return (
        not isinstance(held, type | ModuleType | FunctionType | Tensor)
        and kind.__getattribute__ in _ORDINARY
        and not hasattr(kind, "__getattr__")
        and hasattr(held, "__dict__")
    )


def _static(kind: type, name: str) -> Any:
    return inspect.getattr_static(kind, name, None)


def _is_called(held: Any) -> bool:
    """Whether it is an object that is called by a method of Python."""
    return _is_plain(held) and isinstance(_static(type(held), "__call__"), FunctionType)


def _does_more(held: Any) -> bool:
    """Whether an object does more than be called.

    It may have operators, or attributes that are taken for those of a tensor where the object has
    become a local variable.
    """
    classes = [kind for kind in type(held).__mro__ if kind is not object]
    names = {name for part in (held, *classes) for name in vars(part)}
    is_special = [name.startswith("__") and name not in _PASSIVE for name in names]
    return any(is_special) or not names.isdisjoint(attributes())


def _length(held: Any, _: None) -> int:
    return len(held)


def _method(held: Any, name: str) -> Any:
    return getattr(held, name).__func__


def _global(function: FunctionType, name: str) -> Any:
    """A global name of a function: of its module, or a builtin one."""
    names: Any = function.__globals__
    return names[name] if name in names else function.__builtins__[name]
