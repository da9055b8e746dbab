# SPDX-License-Identifier: Apache-2.0
"""Run the examples of a page, and compare or refresh what they print.

A page is one program: its Python blocks run from top to bottom in one namespace. A text block that
follows a Python block is what that prints. Numbers may differ by a unit of the last digit shown,
an integer after the word "about" by a fifth; `...` stands for anything.
`python docs/hooks/examples.py docs/getting-started.md` runs a page and writes the present output
into it.
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[+-]?\d+)?", re.IGNORECASE)


class Example(NamedTuple):
    """A Python block: where its code begins, the code, and what the page says that it prints."""

    line: int
    source: str
    output: str | None


def examples(text):
    """The Python blocks of a page."""
    return [
        Example(text.count("\n", 0, match.start(1)) + 1, match[1], match[2])
        for match in BLOCK.finditer(text)
    ]


def run(example, namespace, path):
    """What the block prints. A traceback names the line of the page."""
    code = compile("\n" * (example.line - 1) + example.source, str(path), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def agrees(expected, printed):
    """Whether the output is the expected one, up to the last digit of its numbers.

    >>> agrees("x = 0.33, ... products", "x = 0.3333, 12 products")
    True
    >>> agrees("x = 0.33", "x = 0.35")
    False
    """
    pattern, numbers, position = "", [], 0
    for match in _NUMBER.finditer(expected):
        pattern += _literal(expected[position : match.start()]) + f"({_NUMBER.pattern})"
        is_rough = expected[: match.start()].endswith("about ")
        numbers.append((match[0], is_rough))
        position = match.end()
    found = re.fullmatch(pattern + _literal(expected[position:]), printed, re.DOTALL)
    return found is not None and all(
        abs(float(number) - float(other)) <= _unit(number, is_rough)
        for (number, is_rough), other in zip(numbers, found.groups(), strict=True)
    )


def refresh(path):
    """Run a page and write what its blocks print into it, where that differs."""
    text, namespace = path.read_text(encoding="utf-8"), {"__name__": path.stem}
    parts, position = [], 0
    for match, example in zip(BLOCK.finditer(text), examples(text), strict=True):
        printed = run(example, namespace, path)
        output = example.output
        if output is None or not agrees(output, printed):
            output = printed
        parts += [text[position : match.start()], f"```python\n{example.source}```\n"]
        parts += [f"\n```text\n{output}```\n"] if output else []
        position = match.end()
    path.write_text("".join([*parts, text[position:]]), encoding="utf-8")


def _literal(text):
    return r".*?".join(r"\s+".join(map(re.escape, re.split(r"\s+", t))) for t in text.split("..."))


def _unit(number, is_rough):
    """One unit of the last digit; of an integer nothing, or a fifth of it."""
    mantissa, _, exponent = number.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    is_integer = "." not in mantissa and not exponent
    if is_integer:
        return 0.2 * abs(float(number)) if is_rough else 0.0
    return 1.01 * 10.0 ** (int(exponent or 0) - decimals)


if __name__ == "__main__":
    import torch

    for argument in sys.argv[1:]:
        torch.manual_seed(0)
        refresh(Path(argument))
