"""DropQuery: samples whose prediction changes when features are dropped, and of these various.

Shape suffixes: N samples in the pool, M of them that are candidates, C classes, D embedding
width, R rows.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.clustering import representatives
from ahfal_app.query.core.one_model import EMBEDDINGS, HEADS, OneModelStrategy
from ahfal_app.query.core.picking import ranked
from ahfal_app.query.core.points import directions, row_blocks
from ahfal_app.query.core.pool import PoolView, Signal


class DropQuery(OneModelStrategy):
    """Representatives of the samples whose prediction dropout on their features changes.

    Each of `passes` drops the entries of the embeddings at random, multiplies the others by
    1 / (1 - p) and predicts by the last layer. Candidates are the samples whose prediction
    differs from that without dropout in more than half of the passes; where these are fewer than
    `candidates-per-label` for each label to buy, in any smaller number of passes that gives
    enough, at least in one. Of the candidates' embeddings, scaled to length 1, k-means makes
    as many clusters as there are labels to buy, and from each the sample nearest to its
    centre is taken, those of large clusters first. Where there are fewer candidates than
    labels, all are taken, and the rest is drawn uniformly.

    The published method drops the features of a frozen network of 1024 numbers and more, for
    which p = .75 was set; here they are the last hidden layer of a model of the run, and may
    be 64. Small pools nearly always come to "at least one pass". Where k-means leaves a
    cluster empty, on which the published code fails, the sample furthest from those taken fills
    in.
    """

    name: ClassVar[str] = "drop-query"
    paper: ClassVar[str] = (
        "Gupte, Aklilu, Nirschl and Yeung-Levy, Revisiting active learning in the era of vision "
        "foundation models, TMLR 2024"
    )
    signals: ClassVar[frozenset[Signal]] = EMBEDDINGS | HEADS

    class Parameters(OneModelStrategy.Parameters):
        """Dropout, and how many candidates are enough."""

        passes: int = Field(default=3, ge=1, description="Predictions with dropout.")
        dropout: float = Field(
            default=0.75, ge=0, lt=1, description="Probability with which an entry is dropped."
        )
        candidates_per_label: int = Field(
            default=25, ge=1, description="Candidates for each label to buy that are enough."
        )

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return representatives of the candidates, or the candidates and a uniform draw."""
        embeddings_ND, budget = self.embeddings(pool), context.budget
        changes_N = self._changes(embeddings_ND, self.head(pool), context)
        candidates_M = self._candidates(changes_N, budget)
        if len(candidates_M) >= budget:
            generator = context.generator(f"{self.name}.k-means")
            points_MD = directions(embeddings_ND[candidates_M])
            candidates = candidates_M.cpu().numpy()
            chosen = representatives(points_MD, budget, generator)
            chosen_B: NDArray[np.int64] = pool.ids_N[candidates[chosen]]
            return chosen_B
        first = candidates_M[ranked(changes_N[candidates_M].double())].cpu().numpy()
        rest = np.setdiff1d(np.arange(len(pool)), first)
        generator = context.generator(f"{self.name}.fill")
        drawn = generator.choice(rest, budget - len(first), replace=False)
        filled_B: NDArray[np.int64] = pool.ids_N[np.concatenate([first, drawn])]
        return filled_B

    def _candidates(self, changes_N: Tensor, budget: int) -> Tensor:
        """Return the positions of the samples whose prediction changes often enough."""
        enough = self.parameters.candidates_per_label * budget
        most = self.parameters.passes // 2
        while most > 0 and int((changes_N > most).sum()) < enough:
            most -= 1
        return (changes_N > most).nonzero()[:, 0]

    def _changes(self, embeddings_ND: Tensor, head: Tensor, context: QueryContext) -> Tensor:
        """Return in how many passes each sample's prediction changes, int64. Shape (N,)."""
        plain_N = _predicted(embeddings_ND, head, 0.0, None)
        changes_N = torch.zeros_like(plain_N)
        for number in range(self.parameters.passes):
            generator = context.generator(f"{self.name}.mask.{number}")
            dropped_N = _predicted(embeddings_ND, head, self.parameters.dropout, generator)
            changes_N += dropped_N != plain_N
        return changes_N


def _predicted(
    embeddings_ND: Tensor, head: Tensor, dropout: float, generator: np.random.Generator | None
) -> Tensor:
    """Return the class of each embedding whose entries are dropped, int64. Shape (N,)."""
    weight_DC, bias_C = head[:, :-1].T.double(), head[:, -1].double()
    predicted = []
    for rows in row_blocks(len(embeddings_ND)):
        kept_RD = embeddings_ND[rows].double()
        if generator is not None:
            # Row by row, so that a mask does not depend on the size of a block.
            uniform = generator.random(tuple(kept_RD.shape), dtype=np.float32)
            mask_RD = torch.from_numpy(uniform >= np.float32(dropout)).to(kept_RD.device)
            kept_RD = kept_RD * mask_RD / (1 - dropout)
        predicted.append((kept_RD @ weight_DC + bias_C).argmax(dim=1))
    return torch.cat(predicted)
