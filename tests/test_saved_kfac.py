# SPDX-License-Identifier: Apache-2.0
"""A saved K-FAC operator that is damaged, or from a stranger, is refused with a message."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hesse import Risk, ekfac_operator, kfac_operator, load_kfac
from hesse.errors import ArgumentError
from hesse.saving.tensor_file import write


def operator(make=ekfac_operator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.LayerNorm(2))
    risk = Risk(model, nn.CrossEntropyLoss(), (torch.randn(5, 3), torch.arange(5) % 2))
    return make(risk, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The header and the tensors of a good file."""
    path = tmp_path_factory.mktemp("kfac") / "k"
    operator().save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hesse"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["checksum"]
    return header, tensors


def setting(*path, to):
    """A change of one entry of the header."""

    def change(header, tensors):
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = to

    return change


def dropping(name):
    return lambda header, tensors: tensors.pop(name)


def replacing(name, new):
    def change(header, tensors):
        tensors[name] = new(tensors[name])

    return change


STRANGE = {
    "another format": setting("format", to="kfac 1"),
    "no blocks": setting("blocks", to=[]),
    "blocks that are no list": setting("blocks", to=3),
    "a shape of 10^15 entries": setting("space", 0, 1, to=[10**15]),
    "a negative shape": setting("space", 0, 1, to=[-4, -3]),
    "a dtype that is a function": setting("space", 0, 2, to="load"),
    "integers": setting("space", 0, 2, to="int64"),
    "a name twice": setting("space", 0, 0, to="0.bias"),
    "a name that is a list": setting("space", 0, 0, to=["0.weight"]),
    "a range beyond the end": setting("blocks", 0, "place", to=[[0, 10**15], [12, 16]]),
    "ranges that overlap": setting("blocks", 0, "place", to=[[0, 12], [0, 4]]),
    "three ranges": setting("blocks", 0, "place", to=[[0, 12], [12, 14], [14, 16]]),
    "a range of fractions": setting("blocks", 0, "place", to=[[0.0, 12.0], [12.0, 16.0]]),
    "an unknown kind": setting("blocks", 0, "kind", to="os.system"),
    "a rule that is a number": setting("blocks", 0, "rule", to=1),
    "negative damping": setting("damping", to=-1.0),
    "damping that is a text": setting("damping", to="1.0"),
    "infinite weight decay": setting("weight_decay", to=float("inf")),
    "an unknown form of damping": setting("damping_form", to="best"),
    "no left factor": dropping("0.left"),
    "no eigenvalues": dropping("0.d"),
    "a factor that is not square": replacing("0.left", lambda L: L[..., :-1].contiguous()),
    "a factor of integers": replacing("0.left", lambda L: L.long()),
    "a factor of another dtype": replacing("0.left", lambda L: L.double()),
    "a factor of another size": replacing("0.left", lambda L: L[..., :-1, :-1].contiguous()),
    "too many eigenvalues": replacing("0.d", lambda d: torch.cat([d, d])),
    "a vector as a factor": replacing("0.right", lambda R: R.reshape(-1)),
    "entries by another index": lambda header, tensors: tensors.update(
        {"0.index": torch.zeros(16, dtype=torch.int64)}
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_saved_operator_is_refused(name, saved, tmp_path):
    header, tensors = copy.deepcopy(saved)
    STRANGE[name](header, tensors)
    write(tmp_path / "k", header, tensors)
    with pytest.raises(ArgumentError, match=r"(?s)hesse\.load_kfac\(path\).*Save the operator"):
        load_kfac(tmp_path / "k")


def test_the_header_unchanged_is_taken(saved, tmp_path):
    write(tmp_path / "k", *saved)
    torch.testing.assert_close(load_kfac(tmp_path / "k").to_dense(), operator().to_dense())


def test_a_file_cut_short_or_with_another_byte_is_refused(tmp_path):
    path = tmp_path / "k"
    operator(kfac_operator).save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(ArgumentError, match="load_kfac"):
            load_kfac(path)


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path):
    K = operator(kfac_operator)
    with pytest.raises(ArgumentError, match="a folder that exists"):
        K.save(tmp_path / "missing" / "k")
    with pytest.raises(ArgumentError, match="the path of a file"):
        K.save(None)
    with pytest.raises(ArgumentError, match="missing"):
        load_kfac(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []
