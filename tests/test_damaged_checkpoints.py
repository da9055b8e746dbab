# SPDX-License-Identifier: Apache-2.0
"""Damaged and forged checkpoints are refused or harmless, and take no memory."""

import copy
import json
import math
import re
import signal
from functools import partial

import pytest
import torch
from safetensors import safe_open

import hesse
from hesse.errors import ArgumentError, HesseError
from hesse.krylov import eigsh, solve
from hesse.saving.tensor_file import write
from tests.checkpoint_runs import DOUBLE, N, matrix, run, seeded

# -- Damaged checkpoints ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint of a run that is not at its end: (bytes, header, tensors)."""
    path = tmp_path_factory.mktemp("good") / "run"
    run(path, max_products=20)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hesse"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return path.read_bytes(), header, tensors


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_file_is_refused(good, fraction, tmp_path):
    path = tmp_path / "run"
    path.write_bytes(good[0][: int(fraction * len(good[0]))])
    with pytest.raises(ArgumentError, match="a checkpoint of Hesse"):
        run(path)


def test_a_flipped_bit_is_noticed_wherever_it_is(good, tmp_path):
    """A flip in a header's number may also say that the run or the operator is another one."""
    data, path = good[0], tmp_path / "run"
    places = torch.randint(0, 8 * len(data), (200,), generator=seeded()).tolist()
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ArgumentError, match="checkpoint="):
            run(path)


def leaves(value, path=()):
    """The paths to everything in a JSON value."""
    yield path
    items = {dict: lambda: value.items(), list: lambda: enumerate(value)}
    for key, item in items.get(type(value), tuple)():
        yield from leaves(item, (*path, key))


def replaced(value, path, new):
    value = copy.deepcopy(value)
    if not path:
        return new
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


STRANGE_VALUES = [10**300, 2**40, -1, None, "a", math.nan, [[1]]]
STRANGE_VALUES += [{"tensor": "../../etc/passwd"}, {"status": "__class__"}, {"fields": {}}]


def assert_harmless(path):
    """A run from a state that was forged says what it found."""
    pairs = ends(lambda A: eigsh(A, 3, generator=seeded(1), checkpoint=path, max_products=60))
    if pairs is not None and bool(pairs.converged.all()):
        defects = matrix() @ pairs.vectors - pairs.vectors * pairs.values
        assert bool((defects.norm(dim=0) <= pairs.residuals + 1e-10).all())


def ends(call):
    """The result of a call, which ends soon, in little memory; None after an error."""
    M, calls = matrix(), []

    def product(v):
        calls.append(1)
        assert len(calls) < 1000
        return M @ v

    signal.alarm(30)
    try:
        return call(hesse.function_operator(product, N, symmetric=True, dtype=DOUBLE))
    except HesseError:
        return None
    except (AssertionError, MemoryError):
        raise
    except Exception as error:
        if re.search("memory|allocate|recursion", str(error)):
            raise
        return None
    finally:
        signal.alarm(0)


@pytest.mark.slow
@pytest.mark.parametrize("new", STRANGE_VALUES, ids=lambda new: str(new)[:20])
@pytest.mark.usefixtures("little_memory")
def test_a_header_with_another_value_is_refused_or_harmless(good, new, tmp_path):
    """With a right checksum: it was not an accident."""
    _, header, tensors = good
    path = tmp_path / "run"
    del header["checksum"]
    try:
        for place in leaves(header):
            changed = replaced(header, place, new)
            if not isinstance(changed, dict) or changed == header:
                continue
            write(path, changed, tensors)
            assert_harmless(path)
    finally:
        header["checksum"] = 0


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_a_file_with_other_tensors_is_refused_or_harmless(good, tmp_path):
    _, header, tensors = good
    path, header = tmp_path / "run", {k: v for k, v in header.items() if k != "checksum"}
    others = [
        lambda t: t[:0], lambda t: t[:1],
        lambda t: t.float() if t.is_floating_point() else t.long(),
        lambda t: t.reshape(-1), lambda t: t[None], lambda t: torch.zeros_like(t),
        lambda t: torch.full_like(t, 255), lambda t: torch.cat([t, t]),
    ]  # fmt: skip
    for name in tensors:
        for other in others:
            changed = {**tensors, name: other(tensors[name]).contiguous()}
            write(path, header, changed)
            assert_harmless(path)
        write(path, header, {k: v for k, v in tensors.items() if k != name})
        with pytest.raises(ArgumentError, match="a checkpoint of Hesse"):
            run(path)


B = torch.ones(N, dtype=DOUBLE)


def quartic(M, x):
    return (x**4).sum() + x @ (M @ x)


def fourths(D, x):
    """Residuals that take many steps to the solution zero."""
    return torch.cat([x**2, D @ x**2])


RUNS = {
    "cg": lambda A, path, n: solve(A, B, "cg", rtol=1e-12, checkpoint=path, max_products=n),
    "minres": lambda A, path, n: solve(A, B, "minres", rtol=1e-12, checkpoint=path, max_products=n),
    "lsmr": lambda A, path, n: solve(A, B, "lsmr", rtol=1e-12, checkpoint=path, max_products=n),
    "gmres": lambda A, path, n: solve(A, B, "gmres", rtol=1e-12, checkpoint=path, max_products=n),
    "block-cg": lambda A, path, n: solve(
        A, torch.stack([B, B.cumsum(0)], 1), "block-cg", rtol=1e-12, checkpoint=path, max_products=n
    ),
    **{
        f"trace {method}": lambda A, path, n, method=method: hesse.trace(
            A, method=method, rtol=0, generator=seeded(), checkpoint=path, max_products=n
        )
        for method in ("hutchinson", "hutch++", "xtrace", "xnystrace")
    },
    **{
        f"density {method}": lambda A, path, n, method=method: hesse.spectral_density(
            A, method=method, generator=seeded(), checkpoint=path, max_products=20 * n
        )
        for method in ("lanczos", "kernel-polynomial")
    },
    "logdet": lambda A, path, n: hesse.logdet(
        A, rtol=1e-9, generator=seeded(), checkpoint=path, max_products=10 * n
    ),
    "svds": lambda A, path, n: hesse.svds(
        A, 2, generator=seeded(), checkpoint=path, max_products=n + 20
    ),
    "minimize": lambda A, path, n: hesse.minimize(
        partial(quartic, A.to_dense()), B, checkpoint=path, max_iterations=n
    ),
    "least_squares": lambda A, path, n: hesse.least_squares(
        partial(fourths, A.to_dense()), B, checkpoint=path, max_iterations=n
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("little_memory")
def test_a_forged_count_takes_no_memory(name, tmp_path, thorough):
    """In the file of any function; with --thorough each number is too large and negative."""
    path = tmp_path / "run"
    call = RUNS[name]
    ends(lambda A: call(A, path, 10))
    files = sorted(tmp_path.iterdir())
    assert files
    for each in files:
        with safe_open(each, framework="pt") as file:
            header = json.loads(file.metadata()["hesse"])
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        del header["checksum"]
        for number, place in enumerate(leaves(header["state"])):
            for new in (2**40, -1) if thorough or number % 3 == 0 else (2**40,):
                changed = {**header, "state": replaced(header["state"], place, new)}
                write(each, changed, tensors)
                ends(lambda A: call(A, path, 20))


def test_a_field_that_is_none_of_the_state_is_refused(good, tmp_path):
    """No attribute of an object is set that is not saved."""
    _, header, tensors = good
    header = {k: v for k, v in header.items() if k != "checksum"}
    for name in ("__class__", "__dict__", "A", "step"):
        changed = copy.deepcopy(header)
        changed["state"]["fields"][name] = 1
        write(tmp_path / "run", changed, tensors)
        with pytest.raises(ArgumentError, match="a state with the fields"):
            run(tmp_path / "run")
