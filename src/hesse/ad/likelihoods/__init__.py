# SPDX-License-Identifier: Apache-2.0
"""Losses as likelihoods: their Fisher matrices, roots of these, and random draws."""

from hesse.ad.likelihoods.likelihood import Likelihood
from hesse.ad.likelihoods.seen import LikelihoodCalls, SeenLoss, seen_loss

__all__ = ["Likelihood", "LikelihoodCalls", "SeenLoss", "seen_loss"]
