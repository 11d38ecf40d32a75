"""FEAL: evidential uncertainty of the global and the local model, thinned by diversity.

Shape suffixes: N samples in the pool, M of them that take part, C classes, F numbers of an
averaged feature map, B samples of a batch or selected, R candidates looked at together,
n neighbours.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import (
    QueryContext,
    QueryStrategy,
    ScoringStrategy,
    TrainingContext,
    TrainingLoss,
)
from ahfal_app.query.core.evidence import (
    aleatoric_uncertainty,
    concentration,
    epistemic_uncertainty,
    evidential_losses,
)
from ahfal_app.query.core.losses import SampleLoss
from ahfal_app.query.core.picking import SAME, falling
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.relaxation import relaxed_picks


class Feal(ScoringStrategy):
    """Calibrated evidential uncertainty of both models, without near-duplicates.

    Logits are read as evidence of a Dirichlet distribution. A sample's uncertainty is the sum
    of both models' aleatoric uncertainties, weighted by the global model's epistemic one
    (scaled to [0, 1] over the pool). Samples are taken by falling uncertainty; one is passed
    over if it has at least `neighbours` samples more similar than `similarity-threshold` in
    the local model's feature map, and one of the most similar `neighbours` is taken already.
    Where too few are left, those passed over follow by falling uncertainty (the published code
    takes arbitrary ones).

    A sample is no neighbour of itself. The published code takes the most similar one for the
    sample itself and leaves it out; where there are exact duplicates that may be the duplicate,
    so that of two equal samples both can be taken. Here the second has the first among its
    neighbours. Without duplicates both rules are the same.

    The published feature map is that of an inner block of EfficientNet; here it is the network's
    last one, averaged to 3x3. A network that has no map gives its features as one pixel, whose
    nine copies leave all cosines what they are: similarity is that of the features then, without
    places in the image.

    As published, training uses the evidential loss; the AHFAL paper's comparison may have
    trained with cross-entropy (`loss=ce`), which the scores were not made for.
    """

    name: ClassVar[str] = "feal"
    paper: ClassVar[str] = (
        "Chen, Ma, Cui and Xia, Think twice before selection: Federated evidential active "
        "learning for medical image analysis with domain shifts, CVPR 2024"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset(
        {Signal.LOCAL_LOGITS, Signal.GLOBAL_LOGITS, Signal.LOCAL_FEATURE_MAPS}
    )

    class Parameters(QueryStrategy.Parameters):
        """The loss of local training, and how similar selected samples may be."""

        loss: Literal["edl", "ce"] = Field(
            default="edl",
            description="Local training: evidential loss (edl, as published), or cross-entropy.",
        )
        kl_weight: float = Field(
            default=0.01, ge=0, description="Weight of the evidential loss's regularisation."
        )
        annealing_rounds: int = Field(
            default=10,
            ge=1,
            description="Rounds of a cycle over which its divergence term is phased in.",
        )
        similarity_threshold: float = Field(
            default=0.85, ge=0, le=1, description="Cosine above which samples are neighbours."
        )
        neighbours: int = Field(
            default=5, ge=1, description="Most neighbours of a sample; with fewer it is taken."
        )
        pool_limit: int = Field(
            default=10_000,
            ge=0,
            description="Samples of the pool, drawn at random, that take part; 0: all.",
        )

    parameters: Parameters

    @property
    def has_training_loss(self) -> bool:
        """Whether training uses the evidential loss."""
        return self.parameters.loss == "edl"

    def training_loss(self, context: TrainingContext) -> TrainingLoss | None:
        """Return the evidential loss of a round, or None where training uses cross-entropy."""
        if self.parameters.loss == "ce":
            return None
        # The published code counts a cycle's rounds from 0.
        phased_in = min(1.0, (context.round - 1) / self.parameters.annealing_rounds)
        counts_C = torch.from_numpy(context.class_counts_C).double()
        numbers = (phased_in, self.parameters.kl_weight)
        phased_in_and_weight = torch.tensor(numbers, dtype=torch.float64)
        return SampleLoss(evidential_losses, counts_C / counts_C.sum(), *phased_in_and_weight)

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the calibrated uncertainties, float64. Shape (N,).

        Samples that do not take part are scaled as the others are, and may exceed their range.
        """
        local_NC = concentration(pool.signal(Signal.LOCAL_LOGITS))
        global_NC = concentration(pool.signal(Signal.GLOBAL_LOGITS))
        epistemic_N = epistemic_uncertainty(global_NC)
        lowest, highest = epistemic_N[self._taking_part(pool, context)].aminmax()
        weight_N = torch.ones_like(epistemic_N)
        if highest - lowest > SAME * max(1.0, float(highest.abs()), float(lowest.abs())):
            weight_N = (epistemic_N - lowest) / (highest - lowest)
        return weight_N * (aleatoric_uncertainty(global_NC) + aleatoric_uncertainty(local_NC))

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the most uncertain samples that are not too similar, then the others."""
        scores_N = self.scores(pool, context)
        order_N = falling(scores_N)
        takes_part_N = torch.zeros(len(pool), dtype=torch.bool, device=order_N.device)
        takes_part_N[self._taking_part(pool, context)] = True
        order_M = order_N[takes_part_N[order_N]]
        picks_B = relaxed_picks(
            pool.signal(Signal.LOCAL_FEATURE_MAPS)[order_M],
            context.budget,
            self.parameters.similarity_threshold,
            self.parameters.neighbours,
        )
        positions_N = torch.cat([order_M, order_N[~takes_part_N[order_N]]])
        is_rest_N = torch.ones_like(takes_part_N)
        is_rest_N[picks_B] = False
        # Those passed over come before those that did not take part.
        chosen_B = torch.cat([positions_N[picks_B], positions_N[is_rest_N]])[: context.budget]
        ids_B: NDArray[np.int64] = pool.ids_N[chosen_B.cpu().numpy()]
        return ids_B

    def _taking_part(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the positions of the samples that are looked at, increasing. Shape (M,)."""
        size, limit = len(pool), self.parameters.pool_limit
        if not limit or size <= limit:
            return torch.arange(size)
        drawn_M = context.generator("feal.pool").choice(size, limit, replace=False)
        return torch.from_numpy(np.sort(drawn_M))
