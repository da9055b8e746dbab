# SPDX-License-Identifier: Apache-2.0
"""Memory: how much tensors hold, and numbers of bytes as text."""
