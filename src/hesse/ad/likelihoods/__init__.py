# SPDX-License-Identifier: Apache-2.0
"""Losses as likelihoods: their Fisher matrices, roots of these, and random draws."""

from hesse.ad.likelihoods.likelihood import Likelihood as Likelihood
from hesse.ad.likelihoods.seen import LikelihoodCalls as LikelihoodCalls
from hesse.ad.likelihoods.seen import SeenLoss as SeenLoss
from hesse.ad.likelihoods.seen import seen_loss as seen_loss
