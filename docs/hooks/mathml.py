# SPDX-License-Identifier: Apache-2.0
"""Write formulas as MathML, which a browser shows without a script or a font from elsewhere.

`pymdownx.arithmatex` marks the formulas of a page and of the docstrings; a formula that cannot be
converted is a warning, and so the end of a strict build.
"""

import logging
import re
from html import unescape
from xml.etree import ElementTree

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.plugins.mathml")
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(html, page, **_):
    """Called by MkDocs with the HTML of each page."""
    return _FORMULA.sub(lambda match: _converted(match, page.file.src_uri), html)


def mathml(latex, display):
    """The <math> element of a LaTeX formula; raises an error if it is not well-formed XML."""
    text = convert(re.sub(r"\\arg\b", r"\\operatorname{arg}", latex), display=display)
    ElementTree.fromstring(text)
    if "\\" in text:
        raise ValueError("a command of LaTeX that is not known")
    return text


def _converted(match, where):
    latex = unescape(match["latex"]).strip()
    display = "block" if match["tag"] == "div" else "inline"
    try:
        formula = mathml(latex, display)
    except Exception as error:
        log.warning("%s: the formula %r cannot be converted: %s", where, latex, error)
        return match[0]
    return f"<{match['tag']}>{formula}</{match['tag']}>"
