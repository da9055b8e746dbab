"""What products by the engine cost in time and memory: the figures that the documentation quotes.

`command` runs the studies, one file each; `study` is what they have in common, `table` the report.
"""

from benchmarks.engine.command import main

__all__ = ["main"]
