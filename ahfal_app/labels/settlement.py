"""What the answers to a sample make of it and of the ledger; `labels/store.py` takes them in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

from ahfal_app.labels.readings import Verdict, decide
from ahfal_app.labels.records import LabelReceipt
from ahfal_app.labels.views import LabelViews, Said


class Settlement(LabelViews):
    """The half of `LabelStore` that keeps answers and decides what they come to.

    All of it is called within a transaction of the store, which is what keeps a label and its
    price together.
    """

    def _take_out(self, state: str, samples: Sequence[int]) -> int:
        """Take those in this state out of their requests, and remember these; return how many."""
        found = (state, json.dumps(samples))
        self._connection.execute(
            "INSERT OR IGNORE INTO earlier_requests SELECT sample, request_id FROM samples "
            "WHERE state = ? AND sample IN (SELECT value FROM json_each(?))",
            found,
        )
        return self._connection.execute(
            "DELETE FROM samples WHERE state = ? AND sample IN (SELECT value FROM json_each(?))",
            found,
        ).rowcount

    def _keep(self, receipt: LabelReceipt) -> bool:
        """Keep an answer; return whether it is news."""
        if receipt.taken_back is None and not receipt.decides:
            receipt = self._in_place_of_older(receipt)
        kept = self._connection.execute(
            "INSERT OR IGNORE INTO receipts (sample, annotator, label, request_id, given, "
            "taken_back, decides, unsure, comment) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                receipt.sample,
                receipt.annotator,
                receipt.label,
                receipt.request_id or None,
                receipt.given,
                receipt.taken_back,
                receipt.decides,
                receipt.unsure,
                receipt.comment,
            ),
        ).rowcount
        return bool(kept)

    def _in_place_of_older(self, receipt: LabelReceipt) -> LabelReceipt:
        """Let a reader's newest reading stand; oracles tell the older ones again and again."""
        row = self._connection.execute(
            "SELECT r.number, coalesce(r.given, r.received), s.state "
            "FROM receipts AS r JOIN samples AS s USING (sample) JOIN requests AS q "
            "ON q.request_id = s.request_id AND q.readers > 1 "
            "WHERE (r.sample, r.annotator) = (?, ?) AND r.label IS NOT ? AND r.taken_back IS NULL "
            "AND r.request_id IS NOT NULL AND NOT r.decides ORDER BY r.number DESC LIMIT 1",
            (receipt.sample, receipt.annotator, receipt.label),
        ).fetchone()
        if row is None:
            return receipt
        number, moment, state = row
        if receipt.given is not None and receipt.given < moment:
            return dataclasses.replace(receipt, taken_back=moment)
        if state == "reserved":
            self._connection.execute(
                "UPDATE OR REPLACE receipts SET taken_back = "
                "coalesce(?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) WHERE number = ?",
                (receipt.given, number),
            )
        return receipt

    def _settle(self, samples: Iterable[int]) -> None:
        """Label, and pay for, or skip what the answers to these samples decide by now."""
        reserved = self._connection.execute(
            "SELECT sample, readers, rule FROM samples JOIN requests USING (request_id) "
            "WHERE state = 'reserved' AND sample IN (SELECT value FROM json_each(?))",
            (json.dumps(list(samples)),),
        ).fetchall()
        said = self._said(sample for sample, _, _ in reserved)
        labelled, skipped = self._conclude(
            (sample, said[sample], decide([s.reading for s in said[sample]], readers, rule))
            for sample, readers, rule in reserved
            if sample in said
        )
        self._move(reserved=-labelled - skipped, spent=labelled, free=skipped)
        self._use_late_answers()

    def _use_late_answers(self) -> None:
        """Spend free labels on skipped samples that somebody has labelled after all."""
        free = self.ledger().free
        if not free:
            return
        late = self._connection.execute(
            "SELECT s.sample, q.readers, q.rule FROM samples AS s "
            "JOIN requests AS q USING (request_id) JOIN receipts AS r USING (sample) "
            "WHERE s.state = 'skipped' AND r.label IS NOT NULL AND r.taken_back IS NULL "
            "GROUP BY s.sample ORDER BY min(r.number)"
        ).fetchall()
        said = self._said(sample for sample, _, _ in late)
        found = []
        for sample, readers, rule in late:
            readings = [s.reading for s in said[sample]]
            if readers == 1:  # One who cannot tell does not gainsay one who can.
                readings = [reading for reading in readings if reading.label is not None]
            verdict = decide(readings, readers, rule)
            if verdict is not None and verdict.label is not None:
                found.append((sample, said[sample], verdict))
        used, _ = self._conclude(found[:free])
        self._move(spent=used, free=-used)

    def _conclude(
        self, verdicts: Iterable[tuple[int, Sequence[Said], Verdict | None]]
    ) -> tuple[int, int]:
        """Let verdicts stand, as of when the last of those who say so did.

        Returns
        -------
        tuple[int, int]
            Number of samples that are labelled now, and that are skipped.
        """
        rows, cycle = [], self._frozen() + 1
        for sample, said, verdict in verdicts:
            if verdict is not None:
                names = verdict.annotators
                agreed = [
                    s.moment
                    for s in said
                    if s.reading.annotator in names and s.reading.label == verdict.label
                ]
                state = "skipped" if verdict.label is None else "labelled"
                about = (state, verdict.label, ", ".join(names), max(agreed), said[-1].number)
                rows.append((*about, sample))
        self._connection.executemany(
            "UPDATE samples SET state = ?1, label = ?2, annotator = ?3, answered = ?4, "
            "settled = ?5, from_cycle = CASE WHEN ?2 IS NOT NULL THEN max(?7, (SELECT cycle "
            "FROM requests AS r WHERE r.request_id = samples.request_id)) END WHERE sample = ?6",
            [(*row, cycle) for row in rows],
        )
        labelled = sum(row[0] == "labelled" for row in rows)
        return labelled, len(rows) - labelled

    def _move(self, allotted: int = 0, spent: int = 0, reserved: int = 0, free: int = 0) -> None:
        self._connection.execute(
            "UPDATE ledger SET allotted = allotted + ?, spent = spent + ?, "
            "reserved = reserved + ?, free = free + ?",
            (allotted, spent, reserved, free),
        )
