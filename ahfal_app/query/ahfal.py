"""AHFAL: entropy of the local model, or of both, by class; and class-aware budgets.

Shape suffixes: N samples in the pool, C classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.balance import ClassBalanced, pseudo_labels
from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.scores import entropy


class Ahfal(ClassBalanced):
    """Class-adaptive local-global entropy within budgets for rare classes.

    Section 6.1 of the paper. A sample's pseudo-label is the local model's prediction. Its
    score is the local model's entropy, and where the class has low variance over clients
    the mean of both models' entropies (equation 3). Of each class those with the highest
    scores are taken, within class budgets (equation 4).

    The paper leaves open how fractions of labels are rounded; `budgets.allocate` says how it is
    done here. A deficit of a class "is redistributed proportionally to underrepresented
    classes": in proportion to equation 4's weights, which grow the fewer labels a class has; or
    (`deficits=shortfall`) in proportion to how far a class's share of the client's labels is
    below the clients' mean, max(0, p̄_c - p_ic), and by equation 4's weights where no class
    below it has samples left. Appendix F describes budgets by
    representation ratio without formulas; `representation.representation_ratio_budgets`
    is one reading, with the clients' mean class distribution of the same cycle as target
    and the true counts of the client's labels as its current state. Other readings are to
    freeze the target before the first cycle, to weight it by the clients' label counts, or
    to take the global model's predictions on the labelled set as the current state.
    """

    name: ClassVar[str] = "ahfal"
    paper: ClassVar[str] = (
        "Federated active learning via class-adaptive local-global balancing (AHFAL), "
        "under double-blind review"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.LOCAL_LOGITS, Signal.GLOBAL_LOGITS})

    class Parameters(ClassBalanced.Parameters):
        """Variants and ablations."""

        low_if: Literal["local", "local-or-global"] = Field(
            default="local",
            description="Whose predicted class must have low variance for both entropies to count.",
        )
        toggle: Literal["by-class", "local", "hybrid"] = Field(
            default="by-class",
            description="Both entropies for low-variance classes, for none or for all (ablations).",
        )

    parameters: Parameters

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the entropy of equation 3, in nats. Shape (N,).

        The global model's logits are not computed where no sample needs them.
        """
        local_N = entropy(pool.signal(Signal.LOCAL_LOGITS))
        hybrid_N = self._hybrid(pool, context)
        if not hybrid_N.any():
            return local_N
        global_N = entropy(pool.signal(Signal.GLOBAL_LOGITS))
        return torch.where(hybrid_N, (local_N + global_N) / 2, local_N)

    def _hybrid(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return for which samples both models' entropies count. Shape (N,)."""
        labels_N = pseudo_labels(pool)
        if self.parameters.toggle != "by-class":
            return torch.full_like(labels_N, self.parameters.toggle == "hybrid", dtype=torch.bool)
        low_C = torch.as_tensor(context.statistics.low_C, device=labels_N.device)
        low_N = low_C[labels_N]
        if self.parameters.low_if == "local-or-global" and low_C.any():
            low_N = low_N | low_C[pseudo_labels(pool, Signal.GLOBAL_LOGITS)]
        return low_N
