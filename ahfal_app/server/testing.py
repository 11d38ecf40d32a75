"""The test of the global model, on the server, at the sites, or both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import ArrayRecord

from ahfal_app.evaluation import Interval, ModelFigures, figures_of
from ahfal_app.evaluation.sums import CONFIDENCE_BINS, UNITS
from ahfal_app.messages.protocol import Order
from ahfal_app.results.records import TestRecord
from ahfal_app.server.federation import Federation, Replies
from ahfal_app.server.site_tests import evaluate_at_sites
from ahfal_app.training.prediction import Evaluation

#: The confusion matrix of more classes is not written down: it outgrows all else.
MOST_CLASSES = 200


@dataclass(frozen=True, eq=False)
class Tested:
    """What a test came to.

    Attributes
    ----------
    evaluation : Evaluation
        That by which the model is judged: the server's, or where it has none the sites'.
    records : tuple[TestRecord, ...]
        The server's, and that of all sites together, as far as there are both.
    sites : dict[int, TestRecord]
        Each site's, by client.
    untested : dict[int, str]
        Why clients told nothing.
    seconds : dict[str, float]
        Wall time of each.
    """

    evaluation: Evaluation
    records: tuple[TestRecord, ...]
    sites: dict[int, TestRecord] = field(default_factory=dict)
    untested: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate_everywhere(
    federation: Federation,
    order: Order,
    arrays: ArrayRecord,
    num_classes: int,
    on_server: Callable[[ArrayRecord], Evaluation],
    require: Callable[[Replies, int, str], None],
) -> Tested:
    """Test the global model where the settings say.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle and the round that were just trained.
    arrays : ArrayRecord
        The global model.
    num_classes : int
        Number of classes.
    on_server : Callable
        Tests a model on the server's test set.
    require : Callable
        As of `purchase.buy`.

    Raises
    ------
    QuorumNotReached, SecureAggregationFailed, EvaluationFailed
        The sites cannot test it.
    """
    settings = order.settings
    evaluations: dict[Literal["server", "sites"], Evaluation] = {}
    seconds: dict[str, float] = {}
    if settings.tests_on_server:
        start = time.monotonic()
        evaluations["server"] = on_server(arrays)
        seconds["evaluate"] = time.monotonic() - start
    sites: Mapping[int, TestRecord] = {}
    untested: Mapping[int, str] = {}
    if settings.tests_at_sites:
        found = evaluate_at_sites(federation, order, arrays, num_classes, require)
        evaluations["sites"] = Evaluation(found.total, found.total.loss or 0.0)
        seconds["evaluate at sites"] = found.seconds
        sites = {
            client: record_of_test("sites", figures_of(sums), is_whole=False)
            for client, sums in found.by_client.items()
        }
        untested = found.untested
    return Tested(
        next(iter(evaluations.values())),
        tuple(record_of_test(where, each.figures) for where, each in evaluations.items()),
        dict(sites),
        dict(untested),
        seconds,
    )


def record_of_test(
    where: Literal["server", "sites"], figures: ModelFigures, is_whole: bool = True
) -> TestRecord:
    """Return the figures of a test as a record; a part of several comes without the matrices."""
    sums = figures.sums
    is_small = is_whole and len(sums.confusion_CC) <= MOST_CLASSES
    return TestRecord(
        where=where,
        samples=sums.num_samples,
        metrics=figures.metrics,
        intervals=figures.intervals,
        recall=_shares(figures.recall_C),
        recall_intervals=_bounds(figures.recall_C),
        precision=_shares(figures.precision_C),
        precision_intervals=_bounds(figures.precision_C),
        auroc=figures.auroc_C,
        auroc_intervals=figures.auroc_bounds_C,
        auroc_resolution=figures.auroc_resolution_C,
        confusion=tuple(map(tuple, sums.confusion_CC.tolist())) if is_small else (),
        calibration=_calibration(figures) if is_whole else (),
    )


def without_matrices(test: TestRecord) -> TestRecord:
    """Return a test as it is told of a round, of which there are many."""
    return test.model_copy(update={"confusion": (), "calibration": ()})


def _shares(intervals: tuple[Interval, ...]) -> tuple[float | None, ...]:
    return tuple(each.share for each in intervals)


def _bounds(intervals: tuple[Interval, ...]) -> tuple[tuple[float, float] | None, ...]:
    return tuple(each.bounds for each in intervals)


def _calibration(figures: ModelFigures) -> tuple[tuple[int, int, float | None], ...]:
    tested_K, right_K, units_K = figures.sums.calibration_3K.tolist()
    return tuple(
        (tested_K[k], right_K[k], units_K[k] / UNITS / tested_K[k] if tested_K[k] else None)
        for k in range(CONFIDENCE_BINS)
    )
