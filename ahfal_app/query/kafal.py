"""KSAS, KAFAL's sampling: where a client and the federation disagree on what it knows.

Shape suffixes: N samples in the pool, C classes, K classes with a label.
"""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy, ScoringStrategy
from ahfal_app.query.core.pool import PoolView, Signal

_log = logging.getLogger(__name__)

# Divergences up to this are rounding errors of models that agree.
_SMALLEST_DIVERGENCE = 1e-12


class Kafal(ScoringStrategy):
    """Samples where local and global model differ most on the classes that the client knows.

    The paper's Knowledge-Specialized Active Sampling, without its loss. With n the class counts
    of the client's labelled set, z the local and t the global model's logits, both
    predictions are specialised by the counts,

        p_k = n_k exp(z_k) / Σ_j n_j exp(z_j),    q_k = n_k exp(t_k) / Σ_j n_j exp(t_j),

    and the score is their symmetric divergence, (KL(p‖q) + KL(q‖p)) / 2. In the difference
    of the logarithms the counts and the normalisers cancel, so that it is

        D = ½ Σ_k (p_k - q_k)(z_k - t_k)    over classes with n_k > 0.

    A class without a label has p_k = q_k = 0 and does not count. Written with logarithms,
    the divergence computes log 0 for it: the PyTorch of the time gave 0 for such a term, a
    present one gives NaN to every sample of the client, and the order of NaN is no order.
    `missing-classes=nan-as-random` does what comes of that, random sampling on each client
    that lacks a class, to be compared with published numbers that may rest on it.

    Where the client knows fewer than two classes, or its model is the global one (as that of
    a federation's only client), p = q and all scores would be zero. The paper leaves the order
    open; here it is random.
    """

    name: ClassVar[str] = "kafal"
    paper: ClassVar[str] = (
        "Cao, Shi, Yu, Wang and Tao, Knowledge-aware federated active learning with "
        "non-IID data, ICCV 2023"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.LOCAL_LOGITS, Signal.GLOBAL_LOGITS})

    class Parameters(QueryStrategy.Parameters):
        """What becomes of classes that the client has no label of."""

        missing_classes: Literal["drop", "nan-as-random"] = Field(
            default="drop",
            description="A client without labels of a class: leave the class out, or query at "
            "random, as the divergence's NaN does in a straightforward program.",
        )

    parameters: Parameters

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the divergence of the specialised predictions, in nats. Shape (N,).

        Random numbers where the client's labels make it undefined or the same for all.
        """
        local_NC = pool.signal(Signal.LOCAL_LOGITS).double()
        global_NC = pool.signal(Signal.GLOBAL_LOGITS).double()
        counts_C = torch.as_tensor(context.class_counts_C, device=local_NC.device)
        known_C = counts_C > 0
        if not self._is_undecided(int(known_C.sum()), context):
            known = (local_NC[:, known_C], global_NC[:, known_C], counts_C[known_C])
            scores_N = _divergence(*known)
            if (scores_N > _SMALLEST_DIVERGENCE).any():
                return scores_N
            _log.warning("kafal, client %d: both models agree, order is random", context.client)
        random_N = context.generator(self.name).random(len(pool))
        return torch.as_tensor(random_N, device=local_NC.device)

    def _is_undecided(self, known: int, context: QueryContext) -> bool:
        """Return whether the order is random for a client that knows so many classes."""
        drop = self.parameters.missing_classes == "drop"
        undecided = known < 2 or (not drop and known < context.num_classes)
        if undecided:
            _log.warning(
                "kafal, client %d: labels of %d of %d classes, so the order is random",
                context.client,
                known,
                context.num_classes,
            )
        return undecided


def _divergence(local_NK: Tensor, global_NK: Tensor, counts_K: Tensor) -> Tensor:
    """Return the symmetric divergence of two predictions specialised by counts. Shape (N,)."""
    log_counts_K = counts_K.double().log()
    local = torch.softmax(local_NK + log_counts_K, dim=1)
    global_ = torch.softmax(global_NK + log_counts_K, dim=1)
    return ((local - global_) * (local_NK - global_NK)).sum(dim=1) / 2
