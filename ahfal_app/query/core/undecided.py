"""Scores that tell nothing: what stands in where all of a pool are equal.

Of equal scores the lowest id decides. Where all are equal that is no choice but the order of the
client's files, which may be sorted by class; so it is drawn.

Shape suffix: N samples in the pool.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ahfal_app.query.core.base import QueryContext

_log = logging.getLogger(__name__)


def decided(scores_N: Tensor, context: QueryContext, strategy: str, reason: str) -> Tensor:
    """Return the scores; where all are equal random numbers, and a warning tells why.

    Parameters
    ----------
    scores_N : Tensor
        Finite, float64. Shape (N,).
    context : QueryContext
        Keys the draw.
    strategy : str
        Its name, for the draw and the warning.
    reason : str
        Why scores are equal, as in "the embeddings are the same for all models".

    Returns
    -------
    Tensor
        Float64, shape (N,).
    """
    if len(scores_N) <= context.budget or bool((scores_N != scores_N[0]).any()):
        return scores_N
    _log.warning("%s, client %d: %s, so the order is random", strategy, context.client, reason)
    random_N = context.generator(f"{strategy}.undecided").random(len(scores_N))
    return torch.as_tensor(random_N, device=scores_N.device)
