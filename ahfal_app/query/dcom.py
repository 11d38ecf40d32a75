"""DCoM: dense samples while little is covered, and samples in doubt once much is.

Shape suffixes: N samples in the pool, L labelled samples, P points, R reference points, C classes.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.balls import Balls
from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.coverage import Coverage, Search, top_hat
from ahfal_app.query.core.covering import CoveringStrategy
from ahfal_app.query.core.one_model import EMBEDDINGS, LABELLED_EMBEDDINGS, LABELLED_LOGITS, LOGITS
from ahfal_app.query.core.points import EmbeddingPoints
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.scores import margin_doubt

#: Purity that a ball must have where nothing is covered, and how much more where all is.
_PURITY, _PURITY_BY_COVERAGE = 0.4, 0.2


class Dcom(CoveringStrategy):
    """Samples by density and by margin; the more of the data is covered, the more by margin.

    1. Each labelled sample covers a ball around it. Its radius is about the largest up to
       `max-radius` at which a share of 0.4 + 0.2 c of the ball is predicted to be of the sample's
       class, where c is the share of all samples that balls of `initial-radius` cover.
    2. With c now the share that these balls cover, the competence is
       S = (1 + exp(-k (1 - a))) / (1 + exp(-k (c - a))), k = `steepness` and a = `centre`.
    3. With the mean radius δ, g(x) is the number of samples nearer to x than δ that are not
       covered yet, and e(x) one minus the margin of its two likeliest classes, 0 for a labelled or
       chosen sample. Again and again the sample with the largest S e + (1 - S) g is taken, both
       scaled to [0, 1] over pool and labelled set, and covers its ball of radius δ.

    The published embeddings are fixed, and a sample keeps the radius that it got after its
    purchase; c in 1. is of these and of mean radii for the newest samples. Here embeddings are
    those of a model that is trained anew, in which earlier radii mean nothing: each selection
    finds the radii of all labelled samples, as the published one finds those of its first.

    The published code leaves ties to its sort, and may return a sample again or a labelled one;
    here the lowest id is taken, and nothing twice. Its graph has no edges from the last samples,
    the remainder of 700; here there is no graph. Where all is covered, all is covered a second
    time, while there the margin alone decides (`exhausted=id`, with the ids among equals). An
    embedding of zeros stays zero, at distance 1 from all others. Without labels there is only
    density, with balls of the initial radius.
    """

    name: ClassVar[str] = "dcom"
    paper: ClassVar[str] = (
        "Mishal and Weinshall, DCoM: Active learning for all learners, arXiv 2407.01804, 2024"
    )
    signals: ClassVar[frozenset[Signal]] = (
        EMBEDDINGS | LABELLED_EMBEDDINGS | LOGITS | LABELLED_LOGITS
    )

    class Parameters(CoveringStrategy.Parameters):
        """Radii and competence."""

        initial_radius: float = Field(
            default=0.75,
            gt=0,
            description="Radius before those of the labelled samples are found (published for "
            "CIFAR-10; belongs to the embeddings).",
        )
        max_radius: float = Field(default=1.1, gt=0, description="Largest radius.")
        resolution: float = Field(
            default=0.05, gt=0, description="Width of the interval at which a radius is found."
        )
        steepness: float = Field(
            default=50.0, gt=0, le=500, description="k of the competence's logistic function."
        )
        centre: float = Field(
            default=0.8, ge=0, le=1, description="a, the coverage at which it rises most."
        )
        rounding: Literal["published", "none"] = Field(
            default="published",
            description="Competence to three and radii to two digits, as in the published code, or "
            "not at all.",
        )

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return samples in the order in which they were worth most."""
        points_PD = self.points(pool)
        points = EmbeddingPoints(points_PD)
        references_R = self.references(len(points), context).to(points_PD.device)
        centres_L = torch.arange(len(pool), len(points), device=points_PD.device)
        balls = Balls(points, centres_L, references_R)
        radii_L = self._radii(balls, pool, context)
        radius = float(radii_L.mean()) if len(radii_L) else self.parameters.initial_radius
        weights_R = torch.ones_like(references_R, dtype=torch.float64)
        covered_R = balls.covered(radii_L.clamp(max=radius)).double()
        coverage = Coverage(points, top_hat(radius), references_R, weights_R)
        competence = 0.0
        if len(centres_L):
            competence = self.competence(float(balls.covered(radii_L).double().mean()))
        turns = _Turns(Search(coverage, len(pool), covered_R), self._doubts(pool), competence)
        again = self.parameters.exhausted == "again"
        return pool.ids_N[turns.picks(context.budget, bool(len(centres_L)), again)]

    def competence(self, covered: float) -> float:
        """Return S for the share of the samples that is covered, from 0 to 1."""
        steepness, centre = self.parameters.steepness, self.parameters.centre
        whole = 1 + math.exp(-steepness * (1 - centre))
        competence = whole / (1 + math.exp(-steepness * (covered - centre)))
        return round(competence, 3) if self.parameters.rounding == "published" else competence

    def _radii(self, balls: Balls, pool: PoolView, context: QueryContext) -> Tensor:
        """Return each labelled sample's radius, float64. Shape (L,)."""
        labels_L = torch.from_numpy(context.labels_L).to(balls.centres_L.device)
        if len(labels_L) != len(balls.centres_L):
            raise ValueError(f"{len(labels_L)} labels for {len(balls.centres_L)} labelled samples")
        parameters = self.parameters
        first_L = torch.full_like(labels_L, parameters.initial_radius, dtype=torch.float64)
        covered = float(balls.covered(first_L.clamp(max=parameters.max_radius)).double().mean())
        both_PC = torch.cat([self.logits(pool), self.labelled_logits(pool)])
        radii_L = balls.pure_radii(
            labels_L,
            both_PC.argmax(dim=1)[balls.references_R],
            _PURITY_BY_COVERAGE * covered + _PURITY,
            parameters.max_radius,
            parameters.resolution,
        )
        return radii_L.round(decimals=2) if parameters.rounding == "published" else radii_L

    def _doubts(self, pool: PoolView) -> Tensor:
        """Return one minus the margin, scaled over pool and labelled set, float64. Shape (N,)."""
        both_PC = torch.cat([self.logits(pool), self.labelled_logits(pool)])
        doubts_P = margin_doubt(both_PC)
        return _scaled(doubts_P, float(doubts_P.min()), float(doubts_P.max()))[: len(pool)]


class _Turns:
    """One pick after the other.

    Parameters
    ----------
    search : Search
        The pool, by how many samples that are not covered each covers.
    doubts_N : Tensor
        e, float64. Shape (N,).
    competence : float
        S.
    """

    def __init__(self, search: Search, doubts_N: Tensor, competence: float) -> None:
        self._search, self._doubts_N, self._competence = search, doubts_N.clone(), competence
        self._picks: list[int] = []

    def picks(self, count: int, has_labels: bool, again: bool) -> list[int]:
        """Return so many distinct positions in order.

        Parameters
        ----------
        count : int
            At most N.
        has_labels : bool
            Whether there are labelled samples, which cover nothing that is not covered.
        again : bool
            Whether all is covered a second time where all is covered.
        """
        while len(self._picks) < count:
            densest = self._search.best()
            if densest is None and again:
                densest = self._once_more()
            highest = 0.0 if densest is None else float(self._search.bounds_N[densest])
            # Without labels, nothing has a density of 0 until something is chosen.
            has_zero = has_labels or bool(self._picks)
            lowest = 0.0 if has_zero else self._search.least()
            self._take(lowest, highest)
        return self._picks

    def _take(self, lowest: float, highest: float) -> None:
        doubts_N = self._competence * _scaled(self._doubts_N, 0.0, float(self._doubts_N.max()))

        def worth(densities_N: Tensor) -> Tensor:
            scaled_N = _scaled(densities_N, lowest, highest)
            worth_N = doubts_N + (1 - self._competence) * scaled_N
            return worth_N.masked_fill(densities_N == -torch.inf, -torch.inf)

        pick = self._search.foremost(worth)
        self._search.take(pick)
        self._doubts_N[pick] = 0.0
        self._picks.append(pick)

    def _once_more(self) -> int | None:
        """Forget what is covered; return the densest sample again."""
        self._search = self._search.again(self._picks)
        return self._search.best()


def _scaled(values_N: Tensor, lowest: float, highest: float) -> Tensor:
    """Return values from 0 at the lowest to 1 at the highest; 0 where these are equal."""
    span = highest - lowest
    return (values_N - lowest) / span if span > 0 else torch.zeros_like(values_N)
