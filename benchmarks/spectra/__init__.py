"""Hesse's Krylov methods and estimators beside their peers, on one Hessian.

`network` is what is looked at, `exact` the answers by routes of their own, `jobs` the list of what
is asked; a file for each of them says who answers and how. `peers` counts the products of others,
`tuning` finds their settings, `rounds` measures, `table` is the report.
"""

from benchmarks.spectra.command import main

__all__ = ["main"]
