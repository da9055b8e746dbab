# SPDX-License-Identifier: Apache-2.0
"""A small picture of a pattern, in characters."""

from __future__ import annotations

from typing import Any

import numpy as np

# The eight dots of a braille character, two columns of four, by the bit of each.
_DOTS = np.array([[0, 3], [1, 4], [2, 5], [6, 7]])


def picture(pattern: Any, lines: int = 8) -> list[str]:
    """The pattern as so many lines of braille characters; a dot for a block that is not empty.

    >>> import scipy.sparse as sp
    >>> picture(sp.csr_array(np.eye(8)), 2)
    ['⠑⢄⠀⠀', '⠀⠀⠑⢄']
    """
    n = max(1, pattern.shape[0])
    dots = min(4 * lines, 4 * -(-n // 4))
    rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    scale = dots / max(n, dots)
    grid = np.zeros((dots, dots), dtype=bool)
    grid[(rows * scale).astype(int), (pattern.indices * scale).astype(int)] = True
    cells = grid.reshape(dots // 4, 4, dots // 2, 2).transpose(0, 2, 1, 3)
    codes = 0x2800 + (cells << _DOTS).sum(axis=(2, 3))
    return ["".join(map(chr, line)) for line in codes]
