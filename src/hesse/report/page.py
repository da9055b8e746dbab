# SPDX-License-Identifier: Apache-2.0
"""The report as one self-contained HTML page."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined


def render(**content: Any) -> str:
    """The page with its figures and tables filled in; refers to nothing outside itself."""
    template = files("hesse.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(**content)
