# SPDX-License-Identifier: Apache-2.0
"""Derivatives: the definition of every product, a function of (f, x, v) that is linear in v."""
