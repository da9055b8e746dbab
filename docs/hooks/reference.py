# SPDX-License-Identifier: Apache-2.0
"""Expand `::: hesse.krylov` on a page into the public names of hesse.krylov, one entry each.

A function and the file it lives in often share a name (`hesse.ad.hvp`): the running package means
the function, a static reader of the files the file. So the names are taken from the running
package, and each is shown from where it is defined, under the shortest name that imports it.
"""

import importlib
import re

import hesse


def on_page_markdown(markdown, **_):
    """Called by MkDocs with the text of each page."""
    return re.sub(r"^::: (hesse\.\w+)$", lambda match: _entries(match[1]), markdown, flags=re.M)


def _entries(module_name):
    module = importlib.import_module(module_name)
    own = [
        name
        for name in vars(module)
        if getattr(vars(module)[name], "__module__", "") == module_name
    ]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    entries = [f"::: {module_name}\n    options:\n      members: false\n"]
    for name in names:
        value = getattr(module, name)
        home = getattr(value, "__module__", "")
        defined = (
            f"{home}.{name}" if home.startswith(f"{module_name}.") else f"{module_name}.{name}"
        )
        heading = (
            f"hesse.{name}" if getattr(hesse, name, None) is value else f"{module_name}.{name}"
        )
        entries.append(
            f"::: {defined}\n    options:\n      show_root_heading: true\n"
            f"      show_root_toc_entry: true\n      heading: {heading}\n      toc_label: {name}\n"
        )
    return "\n".join(entries)
