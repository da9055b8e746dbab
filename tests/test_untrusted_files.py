# SPDX-License-Identifier: Apache-2.0
"""A checkpoint from a stranger runs no code, and takes no more memory than it has bytes."""

import json
import os
import pickle
import struct
import threading
import zipfile
from pathlib import Path

import pytest
import torch

import hesse
from hesse.errors import ArgumentError
from hesse.krylov import eigsh
from tests.checkpoint_runs import DOUBLE, N, one_tensor, run, tensors_file


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
    "a run key that is a list": with_metadata('{"run_key": [], "fingerprints": {}}'),
    "a run key of another format": with_metadata('{"run_key": {"format": 99}, "fingerprints": {}}'),
    "a format of a million signs": with_metadata(
        json.dumps({"run_key": {"format": "x" * 10**6}, "fingerprints": {}})
    ),
}


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
    unfinished = f"run.{os.getpid()}-{threading.get_ident()}.part"
    (tmp_path / unfinished).symlink_to(victim)
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
