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


def evidential_loss(
    logits_BC: Tensor, labels_B: Tensor, prior_C: Tensor, phased_in: float, weight: float
) -> Tensor:
    """Return FEAL's loss of a batch, a scalar.

    The expected cross-entropy, weighted by 2 - prior of the label; plus, times `weight`, the
    divergence of the evidence for wrong classes from none, and a term that draws the label's
    logit up where there is no evidence, and so no gradient.

    Parameters
    ----------
    logits_BC, labels_B : Tensor
        Of the batch; float32 and int64.
    prior_C : Tensor
        Share of each class among the client's labels. Shape (C,).
    phased_in : float
        Share of the divergence that counts, in [0, 1].
    weight : float
        The published lambda.
    """
    alpha_BC = torch.relu(logits_BC) + 1.0
    total_B1 = alpha_BC.sum(dim=1, keepdim=True)
    columns_B1 = labels_B[:, None]
    weights_B1 = 2.0 - prior_C.to(labels_B.device)[columns_B1]
    entropy_B1 = digamma(total_B1) - digamma(alpha_BC.gather(1, columns_B1))
    wrong_BC = alpha_BC.scatter(1, columns_B1, 1.0)
    correction_B1 = -logits_BC.gather(1, columns_B1) * (alpha_BC.shape[1] / total_B1.detach())
    divergence_B = divergence_from_uniform(wrong_BC)
    regularisation = phased_in * divergence_B.mean() + correction_B1.mean()
    return (weights_B1 * entropy_B1).mean() + weight * regularisation


def divergence_from_uniform(alpha_NC: Tensor) -> Tensor:
    """Return the divergence KL(Dir(alpha) || Dir(1, ..., 1)). Shape (N,)."""
    total_N1 = alpha_NC.sum(dim=1, keepdim=True)
    moments_NC = (alpha_NC - 1) * (digamma(alpha_NC) - digamma(total_N1))
    log_gamma_N = lgamma(total_N1)[:, 0] - lgamma(alpha_NC).sum(dim=1)
    return log_gamma_N - math.lgamma(alpha_NC.shape[1]) + moments_NC.sum(dim=1)
