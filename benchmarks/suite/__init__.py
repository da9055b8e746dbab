# SPDX-License-Identifier: Apache-2.0
"""Smooth problems: profiles of Hesse's methods and of other libraries, and how each run ended.

`counted` counts what a solver asks of f, `solvers` and `peers` run them, `verdict` judges where
they end, `worker` is the process of one solver, `runs` starts and resumes these, `profiles` and
`tables` compare.
"""

from benchmarks.suite.command import main

__all__ = ["main"]
