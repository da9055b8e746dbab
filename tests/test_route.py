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


def test_products_stay_within_the_limits_on_files_and_functions():
    done = subprocess.run([sys.executable, TOOL, *LIMITS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tool_prints_a_table_and_fails_above_a_limit():
    command = [sys.executable, TOOL, "--limit-files=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "above the limit of 1" in done.stderr
    for row in ("construction", "first product", "tracing product", "100th product"):
        assert f"| {row} |" in done.stdout


def test_a_flat_vector_reaches_its_operator_through_few_functions():
    spec = importlib.util.spec_from_file_location("trace_product", TOOL)
    tool = importlib.util.module_from_spec(spec)
    sys.modules["trace_product"] = tool  # where dataclasses look
    spec.loader.exec_module(tool)
    D, v = diagonal_operator(torch.tensor([1.0, 2.0])), torch.ones(2)
    _ = D @ v
    with tool.following() as route:
        product = D @ v
    assert torch.equal(product, torch.tensor([1.0, 2.0]))
    own = "operators/diagonal.py"
    files = [file for file in route.files if file != own]
    assert files == ["boundary.py", "operators/products.py", "surroundings.py", "vectors/space.py"]
    assert len(route.functions()) - len(route.functions(own)) <= 8
