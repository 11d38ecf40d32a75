"""Scores of single samples from a model's outputs.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(logits_NC: Tensor) -> Tensor:
    """Return the entropy of each row's softmax, in nats and float64. Shape (N,).

    In float64 throughout: float32 rounds the entropies of confident samples to ties, and
    this is a vanishing part of a forward pass.
    """
    probabilities_NC = torch.softmax(logits_NC.double(), dim=1)
    entropy_N: Tensor = torch.special.entr(probabilities_NC).sum(dim=1)
    return entropy_N
