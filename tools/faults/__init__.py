# SPDX-License-Identifier: Apache-2.0
"""The table of faults: what Hesse does when something goes wrong (`python -m tools.faults`)."""
