# SPDX-License-Identifier: Apache-2.0
"""How much memory a program takes, and how to take less of it."""
