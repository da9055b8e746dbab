# SPDX-License-Identifier: Apache-2.0
"""The pages of the guide run from top to bottom, and print what they say."""

import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = _module(ROOT / "docs" / "hooks" / "examples.py")
PAGES = [
    "getting-started",
    "how-to-extend",
    "engine",
    "kfac",
    "least-squares",
    pytest.param("how-to-choose", marks=[pytest.mark.slow, pytest.mark.no_cover]),
    "sparse-hessians",
    "implicit",
    "influence",
    "curvature-over-training",
    "tangent-kernels",
    "laplace",
    "pruning",
    "standard-errors",
    "vibrations",
    pytest.param("products", marks=[pytest.mark.slow, pytest.mark.no_cover]),
    pytest.param("solving-and-measuring", marks=[pytest.mark.slow, pytest.mark.no_cover]),
]


@pytest.fixture(autouse=True)
def _fresh_interpreter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("name", PAGES)
def test_page_runs_and_prints_what_it_says(name):
    path = ROOT / "docs" / f"{name}.md"
    blocks = docs.examples(path.read_text(encoding="utf-8"))
    assert blocks
    namespace = {"__name__": name}
    for block in blocks:
        printed = docs.run(block, namespace, path)
        assert docs.agrees(block.output or "", printed), (
            f"docs/{name}.md, line {block.line}: the block printed\n{printed}\n"
            f"If that is right: python docs/hooks/examples.py docs/{name}.md"
        )


@pytest.mark.slow
def test_pictures_are_drawn_and_shown():
    pictures = _module(ROOT / "docs" / "pictures" / "draw.py").PICTURES
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    for name, draw in pictures.items():
        assert f"](pictures/{name}.svg)" in pages
        assert draw().rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("expected", "printed", "is_equal"),
    [
        ("0.33\n", "0.3333\n", True),
        ("0.33\n", "0.35\n", False),
        ("1.2e-05", "1.3e-05", True),
        ("1.2e-05", "1.2e-03", False),
        ("12 products", "13 products", False),
        ("about 12 products", "about 13 products", True),
        ("about 12 products", "about 16 products", False),
        ("a ... b 2", "a x y b 2", True),
        ("-1.50", "1.50", False),
        ("text", "", False),
    ],
)
def test_outputs_are_compared_to_the_last_digit_shown(expected, printed, is_equal):
    assert docs.agrees(expected, printed) == is_equal
