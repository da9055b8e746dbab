# SPDX-License-Identifier: Apache-2.0
"""The report as one self-contained HTML page."""

from __future__ import annotations

import platform
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined


def render(**content: Any) -> str:
    """The page with its figures and tables filled in; refers to nothing outside itself."""
    template = files("hesse.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(**content)


def write_page(path: Path, **content: Any) -> Path:
    """Write the page, with the versions of what made it; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = (
        f"Hesse {version('hesse')}, PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.get_num_threads()} threads."
    )
    path.write_text(render(versions=versions, **content), encoding="utf-8")
    return path
