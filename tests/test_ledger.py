"""The ledger of labels adds up, at a client, for all clients, and in a run's records."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from ahfal_app.errors import StoreError
from ahfal_app.labels.store import LabelStore
from ahfal_app.ledger import Ledger
from ahfal_app.results.records import CycleRecord, parse_record

CYCLE = CycleRecord(
    cycle=0,
    labels=2,
    labels_per_client=(2,),
    accuracy=0.5,
    class_accuracy=(0.5,),
    loss=1.0,
    tau=12,
    ledger=Ledger(9, 4, 2, 3),
)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ((5, 2, 2, 2), "allotted must be spent"),
        ((5, 6, 0, -1), "allowed are counts"),
        ((-1, 0, 0, -1), "allowed are counts"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_refused_everywhere(
    tmp_path: Path, numbers: tuple[int, int, int, int], why: str
):
    with pytest.raises(ValueError, match=why):
        Ledger(*numbers)
    line = CYCLE.model_dump_json()
    wrong = re.sub(
        r'"ledger":\{.*?\}',
        '"ledger":{"allotted":%d,"spent":%d,"reserved":%d,"free":%d}' % numbers,  # noqa: UP031
        line,
    )
    with pytest.raises(ValidationError, match=why):
        parse_record(wrong.encode())
    path = tmp_path / "labels.sqlite"
    store = LabelStore.open_file(path, np.arange(9), 3)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(
            "UPDATE ledger SET (allotted, spent, reserved, free) = (?, ?, ?, ?)", numbers
        )
    with pytest.raises(StoreError, match=why):
        store.verify()


def test_all_clients_together():
    assert Ledger.total([Ledger(5, 2, 1, 2), Ledger(4, 2, 1, 1)]) == Ledger(9, 4, 2, 3)
    assert Ledger.total([]) == Ledger(0, 0, 0, 0)


def test_a_record_comes_back_as_it_was():
    assert parse_record(CYCLE.model_dump_json().encode()) == CYCLE
    assert '"ledger":{"allotted":9,"spent":4,"reserved":2,"free":3}' in CYCLE.model_dump_json()
