"""BADGE: diverse and uncertain samples by the gradients that their labels would cause.

Shape suffixes: N samples in the pool, C classes, D embedding width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.d_squared import d_squared_sampling
from ahfal_app.query.core.one_model import EMBEDDINGS, LOGITS, OneModelStrategy
from ahfal_app.query.core.picking import first_highest
from ahfal_app.query.core.points import OuterProductPoints
from ahfal_app.query.core.pool import PoolView, Signal


class Badge(OneModelStrategy):
    """Samples by k-means++ seeding on their gradient embeddings.

    Algorithm 1 of the paper. A sample's gradient embedding is the gradient of the
    cross-entropy with respect to the last layer's weights, with the predicted class in place
    of the label: g = (p - e_ŷ) ⊗ h, of C D numbers. It is kept as its two factors; distances
    between outer products follow from them without forming any.

    The paper's seeding draws its first sample uniformly, the authors' code takes the
    embedding of the largest norm; so do we by default. The paper speaks of the last layer's
    weights and the code leaves out the bias, whose gradient is p - e_ŷ itself; `bias` puts
    it in. Where no sample is left whose embedding differs from those chosen, the authors'
    code stops; here the rest is drawn uniformly, which is k-means++ among equal points.
    """

    name: ClassVar[str] = "badge"
    paper: ClassVar[str] = (
        "Ash, Zhang, Krishnamurthy, Langford and Agarwal, Deep batch active learning by "
        "diverse, uncertain gradient lower bounds, ICLR 2020"
    )
    signals: ClassVar[frozenset[Signal]] = LOGITS | EMBEDDINGS

    class Parameters(OneModelStrategy.Parameters):
        """Variants."""

        first: Literal["max-norm", "uniform"] = Field(
            default="max-norm",
            description="The first sample: the largest gradient, or any with equal probability.",
        )
        bias: bool = Field(
            default=False,
            description="Whether the gradient with respect to the last layer's bias counts, too.",
        )

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return samples in the order in which the seeding chose them."""
        gradients = self.gradient_embeddings(pool)
        generator = context.generator(self.name)
        if self.parameters.first == "max-norm":
            first = first_highest(gradients.squared_norms_N)
        else:
            first = int(generator.integers(len(gradients)))
        positions_B = d_squared_sampling(gradients, first, context.budget, generator)
        return pool.ids_N[positions_B]

    def gradient_embeddings(self, pool: PoolView) -> OuterProductPoints:
        """Return the gradient embeddings of a pool, as points that know their distances."""
        embeddings_ND = self.embeddings(pool)
        if self.parameters.bias:
            embeddings_ND = pad(embeddings_ND, (0, 1), value=1.0)
        return OuterProductPoints(_logit_gradients(self.logits(pool)), embeddings_ND)


def _logit_gradients(logits_NC: Tensor) -> Tensor:
    """Return p - e_ŷ, the gradient with respect to the logits, float64. Shape (N, C)."""
    gradients_NC = torch.softmax(logits_NC.double(), dim=1)
    predicted_N1 = logits_NC.argmax(dim=1, keepdim=True)
    # p_ŷ - 1 would round to zero where the others are small, and their sum does not.
    gradients_NC.scatter_(1, predicted_N1, 0.0)
    return gradients_NC.scatter_(1, predicted_N1, -gradients_NC.sum(dim=1, keepdim=True))
