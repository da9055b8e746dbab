# SPDX-License-Identifier: Apache-2.0
"""Data: batches and their weights, and whether every sweep over them sees the same."""
