# SPDX-License-Identifier: Apache-2.0
"""How long the tensors of a program live, and how it takes less memory."""
