# SPDX-License-Identifier: Apache-2.0
"""Which weights of a model can be set to zero, and how the others make up for them."""
