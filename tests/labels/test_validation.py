"""Labels that are held out: drawn once, a share of each class, never trained on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.labels.validation import draw_held_out

CLASSES = 3
SAMPLES_N = np.arange(40, dtype=np.int64)
FIFTH = Fraction(1, 5)


def generator(drawn: int) -> np.random.Generator:
    return np.random.default_rng([3, drawn])


def draw(classes: list[int], fraction: Fraction = FIFTH) -> list[bool]:
    nothing = np.zeros(CLASSES, np.int64)
    return draw_held_out(np.array(classes), nothing, nothing, fraction, generator(0)).tolist()


def test_a_fifth_of_each_class() -> None:
    classes = [0] * 10 + [1] * 5 + [2] * 5
    held_out = np.array(draw(classes))
    assert [held_out[np.array(classes) == c].sum() for c in range(CLASSES)] == [2, 1, 1]


def test_the_largest_remainders_get_what_is_left() -> None:
    """Of 4, 4 and 2 labels a fifth is 0.8, 0.8 and 0.4: two in all, one each of the first two."""
    classes = [0] * 4 + [1] * 4 + [2] * 2
    held_out = np.array(draw(classes))
    assert [held_out[np.array(classes) == c].sum() for c in range(CLASSES)] == [1, 1, 0]


def test_the_only_label_of_a_class_is_trained_on() -> None:
    assert draw([0, 1, 2], Fraction(9, 10)) == [False] * 3
    assert sum(draw([0, 0, 1, 2], Fraction(9, 10))) == 1


def test_no_class_is_held_out_first_because_of_its_place() -> None:
    """Which of equal remainders gets the label is drawn."""
    nothing = np.zeros(CLASSES, np.int64)
    classes = np.array([0, 0, 1, 1, 2, 2])
    found = {
        int(classes[draw_held_out(classes, nothing, nothing, FIFTH, generator(seed))][0])
        for seed in range(30)
    }
    assert found == {0, 1, 2}


@given(
    batches=st.lists(st.lists(st.integers(0, CLASSES - 1), max_size=15), max_size=6),
    percent=st.integers(1, 99),
    seed=st.integers(0, 99),
)
def test_the_share_is_kept_whatever_comes_when(
    batches: list[list[int]], percent: int, seed: int
) -> None:
    fraction = Fraction(percent, 100)
    total_C, held_C = np.zeros(CLASSES, np.int64), np.zeros(CLASSES, np.int64)
    for number, batch in enumerate(batches):
        classes = np.array(batch, np.int64)
        chosen = draw_held_out(
            classes, total_C, held_C, fraction, np.random.default_rng([seed, number])
        )
        total_C = total_C + np.bincount(classes, minlength=CLASSES)
        held_C = held_C + np.bincount(classes[chosen], minlength=CLASSES)
        # Every class that has a label has one to train on, and none more than its share rounded up.
        assert (total_C - held_C >= (total_C > 0)).all()
        assert (held_C <= np.ceil(total_C * float(fraction) + 1e-9)).all()
    if len(batches) == 1 and (total_C >= 2).all():
        wanted = float(fraction) * total_C.sum()
        room = (total_C - 1).sum()
        assert abs(held_C.sum() - min(wanted, room)) <= CLASSES


def label(store: LabelStore, cycle: int, samples: list[int]) -> None:
    store.allot(store.ledger().allotted + len(samples))
    request = f"request-{cycle}"
    store.reserve(LabelRequest(request, cycle, "random", tuple(samples)))
    store.commit([LabelReceipt(request, sample, sample % CLASSES, "ann") for sample in samples])


def test_what_is_drawn_stays(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    store = LabelStore.open_file(path, SAMPLES_N, CLASSES)
    label(store, 0, list(range(15)))
    store.hold_out(FIFTH, generator)
    first = store.held_out()
    assert len(first.samples_N) == 3
    assert sorted(first.labels_N.tolist()) == [0, 1, 2]
    store.freeze(0)
    label(store, 1, list(range(15, 30)))
    assert set(store.labelled(through_cycle=0).samples_N.tolist()) == (
        set(range(15)) - set(first.samples_N.tolist())
    )
    store.hold_out(FIFTH, generator)
    store.hold_out(FIFTH, lambda drawn: np.random.default_rng(99))
    # The first cycle is tested with what it was tested with, and later ones with more.
    assert store.held_out(through_cycle=0).samples_N.tolist() == first.samples_N.tolist()
    assert len(store.held_out().samples_N) == 6
    both = {*store.labelled().samples_N.tolist(), *store.held_out().samples_N.tolist()}
    assert both == set(range(30))
    assert store.ledger().spent == 30
    store.close()
    again = LabelStore.open_file(path, SAMPLES_N, CLASSES)
    assert len(again.held_out().samples_N) == 6
    again.verify()


def test_a_corrected_label_stays_where_it_is(tmp_path: Path) -> None:
    store = LabelStore.open_file(tmp_path / "labels.sqlite", SAMPLES_N, CLASSES)
    label(store, 0, list(range(15)))
    store.hold_out(FIFTH, generator)
    sample = int(store.held_out().samples_N[0])
    store.freeze(0)
    store.correct({sample: (sample + 1) % CLASSES}, "eve")
    store.hold_out(FIFTH, generator)
    held_out = store.held_out()
    assert held_out.labels_N[held_out.samples_N == sample].tolist() == [(sample + 1) % CLASSES]
    before = store.held_out(through_cycle=0)
    assert before.labels_N[before.samples_N == sample].tolist() == [sample % CLASSES]


def test_given_labels_are_held_out_too(tmp_path: Path) -> None:
    store = LabelStore.open_file(tmp_path / "labels.sqlite", SAMPLES_N, CLASSES)
    store.give({sample: sample % CLASSES for sample in range(20)}, "before")
    store.hold_out(FIFTH, generator)
    assert len(store.held_out().samples_N) == 4
    assert store.ledger().spent == 0


def test_only_what_was_asked_for_first_is_held_out_where_that_is_wanted(tmp_path: Path) -> None:
    store = LabelStore.open_file(tmp_path / "labels.sqlite", SAMPLES_N, CLASSES)
    store.give({sample: sample % CLASSES for sample in range(30, 40)}, "before")
    label(store, 0, list(range(15)))
    store.hold_out(FIFTH, generator, of_first_request=True)
    first = store.held_out().samples_N.tolist()
    assert len(first) == 3
    assert max(first) < 15
    label(store, 1, list(range(15, 30)))
    store.hold_out(FIFTH, generator, of_first_request=True)
    assert store.held_out().samples_N.tolist() == first
    assert len(store.labelled().samples_N) == 37


def test_what_was_trained_on_is_never_held_out(tmp_path: Path) -> None:
    """As where a site takes its own folder for validation away in the middle of a run."""
    store = LabelStore.open_file(tmp_path / "labels.sqlite", SAMPLES_N, CLASSES)
    label(store, 0, list(range(15)))
    store.freeze(0)
    label(store, 1, list(range(15, 30)))
    store.hold_out(FIFTH, generator)
    assert len(store.labelled(through_cycle=0).samples_N) == 15
    assert min(store.held_out().samples_N) >= 15


def test_images_that_are_away_are_not_tested(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    store = LabelStore.open_file(path, SAMPLES_N, CLASSES, grows=True)
    label(store, 0, list(range(15)))
    store.hold_out(FIFTH, generator)
    gone = int(store.held_out().samples_N[0])
    store.close()
    fewer = LabelStore.open_file(path, SAMPLES_N[gone != SAMPLES_N], CLASSES, grows=True)
    assert gone not in fewer.held_out().samples_N
    fewer.close()
    back = LabelStore.open_file(path, SAMPLES_N, CLASSES, grows=True)
    back.hold_out(FIFTH, generator)
    assert gone in back.held_out().samples_N
