# SPDX-License-Identifier: Apache-2.0
"""Expand `::: hesse.krylov` on a page into the public names of hesse.krylov, one entry each.

A function and the file it lives in often share a name (`hesse.krylov.eigsh`): the running package
means the function, a static reader of the files the file. So the names are taken from the running
package, and each is shown from where it is defined, under the shortest name that imports it.

`[hesse.index]` on a page becomes a table of all public names, a section for each package.
"""

import importlib
import inspect
import json
import re
from types import ModuleType

import hesse

# Every package that users import from, in the order in which they build on one another, and the
# modules whose classes are the bases of results and of what a user adds.
PACKAGES = [
    "hesse.errors",
    "hesse.result",
    "hesse.methods",
    "hesse.ranks",
    "hesse.distributed",
    "hesse.vectors",
    "hesse.operators",
    "hesse.krylov",
    "hesse.krylov.preconditioners",
    "hesse.krylov.method",
    "hesse.estimators",
    "hesse.ad.definition",
    "hesse.risk",
    "hesse.curvature",
    "hesse.curvature.sparse",
    "hesse.engine.plan",
    "hesse.optimize",
    "hesse.apps",
    "hesse.optimize.method",
    "hesse.scipy",
    "hesse.testing",
]
# Shown although their names begin with an underscore: arithmetic, indexing, and what a subclass
# of LinearOperator may define.
_SPECIAL = "matmul|add|sub|mul|truediv|neg|getitem|call|enter|exit"
_PROTOCOL = (
    "matvec|rmatvec|matmat|rmatmat|curvature|inverse|diagonal|plus_diagonal|split_shift|in_space"
)
_HIDDEN = rf"^_(?!_({_SPECIAL})__$)"
_HIDDEN_OF_OPERATOR = rf"^_(?!_({_SPECIAL})__$|({_PROTOCOL})$)"


def on_page_markdown(markdown, page, **_):
    """Called by MkDocs with the text of each page."""
    markdown = re.sub(r"^::: (hesse[.\w]*)$", lambda match: entries(match[1]), markdown, flags=re.M)
    if "[hesse.index]" in markdown:
        markdown = markdown.replace("[hesse.index]", index())
    return markdown


def names_of(package_name):
    """The public names of a package, and the public classes that are defined in a module."""
    package = importlib.import_module(package_name)
    classes = [
        name
        for name, value in vars(package).items()
        if inspect.isclass(value) and value.__module__ == package_name and not name.startswith("_")
    ]
    return list(dict.fromkeys([*getattr(package, "__all__", []), *classes]))


def page_of(package_name):
    """The page that shows a package, such as `krylov` for hesse.krylov.method."""
    return "curvature" if package_name == "hesse.engine.plan" else package_name.split(".")[1]


def title(package_name, name):
    """The shortest name under which the object is imported, such as `hesse.solve`."""
    value = getattr(importlib.import_module(package_name), name)
    return f"hesse.{name}" if getattr(hesse, name, None) is value else f"{package_name}.{name}"


def entries(package_name):
    """The reference of one package, as mkdocstrings reads it."""
    package = importlib.import_module(package_name)
    parts = [_entry(package_name, members=False)]
    for name in names_of(package_name):
        value = getattr(package, name)
        options = {
            "show_root_heading": True,
            "show_root_toc_entry": True,
            "heading": title(package_name, name),
            "toc_label": name,
        }
        if inspect.isclass(value):
            options |= _class_options(value)
        parts.append(_entry(_home(package_name, name, value), **options))
        parts.extend(_inherits(value))
    return "\n".join(parts)


def index():
    """A table of every public name with the first line of its docstring, by package."""
    lines = []
    for package_name in PACKAGES:
        page = page_of(package_name)
        lines += [f"\n## [{package_name}]({page}.md)\n", "| name | what it is |", "|---|---|"]
        package = importlib.import_module(package_name)
        for name in names_of(package_name):
            value = getattr(package, name)
            text = summary(value).replace("|", "\\|")
            target = f"{page}.md#{_home(package_name, name, value)}"
            lines.append(f"| [`{title(package_name, name)}`]({target}) | {text} |")
    return "\n".join(lines)


def summary(value):
    """The first line of the docstring of a function, class or module of Hesse, else ""."""
    home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
    text = inspect.getdoc(value) if (home or "").startswith("hesse.") else ""
    return (text or "").partition("\n")[0]


def _entry(path, **options):
    lines = [f"      {key}: {json.dumps(value)}" for key, value in options.items()]
    return f"::: {path}\n    options:\n" + "\n".join(lines) + "\n"


def _home(package_name, name, value):
    """The module and name where it is defined."""
    if isinstance(value, ModuleType):
        return value.__name__
    home = getattr(value, "__module__", "") or ""
    return f"{home}.{name}" if home.startswith("hesse.") else f"{package_name}.{name}"


def _class_options(value):
    """What to show of a class: also what it inherits from a base that no entry shows."""
    documented = [base for base in _documented() if base is not value]
    shown = {base for parent in documented if parent in value.__mro__ for base in parent.__mro__}
    bases = [base for base in value.__mro__[1:] if base.__module__.startswith("hesse.")]
    hidden = [base for base in bases if base not in shown]
    unwanted = _HIDDEN_OF_OPERATOR if value is hesse.LinearOperator else _HIDDEN
    inherited = [
        name
        for base in hidden
        for name in vars(base)
        if name not in vars(value) and not re.match(unwanted, name)
    ]
    return {
        "inherited_members": list(dict.fromkeys(inherited)),
        "filters": [f"!{unwanted}"],
        "show_bases": not bases,
    }


def _inherits(value):
    """A line on the documented bases of a class."""
    if not inspect.isclass(value):
        return []
    known = _documented()
    bases = [known[base] for base in value.__mro__[1:] if base in known]
    links = [f"[`{name}`][{path}]" for name, path in bases]
    return [f"And everything of {', '.join(links)}.\n"] if links else []


def _documented():
    """Every class that has an entry: its title and its path."""
    found = {}
    for package_name in PACKAGES:
        package = importlib.import_module(package_name)
        for name in names_of(package_name):
            value = getattr(package, name)
            if inspect.isclass(value):
                found[value] = title(package_name, name), _home(package_name, name, value)
    return found
