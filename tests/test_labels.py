from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ahfal_app.errors import BudgetExceeded, LabelConflict, PoolExhausted, StoreError
from ahfal_app.labels import (
    LabelReceipt,
    LabelRequest,
    LabelStore,
    Ledger,
    request_id,
)

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
        taken = self.labels.keys() | self.reserved.keys()
        free = self.allotted - len(taken)
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


_WRITER = """
    import sys
    from pathlib import Path
    import numpy as np
    from ahfal_app.labels import LabelReceipt, LabelRequest, LabelStore, request_id
    store = LabelStore.open_file(Path(sys.argv[1]), np.arange(100_000), 10)
    start = int(sys.argv[2])
    store.allot(start + 5000)
    for i in range(start, start + 5000):
        identity = request_id("run", 0, i)
        store.reserve(LabelRequest(identity, i, "x", (i,)))
        store.commit([LabelReceipt(identity, i, i % 10, "anna")])
        print(i, flush=True)
"""


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
