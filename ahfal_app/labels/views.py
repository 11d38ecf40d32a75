"""What can be read from a label store; `labels/store.py` has what changes it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ahfal_app.errors import StoreError
from ahfal_app.labels.readings import Reading
from ahfal_app.labels.records import AUDIT, Conflict, Entry, Event, Labelled, LabelRequest
from ahfal_app.ledger import Ledger

#: Cycles times classes that labels are counted by, 128 MiB: a server names both numbers.
MOST_COUNTS = 2**24


class Said(NamedTuple):
    """A reading that stands, the number of its receipt, and when it was given."""

    reading: Reading
    number: int
    moment: str


class Waiting(NamedTuple):
    """How many images wait longest for their label, and for how many seconds."""

    images: int
    seconds: float


class LabelViews:
    """The reading half of `LabelStore`.

    Parameters
    ----------
    connection : sqlite3.Connection
        An open database that has the tables.
    samples_N : NDArray[np.int64] | None
        Ids of all samples of the client, strictly increasing, or None.
    """

    def __init__(self, connection: sqlite3.Connection, samples_N: NDArray[np.int64] | None) -> None:
        self._connection = connection
        self._samples_N = samples_N
        self._open_N: NDArray[np.int64] | None = None
        self._set_aside_A: NDArray[np.int64] | None = None

    def open_only(self, open_N: NDArray[np.int64] | None) -> None:
        """Take for the pool no others than these samples, which may be asked for by now.

        Parameters
        ----------
        open_N : NDArray[np.int64] | None
            Ids, strictly increasing; None: all of the client's.
        """
        self._open_N = open_N

    @contextmanager
    def set_aside(self, samples_A: NDArray[np.int64]) -> Iterator[None]:
        """Leave samples out of the pool for as long as others are chosen of it.

        Parameters
        ----------
        samples_A : NDArray[np.int64]
            Ids, strictly increasing. Shape (A,).
        """
        self._set_aside_A = samples_A
        try:
            yield
        finally:
            self._set_aside_A = None

    @property
    def num_set_aside(self) -> int:
        """How many samples are left out of the pool for a while."""
        return 0 if self._set_aside_A is None else len(self._set_aside_A)

    def asked(self, samples_N: NDArray[np.int64], never: int) -> NDArray[np.int64]:
        """Return the cycle before which each of these samples was asked for, int64 (N,).

        Parameters
        ----------
        samples_N : NDArray[np.int64]
            Ids, strictly increasing.
        never : int
            What stands for a sample that was not.
        """
        rows = self._connection.execute(
            "SELECT s.sample, q.cycle FROM samples AS s JOIN requests AS q USING (request_id)"
        ).fetchall()
        table_M2 = np.array(rows, np.int64).reshape(-1, 2)
        cycle_N = np.full(len(samples_N), never, np.int64)
        if not len(samples_N):
            return cycle_N
        places_M = np.minimum(np.searchsorted(samples_N, table_M2[:, 0]), len(samples_N) - 1)
        is_here_M = samples_N[places_M] == table_M2[:, 0]
        cycle_N[places_M[is_here_M]] = table_M2[is_here_M, 1]
        return cycle_N

    def skipped(self, through_cycle: int) -> int:
        """Return how many samples nobody could label of those asked for up to a cycle."""
        row = self._connection.execute(
            "SELECT count(*) FROM samples AS s JOIN requests AS q USING (request_id) "
            "WHERE s.state = 'skipped' AND q.cycle <= ?",
            (through_cycle,),
        ).fetchone()
        return int(row[0])

    def request(self, request_id: str) -> LabelRequest | None:
        """Return a request, or None.

        It is as it was first made, without the images that have gone and come back since and were
        asked for anew, or labelled by the site itself.
        """
        row = self._connection.execute(
            "SELECT cycle, strategy, readers, rule, report FROM requests WHERE request_id = ?",
            (request_id,),
        ).fetchone()
        if row is None:
            return None
        rows = self._connection.execute(
            "SELECT sample, score, guess FROM samples WHERE request_id = ? ORDER BY position",
            (request_id,),
        ).fetchall()
        samples, scores, guesses = zip(*rows, strict=True) if rows else ((), (), ())
        cycle, strategy, readers, rule, report = row
        return LabelRequest(
            request_id,
            cycle,
            strategy,
            samples,
            scores=() if None in scores else scores,
            guesses=() if None in guesses else guesses,
            readers=readers,
            rule=rule,
            report=report or b"",
        )

    def reports(self, first: int, end: int) -> dict[int, bytes]:
        """Return what was told of requests before the cycles from `first` on, and before `end`."""
        rows = self._connection.execute(
            "SELECT cycle, report FROM requests WHERE report IS NOT NULL AND cycle >= ? "
            "AND cycle < ? AND strategy <> ? ORDER BY cycle",
            (first, end, AUDIT),
        )
        return dict(rows.fetchall())

    def open_requests(self) -> tuple[LabelRequest, ...]:
        """Return the requests with unanswered samples, oldest first."""
        return self._requests("reserved")

    def unfinished_requests(self) -> tuple[LabelRequest, ...]:
        """Return the requests that a label may still come for: unanswered or skipped samples.

        Earlier ones of these samples are among them: somebody may still answer these.
        """
        return self._requests("reserved", "skipped", with_earlier=True)

    def answered(self, request_id: str) -> frozenset[int]:
        """Return the samples of a request that nobody is to label any more."""
        rows = self._connection.execute(
            "SELECT sample FROM samples WHERE request_id = ? AND state != 'reserved'", (request_id,)
        )
        return frozenset(sample for (sample,) in rows)

    def pending(self, request_id: str) -> int:
        """Return how many samples of a request are unanswered."""
        return self._count("reserved", request_id)

    def longest_waiting(self) -> Waiting:
        """Return what is unanswered of the oldest open purchase; 0 images where nothing is.

        Seconds are by this machine's clock; where that was set back they are 0.
        """
        row = self._connection.execute(
            "SELECT count(*), 86400.0 * (julianday('now') - julianday(min(q.created))) "
            "FROM samples AS s JOIN requests AS q USING (request_id) WHERE s.state = 'reserved' "
            "GROUP BY q.cycle ORDER BY min(q.created), q.cycle LIMIT 1"
        ).fetchone()
        return Waiting(int(row[0]), max(0.0, float(row[1]))) if row is not None else Waiting(0, 0.0)

    def labelled(self, through_cycle: int | None = None) -> Labelled:
        """Return the labelled set L_i, or what of it a cycle is trained on.

        What is held out for testing is no part of it. A resumed run repeats rounds, and may ask
        for the statistics of a cycle after whose purchase a client was interrupted; labels that
        came since must not count yet.
        """
        return self._labels(through_cycle, held_out=False)

    def counts_by_cycle(self, through_cycle: int, num_classes: int) -> NDArray[np.int64]:
        """Return class counts of the labelled set, by the cycle from which on each label counts.

        A corrected label counts from where it first came, with the class that stands.

        Parameters
        ----------
        through_cycle : int
            The newest cycle, t.
        num_classes : int
            Number of classes C.

        Returns
        -------
        NDArray[np.int64]
            Shape (t + 1, C).

        Raises
        ------
        StoreError
            There are more counts than `MOST_COUNTS`.
        """
        if (through_cycle + 1) * num_classes > MOST_COUNTS:
            raise StoreError(
                f"cycle {through_cycle}, {num_classes} classes: allowed are at most {MOST_COUNTS} "
                "counts of labels by cycle and class"
            )
        labelled = self.labelled(through_cycle=through_cycle)
        rows = self._connection.execute(
            "SELECT sample, from_cycle FROM samples WHERE from_cycle <= ? ORDER BY sample",
            (through_cycle,),
        ).fetchall()
        known_M2 = np.array(rows, np.int64).reshape(-1, 2)
        cycle_L = known_M2[np.searchsorted(known_M2[:, 0], labelled.samples_N), 1]
        counts_TC = np.zeros((through_cycle + 1, num_classes), np.int64)
        np.add.at(counts_TC, (cycle_L, labelled.labels_N), 1)
        return counts_TC

    def held_out(self, through_cycle: int | None = None) -> Labelled:
        """Return the labels that are held out for testing, or those with which a cycle is tested.

        Those of samples that are away are not among them.
        """
        return self._labels(through_cycle, held_out=True)

    def _labels(self, through_cycle: int | None, held_out: bool) -> Labelled:
        rows = self._connection.execute(
            "SELECT s.sample, coalesce((SELECT c.label FROM corrections AS c "
            "WHERE c.sample = s.sample AND (?1 IS NULL OR c.from_cycle <= ?1) "
            "ORDER BY c.number DESC LIMIT 1), s.label) FROM samples AS s "
            "WHERE s.label IS NOT NULL AND (?1 IS NULL OR s.from_cycle <= ?1) "
            "AND coalesce((SELECT d.held_out FROM drawn AS d WHERE d.sample = s.sample), 0) = ?2 "
            "ORDER BY s.sample",
            (through_cycle, int(held_out)),
        ).fetchall()
        table_N2 = np.array(rows, dtype=np.int64).reshape(-1, 2)
        if self._samples_N is not None:
            table_N2 = table_N2[np.isin(table_N2[:, 0], self._samples_N)]
        return Labelled(table_N2[:, 0].copy(), table_N2[:, 1].copy())

    def last_cycle(self) -> int:
        """Return the newest cycle that labels were asked for, or -1."""
        row = self._connection.execute("SELECT coalesce(max(cycle), -1) FROM requests").fetchone()
        return int(row[0])

    def unlabelled(self) -> NDArray[np.int64]:
        """Return the pool U_i: ids that nobody was asked for or has labelled, int64 (N,).

        Where `open_only` said so, of these alone, and without what is `set_aside`.
        """
        pool_N = self.unasked()
        if self._open_N is not None:
            pool_N = np.intersect1d(pool_N, self._open_N, assume_unique=True)
        if self._set_aside_A is not None:
            pool_N = np.setdiff1d(pool_N, self._set_aside_A, assume_unique=True)
        return pool_N

    def unasked(self) -> NDArray[np.int64]:
        """Return the ids that nobody was asked for or has labelled, whatever is open, int64 (N,).

        Raises
        ------
        StoreError
            The store was opened without its samples.
        """
        if self._samples_N is None:
            raise StoreError("label store: opened without its samples, so it knows no pool")
        rows = self._connection.execute("SELECT sample FROM samples WHERE state != 'removed'")
        taken = [sample for (sample,) in rows]
        return np.setdiff1d(self._samples_N, np.array(taken, dtype=np.int64), assume_unique=True)

    def ledger(self) -> Ledger:
        """Return the ledger.

        Raises
        ------
        StoreError
            It does not add up.
        """
        row = self._connection.execute(
            "SELECT allotted, spent, reserved, free FROM ledger"
        ).fetchone()
        try:
            return Ledger(*row)
        except ValueError as error:
            raise StoreError(f"label store: {error}") from error

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, by label; empty where `describe` was not called."""
        rows = self._connection.execute("SELECT name FROM classes ORDER BY label")
        return tuple(name for (name,) in rows)

    def files(self) -> dict[int, str]:
        """Return the file of each sample that `describe` was told of."""
        return dict(self._connection.execute("SELECT sample, name FROM files").fetchall())

    def entries(self) -> tuple[Entry, ...]:
        """Return all that is known of each sample that was asked for or labelled, by sample."""
        rows = self._connection.execute(
            "SELECT s.sample, f.name, s.state, coalesce(c.label, s.label), "
            "coalesce(c.annotator, s.annotator), coalesce(c.made, s.answered), "
            "s.from_cycle, s.request_id, s.guess, s.score "
            "FROM samples AS s LEFT JOIN files AS f USING (sample) "
            "LEFT JOIN standing_corrections AS c USING (sample) ORDER BY s.sample"
        )
        return tuple(Entry(*row) for row in rows)

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return the answers that contradict the label that stands, as far as not settled.

        What several readers said before their readings, or somebody else, decided is settled.
        """
        rows = self._connection.execute(
            "SELECT r.sample, r.label, r.annotator, coalesce(c.label, s.label) AS stands "
            "FROM receipts AS r JOIN samples AS s USING (sample) "
            "LEFT JOIN requests AS q ON q.request_id = s.request_id "
            "LEFT JOIN standing_corrections AS c USING (sample) "
            "WHERE r.label != stands AND r.taken_back IS NULL "
            "AND (c.after IS NULL OR r.number > c.after) "
            "AND (coalesce(q.readers, 1) = 1 OR r.number > s.settled) "
            "ORDER BY r.sample, r.number"
        )
        return tuple(Conflict(*row) for row in rows)

    def history(self, sample: int | None = None) -> tuple[Event, ...]:
        """Return all that anybody has said, by sample and in the order in which it was said.

        Parameters
        ----------
        sample : int | None
            Tell of this sample alone.
        """
        rows = self._connection.execute(
            "SELECT r.sample, CASE WHEN r.request_id IS NULL THEN 'given' "
            "WHEN r.decides THEN 'decision' WHEN r.label IS NULL THEN 'skip' ELSE 'answer' END, "
            "r.label, r.annotator, r.given, r.received, r.unsure, r.comment, "
            "r.taken_back IS NULL AND c.sample IS NULL AND r.label IS s.label "
            "AND s.settled IS NOT NULL AND r.number <= s.settled, "
            "coalesce(r.given, r.received) AS moment, 0 AS later, r.number AS number "
            "FROM receipts AS r LEFT JOIN samples AS s USING (sample) "
            "LEFT JOIN standing_corrections AS c USING (sample) WHERE ?1 IS NULL OR r.sample = ?1 "
            "UNION ALL SELECT sample, 'taken back', label, annotator, taken_back, received, "
            "unsure, comment, 0, taken_back, 1, number FROM receipts "
            "WHERE taken_back IS NOT NULL AND (?1 IS NULL OR sample = ?1) "
            "UNION ALL SELECT k.sample, 'correction', k.label, k.annotator, k.made, k.received, "
            "0, k.comment, k.number = c.number, k.made, 2, k.number "
            "FROM corrections AS k JOIN standing_corrections AS c USING (sample) "
            "WHERE ?1 IS NULL OR k.sample = ?1 ORDER BY 1, moment, later, number",
            (sample,),
        )
        # What follows in a row is to sort by.
        return tuple(
            Event(sample, what, label, by, at, received, bool(unsure), comment, bool(stands))
            for sample, what, label, by, at, received, unsure, comment, stands, *_ in rows
        )

    def readings(self) -> dict[int, tuple[Reading, ...]]:
        """Return what people say of samples that were asked for, by sample, oldest first."""
        asked = "SELECT sample FROM samples WHERE request_id IS NOT NULL ORDER BY sample"
        return {
            sample: tuple(said.reading for said in all_said)
            for sample, all_said in self._said(
                [sample for (sample,) in self._connection.execute(asked)]
            ).items()
        }

    def verify(self) -> None:
        """Check the database, and that the ledger and the answers agree with the samples.

        Raises
        ------
        StoreError
            Anything disagrees.
        """
        (integrity,) = self._connection.execute("PRAGMA integrity_check").fetchone()
        dangling = self._connection.execute("PRAGMA foreign_key_check").fetchall()
        ledger = self.ledger()
        spent = self._count("labelled")
        reserved = self._count("reserved")
        if integrity != "ok" or dangling or (spent, reserved) != (ledger.spent, ledger.reserved):
            raise StoreError(
                f"label store: integrity {integrity}, {len(dangling)} dangling rows; {ledger} but "
                f"the rows say spent={spent}, reserved={reserved}"
            )
        (unreceived,) = self._connection.execute(
            "SELECT count(*) FROM samples AS s WHERE s.label IS NOT NULL AND NOT EXISTS "
            "(SELECT 1 FROM receipts AS r WHERE r.sample = s.sample AND r.label = s.label "
            "AND r.taken_back IS NULL)"
        ).fetchone()
        if unreceived:
            raise StoreError(f"label store: {unreceived} labels that nobody has given")

    # --- inside -----------------------------------------------------------------------

    def _requests(self, *states: str, with_earlier: bool = False) -> tuple[LabelRequest, ...]:
        rows = self._connection.execute(
            "WITH open AS (SELECT sample, request_id FROM samples "
            "WHERE state IN (SELECT value FROM json_each(?1))) "
            "SELECT request_id FROM requests WHERE request_id IN (SELECT request_id FROM open "
            "UNION SELECT e.request_id FROM earlier_requests AS e JOIN open USING (sample) "
            "WHERE ?2) ORDER BY cycle",
            (json.dumps(states), with_earlier),
        ).fetchall()
        requests = (self.request(identity) for (identity,) in rows)
        return tuple(request for request in requests if request is not None)

    def _meta(self, key: str) -> str:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0])

    def _frozen(self) -> int:
        return int(self._meta("frozen"))

    def _standing(self) -> dict[int, int]:
        """Return the label that stands, by sample."""
        return {e.sample: e.label for e in self.entries() if e.label is not None}

    def _said(self, samples: Iterable[int]) -> dict[int, list[Said]]:
        """Return what stands of each person's answers; a label from before the run decides."""
        rows = self._connection.execute(
            "SELECT sample, annotator, label, decides OR request_id IS NULL, number, "
            "coalesce(given, received) FROM receipts WHERE taken_back IS NULL "
            "AND sample IN (SELECT value FROM json_each(?)) ORDER BY number",
            (json.dumps(list(samples)),),
        )
        said: dict[int, list[Said]] = {}
        for sample, annotator, label, decides, number, moment in rows:
            reading = Reading(annotator, label, bool(decides))
            said.setdefault(sample, []).append(Said(reading, number, moment))
        return said

    def _count(self, state: str, request_id: str | None = None) -> int:
        row = self._connection.execute(
            "SELECT count(*) FROM samples WHERE state = ?1 AND (?2 IS NULL OR request_id = ?2)",
            (state, request_id),
        ).fetchone()
        return int(row[0])
