# SPDX-License-Identifier: Apache-2.0
"""Memory: how much tensors hold, how much a user allows, how much there is."""
