"""How good a model is: sums that add up over test sets, and what follows from them."""

from __future__ import annotations

from ahfal_app.evaluation.figures import ModelFigures, figure_names, figures_of
from ahfal_app.evaluation.sums import EvaluationSums, evaluation_sums
from ahfal_app.intervals import Interval

__all__ = [
    "EvaluationSums",
    "Interval",
    "ModelFigures",
    "evaluation_sums",
    "figure_names",
    "figures_of",
]
