# SPDX-License-Identifier: Apache-2.0
"""Data: batches, their weights and slices, and checks that every sweep gives the same data."""
