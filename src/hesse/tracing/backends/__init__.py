# SPDX-License-Identifier: Apache-2.0
"""Compilers and kernels that run a program faster than torch does node by node."""
