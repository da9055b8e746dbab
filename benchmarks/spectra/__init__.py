"""Hesse's Krylov methods and estimators beside their peers, on one Hessian.

`exact` computes the answers by other methods. `job` is a question with those who answer it; each
question has a file. `peers` counts the products of other libraries, `tuning` finds their settings,
`rounds` measures, `table` is the report.
"""

from benchmarks.spectra.command import main

__all__ = ["main"]
