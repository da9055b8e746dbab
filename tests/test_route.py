# SPDX-License-Identifier: Apache-2.0
"""A product runs little code: the limits on files and functions that a newcomer has to read."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hesse.operators import diagonal_operator

TOOL = Path(__file__).parents[1] / "tools" / "trace_product.py"
LIMITS = ["--limit-files=12", "--limit-functions=50", "--limit-first-files=18"]

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="a source distribution has no tools/")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("trace_product", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["trace_product"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_products_stay_within_the_limits_on_files_and_functions():
    done = subprocess.run([sys.executable, TOOL, *LIMITS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("construction", "first product", "tracing product", "100th product"):
        assert f"| {row} |" in done.stdout


def test_the_tool_fails_above_a_limit(tool, monkeypatch, capsys):
    with tool.following() as route:
        _ = diagonal_operator(torch.tensor([1.0, 2.0])) @ torch.ones(2)
    routes = {"first product": route, "100th product": route}
    monkeypatch.setattr(tool, "measure", lambda: routes)
    count = len(route.files)
    assert tool.main([f"--limit-files={count}", f"--limit-first-files={count}"]) == 0
    assert tool.main([f"--limit-first-files={count - 1}"]) == 1
    assert f"first product: {count}, above the limit of {count - 1}" in capsys.readouterr().err


def test_a_flat_vector_reaches_its_operator_through_few_functions(tool):
    D, v = diagonal_operator(torch.tensor([1.0, 2.0])), torch.ones(2)
    _ = D @ v
    with tool.following() as route:
        product = D @ v
    assert torch.equal(product, torch.tensor([1.0, 2.0]))
    own = "operators/diagonal.py"
    files = [file for file in route.files if file != own]
    assert files == ["boundary.py", "operators/products.py", "surroundings.py", "vectors/space.py"]
    assert len(route.functions()) - len(route.functions(own)) <= 8
