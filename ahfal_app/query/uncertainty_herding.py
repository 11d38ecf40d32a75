"""UHerding: MaxHerding in which samples count by how uncertain a model is of them.

Shape suffixes: N samples in the pool, L labelled samples, P points, R reference points,
C classes, T temperatures.
"""

from __future__ import annotations

import logging
import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.coverage import Kernel, gaussian
from ahfal_app.query.core.covering import GreedyCovering
from ahfal_app.query.core.one_model import EMBEDDINGS, LABELLED_EMBEDDINGS, LABELLED_LOGITS, LOGITS
from ahfal_app.query.core.points import EmbeddingPoints, row_blocks
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.scores import entropy, margin_doubt, other_probabilities

_log = logging.getLogger(__name__)

#: Temperatures that calibration tries: 1, 1.1, ..., 19.9.
TEMPERATURES = tuple(step / 10 for step in range(10, 200))


class UncertaintyHerding(GreedyCovering):
    """Samples that most increase how well a kernel covers what a model is uncertain of.

    As `max-herding`, but each sample of the pool counts by the uncertainty of the model's
    prediction and labelled ones do not count; without a labelled sample all count the same, and
    the two methods are one. The kernel's h is the smallest distance between two labelled
    samples that are not equal (`radius=adaptive`), so that the method turns from coverage to
    uncertainty as labels get dense; `radius-fixed` where there are no two such samples.

    A pair of near-duplicates among the labelled samples makes h tiny, and the selection that of
    uncertainty alone. That is the published rule; h is written to the log.

    The published experiments calibrate the probabilities with a model trained on 70 % of the
    labels. Here `calibration=labelled` takes the temperature with the smallest calibration error
    on the client's own labels, which the model was trained on and is therefore too sure of; so
    the default is not to calibrate.
    """

    name: ClassVar[str] = "uncertainty-herding"
    paper: ClassVar[str] = (
        "Bae, Sutherland and Oliveira, Uncertainty herding: One active learning method for all "
        "label budgets, ICLR 2025"
    )
    signals: ClassVar[frozenset[Signal]] = (
        EMBEDDINGS | LABELLED_EMBEDDINGS | LOGITS | LABELLED_LOGITS
    )

    class Parameters(GreedyCovering.Parameters):
        """Uncertainty and radius."""

        uncertainty: Literal["margin", "entropy", "least-confidence"] = Field(
            default="margin", description="1 - (p₁ - p₂), the entropy, or 1 - p₁."
        )
        radius: Literal["adaptive", "fixed"] = Field(
            default="adaptive",
            description="The kernel's h: the smallest distance between labelled samples, or fixed.",
        )
        radius_fixed: float = Field(
            default=1.0,
            gt=0,
            description="The h that is fixed, and that of a client without two labelled samples.",
        )
        calibration: Literal["none", "labelled"] = Field(
            default="none",
            description="Temperature of the probabilities: 1, or calibrated on the labelled set.",
        )

    parameters: Parameters

    def kernel(self, points_ND: Tensor, size: int, context: QueryContext) -> Kernel:
        """Return the Gaussian kernel of the radius."""
        radius = None
        if self.parameters.radius == "adaptive":
            radius = smallest_distance(points_ND[size:])
            _log.info("%s, client %d: h = %s", self.name, context.client, radius)
        return gaussian(radius or self.parameters.radius_fixed)

    def weights(self, pool: PoolView, references_R: Tensor, context: QueryContext) -> Tensor:
        """Return the uncertainty of each reference point, 0 for labelled ones. Shape (R,)."""
        num_labelled = len(self.labelled_embeddings(pool))
        if num_labelled == 0:
            return super().weights(pool, references_R, context)
        uncertainty_N = self._uncertainty(
            self.logits(pool).double() / self._temperature(pool, context)
        )
        labelled_L = uncertainty_N.new_zeros(num_labelled)
        return torch.cat([uncertainty_N, labelled_L])[references_R]

    def _uncertainty(self, logits_NC: Tensor) -> Tensor:
        if self.parameters.uncertainty == "entropy":
            return entropy(logits_NC)
        if self.parameters.uncertainty == "margin":
            return margin_doubt(logits_NC)
        return other_probabilities(logits_NC).sum(dim=1)

    def _temperature(self, pool: PoolView, context: QueryContext) -> float:
        if self.parameters.calibration == "none":
            return 1.0
        labels_L = torch.from_numpy(context.labels_L)
        return calibrated_temperature(self.labelled_logits(pool), labels_L)


def smallest_distance(points_PD: Tensor) -> float | None:
    """Return the smallest distance between two points that is not 0; None where there is none.

    Parameters
    ----------
    points_PD : Tensor
        Shape (P, D).
    """
    points = EmbeddingPoints(points_PD)
    smallest = math.inf
    for rows in row_blocks(len(points)):
        for columns in row_blocks(len(points)):
            squared = points.squared_distances(rows, columns)
            smallest = min(smallest, float(squared.masked_fill_(squared <= 0, math.inf).min()))
    return math.sqrt(smallest) if math.isfinite(smallest) else None


def calibrated_temperature(logits_LC: Tensor, labels_L: Tensor) -> float:
    """Return the temperature with the smallest expected calibration error, the lowest of equals.

    Parameters
    ----------
    logits_LC : Tensor
        At least one row. Shape (L, C).
    labels_L : Tensor
        Classes, int64. Shape (L,).
    """
    logits_LC, labels_L = logits_LC.double(), labels_L.to(logits_LC.device)
    return min(TEMPERATURES, key=lambda t: round(calibration_error(logits_LC / t, labels_L), 12))


def calibration_error(logits_LC: Tensor, labels_L: Tensor) -> float:
    """Return Σ |hits - confidences| over C equal bins of the confidence, over L.

    Parameters
    ----------
    logits_LC : Tensor
        Shape (L, C).
    labels_L : Tensor
        Classes, int64. Shape (L,).
    """
    num_bins = logits_LC.shape[1]
    confidence_L, predicted_L = torch.softmax(logits_LC, dim=1).max(dim=1)
    # Bins are open below: (0, 1/C], (1/C, 2/C], ...
    bin_L = ((confidence_L * num_bins).ceil().long() - 1).clamp(0, num_bins - 1)
    gap_L = (predicted_L == labels_L).double() - confidence_L
    gap_C = gap_L.new_zeros(num_bins).index_add_(0, bin_L, gap_L)
    return float(gap_C.abs().sum()) / len(labels_L)
