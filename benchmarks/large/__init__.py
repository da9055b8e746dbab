# SPDX-License-Identifier: Apache-2.0
"""Functions of very many variables: seconds, products and memory of Hesse, SciPy and GALAHAD.

`functions` are the problems, `job` is one run in a process of its own, `command` starts and
resumes these and writes the table.
"""

from benchmarks.large.command import main

__all__ = ["main"]
