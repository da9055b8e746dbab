"""Products and eigenvalues over several processes: what they send, take and need.

`processes` starts some over gloo. `efficiency`, `memory` and `peer` measure a table each, `model`
predicts one for GPUs; `command` prints them.
"""

from benchmarks.ranks.command import main

__all__ = ["main"]
