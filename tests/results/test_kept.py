"""Which of a run's models is the best."""

from __future__ import annotations

import pytest

from ahfal_app.config import Settings
from ahfal_app.evaluation import EvaluationSums, figure_names, figures_of
from ahfal_app.ledger import Ledger
from ahfal_app.results.kept import LOWER_IS_BETTER, Candidate, best_of, kept_model
from ahfal_app.results.reading import Metrics
from ahfal_app.results.records import CycleRecord, RoundRecord, TestRecord, parse_record

SETTINGS = Settings(rounds=4, keep="best", metric="macro-f1")


def round_(cycle: int, number: int, value: float | None, accuracy: float = 0.5) -> RoundRecord:
    return RoundRecord(
        cycle=cycle,
        round=number,
        clients=1,
        num_examples=4,
        train_loss=1.0,
        test_accuracy=accuracy,
        metrics={"macro-f1": value},
        tests=(TestRecord(where="server", samples=9, metrics={}, recall=(accuracy, None)),),
    )


def cycle(number: int, value: float | None) -> CycleRecord:
    return CycleRecord(
        cycle=number,
        labels=10 * (number + 1),
        labels_per_client=(10 * (number + 1),),
        accuracy=0.25,
        class_accuracy=(0.25, 0.25),
        loss=1.0,
        metrics={"macro-f1": value},
        tau=12.0,
        ledger=Ledger(0, 0, 0, 0),
    )


@pytest.mark.parametrize(
    ("records", "best"),
    [
        ([round_(0, 2, 0.3), cycle(0, 0.2)], Candidate(0, 2, 0.3)),
        ([round_(0, 2, 0.3), cycle(0, 0.4), round_(1, 2, 0.1)], Candidate(0, 4, 0.4)),
        # Of equals the earliest, in whatever order they are told.
        ([cycle(0, 0.4), round_(1, 2, 0.4), round_(0, 2, 0.4)], Candidate(0, 2, 0.4)),
        # What is not defined is never the best, not even of zeros.
        ([round_(0, 2, None), cycle(0, 0.0), cycle(1, None)], Candidate(0, 4, 0.0)),
        ([round_(0, 2, None), cycle(0, None)], None),
        ([], None),
    ],
)
def test_the_best(records: list[RoundRecord | CycleRecord], best: Candidate | None) -> None:
    assert best_of(records, SETTINGS) == best


def test_of_some_metrics_less_is_better() -> None:
    losses = (0.9, 0.4, 0.4, 0.7)
    records = [
        cycle(k, 0.1).model_copy(update={"metrics": {"loss": v}}) for k, v in enumerate(losses)
    ]
    found = best_of(records, SETTINGS.model_copy(update={"metric": "loss"}))
    assert found == Candidate(1, 4, 0.4)


def test_what_is_told_is_the_best_ones_own_test() -> None:
    metrics = Metrics(
        rounds=(round_(0, 2, 0.3), round_(1, 2, 0.6, accuracy=0.75)),
        cycles=(cycle(0, 0.2), cycle(1, 0.1)),
    )
    kept = kept_model(metrics, SETTINGS)
    assert (kept.cycle, kept.round, kept.compared, kept.is_chosen) == (1, 2, 4, True)
    assert (kept.accuracy, kept.class_accuracy_C) == (0.75, (0.75, None))
    assert (kept.labels, kept.metrics) == (20, {"macro-f1": 0.6})
    last = kept_model(metrics, SETTINGS.model_copy(update={"keep": "last"}))
    assert (last.cycle, last.round, last.is_chosen, last.accuracy) == (1, 4, False, 0.25)


def test_the_last_one_is_left_where_no_test_has_the_metric() -> None:
    kept = kept_model(Metrics((), (cycle(0, None), cycle(1, None))), SETTINGS)
    assert (kept.cycle, kept.round, kept.value, kept.is_chosen) == (1, 4, None, False)


def test_rounds_of_earlier_versions_are_read() -> None:
    old = b'{"kind":"round","cycle":0,"round":1,"clients":1,"num_examples":4,"train_loss":1.0}'
    record = parse_record(old)
    assert isinstance(record, RoundRecord)
    assert best_of([record], SETTINGS) is None


def test_a_metric_may_be_any_that_a_test_has() -> None:
    sums = EvaluationSums.nothing(2)
    assert tuple(figures_of(sums).metrics) == figure_names()
    assert set(figure_names()) > LOWER_IS_BETTER
