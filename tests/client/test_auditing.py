"""How many labels of a client are drawn at random, and which."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as save_arrays
from scipy.stats import chi2_contingency, chisquare

from ahfal_app.client.auditing import Auditing, kept_predictions, windows
from ahfal_app.config import Settings, parse_settings
from ahfal_app.drift import DriftTest, Refusal
from ahfal_app.errors import ConfigError
from ahfal_app.labels.records import AUDIT, request_id
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.ledger import AuditFigures

RUN = "0123456789abcdef"


def _auditing(share: float, seed: int = 0) -> Auditing:
    return Auditing(Settings(audit_share=share, seed=seed), 1, RUN)


def _buy(store: LabelStore, auditing: Auditing, cycle: int, due: int, most: int = 10**6) -> int:
    """Buy as a client does, the rest by lowest id; return the size of the audit."""
    store.allot(due)
    budget = min(store.ledger().free, most)
    audit_A = auditing.drawn(store, cycle, budget)
    assert len(audit_A) <= budget
    with store.set_aside(audit_A):
        rest_N = store.unlabelled()[: budget - len(audit_A)]
        assert not np.isin(audit_A, rest_N).any()
    with store.one_change():
        if len(audit_A):
            store.reserve(
                LabelRequest(auditing.request_id(cycle), cycle, AUDIT, tuple(audit_A.tolist()))
            )
        name = request_id(RUN, 1, cycle)
        store.reserve(LabelRequest(name, cycle, "lowest", tuple(rest_N.tolist())))
    return len(audit_A)


def test_each_purchase_draws_what_rounding_up_the_share_of_all_labels_adds():
    store = LabelStore.from_bytes(b"", np.arange(100), 2)
    auditing = _auditing(0.1)
    # Of 10, 23 and 40 labels 1, 2.3 and 4, rounded up.
    assert [_buy(store, auditing, t, due) for t, due in enumerate((10, 23, 40))] == [1, 2, 1]
    assert [len(auditing.asked(store, cycle)) for cycle in range(4)] == [1, 2, 1, 0]
    store.close()


def test_a_share_is_what_is_written_and_not_the_float_nearest_to_it():
    store = LabelStore.from_bytes(b"", np.arange(100), 2)
    # 0.07 * 100 is above 7 as a float.
    assert _buy(store, _auditing(0.07), 0, 100) == 7
    store.close()


def test_what_one_purchase_had_no_room_for_is_drawn_in_the_next():
    store = LabelStore.from_bytes(b"", np.arange(100), 2)
    auditing = _auditing(0.5)
    assert _buy(store, auditing, 0, 10, most=2) == 2
    assert _buy(store, auditing, 1, 12) == 4
    store.close()


def test_a_skipped_audit_is_not_drawn_anew():
    store = LabelStore.from_bytes(b"", np.arange(100), 2)
    auditing = _auditing(0.5)
    assert _buy(store, auditing, 0, 10) == 5
    skipped = int(auditing.asked(store, 0)[0])
    store.commit([LabelReceipt(auditing.request_id(0), skipped, None, "a")])
    # One is given back, and the strategy has it.
    assert store.ledger().free == 1
    assert _buy(store, auditing, 1, 12) == 1
    assert skipped not in store.unlabelled()
    store.close()


def test_a_draw_is_uniform_and_by_key():
    samples_N = np.arange(0, 40, 2)
    store = LabelStore.from_bytes(b"", samples_N, 2)
    store.allot(8)
    drawn = [_auditing(0.5, seed).drawn(store, 3, 8) for seed in range(1000)]
    assert all(len(each) == 4 and (np.diff(each) > 0).all() for each in drawn)
    found_N = np.bincount(np.concatenate(drawn), minlength=40)[::2]
    assert found_N.sum() == 4000
    # Draws without replacement vary less than independent ones, so that this is on the safe side.
    assert chisquare(found_N).pvalue > 0.01
    assert (drawn[7] == _auditing(0.5, 7).drawn(store, 3, 8)).all()
    assert any((_auditing(0.5, 7).drawn(store, c, 8) != drawn[7]).any() for c in (0, 1, 2))
    store.close()


@given(
    st.sampled_from([0.01, 0.1, 1 / 3, 0.9]),
    st.lists(st.integers(0, 20), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_no_sample_is_asked_for_twice_and_the_ledger_adds_up(share: float, more, random):
    store = LabelStore.from_bytes(b"", np.arange(60), 2)
    auditing, due, audits = _auditing(share), 0, 0
    for cycle, labels in enumerate(more):
        due = min(60, due + labels)  # As a client does.
        audits += _buy(store, auditing, cycle, due)
        ledger = store.ledger()
        assert audits == auditing.settings.audits_due(ledger.allotted)
        for request in store.open_requests():
            answered = [s for s in request.samples if random.random() < 0.5]
            store.commit(LabelReceipt(request.request_id, s, 1, "a") for s in answered)
        store.verify()
    store.close()


def test_without_a_share_nothing_is_drawn():
    store = LabelStore.from_bytes(b"", np.arange(9), 2)
    store.allot(5)
    assert len(_auditing(0).drawn(store, 0, 5)) == 0
    store.close()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_one(share: float):
    with pytest.raises(ConfigError, match=f"audit-share={share}: allowed is"):
        parse_settings({"audit-share": share})


def _answer(store: LabelStore, auditing: Auditing, cycle: int, labels: list[int]) -> None:
    samples = auditing.asked(store, cycle).tolist()
    pairs = zip(samples, labels, strict=False)
    store.commit(LabelReceipt(auditing.request_id(cycle), s, label, "a") for s, label in pairs)


def _two_windows(store: LabelStore) -> Auditing:
    """Ask for ten audit labels before each of two cycles, and have the first ten."""
    auditing = Auditing(Settings(audit_share=0.5, drift_window=1), 1, RUN)
    assert _buy(store, auditing, 0, 20) == 10
    _answer(store, auditing, 0, [0] * 8 + [1] * 2)
    store.freeze(0)
    assert _buy(store, auditing, 1, 40) == 10
    return auditing


def test_a_test_goes_by_the_labels_of_the_audit_that_count_by_then():
    store = LabelStore.from_bytes(b"", np.arange(100), 3)
    auditing = _two_windows(store)
    _answer(store, auditing, 1, [0] * 2 + [1] * 6)
    # What the strategy chose counts for nothing, whatever it is.
    rest = store.request(request_id(RUN, 1, 1))
    assert rest is not None
    store.commit(LabelReceipt(rest.request_id, s, 2, "a") for s in rest.samples)
    found = auditing.tested(store, 1, 3, "permutation")
    assert isinstance(found, DriftTest)
    expected = chi2_contingency([[8, 2], [2, 6]], correction=False)
    assert (found.statistic, found.df) == (pytest.approx(expected.statistic), 1)
    # Held out, they are of the audit all the same; late, they are not.
    store.hold_out(Fraction(1, 2), lambda _: np.random.default_rng(0))
    assert len(store.held_out().samples_N)
    store.freeze(1)
    _answer(store, auditing, 1, [0] * 2 + [1] * 6 + [2] * 2)
    assert auditing.tested(store, 1, 3, "permutation") == found
    assert auditing.tested(store, 1, 3, "chi-square") is Refusal.TOO_FEW
    store.close()


def test_where_labels_of_the_audit_are_missing_nothing_is_tested():
    store = LabelStore.from_bytes(b"", np.arange(100), 3)
    auditing = _two_windows(store)
    assert auditing.tested(store, 1, 3, "permutation") is Refusal.UNANSWERED
    _answer(store, auditing, 1, [0] * 7)
    assert auditing.tested(store, 1, 3, "permutation") is Refusal.UNANSWERED
    _answer(store, auditing, 1, [0] * 8)
    assert isinstance(auditing.tested(store, 1, 3, "permutation"), DriftTest)
    store.close()


def test_a_window_without_an_audit_is_not_tested():
    store = LabelStore.from_bytes(b"", np.arange(100), 3)
    auditing = Auditing(Settings(audit_share=0.5, drift_window=1), 1, RUN)
    assert _buy(store, auditing, 0, 20) == 10
    _answer(store, auditing, 0, [0] * 10)
    assert auditing.tested(store, 1, 3, "chi-square") is Refusal.NO_LABELS
    assert windows(5, 2) == (range(2, 4), range(4, 6))
    store.close()


def test_a_model_is_judged_by_the_labels_of_the_audit_alone():
    """Of 10, 20, 30 and 40 it says 0, 1, 2 and 0; they are 0, 2, 2 and, later, 0."""
    store = LabelStore.from_bytes(b"", np.arange(100), 3)
    auditing = Auditing(Settings(audit_share=0.5), 1, RUN)
    store.allot(8)
    audit, chosen = auditing.request_id(2), request_id(RUN, 1, 2)
    said = kept_predictions(np.array([10, 20, 30, 40]), np.array([0, 1, 2, 0]))
    store.reserve(LabelRequest(audit, 2, AUDIT, (10, 20, 30, 40), report=said))
    store.reserve(LabelRequest(chosen, 2, "lowest", (1, 2), report=b"the strategy's"))
    assert auditing.figures(store, 2) == AuditFigures(asked=4, labelled=0, right=0)
    store.commit(LabelReceipt(chosen, s, 0, "a") for s in (1, 2))
    answers = zip((30, 10, 20), (2, 0, 2), strict=True)
    store.commit(LabelReceipt(audit, s, label, "a") for s, label in answers)
    assert auditing.figures(store, 2) == AuditFigures(asked=4, labelled=3, right=2)
    # Held out they count all the same, and what is corrected counts as it now stands.
    store.hold_out(Fraction(1, 2), lambda _: np.random.default_rng(0))
    assert len(store.held_out().samples_N)
    store.commit([LabelReceipt(audit, 40, 0, "a")])
    store.correct({20: 1}, "b")
    store.freeze(2)
    assert auditing.figures(store, 2) == AuditFigures(asked=4, labelled=4, right=4)
    # What a strategy is told of its earlier choices has nothing of it.
    assert store.reports(0, 3) == {2: b"the strategy's"}
    store.close()


@pytest.mark.parametrize("how", ["given", "asked for anew"])
def test_predictions_stay_with_their_images_when_one_leaves_the_audit(tmp_path: Path, how: str):
    """Of 1, 2 and 3 the model says 0, 1 and 0; 1 goes, comes back, and is the audit's no more."""

    def look(*samples: int) -> LabelStore:
        samples_N = np.array(samples, np.int64)
        store = LabelStore.open_file(tmp_path / "labels.sqlite", samples_N, 2, grows=True)
        store.follow_images()
        return store

    auditing = _auditing(0.5)
    audit = auditing.request_id(1)
    said = kept_predictions(np.array([1, 2, 3]), np.array([0, 1, 0]))
    store = look(1, 2, 3, 4)
    store.allot(4)
    store.reserve(LabelRequest(audit, 1, AUDIT, (1, 2, 3), report=said))
    store.close()
    look(2, 3, 4).close()
    store = look(1, 2, 3, 4)
    if how == "given":
        store.give({1: 1}, "labels.csv")
    else:
        store.reserve(LabelRequest(request_id(RUN, 1, 2), 2, "lowest", (1,)))
    store.commit(LabelReceipt(audit, s, label, "a") for s, label in ((2, 1), (3, 0)))
    assert auditing.figures(store, 1) == AuditFigures(asked=2, labelled=2, right=2)
    store.close()


def test_what_older_versions_kept_is_read_as_long_as_no_image_has_left():
    """They kept no ids: of which image a prediction was is known while all are there."""
    store = LabelStore.from_bytes(b"", np.arange(9), 2)
    auditing = _auditing(0.5)
    audit = auditing.request_id(1)
    store.allot(3)
    said = save_arrays({"predicted": np.array([0, 1, 0])})
    store.reserve(LabelRequest(audit, 1, AUDIT, (1, 2, 3), report=said))
    store.commit([LabelReceipt(audit, 2, 1, "a")])
    assert auditing.figures(store, 1) == AuditFigures(asked=3, labelled=1, right=1)
    store.release(audit)
    assert auditing.figures(store, 1) is None
    store.close()


def test_without_a_model_that_was_asked_nothing_is_judged():
    store = LabelStore.from_bytes(b"", np.arange(100), 3)
    auditing = _auditing(0.5)
    assert auditing.figures(store, 0) is None
    assert _buy(store, auditing, 0, 20) == 10
    assert auditing.figures(store, 0) is None
    store.close()
