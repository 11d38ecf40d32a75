"""Corrections of what a site's client has collected from the page."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from ahfal_app.errors import LabelConflict, OracleError, StoreError
from ahfal_app.label_page.answers import Answer
from ahfal_app.labels.store import LabelStore


class NotCorrectable(OracleError):
    """What stands is not this person's, or would be taken away and not corrected."""


def correct(store: Path, answer: Answer) -> None:
    """Let another class stand than the one that the same person has given; durable on return.

    Parameters
    ----------
    store : Path
        The client's label store.
    answer : Answer
        The class that is right.

    Raises
    ------
    NotCorrectable
        Another person's label stands, or none does, or the answer names no class.
    OracleError
        The store cannot be used.
    """
    try:
        with closing(LabelStore.open_existing(store)) as labels:
            entries = {entry.sample: entry for entry in labels.entries()}
            entry = entries.get(answer.sample)
            if (
                answer.label is None
                or entry is None
                or entry.label is None
                or (entry.request_id, entry.annotator) != (answer.request, answer.annotator)
            ):
                raise NotCorrectable(f"sample {answer.sample}: not this person's label")
            labels.correct({answer.sample: answer.label}, answer.annotator, comment=answer.comment)
    except (StoreError, LabelConflict) as error:
        raise OracleError(str(error)) from error
