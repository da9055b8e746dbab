# SPDX-License-Identifier: Apache-2.0
"""Passes: rewrites of a graph that keep what it computes, one per file."""
