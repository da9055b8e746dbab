# SPDX-License-Identifier: Apache-2.0
"""Standard errors and likelihood intervals of maximum likelihood estimates."""
