"""TM-FAL: samples of which a cycle's models have different embeddings, classes in turn.

Shape suffixes: N samples in the pool, D embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy, ScoringStrategy
from ahfal_app.query.core.picking import falling
from ahfal_app.query.core.pool import Outputs, PoolView, Signal
from ahfal_app.query.core.undecided import decided
from ahfal_app.query.core.watching import Moment, Watched, WatchingStrategy

#: Keeps the score finite.
_SMOOTHING = 1e-14


class Temporal(WatchingStrategy, ScoringStrategy):
    """Samples whose embeddings vary over a cycle's models, in equal parts of predicted classes.

    In every `step`-th round, the first `size` of them, the client looks at its pool with its own
    model after training and with the global one that comes of it. With s_d the standard
    deviation over these models of an embedding's d-th entry and p̄ the mean of their
    probabilities, the score is the mean of s_d over max p̄. The global model's classes take turns,
    each giving its highest score, in ascending order.

    Nothing but running sums is kept, no models: a pass over the pool for each model, at most
    2 `size` in a cycle, and memory for 2 D + C numbers a sample. With rounds fewer than `step`
    the last one counts. Of a single model there is no deviation, all scores are 0 and the order
    is random, so that a cycle needs two.

    In the published code the global model is overwritten while scores are computed, so that all
    clients but the first get classes from another client's model; here classes are those of the
    global model. It scores 10,000 samples at random, here all. The published first 20 rounds of
    step 2 end at the 40th of 100 (`snapshots`). A sample that came into the pool after the cycle
    began has a score of 0. With a linear head on a frozen backbone embeddings are the features,
    which no model changes: nothing deviates, and what is left are classes in turn, each in
    random order.
    """

    name: ClassVar[str] = "temporal"
    paper: ClassVar[str] = (
        "Yan et al., Temporal model-based federated active medical image classification, MICCAI "
        "2025"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset(
        {Signal.TEMPORAL_SPREAD, Signal.TEMPORAL_PROBABILITIES, Signal.GLOBAL_LOGITS}
    )

    class Parameters(QueryStrategy.Parameters):
        """Which models are looked at, and how their deviation is computed."""

        snapshots: Literal["first", "last", "spread"] = Field(
            default="first",
            description="Which of every `step`-th rounds: the first (as published), the last, or "
            "some of all.",
        )
        step: int = Field(default=2, ge=1, description="Rounds from one look to the next.")
        size: int = Field(default=20, ge=1, description="Most rounds that are looked at.")
        models: Literal["both", "global", "local"] = Field(
            default="both", description="Whose models are looked at."
        )
        deviation: Literal["sample", "population"] = Field(
            default="sample", description="Divisor: the number of models less one, or this number."
        )

    parameters: Parameters

    def watches(self, moment: Moment) -> bool:
        """Return whether a round's model counts."""
        wanted = self.parameters.models in ("both", moment.model)
        return wanted and moment.ends_round and moment.round in self._rounds(moment.rounds)

    def watch(self, before: Watched | None, outputs: Outputs, moment: Moment) -> Watched:
        """Return number, mean and squared deviations of the embeddings, and sum of softmax.

        By Welford's update, float64. Embeddings that are the same for each model do not deviate,
        and nothing is kept of them.
        """
        number = torch.tensor(1, dtype=torch.int64)
        probabilities_NC = torch.softmax(outputs.logits_NC.double(), dim=1)
        if before is not None:
            number = before["number"] + 1
            probabilities_NC = before["probabilities"] + probabilities_NC
        watched = {"number": number, "probabilities": probabilities_NC}
        if outputs.has_fixed_embeddings:
            return watched
        embeddings_ND = outputs.embeddings_ND.double()
        if before is None:
            squares_ND = torch.zeros_like(embeddings_ND)
            return {**watched, "mean": embeddings_ND, "squares": squares_ND}
        moved_ND = embeddings_ND - before["mean"]
        mean_ND = before["mean"] + moved_ND / number
        squares_ND = before["squares"] + moved_ND * (embeddings_ND - mean_ND)
        return {**watched, "mean": mean_ND, "squares": squares_ND}

    def watched_signals(self, watched: Watched) -> Mapping[Signal, Tensor]:
        """Return the mean deviation (N, 1) and the mean probabilities (N, C)."""
        number = int(watched["number"])
        probabilities_NC = watched["probabilities"]
        spread_N1 = probabilities_NC.new_zeros(len(probabilities_NC), 1)
        if "squares" in watched:
            # Of one model there are no deviations, whatever they are divided by.
            divisor = max(number - (self.parameters.deviation == "sample"), 1)
            spread_N1 = (watched["squares"] / divisor).sqrt().mean(dim=1, keepdim=True)
        return {
            Signal.TEMPORAL_SPREAD: spread_N1,
            Signal.TEMPORAL_PROBABILITIES: probabilities_NC / number,
        }

    def unwatched_signals(self, size: int, num_classes: int) -> Mapping[Signal, Tensor]:
        """Return zeros. Shapes (size, 1) and (size, C)."""
        return {
            Signal.TEMPORAL_SPREAD: torch.zeros(size, 1),
            Signal.TEMPORAL_PROBABILITIES: torch.zeros(size, num_classes),
        }

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the mean deviation over the highest mean probability. Shape (N,)."""
        probabilities_NC = pool.signal(Signal.TEMPORAL_PROBABILITIES).double()
        spread_N = pool.signal(Signal.TEMPORAL_SPREAD)[:, 0].double()
        return spread_N / (probabilities_NC.amax(dim=1).clamp(min=0) + _SMOOTHING)

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the highest score of each predicted class in turn."""
        classes_N = pool.signal(Signal.GLOBAL_LOGITS).argmax(dim=1)
        reason = "embeddings were the same in all that it looked at"
        scores_N = decided(self.scores(pool, context), context, self.name, reason)
        return pool.ids_N[in_turns(scores_N, classes_N)[: context.budget]]

    def _rounds(self, rounds: int) -> list[int]:
        """Return the rounds of a cycle that are looked at."""
        every = list(range(self.parameters.step, rounds + 1, self.parameters.step)) or [rounds]
        size = min(self.parameters.size, len(every))
        if self.parameters.snapshots == "first":
            return every[:size]
        if self.parameters.snapshots == "last":
            return every[-size:]
        return [every[int(i)] for i in np.linspace(0, len(every) - 1, size).round()]


def in_turns(scores_N: Tensor, classes_N: Tensor) -> NDArray[np.int64]:
    """Return all positions: the highest score of each class, then the second, and so on.

    Parameters
    ----------
    scores_N : Tensor
        Finite. Shape (N,).
    classes_N : Tensor
        Each sample's class, int64. Shape (N,).
    """
    order_N = falling(scores_N).cpu().numpy()
    sorted_N = classes_N.cpu().numpy()[order_N]
    by_class_N = np.argsort(sorted_N, kind="stable")
    sizes_C = np.bincount(sorted_N)
    starts_C = np.cumsum(sizes_C) - sizes_C
    turns_N = np.empty_like(sorted_N)
    turns_N[by_class_N] = np.arange(len(sorted_N)) - starts_C[sorted_N[by_class_N]]
    positions: NDArray[np.int64] = order_N[np.lexsort((sorted_N, turns_N))]
    return positions
