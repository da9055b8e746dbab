# SPDX-License-Identifier: Apache-2.0
"""Put every decision into the navigation, in order, under the title that it has."""

from pathlib import Path

SECTION = "Decisions"


def on_config(config):
    """Called by MkDocs with what mkdocs.yml says."""
    for item in config.nav:
        if SECTION in item:
            item[SECTION] = ["decisions/index.md", *decisions(Path(config.docs_dir))]
    return config


def decisions(docs):
    """The pages docs/decisions/0001-*.md and so on, relative to docs."""
    return [page.relative_to(docs).as_posix() for page in sorted(docs.glob("decisions/[0-9]*.md"))]
