# SPDX-License-Identifier: Apache-2.0
"""`Risk`: a model, a loss and data as one scalar function of the parameters."""

from hesse.risk.per_example import PerExample
from hesse.risk.risk import Risk

__all__ = ["PerExample", "Risk"]
