# SPDX-License-Identifier: Apache-2.0
"""Kernels and compilers that run a program faster than operation by operation."""
