"""Plain local training."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from ahfal_app.query import QueryStrategy, TrainingContext
from ahfal_app.training.local_updates.core.base import (
    LocalSituation,
    LocalUpdateMethod,
    Objective,
)
from ahfal_app.training.resources import Resources
from ahfal_app.training.sgd import Recipe


class Plain(LocalUpdateMethod):
    """Cross-entropy, or the loss that the query strategy brings."""

    name = "plain"
    paper = (
        "McMahan et al., Communication-efficient learning of deep networks from decentralized "
        "data, AISTATS 2017"
    )
    takes_strategy_loss = True

    def objective(
        self,
        strategy: QueryStrategy,
        resources: Resources,
        recipe: Recipe,
        situation: LocalSituation,
    ) -> Objective:
        """Return what a client minimises in a round."""
        context = TrainingContext(resources.num_classes, situation.class_counts_C, situation.round)
        return Objective(strategy.training_loss(context) or cross_entropy)
