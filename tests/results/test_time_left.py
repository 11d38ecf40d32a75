"""The time that is left: cases by hand, and what holds for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.config import Settings, parse_settings
from ahfal_app.ledger import Ledger
from ahfal_app.results.reading import Metrics
from ahfal_app.results.records import CycleRecord, RoundRecord
from ahfal_app.results.time_left import seconds_left

#: Four cycles of two rounds, with 10, 20, 30 and 40 % of the labels.
SETTINGS = parse_settings(
    {"rounds": 2, "initial-fraction": 0.1, "query-fraction": 0.1, "target-fraction": 0.4}
)


def rounds(cycle: int, *seconds: float, examples: int) -> tuple[RoundRecord, ...]:
    return tuple(
        RoundRecord(
            cycle=cycle,
            round=number,
            clients=1,
            num_examples=examples,
            train_loss=1.0,
            seconds={"train": took - 0.5, "aggregate": 0.5},
        )
        for number, took in enumerate(seconds, start=1)
    )


def cycle(number: int, **seconds: float) -> CycleRecord:
    return CycleRecord(
        cycle=number,
        labels=1,
        labels_per_client=(1,),
        accuracy=0.5,
        class_accuracy=(0.5,),
        loss=1.0,
        tau=12,
        ledger=Ledger(1, 1, 0, 0),
        seconds=seconds,
    )


def left(*records: RoundRecord | CycleRecord, settings: Settings = SETTINGS) -> float | None:
    found = Metrics(
        tuple(each for each in records if isinstance(each, RoundRecord)),
        tuple(each for each in records if isinstance(each, CycleRecord)),
    )
    return seconds_left(settings, found)


def test_before_the_first_round_nobody_knows() -> None:
    assert left() is None


def test_one_cycle_alone_is_taken_as_proportional() -> None:
    # 2 s with 100 labels: 2 more, then 4, 6 and 8 s twice each.
    assert left(*rounds(0, 2.0, examples=100)) == pytest.approx(2 + 2 * (4 + 6 + 8))


def test_two_cycles_give_a_line_and_what_ends_them_is_counted_without_people() -> None:
    # 3 s with 100, 4 s with 200: 2 s and 1 s for each hundred; so 5 and 6 s.
    records = (
        *rounds(0, 3.0, 3.0, examples=100),
        cycle(0, evaluate=1.0, select=2.0, collect=86_400.0),
        *rounds(1, 4.0, 4.0, examples=200),
    )
    assert left(*records) == pytest.approx(2 * 5 + 2 * 6 + 3 * 3.0)


def test_rounds_that_get_faster_are_taken_as_equally_long() -> None:
    records = (*rounds(0, 4.0, 4.0, examples=100), cycle(0), *rounds(1, 2.0, 2.0, examples=200))
    assert left(*records) == pytest.approx(4 * 3.0)


def test_a_line_does_not_begin_below_nothing() -> None:
    # 1 s with 100, 3 s with 200: a line from -1 s; so 4 s for 300 labels, 12 and 16 s for the rest.
    records = (*rounds(0, 1.0, 1.0, examples=100), cycle(0), *rounds(1, 3.0, 3.0, examples=200))
    assert left(*records) == pytest.approx(2 * 4.0 + 2 * 16 / 3)


def test_after_the_last_cycle_nothing_is_left() -> None:
    records = [part for c in range(4) for part in (*rounds(c, 1.0, 1.0, examples=9), cycle(c))]
    assert left(*records) == 0


def test_one_slow_round_does_not_decide() -> None:
    settings = parse_settings({"rounds": 6, "initial-fraction": 0.1, "target-fraction": 0.1})
    records = rounds(0, 60.0, 1.0, 1.0, 1.0, 1.0, examples=50)
    assert left(*records, settings=settings) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0.5, 1e6), st.integers(0, 10**9)), min_size=1, max_size=8))
def test_it_is_never_below_nothing_and_shrinks_to_it(took: list[tuple[float, int]]) -> None:
    records: list[RoundRecord | CycleRecord] = []
    for number, (seconds, examples) in enumerate(took):
        records += rounds(number // 2, seconds, examples=examples)[:1]
        if number % 2:
            records.append(cycle(number // 2))
    found = left(*records)
    assert found is not None
    assert found >= 0
    assert (found == 0) == (len(took) == 8) or not any(examples for _, examples in took)
