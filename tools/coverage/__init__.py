# SPDX-License-Identifier: Apache-2.0
"""The table of coverage: which rule covers which parameter (`python -m tools.coverage`)."""
