# SPDX-License-Identifier: Apache-2.0
"""Losses as likelihoods: their Fisher matrices, roots of these, and random draws."""
