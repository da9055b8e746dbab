# SPDX-License-Identifier: Apache-2.0
"""Each example of the README runs, on its own."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(page):
    """The Python blocks of a page, below empty lines: a traceback names the line of the page."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        yield pytest.param("\n" * line + match.group(1), id=f"line{line + 1}")


@pytest.fixture(autouse=True)
def _fresh_interpreter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("source", list(_blocks(README)))
def test_readme_block_runs(source):
    exec(compile(source, str(README), "exec"), {"__name__": "readme"})
