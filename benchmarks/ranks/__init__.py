"""Products and eigenvalues over several processes: what they send, take and need.

`processes` starts some over gloo. `efficiency`, `memory` and `peer` are a table each; `command`
prints them.
"""

from benchmarks.ranks.command import main

__all__ = ["main"]
