"""Each fault once, on real processes: no label is lost, none bought twice, nothing stays behind.

The check itself is tested first, on stores and folders that are wrong on purpose. The fault that
could cost labels strikes in the test of a server without data, too.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from support.deployment import Deployment
from support.fault_registry import FAULTS
from support.faults import COMPLETED
from support.hospitals import DIGITS, Account, Labeller, Trial, trial

from ahfal_app.labels.spreadsheet import write_csv
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore, request_id

_FILES = ("a.png", "b.png", "c.png", "d.png")
_REQUEST = LabelRequest(request_id("run", 0, 0), 0, "random", (0, 1))


@pytest.fixture
def counted(tmp_path: Path) -> Trial:
    """One site, which was asked for two images and has both labels; people know of both."""
    folders = {"site-0": tmp_path / "to-label"}
    labeller = Labeller(folders, {}, {"site-0": [("a.png", "3"), ("b.png", "7")]})
    made = Trial(
        tmp_path,
        Deployment(tmp_path, tmp_path, 0, 0),
        labeller,
        tmp_path,
        ("site-0",),
        contextlib.ExitStack(),
    )
    store = LabelStore.open_file(made.state("site-0") / "labels.sqlite", np.arange(4), 10)
    store.describe(DIGITS, dict(enumerate(_FILES)))
    store.allot(3)
    store.reserve(_REQUEST)
    labels = {0: 3, 1: 7}
    store.commit([LabelReceipt(_REQUEST.request_id, s, c, "anna") for s, c in labels.items()])
    store.close()
    _ask(folders["site-0"] / "cycle-000-one", "a.png", "b.png")
    return made


def _ask(request: Path, *files: str) -> None:
    request.mkdir(parents=True)
    write_csv(request / "request.csv", ("original",), [(file,) for file in files])


def test_sound_site_has_lost_nothing(counted: Trial):
    assert counted.account() == Account(answered=2, lost=0, waiting=0, bought_twice=0)


@pytest.mark.parametrize("answer", [("c.png", "1"), ("a.png", "4")])
def test_answer_that_the_store_has_not_or_has_otherwise_is_lost(counted: Trial, answer):
    counted.labeller.answers["site-0"].append(answer)
    assert counted.account().lost == 1


def test_image_asked_for_again_or_answered_again_is_bought_twice(counted: Trial):
    _ask(counted.labeller.folders["site-0"] / "cycle-001-two", "b.png", "c.png")
    assert counted.account().bought_twice == 1
    counted.labeller.answers["site-0"].append(("a.png", "3"))
    assert counted.account().bought_twice == 2


def test_answer_that_the_store_waits_for_is_not_lost_as_long_as_it_is_on_the_disk(counted: Trial):
    store = LabelStore.open_file(counted.state("site-0") / "labels.sqlite", np.arange(4), 10)
    store.reserve(LabelRequest(request_id("run", 0, 1), 1, "random", (2,)))
    store.close()
    request = counted.labeller.folders["site-0"] / "cycle-001-two"
    _ask(request, "c.png")
    counted.labeller.answers["site-0"].append(("c.png", "1"))
    assert counted.account() == Account(answered=3, lost=1, waiting=0, bought_twice=0)
    write_csv(request / "labels.csv", ("file", "label"), [("c.png", "1")])
    assert counted.account() == Account(answered=3, lost=0, waiting=1, bought_twice=0)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                pytest.mark.faults,
                pytest.mark.skipif(bool(fault.missing), reason=fault.missing),
            ],
        )
        for name, fault in FAULTS.items()
    ],
)
def test_after_a_fault_no_label_is_lost_or_bought_twice(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("AHFAL_TEST", str(tmp_path))
    fault = FAULTS[name]
    with trial(tmp_path, data_dir, fault.sites) as running:
        fault.prepare(running)
        assert fault.strike(running, random.Random(name)).endswith(COMPLETED)
        account = running.account()
    assert account.answered > 0
    assert (account.lost, account.bought_twice) == (0, 0), account
