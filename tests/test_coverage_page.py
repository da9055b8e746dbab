# SPDX-License-Identifier: Apache-2.0
"""Every parameter of unedited models has a rule or is named, as the page says."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "tools" / "coverage").exists(), reason="a source distribution has no tools/"
)
MODELS = ["GPT-2", "Llama", "BERT", "ViT", "ResNet-18", "LSTM", "Mixtral"]


@pytest.fixture(scope="module")
def tools():
    """The modules of the tool."""
    sys.path.insert(0, str(ROOT))
    try:
        names = ("models", "page", "rules")
        yield {name: importlib.import_module(f"tools.coverage.{name}") for name in names}
    finally:
        sys.path.remove(str(ROOT))


def test_the_page_has_all_models(tools):
    sections = tools["page"].sections(tools["page"].PAGE.read_text(encoding="utf-8"))
    assert list(tools["models"].MODELS) == MODELS
    assert list(sections) == ["", *MODELS]
    summary = [line for line in sections[""].splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in summary[1:]] == MODELS


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_has_a_rule_or_is_named(tools, model):
    if model != "LSTM":
        pytest.importorskip("transformers")
    make = tools["models"].MODELS[model]
    rows = tools["rules"].rows_of(make)  # raises for one of which nothing is said
    assert sum(row.count for row in rows) == len(make().params)
    page = tools["page"]
    sections = page.sections(page.PAGE.read_text(encoding="utf-8"))
    ours = page.sections(page.text({model: rows}))
    assert sections[model] == ours[model], "run make coverage"
    (line,) = (line for line in ours[""].splitlines() if line.startswith(f"| {model} |"))
    assert line in sections[""].splitlines()


def test_what_has_no_rule_is_named(tools):
    import torch
    from torch import nn

    import hesse

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.v, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.tanh(x @ (self.v / self.v.norm()).T))

    def risk():
        data = torch.randn(6, 4), torch.randint(0, 3, (6,))
        return hesse.Risk(Normalised(), nn.CrossEntropyLoss(), data)

    rows = tools["rules"].rows_of(risk)
    assert tools["rules"].uncovered(rows) == ["v"]
    assert "| Normalised | 3 | `v` |" in tools["page"].text({"Normalised": rows})
