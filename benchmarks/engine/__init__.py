"""What the prepared products of Hesse cost to make and to keep: the figures that its texts quote.

`command` runs the studies, one file each; `study` is what they have in common, `table` the report.
"""

from benchmarks.engine.command import main

__all__ = ["main"]
