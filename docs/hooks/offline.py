# SPDX-License-Identifier: Apache-2.0
"""Warn of whatever a page would fetch from elsewhere, so that a strict build ends."""

import logging
import re

log = logging.getLogger("mkdocs.plugins.offline_pages")
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
    r"|@import[^;]*//[^;]*|url\([\"']?(?:https?:)?//[^)]*"
)


def on_post_page(output, page, **_):
    """Called by MkDocs with each page as it is written."""
    for request in requests(output):
        log.warning("%s: the page fetches %s", page.file.src_uri, request)
    return output


def requests(html):
    """The elements of a page that load something from the network when it is opened.

    >>> requests('<script src="https://cdn.org/a.js"></script><script src="a.js"></script>')
    ['<script src="https://cdn.org/a.js">']
    """
    return [found for found in _FETCHED.findall(html) if 'rel="canonical"' not in found]
