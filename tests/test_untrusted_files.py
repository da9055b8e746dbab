# SPDX-License-Identifier: Apache-2.0
"""A checkpoint from a stranger runs no code, and takes no more memory than it has bytes."""

import copy
import json
import math
import os
import pickle
import re
import resource
import signal
import struct
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import hesse
from hesse.errors import ArgumentError, HesseError
from hesse.krylov import CG, eigsh, solve
from hesse.operators import dense_operator
from hesse.saving.tensor_file import write

DOUBLE, N = torch.float64, 60


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix():
    M = torch.randn(N, N, generator=seeded(), dtype=DOUBLE)
    return M @ M.T / N + 0.1 * torch.eye(N, dtype=DOUBLE)


def run(path, **limits):
    """A run with a checkpoint, and its numbers."""
    return eigsh(matrix(), 3, generator=seeded(1), checkpoint=path, **limits).values


# -- Files that are no checkpoints -----------------------------------------------------------------


def tensors_file(header, data=b"", length=None):
    """The bytes of a safetensors file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one_tensor(**changes):
    entry = {"dtype": "F64", "shape": [4], "data_offsets": [0, 32], **changes}
    return tensors_file({"__metadata__": {"hesse": "{}"}, "x": entry}, bytes(32))


def with_metadata(text):
    return tensors_file({"__metadata__": {"hesse": text}})


class Bomb:
    """Unpickling it leaves a file."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


STRANGE = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"not a checkpoint",
    "a pickle": pickle.dumps(Bomb()),
    "a pickle in the header": tensors_file(pickle.dumps(Bomb())),
    "a pickle as metadata": with_metadata(pickle.dumps(Bomb(), 0).decode("latin-1")),
    "no metadata": tensors_file({"x": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}}),
    "other metadata": tensors_file({"__metadata__": {"format": "pt"}}),
    "metadata of numbers": tensors_file({"__metadata__": {"hesse": 3}}),
    "header longer than the file": tensors_file({}, length=10**6),
    "header of 10^15 bytes": tensors_file({}, length=10**15),
    "header of 2^64 - 1 bytes": tensors_file({}, length=2**64 - 1),
    "10^15 entries": one_tensor(shape=[10**15]),
    "10^15 entries and offsets": one_tensor(shape=[10**15], data_offsets=[0, 8 * 10**15]),
    "a product of sizes that overflows": one_tensor(shape=[2**40, 2**40]),
    "negative sizes": one_tensor(shape=[-4]),
    "two negative sizes": one_tensor(shape=[-2, -2]),
    "negative offsets": one_tensor(data_offsets=[-32, 0]),
    "offsets the wrong way round": one_tensor(data_offsets=[32, 0]),
    "offsets beyond the end": one_tensor(data_offsets=[0, 64]),
    "an unknown dtype": one_tensor(dtype="__import__('os')"),
    "no dtype": one_tensor(dtype=None),
    "a shape that is a text": one_tensor(shape="4"),
    "overlapping offsets": tensors_file(
        {
            "__metadata__": {"hesse": "{}"},
            "x": {"dtype": "F64", "shape": [4], "data_offsets": [0, 32]},
            "y": {"dtype": "F64", "shape": [4], "data_offsets": [16, 48]},
        },
        bytes(48),
    ),
    "a hole between tensors": tensors_file(
        {
            "__metadata__": {"hesse": "{}"},
            "x": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
            "y": {"dtype": "F64", "shape": [1], "data_offsets": [1008, 1016]},
        },
        bytes(1016),
    ),
    "a deep header": tensors_file(b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}"),
    "deep metadata": with_metadata("[" * 10**6 + "]" * 10**6),
    "deep objects as metadata": with_metadata('{"a":' * 10**5 + "1" + "}" * 10**5),
    "metadata that is no JSON": with_metadata("{'a': 1}"),
    "metadata that is no object": with_metadata("[1, 2]"),
    "metadata null": with_metadata("null"),
    "a number of a million digits": with_metadata('{"run_key": ' + "9" * 10**6 + "}"),
    "no run key": with_metadata("{}"),
    "a run key that is a list": with_metadata('{"run_key": [], "operator_fingerprints": {}}'),
    "a run key of another format": with_metadata(
        '{"run_key": {"format": 99}, "operator_fingerprints": {}}'
    ),
    "a format of a million signs": with_metadata(
        json.dumps({"run_key": {"format": "x" * 10**6}, "operator_fingerprints": {}})
    ),
}


@pytest.fixture
def little_memory():
    """At most 4 GB more of address space than now."""
    with Path("/proc/self/statm").open() as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.usefixtures("little_memory")
def test_what_is_no_checkpoint_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    path.write_bytes(STRANGE[name])
    with pytest.raises(ArgumentError, match=r"(?s)hesse.eigsh\(.*checkpoint=") as raised:
        run(path)
    assert len(str(raised.value)) < 2000
    assert path.read_bytes() == STRANGE[name]
    assert not Path("exploded").exists()


def test_a_zip_archive_is_not_opened(tmp_path):
    path = tmp_path / "run"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(10**7))
    torch_file = tmp_path / "other"
    torch.save({"x": torch.zeros(3)}, torch_file)
    for each in (path, torch_file):
        with pytest.raises(ArgumentError, match="a checkpoint of Hesse"):
            run(each)


def test_a_sparse_file_larger_than_the_memory_is_not_read(tmp_path):
    path, size = tmp_path / "run", 8 * 10**12
    entry = {"dtype": "F64", "shape": [size // 8], "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": {"hesse": "{}"}, "x": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    try:
        os.truncate(path, 8 + len(text) + size)
    except OSError:
        pytest.skip("no sparse files of 8 TB here")
    with pytest.raises(ArgumentError, match="more than the memory has left"):
        run(path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to a device"])
def test_what_is_no_file_is_refused_and_stays(kind, tmp_path):
    path = tmp_path / "run"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/full")
    else:
        path.symlink_to("/dev/zero")
    before = path.lstat().st_mode
    with pytest.raises(ArgumentError, match="can be written"):
        run(path)
    assert path.lstat().st_mode == before


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run.part").symlink_to(victim)
    run(tmp_path / "run")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("place", ["no/such/folder/run", "file/run"])
def test_where_nothing_can_be_written_nothing_is_computed(place, tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    calls = []
    A = hesse.function_operator(lambda v: calls.append(1) or v, N, symmetric=True, dtype=DOUBLE)
    with pytest.raises(ArgumentError, match="can be written"):
        eigsh(A, 3, checkpoint=tmp_path / place)
    assert not calls


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
        lambda x: (x**4).sum() + x @ (A.to_dense() @ x), B, checkpoint=path, max_products=n
    ),
    "least_squares": lambda A, path, n: hesse.least_squares(
        partial(fourths, A.to_dense()), B, checkpoint=path, max_iterations=n
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("little_memory")
def test_a_forged_count_takes_no_memory(name, tmp_path):
    """In the file of any function."""
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
        for place in leaves(header["state"]):
            for new in (2**40, -1):
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


# -- No pickle, no eval ----------------------------------------------------------------------------


def test_the_package_neither_pickles_nor_evaluates():
    """The one `exec` makes a function of a program that was traced in this process."""
    words = (
        r"\bpickle\b|torch\.load|torch\.save|\bmarshal\b|\bshelve\b|numpy\.load|(?<![.\w])eval\("
    )
    words += r"|(?<![.\w])exec\(|\bjoblib\b|\byaml\b"
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(hesse.__file__).parent.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(words, line)
    ]
    assert [line for line in found if "would pickle the message" not in line] == [
        "program_cache.py: A deep copy or a pickle is empty: programs are made again where they "
        "are wanted. Who takes",
        'program.py: exec(compile("\\n".join(lines), "<hesse program>", "exec"), names)',
    ]


def quartic(x):
    return (x**4).sum()


def tripled(v):
    return 3 * v


def test_objects_that_a_user_pickles_are_the_same_again():
    M, x = matrix(), torch.ones(N, dtype=DOUBLE)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    risk = hesse.Risk(model, nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 2)))
    operators = [
        dense_operator(M), dense_operator(M) + 2 * hesse.diagonal_operator(x),
        hesse.kronecker_operator(M[:4, :4], M[:3, :3]), hesse.low_rank_operator(M[:, :3], x[:3]),
        hesse.block_diagonal_operator([M, M]), hesse.inverse_operator(dense_operator(M)),
        hesse.function_operator(tripled, N, symmetric=True, dtype=DOUBLE),
        hesse.hessian_operator(quartic, x), hesse.hessian_operator(risk, risk.params),
        hesse.ggn_operator(risk, risk.params), hesse.jacobian_operator(quartic, x),
    ]  # fmt: skip
    for A in operators:
        for _ in range(2):  # also after a product
            copied, v = pickle.loads(pickle.dumps(A)), torch.ones(A.shape[1], dtype=A.dtype)
            assert torch.equal(copied @ v, A @ v)
    result = solve(M, x, CG())
    assert torch.equal(pickle.loads(pickle.dumps(result)).x, result.x)


def test_a_function_that_cannot_be_pickled_is_named():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(hesse.hessian_operator(lambda x: (x**2).sum(), torch.ones(2)))
