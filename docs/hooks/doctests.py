# SPDX-License-Identifier: Apache-2.0
"""Show the doctests of docstrings as code; to Markdown `>>>` is a quotation in a quotation."""

from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

# Before the fences are read, which pymdownx.superfences does at 25.
_PRIORITY = 26


def on_config(config):
    """Called by MkDocs with what mkdocs.yml says; pages and docstrings share its extensions."""
    config.markdown_extensions.append(FencedDoctests())
    return config


class FencedDoctests(Extension):
    """A Markdown extension: a paragraph that begins with `>>> ` is fenced as pycon."""

    def extendMarkdown(self, md):
        """Called by Markdown."""
        md.preprocessors.register(_Fence(md), "fenced_doctests", _PRIORITY)


class _Fence(Preprocessor):
    def run(self, lines):
        return fenced(lines)


def fenced(lines):
    """The lines, with a fence around each doctest that is not in one.

    >>> fenced(["Text.", "", ">>> 1 + 1", "2"])
    ['Text.', '', '```pycon', '>>> 1 + 1', '2', '```']
    """
    result, in_doctest, in_fence = [], False, False
    for line in [*lines, ""]:
        in_fence ^= line.lstrip().startswith("```")
        if in_doctest and not line.strip():
            result.append("```")
            in_doctest = False
        elif not in_doctest and not in_fence and line.startswith(">>> "):
            result.append("```pycon")
            in_doctest = True
        result.append(line)
    return result[:-1]
