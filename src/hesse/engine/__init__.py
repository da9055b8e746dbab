# SPDX-License-Identifier: Apache-2.0
"""The engine: how the definition of a curvature matrix becomes a fast product at a point."""
