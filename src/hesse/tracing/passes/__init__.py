# SPDX-License-Identifier: Apache-2.0
"""Rewrites of a traced graph, one a file."""
