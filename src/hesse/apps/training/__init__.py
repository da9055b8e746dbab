# SPDX-License-Identifier: Apache-2.0
"""Curvature over training: a tracker, and pictures of the landscape."""
