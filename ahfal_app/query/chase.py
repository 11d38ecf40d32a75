"""CHASe: samples whose predicted class changes from epoch to epoch.

Shape suffixes: N samples in the pool, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy
from ahfal_app.query.core.picking import ranked
from ahfal_app.query.core.pool import Outputs, PoolView, Signal
from ahfal_app.query.core.scores import entropy
from ahfal_app.query.core.watching import Moment, Watched, WatchingStrategy


class Chase(WatchingStrategy):
    """Samples whose predicted class changes most often during local training.

    After each local epoch of a cycle's last round the client predicts its pool; a sample's flips
    are the epochs whose prediction differs from that of the epoch before. With E epochs there
    are E different values, so that ties decide much: here they are drawn (`ties`), where the
    published code takes whatever its sort leaves.

    The published method selects every few rounds, here a cycle's end does (`window=cycle` adds
    up the flips within all its rounds); it looks at 500 samples at random (`look-at=500`),
    by default here at all. Its rule that stops looking at samples without flips saves time and
    is left out, and so is its second loss: in the published code that always pulls towards the
    global model, as its labels are computed before the flips are counted. A sample that came into
    the pool after the cycle began has no flips.
    """

    name: ClassVar[str] = "chase"
    paper: ClassVar[str] = (
        "Zhang et al., CHASe: Client heterogeneity-aware data selection for effective federated "
        "active learning, IEEE TKDE 2025"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset(
        {Signal.LOCAL_FLIPS, Signal.LOCAL_LOGITS, Signal.GLOBAL_LOGITS}
    )
    every_epoch: ClassVar[bool] = True

    class Parameters(QueryStrategy.Parameters):
        """What is counted, and what decides among equals."""

        window: Literal["last-round", "cycle"] = Field(
            default="last-round", description="Rounds whose epochs count: the last, or all."
        )
        score: Literal["flips", "flips-and-entropy"] = Field(
            default="flips",
            description="Flips, or flips and the global minus the local entropy, each scaled to "
            "[0, 1] over the pool.",
        )
        ties: Literal["random", "entropy", "id"] = Field(
            default="random",
            description="Among equals: a draw, the local model's entropy, or the smallest id.",
        )
        look_at: int = Field(
            default=0, ge=0, description="Samples of the pool, drawn, that are looked at; 0: all."
        )

    parameters: Parameters

    def watches(self, moment: Moment) -> bool:
        """Return whether a local epoch counts."""
        in_window = self.parameters.window == "cycle" or moment.round == moment.rounds
        return moment.model == "local" and in_window

    def watch(self, before: Watched | None, outputs: Outputs, moment: Moment) -> Watched:
        """Return the flips and the last predictions."""
        last_N = outputs.logits_NC.argmax(dim=1)
        flips_N = torch.zeros_like(last_N) if before is None else before["flips"]
        if before is not None and moment.epoch > 1:
            flips_N = flips_N + (last_N != before["last"])
        return {"flips": flips_N, "last": last_N}

    def watched_signals(self, watched: Watched) -> Mapping[Signal, Tensor]:
        """Return the flips. Shape (N, 1)."""
        return {Signal.LOCAL_FLIPS: watched["flips"][:, None].float()}

    def unwatched_signals(self, size: int, num_classes: int) -> Mapping[Signal, Tensor]:
        """Return no flips. Shape (size, 1)."""
        return {Signal.LOCAL_FLIPS: torch.zeros(size, 1)}

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the samples with the most flips."""
        scores_N = self._scores(pool)
        first_N = self._tie_order(pool, context)
        # Sorting is stable: those that are looked at first stay first among equals.
        order_N = first_N[ranked(scores_N[first_N])]
        looked_at_N = self._looked_at(pool, context).to(order_N.device)
        # What is not looked at comes last, so that the budget is spent in any case.
        order_N = torch.cat([order_N[looked_at_N[order_N]], order_N[~looked_at_N[order_N]]])
        chosen_B: NDArray[np.int64] = pool.ids_N[order_N[: context.budget].cpu().numpy()]
        return chosen_B

    def _scores(self, pool: PoolView) -> Tensor:
        flips_N = pool.signal(Signal.LOCAL_FLIPS)[:, 0].double()
        if self.parameters.score == "flips":
            return flips_N
        local_N = entropy(pool.signal(Signal.LOCAL_LOGITS))
        return _scaled(flips_N) + _scaled(entropy(pool.signal(Signal.GLOBAL_LOGITS)) - local_N)

    def _tie_order(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return positions in the order in which equals are taken. Shape (N,)."""
        if self.parameters.ties == "entropy":
            return ranked(entropy(pool.signal(Signal.LOCAL_LOGITS)))
        if self.parameters.ties == "id":
            order_N = np.arange(len(pool))
        else:
            order_N = context.generator(f"{self.name}.ties").permutation(len(pool))
        return torch.from_numpy(order_N).to(pool.signal(Signal.LOCAL_FLIPS).device)

    def _looked_at(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return which samples are looked at. Shape (N,)."""
        most = self.parameters.look_at
        if most == 0 or most >= len(pool):
            return torch.ones(len(pool), dtype=torch.bool)
        drawn = context.generator(f"{self.name}.look-at").choice(len(pool), most, replace=False)
        looked_at_N = torch.zeros(len(pool), dtype=torch.bool)
        looked_at_N[torch.from_numpy(drawn)] = True
        return looked_at_N


def _scaled(values_N: Tensor) -> Tensor:
    """Return values from 0 to 1; zeros where all are equal. Shape (N,)."""
    low, high = values_N.min(), values_N.max()
    span = high - low
    return (values_N - low) / torch.where(span > 0, span, 1.0)
