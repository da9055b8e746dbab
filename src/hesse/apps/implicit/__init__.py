# SPDX-License-Identifier: Apache-2.0
"""Solutions of equations as differentiable functions of their parameters."""
