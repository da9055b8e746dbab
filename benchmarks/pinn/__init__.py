# SPDX-License-Identifier: Apache-2.0
"""Differential equations by networks: `least_squares` on the residuals, nothing tuned for one.

`equations` are the problems, `network` is the function that is fitted with its derivatives,
`collocation` makes residuals of both, `command` fits and reports.
"""

from benchmarks.pinn.command import main

__all__ = ["main"]
