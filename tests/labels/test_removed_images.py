"""Images that go while they are asked for: nothing is paid for them, and nothing is lost."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from ahfal_app.errors import LabelConflict, StoreError
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.ledger import Ledger

REQUEST = LabelRequest("r1", 1, "margin", (0, 1, 2))


def opened(folder: Path, *samples: int) -> LabelStore:
    samples_N = np.array(samples, dtype=np.int64)
    return LabelStore.open_file(folder / "labels.sqlite", samples_N, 3, grows=True)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    store = opened(tmp_path, *range(6))
    store.allot(4)
    store.reserve(REQUEST)
    store.close()
    return tmp_path


def say(sample: int, label: int | None, who: str = "anna") -> LabelReceipt:
    return LabelReceipt("r1", sample, label, who)


def states(store: LabelStore) -> dict[int, str]:
    return {entry.sample: entry.state for entry in store.entries()}


def test_what_is_asked_of_an_image_that_goes_is_given_back(asked: Path):
    store = opened(asked, 0, 2, 3, 4, 5)
    assert store.follow_images() == (1,)
    assert states(store) == {0: "reserved", 1: "removed", 2: "reserved"}
    assert store.ledger() == Ledger(4, 0, 2, 2)
    assert store.answered("r1") == {1}
    # Until all copies are gone, it is told again; then no more.
    assert store.follow_images() == (1,)
    store.withdrawn([1])
    assert store.follow_images() == ()
    store.verify()


@pytest.mark.parametrize("free", [0, 1])
def test_a_label_of_an_image_that_is_gone_is_kept_and_not_paid_for(asked: Path, free: int):
    """Whether or not a label is free to be spent on it."""
    store = opened(asked, 0, 2, 3, 4, 5)
    store.follow_images()
    if not free:
        store.reserve(LabelRequest("r2", 2, "margin", (3, 4)))
    before = store.ledger()
    assert store.commit([say(1, 2)]) == 0
    assert store.ledger() == before
    assert store.labelled().samples_N.tolist() == []
    assert [(e.what, e.label, e.annotator, e.stands) for e in store.history(1)] == [
        ("answer", 2, "anna", False)
    ]
    store.verify()


def test_also_where_nobody_could_tell_before_it_went(asked: Path):
    """`skipped` is labelled late where a label is free: but not once the image is gone."""
    store = opened(asked, *range(6))
    store.commit([say(1, None)])
    store.close()
    store = opened(asked, 0, 2, 3, 4, 5)
    store.follow_images()
    assert store.commit([say(1, 2, "ben")]) == 0
    assert store.ledger() == Ledger(4, 0, 2, 2)
    store.allot(9)
    assert store.ledger().spent == 0
    # An import from outside knows nothing of the images: it pays nothing, either.
    store.close()
    store = LabelStore.open_existing(asked / "labels.sqlite")
    store._num_classes = 3
    assert store.commit([say(1, 0, "carl")]) == 0
    assert store.ledger().spent == 0


def test_an_image_that_comes_back_is_in_the_pool_again(asked: Path):
    opened(asked, 0, 2, 3, 4, 5).follow_images()
    store = opened(asked, *range(6))
    assert store.follow_images() == ()
    assert store.unlabelled().tolist() == [1, 3, 4, 5]
    request = store.reserve(LabelRequest("r2", 2, "margin", (1,)))
    assert states(store)[1] == "reserved"
    assert store.ledger() == Ledger(4, 0, 3, 1)
    assert store.commit([LabelReceipt(request.request_id, 1, 2, "anna")]) == 1
    store.verify()
    # When it goes once more, its copies must go once more, too.
    store.withdrawn([1])
    store.close()
    assert opened(asked, *range(6)).follow_images() == ()
    assert opened(asked, 0, 2, 3, 4, 5).follow_images() == (1,)


def test_an_image_that_was_labelled_while_it_was_away_is_not_bought_twice(asked: Path):
    store = opened(asked, 0, 2, 3, 4, 5)
    store.follow_images()
    store.commit([say(1, 2)])
    store.close()
    store = opened(asked, *range(6))
    store.follow_images()
    assert store.labelled().samples_N.tolist() == [1]
    assert store.ledger() == Ledger(4, 1, 2, 1)
    assert 1 not in store.unlabelled()
    store.verify()


def test_nor_where_it_is_asked_for_before_that_is_noticed(asked: Path):
    store = opened(asked, 0, 2, 3, 4, 5)
    store.follow_images()
    store.commit([say(1, 2)])
    store.close()
    store = opened(asked, *range(6))
    store.reserve(LabelRequest("r2", 2, "margin", (1,)))
    assert store.labelled().samples_N.tolist() == [1]
    assert store.ledger() == Ledger(4, 1, 2, 1)
    store.verify()


def test_a_label_that_a_site_has_by_itself_costs_nothing_when_the_image_is_back(asked: Path):
    opened(asked, 0, 2, 3, 4, 5).follow_images()
    store = opened(asked, *range(6))
    store.give({1: 2}, "labels.csv")
    assert states(store)[1] == "given"
    assert store.ledger() == Ledger(4, 0, 2, 2)
    store.verify()


def away_and_back(folder: Path, then: LabelRequest | None) -> LabelStore:
    """Let sample 1 go and come back, and ask for it again, or label it at the site."""
    opened(folder, 0, 2, 3, 4, 5).follow_images()
    store = opened(folder, *range(6))
    store.follow_images()
    if then is not None:
        store.reserve(then)
    else:
        store.give({1: 0}, "labels.csv")
    return store


def test_an_answer_to_the_first_request_labels_what_is_asked_for_again(asked: Path):
    """Whoever has labelled the image is not told that it went: the work counts, and once."""
    store = away_and_back(asked, LabelRequest("r2", 2, "margin", (1,)))
    # Even where nothing else is open of that request, its answers are still collected.
    store.commit([say(0, 0), say(2, 0)])
    assert [request.request_id for request in store.open_requests()] == ["r2"]
    unfinished = store.unfinished_requests()
    assert [(r.request_id, r.samples) for r in unfinished] == [("r1", (0, 2)), ("r2", (1,))]
    assert store.commit([say(1, 2)]) == 1
    assert store.unfinished_requests() == ()
    assert store.ledger() == Ledger(4, 3, 0, 1)
    assert store.labelled().labels_N.tolist() == [0, 2, 0]
    # It counts from the cycle that it was bought for, and another answer buys nothing.
    store.freeze(1)
    assert store.labelled(1).samples_N.tolist() == [0, 2]
    assert store.commit([LabelReceipt("r2", 1, 1, "ben"), say(1, 2)]) == 0
    assert store.ledger().spent == 3
    assert [(c.sample, c.label) for c in store.conflicts()] == [(1, 1)]
    store.verify()


def test_an_answer_for_what_the_site_has_labelled_itself_is_kept(asked: Path):
    store = away_and_back(asked, None)
    assert store.commit([say(0, 1), say(1, 2)]) == 1
    assert store.ledger() == Ledger(4, 1, 1, 2)
    assert [(c.sample, c.label, c.standing_label) for c in store.conflicts()] == [(1, 2, 0)]
    store.verify()


def test_an_answer_for_what_was_given_back_unanswered_waits_until_it_is_asked_for(asked: Path):
    store = opened(asked, *range(6))
    assert store.release("r1") == 3
    assert store.commit([say(1, 2)]) == 0
    assert store.ledger() == Ledger(4, 0, 0, 4)
    store.reserve(LabelRequest("r2", 2, "margin", (1, 3)))
    assert store.labelled().samples_N.tolist() == [1]
    assert store.ledger() == Ledger(4, 1, 1, 2)
    store.verify()


def test_no_request_takes_answers_for_images_that_it_never_had(asked: Path):
    store = away_and_back(asked, LabelRequest("r2", 2, "margin", (1, 3)))
    for wrong in (say(3, 0), say(4, 0), LabelReceipt("r2", 0, 0, "anna")):
        with pytest.raises(LabelConflict, match="not part of request"):
            store.commit([say(0, 0), wrong])
    assert store.ledger() == Ledger(4, 0, 4, 0)


def test_copies_go_of_images_that_were_labelled_long_ago_as_well(asked: Path):
    store = opened(asked, *range(6))
    store.commit([say(0, 1)])
    store.close()
    store = opened(asked, 1, 2, 3, 4, 5)
    assert store.follow_images() == (0,)
    assert states(store)[0] == "labelled"
    assert store.ledger() == Ledger(4, 1, 2, 1)
    assert len(store.labelled().samples_N) == 0  # It is no part of what is trained on.


def test_a_store_without_its_pool_knows_of_none_gone(asked: Path):
    with pytest.raises(StoreError, match="without its samples"):
        LabelStore.open_existing(asked / "labels.sqlite").follow_images()


# --- a store of version 2 -------------------------------------------------------------------

_VERSION_2 = """
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
        sample INTEGER PRIMARY KEY, request_id TEXT REFERENCES requests, position INTEGER,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'labelled', 'skipped', 'given')),
        label INTEGER, annotator TEXT, answered TEXT, from_cycle INTEGER, score REAL, guess INTEGER,
        CHECK ((state IN ('labelled', 'given')) = (label IS NOT NULL)),
        CHECK ((label IS NULL) = (from_cycle IS NULL)),
        CHECK ((state = 'given') = (request_id IS NULL))
    ) STRICT;
    CREATE INDEX samples_by_request ON samples (request_id);
    CREATE TABLE receipts (
        sample INTEGER NOT NULL, annotator TEXT NOT NULL, label INTEGER NOT NULL, request_id TEXT,
        received TEXT NOT NULL DEFAULT 'then', PRIMARY KEY (sample, annotator, label)
    ) STRICT;
    CREATE TABLE corrections (
        sample INTEGER NOT NULL REFERENCES samples, from_cycle INTEGER NOT NULL,
        label INTEGER NOT NULL, annotator TEXT NOT NULL, made TEXT NOT NULL DEFAULT 'then',
        PRIMARY KEY (sample, from_cycle)
    ) STRICT;
    CREATE TABLE classes (label INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE files (sample INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    INSERT INTO ledger VALUES (1, 6, 2, 1, 3);
    INSERT INTO meta VALUES ('frozen', '0'), ('schema', '2'), ('samples', 'grows');
    INSERT INTO requests (request_id, cycle, strategy) VALUES ('r1', 1, 'x');
    INSERT INTO samples VALUES
        (0, 'r1', 0, 'labelled', 2, 'anna', '10:00', 1, 0.5, 1),
        (1, 'r1', 1, 'skipped', NULL, 'anna', '10:01', NULL, 0.4, 1),
        (2, 'r1', 2, 'skipped', NULL, 'gone', '10:02', NULL, 0.3, 1),
        (3, 'r1', 3, 'reserved', NULL, NULL, NULL, NULL, 0.2, 1),
        (4, NULL, NULL, 'given', 0, 'labels.csv', '09:00', 0, NULL, NULL),
        (5, 'r1', 4, 'labelled', 1, 'anna', '10:03', 1, 0.1, 1);
    INSERT INTO receipts (sample, annotator, label, request_id, received) VALUES
        (4, 'labels.csv', 0, NULL, '09:00'), (0, 'anna', 2, 'r1', '10:00'),
        (5, 'anna', 1, 'r1', '10:03'), (0, 'bert', 1, 'r1', '10:04'), (5, 'bert', 2, 'r1', '10:05');
    INSERT INTO corrections VALUES
        (5, 1, 0, 'dora', '11:00'), (5, 3, 2, 'emil', '12:00');
"""


def test_a_store_of_version_2_is_brought_up_to_date(tmp_path: Path):
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
        connection.executescript(_VERSION_2)
    connection.close()
    for _ in range(2):
        store = opened(tmp_path, *range(6))
        store.verify()
        assert store.ledger() == Ledger(6, 2, 1, 3)
        assert states(store) == {
            0: "labelled",
            1: "skipped",
            2: "removed",
            3: "reserved",
            4: "given",
            5: "labelled",
        }
        assert [store.labelled(c).labels_N.tolist() for c in (0, 1, 2, 3)] == [
            [0],
            [2, 0, 0],
            [2, 0, 0],
            [2, 0, 2],
        ]
        assert [(c.sample, c.label, c.annotator) for c in store.conflicts()] == [(0, 1, "bert")]
        assert [(e.what, e.label, e.annotator, e.at, e.stands) for e in store.history(5)] == [
            ("answer", 1, "anna", None, False),
            ("answer", 2, "bert", None, False),
            ("correction", 0, "dora", "11:00", False),
            ("correction", 2, "emil", "12:00", True),
        ]
        assert [(e.what, e.annotator, e.received) for e in store.history(1)] == [
            ("skip", "anna", "10:01")
        ]
        assert store.history(2) == ()
        assert store.request("r1") is not None
        store.close()
    # What people say of it counts as before.
    store = opened(tmp_path, *range(6))
    assert store.commit([LabelReceipt("r1", 1, 1, "bert"), LabelReceipt("r1", 3, 0, "anna")]) == 2
    assert store.ledger() == Ledger(6, 4, 0, 2)
    store.verify()
