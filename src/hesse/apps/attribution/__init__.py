# SPDX-License-Identifier: Apache-2.0
"""Which training examples make a model what it is."""
