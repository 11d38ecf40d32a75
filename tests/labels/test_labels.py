from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.killed_buyer import kill_buyer

from ahfal_app.errors import BudgetExceeded, LabelConflict, PoolExhausted, StoreError
from ahfal_app.labels.records import AUDIT
from ahfal_app.labels.store import (
    LabelReceipt,
    LabelRequest,
    LabelStore,
    request_id,
)
from ahfal_app.ledger import Ledger

SAMPLES_N = np.arange(0, 60, 2, dtype=np.int64)


@pytest.fixture(params=["file", "bytes"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path):
    """Return a function that opens the store, or closes one and opens it again."""

    def open_store(store: LabelStore | None = None, samples_N=SAMPLES_N) -> LabelStore:
        content = store.to_bytes() if store is not None else b""
        if store is not None:
            store.close()
        if request.param == "file":
            return LabelStore.open_file(tmp_path / "labels.sqlite", samples_N, 3)
        return LabelStore.from_bytes(content, samples_N, 3)

    return open_store


def _request(*samples: int, cycle: int = 0) -> LabelRequest:
    return LabelRequest(request_id("run", 1, cycle), cycle, "random", samples)


def _answers(request: LabelRequest, label: int = 1) -> list[LabelReceipt]:
    return [LabelReceipt(request.request_id, s, label, "anna") for s in request.samples]


def test_ledger_follows_a_request_to_its_labels(reopen):
    store = reopen()
    store.allot(5)
    assert store.ledger() == Ledger(5, 0, 0, 5)
    request = store.reserve(_request(4, 0, 8))
    assert store.ledger() == Ledger(5, 0, 3, 2)
    assert set(store.unlabelled()) == set(SAMPLES_N) - {0, 4, 8}
    assert store.commit(_answers(request)[:2]) == 2
    assert store.ledger() == Ledger(5, 2, 1, 2)
    assert store.pending(request.request_id) == 1
    store = reopen(store)
    assert store.labelled().samples_N.tolist() == [0, 4]
    assert store.labelled().class_counts(3).tolist() == [0, 2, 0]
    assert store.release(request.request_id) == 1
    assert store.ledger() == Ledger(5, 2, 0, 3)
    assert 8 in store.unlabelled()
    store.verify()


def test_what_waits_longest_is_what_is_unanswered_of_the_oldest_request(reopen):
    store = reopen()
    store.allot(9)
    assert store.longest_waiting() == (0, 0.0)
    first = store.reserve(_request(4, 0, 8))
    second = store.reserve(_request(2, 6, cycle=1))
    when = "UPDATE requests SET created = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?) WHERE cycle = ?"
    store._connection.execute(when, ("-50 hours", 0))
    store._connection.execute(when, ("-3 hours", 1))
    images, seconds = store.longest_waiting()
    assert images == 3
    assert 50 * 3600 - 1 <= seconds < 51 * 3600
    store.commit(_answers(first)[:2])
    assert store.longest_waiting().images == 1
    store.commit(_answers(first)[2:])
    images, seconds = store.longest_waiting()
    assert images == 2
    assert 3 * 3600 - 1 <= seconds < 4 * 3600
    # A clock that was set back makes nobody wait less than not at all.
    store._connection.execute(when, ("+1 hours", 1))
    assert store.longest_waiting() == (2, 0.0)
    store.commit(_answers(second))
    assert store.longest_waiting() == (0, 0.0)


def test_an_audit_waits_with_what_was_chosen_beside_it(reopen):
    store = reopen()
    store.allot(9)
    with store.one_change():
        store.reserve(LabelRequest(request_id("run", 1, 0, AUDIT), 0, AUDIT, (2, 6)))
        store.reserve(_request(4, 0, 8))
    assert store.longest_waiting().images == 5
    assert store.ledger().reserved == 5
    # One change: where the second request cannot be made, the first is not, either.
    audit = LabelRequest(request_id("run", 1, 1, AUDIT), 1, AUDIT, (10,))

    def reserve_both() -> None:
        with store.one_change():
            store.reserve(audit)
            store.reserve(_request(4, cycle=1))

    with pytest.raises(PoolExhausted):
        reserve_both()
    assert store.ledger().reserved == 5
    assert 10 in store.unlabelled()
    with store.set_aside(np.array([10, 12])):
        assert not {10, 12} & set(store.unlabelled().tolist())
        assert {10, 12} <= set(store.unasked().tolist())
    assert {10, 12} <= set(store.unlabelled().tolist())


def test_repeated_request_returns_the_first_and_buys_nothing(reopen):
    store = reopen()
    store.allot(10)
    first = store.reserve(_request(0, 2))
    store = reopen(store)
    again = store.reserve(_request(4, 6, 8))
    assert again.samples == first.samples
    assert store.ledger().reserved == 2
    store.commit(_answers(first))
    store.commit(_answers(first))
    assert store.ledger() == Ledger(10, 2, 0, 8)


def test_allotment_is_a_total_that_never_falls(reopen):
    store = reopen()
    for total in (4, 4, 2, 6):
        store.allot(total)
    assert store.ledger() == Ledger(6, 0, 0, 6)


def test_refusals_change_nothing(reopen):
    store = reopen()
    store.allot(2)
    for request, error in [
        (_request(0, 2, 4), BudgetExceeded),
        (_request(0, 0), PoolExhausted),
        (_request(0, 1), PoolExhausted),
    ]:
        with pytest.raises(error):
            store.reserve(request)
    request = store.reserve(_request(0, 2))
    good, bad = _answers(request)
    with pytest.raises(LabelConflict, match=r"label 3; allowed is 0 to 2"):
        store.commit([good, LabelReceipt(bad.request_id, bad.sample, 3, "anna")])
    with pytest.raises(LabelConflict, match="not part of request"):
        store.commit([good, LabelReceipt(bad.request_id, 4, 1, "anna")])
    assert store.ledger() == Ledger(2, 0, 2, 0)
    store.verify()


def test_first_label_stands_and_conflicts_are_kept(reopen):
    store = reopen()
    store.allot(1)
    request = store.reserve(_request(6))
    store.commit(_answers(request, label=1))
    store.commit([LabelReceipt(request.request_id, 6, 2, "bert")])
    store = reopen(store)
    assert store.labelled().labels_N.tolist() == [1]
    (conflict,) = store.conflicts()
    assert (conflict.sample, conflict.label, conflict.annotator) == (6, 2, "bert")
    assert conflict.standing_label == 1
    assert store.ledger().spent == 1


def test_open_requests_by_age(reopen):
    store = reopen()
    store.allot(4)
    store.reserve(_request(2, cycle=1))
    done = store.reserve(_request(0, cycle=0))
    assert [r.cycle for r in store.open_requests()] == [0, 1]
    store.commit(_answers(done))
    assert [r.cycle for r in store.open_requests()] == [1]


def test_labels_through_a_cycle(reopen):
    store = reopen()
    assert store.last_cycle() == -1
    store.allot(4)
    for cycle, sample in enumerate((10, 2)):
        store.commit(_answers(store.reserve(_request(sample, cycle=cycle))))
    assert store.labelled(0).samples_N.tolist() == [10]
    assert store.labelled(1).samples_N.tolist() == [2, 10]
    assert store.last_cycle() == 1


def test_a_request_keeps_the_order_of_choice(reopen):
    store = reopen()
    store.allot(3)
    request = store.reserve(_request(8, 0, 4))
    assert reopen(store).request(request.request_id) == request


def test_other_samples_are_refused(reopen):
    store = reopen()
    store.allot(1)
    with pytest.raises(StoreError, match="another set of samples"):
        reopen(store, SAMPLES_N[:-1])


def test_damaged_and_newer_files_are_named_errors(tmp_path):
    path = tmp_path / "labels.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"labels\.sqlite"):
        LabelStore.open_file(path, SAMPLES_N, 3)
    path.unlink()
    store = LabelStore.open_file(path, SAMPLES_N, 3)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(StoreError, match="schema 99"):
        LabelStore.open_file(path, SAMPLES_N, 3)


def test_database_itself_refuses_a_wrong_ledger(tmp_path):
    path = tmp_path / "labels.sqlite"
    LabelStore.open_file(path, SAMPLES_N, 3).close()
    with sqlite3.connect(path) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute("UPDATE ledger SET spent = 1")


def test_verify_sees_a_ledger_that_disagrees_with_the_samples(tmp_path):
    path = tmp_path / "labels.sqlite"
    store = LabelStore.open_file(path, SAMPLES_N, 3)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE ledger SET allotted = 1, spent = 1")
    with pytest.raises(StoreError, match="rows say"):
        store.verify()


def test_request_ids_differ_by_run_client_and_cycle():
    ids = {request_id(r, c, k) for r in ("a", "b") for c in (1, 2) for k in (0, 1)}
    assert len(ids) == 8
    assert request_id("a", 1, 0) == request_id("a", 1, 0)


class LedgerMachine(RuleBasedStateMachine):
    """The store against a dictionary, with crashes in between."""

    @initialize()
    def start(self) -> None:
        self.store = LabelStore.from_bytes(b"", SAMPLES_N, 3)
        self.allotted = 0
        self.labels: dict[int, int] = {}
        self.reserved: dict[int, str] = {}
        self.skipped: set[int] = set()
        self.cycle = 0

    @rule(amount=st.integers(0, 10))
    def allot(self, amount: int) -> None:
        self.allotted += amount
        self.store.allot(self.allotted)
        self.store.allot(self.allotted - amount)

    @rule(samples=st.lists(st.sampled_from(SAMPLES_N.tolist()), max_size=6))
    def reserve(self, samples: list[int]) -> None:
        request = LabelRequest(request_id("run", 0, self.cycle), self.cycle, "x", tuple(samples))
        self.cycle += 1
        free = self.allotted - len(self.labels) - len(self.reserved)
        taken = self.labels.keys() | self.reserved.keys() | self.skipped
        if len(set(samples)) < len(samples) or taken & set(samples):
            with pytest.raises(PoolExhausted):
                self.store.reserve(request)
        elif len(samples) > free:
            with pytest.raises(BudgetExceeded):
                self.store.reserve(request)
        else:
            self.store.reserve(request)
            self.reserved.update(dict.fromkeys(samples, request.request_id))

    @rule(data=st.data(), label=st.integers(0, 2), again=st.booleans())
    def answer(self, data: st.DataObject, label: int, again: bool) -> None:
        if not self.reserved:
            return
        sample = data.draw(st.sampled_from(sorted(self.reserved)))
        receipt = LabelReceipt(self.reserved.pop(sample), sample, label, "anna")
        assert self.store.commit([receipt] * (2 if again else 1)) == 1
        self.labels[sample] = label

    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        if not self.reserved:
            return
        sample = data.draw(st.sampled_from(sorted(self.reserved)))
        receipt = LabelReceipt(self.reserved.pop(sample), sample, None, "anna")
        assert self.store.commit([receipt, receipt]) == 0
        self.skipped.add(sample)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if not self.reserved:
            return
        request = data.draw(st.sampled_from(sorted(set(self.reserved.values()))))
        samples = [s for s, r in self.reserved.items() if r == request]
        assert self.store.release(request) == len(samples)
        for sample in samples:
            del self.reserved[sample]

    @rule()
    def crash_and_reopen(self) -> None:
        self.store = LabelStore.from_bytes(self.store.to_bytes(), SAMPLES_N, 3)

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        ledger = self.store.ledger()
        assert ledger.allotted == ledger.spent + ledger.reserved + ledger.free
        assert (ledger.allotted, ledger.spent, ledger.reserved) == (
            self.allotted,
            len(self.labels),
            len(self.reserved),
        )
        labelled = self.store.labelled()
        assert dict(zip(labelled.samples_N, labelled.labels_N, strict=True)) == self.labels
        self.store.verify()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_scores_and_guesses_stay_with_the_request(reopen):
    store = reopen()
    store.allot(2)
    request = LabelRequest("r", 1, "margin", (8, 0), scores=(0.25, -1.5), guesses=(2, 0))
    assert store.reserve(request) == request
    assert reopen(store).request("r") == request


def test_a_skipped_sample_is_free_and_never_asked_for_again(reopen):
    store = reopen()
    store.allot(2)
    request = store.reserve(_request(4, 6))
    skip = LabelReceipt(request.request_id, 4, None, "anna")
    assert store.commit([skip, skip]) == 0
    store = reopen(store)
    assert store.ledger() == Ledger(2, 0, 1, 1)
    assert store.pending(request.request_id) == 1
    assert store.answered(request.request_id) == {4}
    assert store.request(request.request_id).samples == (4, 6)
    with pytest.raises(PoolExhausted):
        store.reserve(_request(4, cycle=1))
    store.verify()


def test_a_label_for_a_skipped_sample_is_used_once_one_is_free(reopen):
    store = reopen()
    store.allot(1)
    request = store.reserve(_request(4))
    store.commit([LabelReceipt(request.request_id, 4, None, "anna")])
    other = store.reserve(_request(6, cycle=1))
    late = LabelReceipt(request.request_id, 4, 2, "bert")
    assert store.commit([late, late]) == 0
    assert store.ledger() == Ledger(1, 0, 1, 0)
    store.freeze(1)
    store.allot(2)
    store = reopen(store)
    assert store.ledger() == Ledger(2, 1, 1, 0)
    assert store.labelled(1).samples_N.tolist() == []
    assert store.labelled(2).labels_N.tolist() == [2]
    store.commit(_answers(other))
    store.verify()


def test_a_skip_does_not_take_a_label_away(reopen):
    store = reopen()
    store.allot(1)
    request = store.reserve(_request(4))
    store.commit(_answers(request))
    store.commit([LabelReceipt(request.request_id, 4, None, "bert")])
    assert store.ledger() == Ledger(1, 1, 0, 0)
    assert store.labelled().samples_N.tolist() == [4]


def test_what_a_frozen_cycle_is_trained_on_changes_no_more(reopen):
    store = reopen()
    store.allot(3)
    request = store.reserve(_request(2, 4, 6))
    early, late, last = _answers(request)
    store.commit([early])
    store.freeze(0)
    store.commit([late])
    store.freeze(0)
    store = reopen(store)
    store.freeze(2)
    store.commit([last])
    by_cycle = [store.labelled(cycle).samples_N.tolist() for cycle in range(4)]
    assert by_cycle == [[2], [2, 4], [2, 4], [2, 4, 6]]
    assert store.labelled().samples_N.tolist() == [2, 4, 6]


def test_a_label_does_not_count_before_the_cycle_it_was_asked_for(reopen):
    store = reopen()
    store.allot(1)
    store.commit(_answers(store.reserve(_request(2, cycle=3))))
    assert [len(store.labelled(cycle).samples_N) for cycle in (2, 3)] == [0, 1]


def test_given_labels_cost_nothing_and_are_not_asked_for(reopen):
    store = reopen()
    store.allot(1)
    for _ in range(2):
        store.give({0: 1, 2: 0}, "labels.csv")
    store = reopen(store)
    assert store.ledger() == Ledger(1, 0, 0, 1)
    assert store.labelled(0).samples_N.tolist() == [0, 2]
    assert not {0, 2} & set(store.unlabelled())
    store.freeze(0)
    store.give({4: 1}, "labels.csv")
    assert store.labelled(0).samples_N.tolist() == [0, 2]
    assert store.labelled(1).samples_N.tolist() == [0, 2, 4]
    store.verify()
    for labels, message in (({6: 3}, "allowed is 0 to 2"), ({7: 0}, "not one of this client")):
        with pytest.raises(LabelConflict, match=message):
            store.give(labels, "labels.csv")


def test_a_given_label_answers_a_request_and_contradicts_no_answer(reopen):
    store = reopen()
    store.allot(2)
    request = store.reserve(_request(0, 2))
    store.commit(_answers(request)[:1])
    store.give({0: 2, 2: 0}, "labels.csv")
    assert store.ledger() == Ledger(2, 2, 0, 0)
    assert store.labelled().labels_N.tolist() == [1, 0]
    assert [(c.sample, c.label) for c in store.conflicts()] == [(0, 2)]


def test_a_correction_counts_from_the_next_cycle_and_settles_a_conflict(reopen):
    store = reopen()
    store.allot(2)
    request = store.reserve(_request(0, 2))
    store.commit(_answers(request))
    store.commit([LabelReceipt(request.request_id, 0, 2, "bert")])
    store.freeze(0)
    assert store.correct({0: 2, 2: 1}, "clara") == 1
    store = reopen(store)
    assert store.labelled(0).labels_N.tolist() == [1, 1]
    assert store.labelled(1).labels_N.tolist() == [2, 1]
    assert store.conflicts() == ()
    assert [(e.label, e.annotator) for e in store.entries()] == [(2, "clara"), (1, "anna")]
    assert store.ledger() == Ledger(2, 2, 0, 0)
    store.freeze(1)
    store.correct({0: 0}, "clara")
    assert [store.labelled(k).labels_N[0] for k in (0, 1, 2)] == [1, 2, 0]
    with pytest.raises(LabelConflict, match="no label that could be corrected"):
        store.correct({0: 1, 8: 1}, "clara")
    assert store.labelled().labels_N[0] == 0
    store.verify()


def test_names_are_kept_and_other_classes_refused(reopen):
    store = reopen()
    for _ in range(2):
        store.describe(("a", "b", "c"), {0: "x/1.png", 2: "x/2.png"})
    store = reopen(store)
    assert store.class_names() == ("a", "b", "c")
    assert store.files() == {0: "x/1.png", 2: "x/2.png"}
    with pytest.raises(StoreError, match="classes a, b, c, and not to a, c, b"):
        store.describe(("a", "c", "b"))
    # Its labels would become those of another image.
    with pytest.raises(StoreError, match=r"sample 2 is the file 'x/2\.png'.*'x/3\.png'.*images"):
        store.describe(("a", "b", "c"), {1: "x/9.png", 2: "x/3.png"})
    assert store.files() == {0: "x/1.png", 2: "x/2.png"}


def test_a_store_of_samples_that_come_and_go(tmp_path):
    path = tmp_path / "labels.sqlite"
    store = LabelStore.open_file(path, SAMPLES_N, 3, grows=True)
    store.allot(2)
    store.commit(_answers(store.reserve(_request(0, 58))))
    store.close()
    changed_N = np.array([0, 3, 200], dtype=np.int64)
    store = LabelStore.open_file(path, changed_N, 3, grows=True)
    assert store.unlabelled().tolist() == [3, 200]
    assert store.labelled().samples_N.tolist() == [0]
    store.close()
    with pytest.raises(StoreError, match="another set of samples"):
        LabelStore.open_file(path, changed_N, 3)
    store = LabelStore.open_existing(path)
    assert store.labelled().samples_N.tolist() == [0, 58]
    with pytest.raises(StoreError, match="knows no pool"):
        store.unlabelled()
    store.close()


def test_only_label_stores_are_opened_as_such(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        LabelStore.open_existing(tmp_path / "missing.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(StoreError, match="no label store"):
        LabelStore.open_existing(tmp_path / "other.sqlite")


def test_full_disk_is_named_where_a_store_cannot_be_opened(tmp_path, monkeypatch):
    path = tmp_path / "labels.sqlite"
    path.write_text("no database at all")
    with pytest.raises(StoreError, match=r"file is not a database$"):
        LabelStore.open_file(path, SAMPLES_N, 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    with pytest.raises(StoreError, match=r"labels\.sqlite: .*; its disk is full$"):
        LabelStore.open_file(path, SAMPLES_N, 3)


def test_what_does_not_fit_into_the_file_changes_nothing(tmp_path):
    store = LabelStore.open_file(tmp_path / "labels.sqlite", SAMPLES_N, 3)
    store.allot(9)
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    many = LabelRequest(request_id("run", 0, 0), 0, "x" * 9000, (0, 2))
    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        store.reserve(many)
    assert store.ledger() == Ledger(9, 0, 0, 9)
    assert store.open_requests() == ()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 100}")
    assert store.reserve(many) == many
    assert store.ledger() == Ledger(9, 0, 2, 7)
    store.close()


_VERSION_1 = """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE ledger (
        id INTEGER PRIMARY KEY CHECK (id = 1), allotted INTEGER NOT NULL, spent INTEGER NOT NULL,
        reserved INTEGER NOT NULL, free INTEGER NOT NULL,
        CHECK (allotted = spent + reserved + free)
    ) STRICT;
    CREATE TABLE requests (
        request_id TEXT PRIMARY KEY, cycle INTEGER NOT NULL, strategy TEXT NOT NULL,
        created TEXT NOT NULL DEFAULT 'then'
    ) STRICT;
    CREATE TABLE samples (
        sample INTEGER PRIMARY KEY, request_id TEXT NOT NULL REFERENCES requests,
        position INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'labelled')),
        label INTEGER, annotator TEXT, answered TEXT,
        CHECK ((state = 'labelled') = (label IS NOT NULL))
    ) STRICT;
    CREATE INDEX samples_by_request ON samples (request_id);
    CREATE TABLE receipts (
        sample INTEGER NOT NULL, annotator TEXT NOT NULL, label INTEGER NOT NULL,
        request_id TEXT NOT NULL, received TEXT NOT NULL DEFAULT 'then',
        PRIMARY KEY (sample, annotator, label)
    ) STRICT;
    INSERT INTO ledger VALUES (1, 5, 2, 2, 1);
    INSERT INTO requests (request_id, cycle, strategy) VALUES ('a', 0, 'x'), ('b', 1, 'y');
    INSERT INTO samples VALUES
        (4, 'a', 0, 'labelled', 2, 'anna', 'then'), (0, 'a', 1, 'labelled', 1, 'anna', 'then'),
        (8, 'b', 1, 'reserved', NULL, NULL, NULL), (6, 'b', 0, 'reserved', NULL, NULL, NULL);
    INSERT INTO receipts (sample, annotator, label, request_id)
        VALUES (4, 'anna', 2, 'a'), (0, 'anna', 1, 'a'), (0, 'bert', 0, 'a');
    INSERT INTO meta VALUES ('schema', '1');
"""


def test_a_store_of_version_1_is_brought_up_to_date(tmp_path):
    path = tmp_path / "labels.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(_VERSION_1)
        digest = hashlib.sha256(SAMPLES_N.tobytes()).hexdigest()
        connection.execute("INSERT INTO meta VALUES ('samples', ?)", (digest,))
    connection.close()
    for _ in range(2):
        store = LabelStore.open_file(path, SAMPLES_N, 3)
        store.verify()
        assert store.ledger() == Ledger(5, 2, 2, 1)
        assert store.labelled(0).samples_N.tolist() == [0, 4]
        assert store.labelled().labels_N.tolist() == [1, 2]
        assert [(r.request_id, r.samples) for r in store.open_requests()] == [("b", (6, 8))]
        assert [(c.sample, c.label, c.annotator) for c in store.conflicts()] == [(0, 0, "bert")]
        store.close()
    store = LabelStore.open_file(path, SAMPLES_N, 3)
    # Cycle 0 was trained before labels were asked for cycle 1: it must not change any more.
    store.correct({0: 0}, "clara")
    assert store.labelled(0).labels_N.tolist() == [1, 2]
    assert store.labelled(1).labels_N.tolist() == [0, 2]
    store.commit([LabelReceipt("b", 6, None, "anna")])
    store.verify()
    store.close()


def test_what_was_told_of_a_choice_is_kept_with_its_request(reopen):
    store = reopen()
    store.allot(9)
    told = [dataclasses.replace(_request(2 * c, cycle=c), report=bytes([c])) for c in range(1, 4)]
    for request in told:
        store.reserve(request)
    # What is drawn at random is told to nobody.
    audit = LabelRequest(request_id("run", 1, 2, AUDIT), 2, AUDIT, (20,))
    store.reserve(audit)
    # A request that is made again in another way is the first one.
    assert store.reserve(dataclasses.replace(told[0], report=b"else")) == told[0]
    store = reopen(store)
    assert store.request(told[1].request_id) == told[1]
    assert store.request(audit.request_id) == audit
    assert store.reports(2, 4) == {2: b"\x02", 3: b"\x03"}
    assert list(store.reports(0, 3)) == [1, 2]
    assert store.reports(5, 9) == {}


def test_a_store_of_version_4_is_brought_up_to_date(tmp_path):
    path = tmp_path / "labels.sqlite"
    store = LabelStore.open_file(path, SAMPLES_N, 3)
    store.allot(5)
    store.reserve(_request(0, 2))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE requests DROP COLUMN report")
        connection.execute("DROP TABLE earlier_requests")
        connection.execute("UPDATE meta SET value = '4' WHERE key = 'schema'")
    connection.close()
    store = LabelStore.open_file(path, SAMPLES_N, 3)
    store.verify()
    assert store.request(_request(0, 2).request_id) == _request(0, 2)
    new = dataclasses.replace(_request(4, cycle=1), report=b"told")
    store.reserve(new)
    assert store.reports(0, 2) == {1: b"told"}
    store.close()


_WRITER = """
    import sys
    from pathlib import Path
    import numpy as np
    from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore, request_id
    store = LabelStore.open_file(Path(sys.argv[1]), np.arange(100_000), 10)
    start = int(sys.argv[2])
    store.allot(start + 5000)
    for i in range(start, start + 5000):
        identity = request_id("run", 0, i)
        store.reserve(LabelRequest(identity, i, "x", (i,)))
        store.commit([LabelReceipt(identity, i, i % 10, "anna")])
        print(i, flush=True)
"""


@pytest.mark.slow
def test_no_acknowledged_label_is_lost_to_sigkill(tmp_path):
    path = tmp_path / "labels.sqlite"
    acknowledged: list[int] = []
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_WRITER), str(path), str(attempt * 5000)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(20 + 13 * attempt):
            line = process.stdout.readline()
            if line.endswith("\n"):
                acknowledged.append(int(line))
        process.kill()
        with process.stdout:
            acknowledged += [int(line) for line in process.stdout.read().splitlines()[:-1]]
        process.wait()
        time.sleep(0.01)
    store = LabelStore.open_file(path, np.arange(100_000), 10)
    store.verify()
    labelled = store.labelled()
    assert set(acknowledged) <= set(labelled.samples_N.tolist())
    assert (labelled.labels_N == labelled.samples_N % 10).all()
    assert store.ledger().spent == len(labelled.samples_N)


@pytest.mark.slow
def test_of_200_kills_none_loses_a_label_or_buys_one_twice(tmp_path):
    counts = kill_buyer(tmp_path, 200)
    assert counts.injected >= 200
    assert counts.answered >= 500
    assert (counts.lost, counts.bought_twice) == (0, 0)


def test_labels_are_counted_by_the_cycle_from_which_they_count(reopen):
    store = reopen()
    store.allot(4)
    first, second = store.reserve(_request(4, 0)), store.reserve(_request(8, 10, cycle=1))
    store.commit(_answers(first, 1))
    store.freeze(0)
    store.commit([*_answers(second, 2)[:1], *_answers(second, 0)[1:]])
    assert store.counts_by_cycle(0, 3).tolist() == [[0, 2, 0]]
    assert store.counts_by_cycle(2, 3).tolist() == [[0, 2, 0], [1, 0, 1], [0, 0, 0]]
    # Whoever names cycle and classes must not fill the memory by it.
    with pytest.raises(StoreError, match=r"cycle 99999999, 3 classes: allowed are at most \d+"):
        store.counts_by_cycle(99_999_999, 3)
