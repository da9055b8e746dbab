# SPDX-License-Identifier: Apache-2.0
"""Tangent kernels: a model that is linear in the change of its parameters."""
