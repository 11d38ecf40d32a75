"""MaxHerding by all clients together: points that most raise how well all samples are covered."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar

from pydantic import Field

from ahfal_app.query.core.coordinated_covering import CoordinatedCovering
from ahfal_app.query.core.coordination import FederationFacts
from ahfal_app.query.core.coverage import Kernel, gaussian
from ahfal_app.query.core.questions import Answers, Step


class CoordinatedMaxHerding(CoordinatedCovering):
    """Samples near points that most raise how well a kernel covers the samples of all clients.

    Ours: the paper that coordinates clients by sums has no such variant of MaxHerding; there a
    server sees (noisy) embeddings for it. It goes as `coordinated-prob-cover` does, with
    the Gaussian kernel exp(-d²/h²) and real gains: a client proposes the mean of its samples,
    weighted by how much its best candidate would newly cover each, and the sums are of gains in
    units of 2^-20. No mean is told of which fewer than `least-region` samples make up the
    weight, (Σw)²/Σw². Gaussian kernels overlap everywhere, so that one point is accepted at a time;
    `batch` allows more that are at least 2h apart, as an approximation. Only what is left when
    nobody proposes, or after `steps`, is chosen by each client alone.
    """

    name: ClassVar[str] = "coordinated-max-herding"
    paper: ClassVar[str] = (
        "ours, after Mohr and Weinshall, Coordination on a budget, 2026 (arXiv 2608.18634), and "
        "Bae, Noh and Sutherland, Generalized coverage for more robust low-budget active "
        "learning, ECCV 2024"
    )
    units: ClassVar[int] = 2**20

    class Parameters(CoordinatedCovering.Parameters):
        """The kernel, and how many points at a time."""

        radius: float = Field(default=1.0, gt=0, le=1e6, description="The kernel's h.")
        batch: int = Field(
            default=1,
            ge=1,
            description="Most points that are accepted at a time, at least 2h apart.",
        )

    parameters: Parameters

    def kernel(self, radius: float) -> Kernel:
        """Return the Gaussian kernel."""
        return gaussian(radius)

    def radius(self, facts: FederationFacts) -> Generator[Step, Answers, float]:
        """Return the radius that is set; nobody is asked for it."""
        yield from ()
        return self.parameters.radius

    def accepts(self, facts: FederationFacts, radius: float) -> tuple[int, float]:
        """Return how many points are accepted at a time, two radii apart."""
        return self.parameters.batch, 2 * radius
