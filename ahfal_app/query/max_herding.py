"""MaxHerding: samples that leave as little as possible of the data uncovered, softly.

Shape suffixes: N points, D embedding width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.coverage import Kernel, gaussian, laplace, student, top_hat
from ahfal_app.query.core.covering import GreedyCovering

_KERNELS = {"gaussian": gaussian, "laplace": laplace, "student": student, "top-hat": top_hat}


class MaxHerding(GreedyCovering):
    """Samples that most increase how well a kernel covers all of the client's samples.

    A sample n is covered by a set to the degree of the largest k(z, n) of its members z. Again
    and again the sample is taken that raises the mean over all samples, labelled and not, most;
    the labelled ones cover from the beginning. The kernel is k = exp(-d²/h²) on embeddings of
    length 1, without a factor of 2 in the exponent, h = 1 as in the published experiments.

    The published code keeps all kernel values and so thins the pool out at random, for those
    that may be chosen and those that are covered alike. Here nothing is kept, all of the pool
    may be chosen, and only what is covered is drawn, where it is more than `reference-points`.
    Embeddings are those of a model of the run, not of self-supervised learning. Where nothing
    is left to be covered, as among duplicates, all is covered a second time. An embedding of
    zeros stays zero, at distance 1 from all others.
    """

    name: ClassVar[str] = "max-herding"
    paper: ClassVar[str] = (
        "Bae, Noh and Sutherland, Generalized coverage for more robust low-budget active "
        "learning, ECCV 2024"
    )

    class Parameters(GreedyCovering.Parameters):
        """The kernel."""

        kernel: Literal["gaussian", "laplace", "student", "top-hat"] = Field(
            default="gaussian",
            description="exp(-d²/h²), exp(-d/h), (1 + 2 d²/h²)^(-3/4), or 1 for d < h; the "
            "published experiments have the first.",
        )
        radius: float = Field(default=1.0, gt=0, description="The kernel's h.")

    parameters: Parameters

    def kernel(self, points_ND: Tensor, size: int, context: QueryContext) -> Kernel:
        """Return the kernel of the radius that is set."""
        return _KERNELS[self.parameters.kernel](self.parameters.radius)
