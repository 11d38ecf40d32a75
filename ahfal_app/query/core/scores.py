"""Scores of single samples from a model's outputs.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Gaps to the highest logit above this give a probability of 0; it keeps products finite.
_VANISHING = 1e4


def entropy(logits_NC: Tensor) -> Tensor:
    """Return the entropy of each row's softmax, in nats and float64. Shape (N,).

    With the gaps d_k to the highest logit and S = Σ exp(-d_k) over the other classes, it is
    log(1 + S) + Σ d_k exp(-d_k) / (1 + S): a sum of positive terms, so that the entropies of
    confident samples keep all their digits, too.
    """
    logits_NC = logits_NC.double()
    highest_N1, predicted_N1 = logits_NC.max(dim=1, keepdim=True)
    gaps_NC = (highest_N1 - logits_NC).clamp_(max=_VANISHING)
    weights_NC = torch.exp(-gaps_NC).scatter_(1, predicted_N1, 0.0)
    others_N = weights_NC.sum(dim=1)
    return torch.log1p(others_N) + (gaps_NC * weights_NC).sum(dim=1) / (1 + others_N)


def other_probabilities(logits_NC: Tensor) -> Tensor:
    """Return the probabilities of all but the likeliest class, falling, float64. Shape (N, C-1).

    Their sum is 1 - p₁, which as a difference would round confident samples to ties.
    """
    probabilities_NC = torch.softmax(logits_NC.double(), dim=1)
    return probabilities_NC.sort(dim=1, descending=True).values[:, 1:]


def margin_doubt(logits_NC: Tensor) -> Tensor:
    """Return 1 - (p₁ - p₂), how near the two likeliest classes are, float64. Shape (N,).

    As 2 p₂ + p₃ + … + p_C, where nothing is lost of small probabilities.
    """
    others_NC = other_probabilities(logits_NC)
    return others_NC.sum(dim=1) + others_NC[:, 0]
