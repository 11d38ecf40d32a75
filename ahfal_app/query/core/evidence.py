"""Logits as evidence: Dirichlet distributions over class probabilities, and their loss.

The evidence for a class is its logit where positive, and the concentration alpha of the
Dirichlet distribution is the evidence + 1 (Sensoy, Kaplan and Kandemir, NeurIPS 2018; used
as in FEAL, Chen et al., CVPR 2024).

Shape suffixes: N samples, B of a batch, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, digamma, lgamma


def concentration(logits_NC: Tensor) -> Tensor:
    """Return the concentration of the Dirichlet distribution, float64, at least 1."""
    return torch.relu(logits_NC.double()) + 1.0


def aleatoric_uncertainty(alpha_NC: Tensor) -> Tensor:
    """Return the expected entropy of the class under the distribution, in nats. Shape (N,)."""
    total_N1 = alpha_NC.sum(dim=1, keepdim=True)
    terms_NC = alpha_NC / total_N1 * (digamma(total_N1 + 1) - digamma(alpha_NC + 1))
    return terms_NC.sum(dim=1)


def epistemic_uncertainty(alpha_NC: Tensor) -> Tensor:
    """Return the differential entropy of the distribution, which may be negative. Shape (N,)."""
    total_N = alpha_NC.sum(dim=1)
    num_classes = alpha_NC.shape[1]
    log_beta_N = lgamma(alpha_NC).sum(dim=1) - lgamma(total_N)
    spread_N = ((alpha_NC - 1) * digamma(alpha_NC)).sum(dim=1)
    return log_beta_N + (total_N - num_classes) * digamma(total_N) - spread_N


def evidential_losses(
    logits_NC: Tensor, labels_N: Tensor, prior_NC: Tensor, phased_in_N: Tensor, weight_N: Tensor
) -> Tensor:
    """Return FEAL's losses of samples; that of a batch is their mean. Shape (N,).

    The expected cross-entropy, weighted by 2 - prior of the label; plus, times `weight_N`, the
    divergence of the evidence for wrong classes from none, and a term that draws the label's
    logit up where there is no evidence, and so no gradient.

    Parameters
    ----------
    logits_NC, labels_N : Tensor
        Of the samples; float32 and int64.
    prior_NC : Tensor
        Share of each class among the client's labels. Shape (N, C) or (1, C).
    phased_in_N : Tensor
        Share of the divergence that counts, in [0, 1]. Shape (N,) or (1,).
    weight_N : Tensor
        The published lambda. Shape (N,) or (1,).
    """
    alpha_NC = torch.relu(logits_NC) + 1.0
    total_N1 = alpha_NC.sum(dim=1, keepdim=True)
    columns_N1 = labels_N[:, None]
    prior_N1 = prior_NC.expand(len(labels_N), -1).gather(1, columns_N1)
    entropy_N1 = digamma(total_N1) - digamma(alpha_NC.gather(1, columns_N1))
    wrong_NC = alpha_NC.scatter(1, columns_N1, 1.0)
    correction_N1 = -logits_NC.gather(1, columns_N1) * (alpha_NC.shape[1] / total_N1.detach())
    regularisation_N = phased_in_N * divergence_from_uniform(wrong_NC) + correction_N1[:, 0]
    return ((2.0 - prior_N1) * entropy_N1)[:, 0] + weight_N * regularisation_N


def divergence_from_uniform(alpha_NC: Tensor) -> Tensor:
    """Return the divergence KL(Dir(alpha) || Dir(1, ..., 1)). Shape (N,)."""
    total_N1 = alpha_NC.sum(dim=1, keepdim=True)
    moments_NC = (alpha_NC - 1) * (digamma(alpha_NC) - digamma(total_N1))
    log_gamma_N = lgamma(total_N1)[:, 0] - lgamma(alpha_NC).sum(dim=1)
    return log_gamma_N - math.lgamma(alpha_NC.shape[1]) + moments_NC.sum(dim=1)
