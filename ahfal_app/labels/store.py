"""The label store: which sample is unlabelled, reserved or labelled, and the ledger.

There is one implementation, on SQLite, with two backends: a database file (write-ahead
log, `synchronous=FULL`) that survives `kill -9`, and an in-memory database whose bytes
travel in Flower's `context.state`. Every change is one transaction that moves the labels
and the ledger together, so `allotted = spent + reserved + free` holds at every instant;
the database itself refuses anything else.

What a cycle is trained on is fixed once it has been asked for: each label counts from a
cycle on that had not been frozen when the label came. The first answer for a sample stands,
or, where several people read each, what `ahfal_app.labels.readings` makes of theirs. Answers
that differ are kept, and change nothing until a person says so with a correction, which counts
from the next cycle on, too. Nothing that anybody has said is ever deleted.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.errors import BudgetExceeded, LabelConflict, PoolExhausted, StoreError
from ahfal_app.labels.arrivals import ArrivalTable
from ahfal_app.labels.records import (
    Conflict,
    Entry,
    Event,
    Labelled,
    LabelReceipt,
    LabelRequest,
    request_id,
)
from ahfal_app.labels.schema import prepare_schema
from ahfal_app.labels.settlement import Settlement
from ahfal_app.labels.validation import draw_held_out
from ahfal_app.storage.database import connect, reason, transaction

__all__ = [
    "STORE_FILE",
    "Conflict",
    "Entry",
    "Event",
    "LabelReceipt",
    "LabelRequest",
    "LabelStore",
    "Labelled",
    "find_store",
    "request_id",
]


#: The file of a client's label store, in the folder of its state.
STORE_FILE = "labels.sqlite"


def find_store(path: Path) -> Path:
    """Return the label store that a path means: itself, or the only one below a folder.

    Raises
    ------
    StoreError
        There is none, or there are several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.rglob(STORE_FILE))
    if len(found) != 1:
        which = "; name one of " + ", ".join(map(str, found)) if found else ""
        raise StoreError(f"{path}: {len(found)} label stores in this folder{which}")
    return found[0]


class LabelStore(Settlement):
    """The one owner of a client's labels and of its ledger.

    Make one with `open_file`, `from_bytes` or `open_existing`.

    Parameters
    ----------
    connection : sqlite3.Connection
        An open database, in autocommit mode.
    samples_N : NDArray[np.int64] | None
        Ids of all samples of the client, strictly increasing; None where only what the store
        holds is of interest, and there is no pool.
    num_classes : int | None
        Labels must lie in `0 .. num_classes - 1`; None: what `describe` was told.
    grows : bool
        Whether samples may come and go, as in a site's folder. What is labelled of samples that
        are gone stays in the store, and is no part of the labelled set.

    Raises
    ------
    StoreError
        The database is damaged, of another schema version, or of other samples.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        samples_N: NDArray[np.int64] | None,
        num_classes: int | None,
        grows: bool = False,
    ) -> None:
        super().__init__(connection, samples_N)
        self._connection.execute("PRAGMA foreign_keys = ON")
        prepare_schema(connection)
        if samples_N is not None:
            self._check_samples(samples_N, grows)
        self._num_classes = len(self.class_names()) if num_classes is None else num_classes

    @classmethod
    def open_file(
        cls, path: Path, samples_N: NDArray[np.int64], num_classes: int, grows: bool = False
    ) -> LabelStore:
        """Open or create the store in a file; what it acknowledges survives a power cut."""
        try:
            return cls(connect(path), samples_N, num_classes, grows)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"label store {path}: {reason(path, error)}") from error

    @classmethod
    def open_existing(cls, path: Path) -> LabelStore:
        """Open the store in a file for what it holds, without knowing the pool.

        Raises
        ------
        StoreError
            There is no such file, or it is no label store.
        """
        if not path.is_file():
            raise StoreError(f"label store {path}: no such file")
        try:
            connection = connect(path)
            if not connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'ledger'"
            ).fetchone():
                raise StoreError(f"label store {path}: this is no label store")
            return cls(connection, None, None)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"label store {path}: {reason(path, error)}") from error

    @classmethod
    def from_bytes(
        cls, content: bytes, samples_N: NDArray[np.int64], num_classes: int, grows: bool = False
    ) -> LabelStore:
        """Open the store from `to_bytes`; empty content makes a new one."""
        connection = sqlite3.connect(":memory:", isolation_level=None)
        try:
            if content:
                connection.deserialize(content)
            return cls(connection, samples_N, num_classes, grows)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"label store in memory: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the whole database, to be kept in Flower's `context.state`."""
        return self._connection.serialize()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    # --- changes, one transaction each ------------------------------------------------

    def describe(self, class_names: Sequence[str], files: Mapping[int, str] | None = None) -> None:
        """Keep the names of classes and files, so that people can read what the store holds.

        Raises
        ------
        StoreError
            The store was made for other classes, or knows a sample by another file: its label
            would become that of another image.
        """
        files = files or {}
        with transaction(self._connection):
            known = self.class_names()
            if known and known != tuple(class_names):
                raise StoreError(
                    f"label store: it belongs to the classes {', '.join(known)}, and not to "
                    f"{', '.join(class_names)}"
                )
            self._connection.executemany(
                "INSERT OR IGNORE INTO classes VALUES (?, ?)", list(enumerate(class_names))
            )
            for sample, name in self.files().items():
                if files.get(sample, name) != name:
                    raise StoreError(
                        f"label store: sample {sample} is the file {name!r}, and now it is to be "
                        f"{files[sample]!r}; bring the site's images.sqlite back, or the label "
                        "store that belongs to it: both are in its state-dir"
                    )
            self._connection.executemany(
                "INSERT OR IGNORE INTO files VALUES (?, ?)", list(files.items())
            )

    @contextmanager
    def one_change(self) -> Iterator[None]:
        """Make several changes one: all of them are durable afterwards, or none is made."""
        with transaction(self._connection):
            yield

    def freeze(self, cycle: int) -> None:
        """Fix what cycles up to this one are trained on: later labels count from the next on."""
        if cycle > self._frozen():
            with transaction(self._connection):
                self._connection.execute(
                    "UPDATE meta SET value = max(CAST(value AS INTEGER), ?1) WHERE key = 'frozen'",
                    (cycle,),
                )

    def hold_out(
        self,
        fraction: Fraction,
        generator_after: Callable[[int], np.random.Generator],
        of_first_request: bool = False,
    ) -> None:
        """Draw which of the labels that came since the last draw are held out for testing.

        Nothing that was drawn is ever drawn anew, whatever becomes of the label; what a cycle may
        have been trained on already is never held out.

        Parameters
        ----------
        fraction : Fraction
            As of `draw_held_out`.
        generator_after : Callable[[int], np.random.Generator]
            Returns what decides, given how many samples were drawn before.
        of_first_request : bool
            Hold out from the labels of the first request alone; all others are trained on.
        """
        if not self._undrawn():
            return
        with transaction(self._connection):
            # Once more, since another process may have drawn meanwhile.
            new_N4 = np.array(self._undrawn(), np.int64).reshape(-1, 4)
            may_N = new_N4[:, 3] > self._frozen()
            if of_first_request:
                may_N &= new_N4[:, 2] == 1
            self._connection.executemany(
                "INSERT INTO drawn VALUES (?, 0)",
                [(sample,) for sample in new_N4[~may_N, 0].tolist()],
            )
            new_N4 = new_N4[may_N]
            before_N2 = np.array(
                self._connection.execute(
                    "SELECT d.held_out, coalesce(c.label, s.label) FROM drawn AS d "
                    "JOIN samples AS s USING (sample) LEFT JOIN requests AS q USING (request_id) "
                    "LEFT JOIN standing_corrections AS c USING (sample) "
                    "WHERE NOT ?1 OR q.cycle = 0",
                    (of_first_request,),
                ).fetchall(),
                np.int64,
            ).reshape(-1, 2)
            before_C, held_out_C = (
                np.bincount(labels_N, minlength=self._num_classes)
                for labels_N in (before_N2[:, 1], before_N2[before_N2[:, 0] == 1, 1])
            )
            held_out_N = draw_held_out(
                new_N4[:, 1], before_C, held_out_C, fraction, generator_after(len(before_N2))
            )
            self._connection.executemany(
                "INSERT INTO drawn VALUES (?, ?)",
                zip(new_N4[:, 0].tolist(), held_out_N.astype(int).tolist(), strict=True),
            )

    def give(self, labels: Mapping[int, int], annotator: str) -> None:
        """Take in labels that are there already, by sample: nothing is spent on them.

        A repeated label changes nothing. One for a sample that has been asked for answers the
        request, and is spent; a different one for a labelled sample is kept as a conflict.

        Raises
        ------
        LabelConflict
            A label is out of range, or a sample is not the client's.
        """
        if foreign := self._foreign(labels):
            raise LabelConflict(f"sample {foreign[0]}: not one of this client's samples")
        known = set(
            self._connection.execute(
                "SELECT sample, label FROM receipts WHERE annotator = ?", (annotator,)
            ).fetchall()
        )
        new = {sample: label for sample, label in labels.items() if (sample, label) not in known}
        if not new:
            return
        with transaction(self._connection):
            for sample, label in new.items():
                self._check_label(sample, label)
                # What was asked for, and is here again, is in the pool again.
                self._take_out("removed", [sample])
                given = LabelReceipt("", sample, label, annotator)
                self._keep(given)
                self._connection.execute(
                    "INSERT OR IGNORE INTO samples (sample, state, label, annotator, answered, "
                    "from_cycle, settled) SELECT ?1, 'given', ?2, ?3, "
                    "strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), ?4, max(number) FROM receipts "
                    "WHERE sample = ?1",
                    (sample, label, annotator, self._frozen() + 1),
                )
            self._settle(new)

    def note_arrivals(self, cycle: int) -> None:
        """Keep which samples are there for a cycle's purchase; of known ones nothing changes."""
        if self._samples_N is None:
            raise StoreError("label store: opened without its samples, so it knows of none new")
        with transaction(self._connection):
            ArrivalTable(self._connection).note(self._samples_N, cycle)

    def arrival_cycles(self) -> NDArray[np.int64]:
        """Return the cycle for which each sample was first there; -1 where it was never noted.

        Shape (N,), in the order of the ids.
        """
        if self._samples_N is None:
            raise StoreError("label store: opened without its samples, so it knows of none new")
        return ArrivalTable(self._connection).cycles(self._samples_N)

    def num_arrived(self) -> int:
        """Return how many samples were ever noted."""
        return ArrivalTable(self._connection).count()

    def allot(self, total: int) -> None:
        """Grant labels so that `total` have been allotted in all; never takes any back.

        Said in total, and not in addition, so that a repeated grant changes nothing.
        """
        with transaction(self._connection):
            more = max(0, total - self.ledger().allotted)
            self._move(allotted=more, free=more)
            self._use_late_answers()

    def reserve(self, request: LabelRequest) -> LabelRequest:
        """Reserve a request's samples and return it; a known id returns the first request.

        Raises
        ------
        BudgetExceeded
            Fewer labels are free than the request has samples.
        PoolExhausted
            A sample is named twice, is not the client's, or is reserved or labelled already.
        """
        with transaction(self._connection):
            known = self.request(request.request_id)
            if known is not None:
                return known
            self._check_pool(request.samples)
            free = self.ledger().free
            if len(request.samples) > free:
                raise BudgetExceeded(
                    f"request {request.request_id}: {len(request.samples)} labels asked for, "
                    f"{free} free"
                )
            self._connection.execute(
                "INSERT INTO requests (request_id, cycle, strategy, readers, rule, report) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    request.request_id,
                    request.cycle,
                    request.strategy,
                    request.readers,
                    request.rule,
                    request.report or None,
                ),
            )
            self._take_out("removed", request.samples)
            nothing = [None] * len(request.samples)
            rows = zip(
                request.samples, request.scores or nothing, request.guesses or nothing, strict=True
            )
            self._connection.executemany(
                "INSERT INTO samples (request_id, position, sample, score, guess, state) "
                "VALUES (?, ?, ?, ?, ?, 'reserved')",
                [(request.request_id, position, *row) for position, row in enumerate(rows)],
            )
            self._move(reserved=len(request.samples), free=-len(request.samples))
            # Somebody may have labelled one before it went, or before it was released.
            self._settle(request.samples)
        return request

    def commit(self, receipts: Iterable[LabelReceipt]) -> int:
        """Store answers; they are durable when this returns. Either all are stored or none.

        A repeated answer changes nothing. A different answer for a labelled sample is kept
        and listed by `conflicts`; the first one stands. Where several people read each sample,
        it is labelled once their readings decide; until then whoever says something else has
        changed his mind. A skipped sample is given back to the ledger and never asked for again.
        A label that comes for it later is kept, and used as soon as a label is free to be spent
        on it. A label of an image that is gone is kept, and not paid for. One that answers an
        earlier request, before the image went and came back, counts for what is asked now.

        Returns
        -------
        int
            Number of samples that these receipts labelled.

        Raises
        ------
        LabelConflict
            A label is out of range, or a sample was never asked for.
        """
        with transaction(self._connection):
            before = self.ledger().spent
            new = []
            for receipt in receipts:
                self._check_receipt(receipt)
                if self._keep(receipt):
                    new.append(receipt.sample)
            self._settle(new)
            return self.ledger().spent - before

    def correct(
        self,
        labels: Mapping[int, int],
        annotator: str,
        made: str | None = None,
        comment: str = "",
    ) -> int:
        """Let other labels stand than the first ones, from the next cycle on.

        What earlier cycles were trained on stays as it was; nothing is spent.

        Parameters
        ----------
        labels : Mapping[int, int]
            Class index by sample.
        annotator : str
            Who says so.
        made : str | None
            When, as `utc_text` writes it; None: now.
        comment : str
            Why.

        Returns
        -------
        int
            Number of samples whose label is now another.

        Raises
        ------
        LabelConflict
            A label is out of range, or a sample has none to be corrected.
        """
        with transaction(self._connection):
            standing = self._standing()
            for sample, label in labels.items():
                self._check_label(sample, label)
                if sample not in standing:
                    raise LabelConflict(f"sample {sample}: has no label that could be corrected")
            changed = [(s, label) for s, label in labels.items() if standing[s] != label]
            self._connection.executemany(
                "INSERT INTO corrections "
                "(sample, from_cycle, label, annotator, made, comment, after) "
                "VALUES (?1, max(?2, (SELECT from_cycle FROM samples WHERE sample = ?1)), ?3, ?4, "
                "coalesce(?5, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), ?6, "
                "(SELECT coalesce(max(number), 0) FROM receipts))",
                [
                    (sample, self._frozen() + 1, label, annotator, made, comment)
                    for sample, label in changed
                ],
            )
        return len(changed)

    def follow_images(self) -> tuple[int, ...]:
        """Take note of images that went and of those that came back; nothing else changes.

        What was asked of an image that went, and is not answered, is given back to the ledger. An
        image that comes back is in the pool again; if somebody has labelled it meanwhile, that is
        used as soon as a label is free to be spent on it.

        Returns
        -------
        tuple[int, ...]
            Samples that were asked for, are gone, and have not been `withdrawn`.
        """
        if self._samples_N is None:
            raise StoreError("label store: opened without its samples, so it knows of none gone")
        asked = dict(
            self._connection.execute(
                "SELECT sample, state FROM samples WHERE request_id IS NOT NULL"
            ).fetchall()
        )
        here = set(np.intersect1d(self._samples_N, list(asked)).tolist())
        away = [(s,) for s, state in asked.items() if s not in here]
        lost = [(s,) for (s,) in away if asked[s] in ("reserved", "skipped")]
        back = [(s,) for s in here if asked[s] == "removed"]
        known = {s for (s,) in self._connection.execute("SELECT sample FROM withdrawn")}
        if lost or back or known & here:
            with transaction(self._connection):
                freed = sum(asked[s] == "reserved" for (s,) in lost)
                self._connection.executemany(
                    "UPDATE samples SET state = 'removed' WHERE sample = ?", lost
                )
                self._move(reserved=-freed, free=freed)
                self._connection.executemany(
                    "UPDATE samples SET state = 'skipped' WHERE sample = ?1 AND EXISTS (SELECT 1 "
                    "FROM receipts WHERE sample = ?1 AND taken_back IS NULL)",
                    back,
                )
                self._connection.executemany(
                    "DELETE FROM withdrawn WHERE sample = ?", [(s,) for s in known & here]
                )
                self._use_late_answers()
        return tuple(s for (s,) in away if s not in known)

    def withdrawn(self, samples: Iterable[int]) -> None:
        """Keep in mind that nobody has copies of these any more, as they are gone."""
        with transaction(self._connection):
            self._connection.executemany(
                "INSERT OR IGNORE INTO withdrawn VALUES (?)", [(sample,) for sample in samples]
            )

    def release(self, request_id: str) -> int:
        """Give back what a request never had answered; return the number of samples."""
        with transaction(self._connection):
            request = self.request(request_id)
            released = self._take_out("reserved", request.samples if request else ())
            self._move(reserved=-released, free=released)
        return released

    # --- inside -----------------------------------------------------------------------

    def _check_samples(self, samples_N: NDArray[np.int64], grows: bool) -> None:
        digest = hashlib.sha256(np.ascontiguousarray(samples_N).tobytes()).hexdigest()
        expected = "grows" if grows else digest
        with transaction(self._connection):
            self._connection.execute(
                "INSERT OR IGNORE INTO meta VALUES ('samples', ?)", (expected,)
            )
        if self._meta("samples") != expected:
            raise StoreError(
                "label store: it belongs to another set of samples (data set or partition changed)"
            )

    def _undrawn(self) -> list[tuple[int, int, int, int]]:
        """Return what is undrawn: sample, label, whether it was asked for first, from which cycle.

        The label is the one that stands.
        """
        return self._connection.execute(
            "SELECT s.sample, coalesce(c.label, s.label), coalesce(q.cycle = 0, 0), s.from_cycle "
            "FROM samples AS s LEFT JOIN requests AS q USING (request_id) "
            "LEFT JOIN standing_corrections AS c USING (sample) WHERE s.label IS NOT NULL "
            "AND NOT EXISTS (SELECT 1 FROM drawn AS d WHERE d.sample = s.sample) ORDER BY s.sample"
        ).fetchall()

    def _foreign(self, samples: Iterable[int]) -> list[int]:
        """Return which of these are not samples of the client, as far as these are known."""
        if self._samples_N is None:
            return []
        named = np.unique(np.array(list(samples), dtype=np.int64))
        return [int(sample) for sample in _missing(named, self._samples_N)]

    def _check_pool(self, samples: Sequence[int]) -> None:
        distinct = np.unique(np.array(samples, dtype=np.int64))
        foreign = _missing(distinct, self.unlabelled())
        if len(distinct) != len(samples) or len(foreign):
            raise PoolExhausted(
                f"{len(samples)} samples asked for, {len(distinct)} of them different, "
                f"{len(foreign)} not in the pool"
            )

    def _check_label(self, sample: int, label: int) -> None:
        if not 0 <= label < self._num_classes:
            raise LabelConflict(
                f"sample {sample}: label {label}; allowed is 0 to {self._num_classes - 1}"
            )

    def _check_receipt(self, receipt: LabelReceipt) -> None:
        if receipt.label is not None:
            self._check_label(receipt.sample, receipt.label)
        (is_part,) = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM samples WHERE (sample, request_id) = (?1, ?2)) "
            "OR EXISTS (SELECT 1 FROM earlier_requests WHERE (sample, request_id) = (?1, ?2))",
            (receipt.sample, receipt.request_id),
        ).fetchone()
        if not is_part:
            raise LabelConflict(
                f"sample {receipt.sample}: not part of request {receipt.request_id}"
            )


def _missing(distinct_N: NDArray[np.int64], present_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers that are not among others; NumPy's set difference takes far longer."""
    return distinct_N[~np.isin(distinct_N, present_M)]
