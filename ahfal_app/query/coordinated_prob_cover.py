"""ProbCover by all clients together: regions that hold most samples of the whole federation.

Shape suffixes: N points, D embedding width.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.coordinated_covering import CoordinatedCovering
from ahfal_app.query.core.coordination import FederationFacts
from ahfal_app.query.core.coverage import Kernel, top_hat
from ahfal_app.query.core.questions import (
    Answer,
    Answers,
    ClearForm,
    Question,
    Step,
)
from ahfal_app.query.core.reveals import Reveal
from ahfal_app.query.prob_cover import RADII, estimated_radius

_RADIUS = "radius"


class CoordinatedProbCover(CoordinatedCovering):
    """Samples near points around which lie most samples of all clients that are not covered yet.

    The paper's algorithm 1, on embeddings of the global model, which are common to all clients:

    1. Each client finds its sample within whose radius lie most of its samples that nothing covers,
       and tells the mean of these.
    2. Each counts how many of its own uncovered samples lie around every such mean; the server sees
       the sums of the counts, and how far each client's nearest sample is.
    3. The client with the nearest sample labels it; at all clients the mean's ball is covered.

    What the paper leaves open: only clients with budget propose (`proposers`), and no mean of fewer
    than `least-region` samples is told. Where nobody has so large a region left, and after
    `steps`, the rest is chosen by each client alone, as by `prob-cover` from what it has not
    covered; all is covered a second time at each by itself. Ties go to the lowest client, and to
    the smallest id. With `batch=disjoint` further points of the same step are accepted whose balls
    do not touch, since their counts stay right; with `one` only the best, as published. The radius
    is common: `radius`, or the median of what the clients estimate as `prob-cover` does. Encoders
    that are trained for it, as in the paper, are replaced by what the run has: its global model,
    or the features of a frozen backbone.

    In the paper's tables it loses to clients that choose alone at ten labels a class, and where the
    clients' classes differ much.
    """

    name: ClassVar[str] = "coordinated-prob-cover"
    paper: ClassVar[str] = (
        "Mohr and Weinshall, Coordination on a budget, 2026 (arXiv 2608.18634), algorithm 1"
    )
    units: ClassVar[int] = 1

    class Parameters(CoordinatedCovering.Parameters):
        """The radius, and how many points at a time."""

        radius: float = Field(
            default=0,
            ge=0,
            le=1e6,
            description="Distance below which a sample is covered; 0: the median of the clients' "
            "estimates.",
        )
        purity: float = Field(
            default=0.95,
            gt=0,
            le=1,
            description="Share of the samples around which an estimated radius must be pure.",
        )
        batch: Literal["disjoint", "one"] = Field(
            default="disjoint",
            description="Whether all proposed points are accepted whose balls are disjoint, or the "
            "best alone.",
        )

    parameters: Parameters

    @property
    def reveals(self) -> frozenset[Reveal]:
        """What the server learns of single clients."""
        estimate = frozenset[Reveal]() if self.parameters.radius else frozenset({Reveal.RADIUS})
        return super().reveals | estimate

    def kernel(self, radius: float) -> Kernel:
        """Return the top-hat kernel."""
        return top_hat(radius)

    def radius(self, facts: FederationFacts) -> Generator[Step, Answers, float]:
        """Return the radius that is set, or the median of the clients' estimates."""
        if self.parameters.radius:
            return self.parameters.radius
        answers = yield Step(_RADIUS, clear={"radius": ClearForm((1,), 0.0, RADII[-1])})
        estimates = [float(told["radius"][0]) for told in answers.clear.values()]
        return float(np.median([each for each in estimates if each > 0] or [RADII[0]]))

    def accepts(self, facts: FederationFacts, radius: float) -> tuple[int, float]:
        """Return how many points are accepted at a time, two radii apart."""
        most = len(facts.budgets) if self.parameters.batch == "disjoint" else 1
        return most, 2 * radius

    def estimate(self, question: Question, points_ND: Tensor, context: QueryContext) -> Answer:
        """Return this client's estimate of the radius; 0 where it has no samples."""
        if question.name != _RADIUS:
            return super().estimate(question, points_ND, context)
        if not len(points_ND):
            return Answer(clear={"radius": np.zeros(1)})
        generator = context.generator(f"{self.name}.purity")
        classes, purity = context.num_classes, self.parameters.purity
        radius = estimated_radius(points_ND, classes, purity, generator)
        return Answer(clear={"radius": np.array([radius])})
