"""Several people read each image at the page, and somebody settles what they disagree on.

Each person has a page of their own, over HTTP; labels end up in a store.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.label_pages import PORT, TOKEN, Visitor, asked_site
from support.labelling import CLASSES, request
from typer.testing import CliRunner

from ahfal_app.cli import app as command_line
from ahfal_app.label_page.app import make_app
from ahfal_app.label_page.desk import Desk
from ahfal_app.labels.exchange import export_labels
from ahfal_app.labels.readings import ADJUDICATOR, MAJORITY, decide
from ahfal_app.labels.store import LabelStore
from ahfal_app.ledger import Ledger
from ahfal_app.oracle import Oracle

SAMPLES = (7, 3, 9)

#: Makes a request, and gives a page to each person.
Office = Callable[..., "People"]


class People:
    """The pages of a site's people, and what its client makes of what they say."""

    def __init__(self, folder: Path, oracle: Oracle) -> None:
        self.folder, self.oracle = folder, oracle

    def page(self, who: str, **options: Any) -> Visitor:
        desk = Desk(self.folder / "oracle")
        store = self.folder / "labels.sqlite"
        return Visitor(make_app(desk, who, TOKEN, PORT, store=store, **options))

    def store(self) -> LabelStore:
        return LabelStore.open_existing(self.folder / "labels.sqlite")

    def collect(self) -> Ledger:
        """Let the client collect, twice, as it does after a crash."""
        store = self.store()
        for _ in range(2):
            store.commit(self.oracle.collect("request1"))
        store.verify()
        ledger = store.ledger()
        store.close()
        return ledger


@pytest.fixture
def office(tmp_path: Path) -> Office:
    def make(readers: int = 2, rule: str = MAJORITY, samples: tuple[int, ...] = SAMPLES) -> People:
        asked = request(*samples, readers=readers, rule=rule)
        return People(tmp_path, asked_site(tmp_path, [asked]))

    return make


def answer(page: Visitor, sample: int, label: int | None, path: str = "/answers", **more: Any):
    return page(path, {"request": "request1", "sample": sample, "label": label, **more})


def say(page: Visitor, sample: int, label: int | None, **more: Any) -> Any:
    reply = answer(page, sample, label, **more)
    assert reply.status_code == 200, reply.text
    return reply.json()


def queue(page: Visitor) -> list[dict[str, Any]]:
    state = page("/state?settle=true&seat=queue").json()
    return [image for image in (state["next"], *state["ahead"]) if image is not None]


# --- who reads what -------------------------------------------------------------------------


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_each_image_is_read_by_as_many_as_are_to_and_by_nobody_twice(office: Office, readers: int):
    samples = tuple(range(20, 27))
    people = office(readers, samples=samples)
    pages = {who: people.page(who) for who in ("anna", "ben", "carl", "dora")}
    read: dict[int, list[str]] = {sample: [] for sample in samples}
    while True:
        handed = 0
        for who, page in pages.items():
            image = page(f"/state?seat={who}").json()["next"]
            if image is not None:
                handed += 1
                read[image["sample"]].append(who)
                say(page, image["sample"], 0, seat=who)
        if not handed:
            break
    assert {len(whos) for whos in read.values()} == {readers}
    assert all(len(set(whos)) == readers for whos in read.values())
    assert len({who for whos in read.values() for who in whos}) >= max(2, readers)
    assert people.collect().spent == len(samples)


def test_an_image_is_on_no_more_screens_than_it_is_to_have_readers(office: Office):
    people = office(2, samples=(7,))
    screens = {
        who: people.page(who)(f"/state?seat={who}").json() for who in ("anna", "ben", "carl")
    }
    assert [screens[who]["next"] is not None for who in screens] == [True, True, False]
    assert screens["carl"]["elsewhere"] == 1
    # A second page of the same person is no second reader.
    people.page("anna")("/release", {"seat": "anna"})
    assert people.page("ben")("/state?seat=another").json()["next"] is None
    assert people.page("carl")("/state?seat=carl").json()["next"]["sample"] == 7


def test_nobody_sees_what_others_say_before_it_is_their_turn_to_settle(office: Office):
    people = office(2)
    anna, ben = people.page("anna", show_guess=False), people.page("ben")
    head = people.page("prof", adjudicator=True)
    for sample, label in ((7, 2), (3, 0)):
        say(anna, sample, label, unsure=True, comment="a secret remark")
    say(ben, 3, 0)
    told = [ben("/state").text, ben("/state?settle=true").text, ben("/own").text]
    # One reading is no disagreement, and neither are two that agree.
    told += [head("/state").text, head("/state?settle=true").text, head("/own").text]
    assert all('"anna"' not in text and "secret" not in text for text in told)
    assert ben("/state?settle=true").json()["disagreements"] == 0
    # What stands on a reader's own screen has no readings with it, also once they disagree.
    say(ben, 7, 1)
    told = [anna("/state?settle=true").text, anna("/own").text, ben("/own").text]
    assert '"ben"' not in told[0] + told[1]
    assert '"anna"' not in told[2]
    assert [image["sample"] for image in queue(head)] == [7]
    assert queue(head)[0]["readings"] == [
        {"annotator": "anna", "label": 2, "unsure": True, "comment": "a secret remark"},
        {"annotator": "ben", "label": 1, "unsure": False, "comment": ""},
    ]


# --- rules, and the queue -------------------------------------------------------------------


def test_what_readers_disagree_on_is_settled_by_somebody_else(office: Office):
    people = office(2)
    anna, ben = people.page("anna"), people.page("ben", adjudicator=True)
    for page, labels in ((anna, (1, 2, 0)), (ben, (1, 0, None))):
        for sample, label in zip(SAMPLES, labels, strict=True):
            say(page, sample, label)
    assert people.collect() == Ledger(4, 1, 2, 1)
    # Whoever has read an image does not settle it, nor does a page that was not started for it.
    assert queue(ben) == []
    refused = answer(ben, 3, 0, settle=True)
    assert (refused.status_code, refused.json()["code"]) == (409, "error_answered")
    refused = answer(anna, 3, 0, settle=True)
    assert (refused.status_code, refused.json()["code"]) == (403, "error_role")
    head = people.page("prof", adjudicator=True)
    assert queue(head)[0]["sample"] == 3
    assert head("/state").json()["disagreements"] == 2
    refused = answer(head, 7, 0, settle=True)
    assert (refused.status_code, refused.json()["code"]) == (409, "error_not_open")
    left = say(head, 3, 1, settle=True, comment="biopsy")
    assert (left["disagreements"], left["next"]["sample"]) == (1, 9)
    assert people.collect() == Ledger(4, 2, 1, 1)
    say(head, 9, None, settle=True)
    # Nobody can tell, says who decides: nothing is paid for it, and it is asked of nobody.
    assert people.collect() == Ledger(4, 2, 0, 2)
    assert (queue(head), head("/state").json()["next"]) == ([], None)
    store = people.store()
    labelled = store.labelled()
    assert (labelled.samples_N.tolist(), labelled.labels_N.tolist()) == ([3, 7], [1, 1])
    assert [(e.what, e.annotator, e.label, e.stands) for e in store.history(3)] == [
        ("answer", "anna", 2, False),
        ("answer", "ben", 0, False),
        ("decision", "prof", 1, True),
    ]
    assert store.conflicts() == ()
    store.close()


def test_two_who_settle_are_handed_different_images_and_each_is_bought_once(office: Office):
    people = office(2)
    for who, label in (("anna", 0), ("ben", 1)):
        for sample in SAMPLES:
            say(people.page(who), sample, label)
    prof, chief = (people.page(who, adjudicator=True) for who in ("prof", "chief"))
    first = prof("/state?settle=true&seat=1").json()["next"]["sample"]
    assert chief("/state?settle=true&seat=2").json()["next"]["sample"] != first
    say(prof, first, 2, settle=True)
    # Whoever is late has nothing to settle any more.
    refused = answer(chief, first, 0, settle=True)
    assert (refused.status_code, refused.json()["code"]) == (409, "error_not_open")
    assert people.collect() == Ledger(4, 1, 2, 1)
    for sample in set(SAMPLES) - {first}:
        say(chief, sample, 1, settle=True)
    assert people.collect() == Ledger(4, 3, 0, 1)


@pytest.mark.parametrize(
    ("rule", "labels", "is_open"),
    [
        (MAJORITY, (0, 1, 0), False),
        (ADJUDICATOR, (0, 1, 0), True),
        (MAJORITY, (0, 1, 2), True),
        (MAJORITY, (None, None, 2), False),
        (ADJUDICATOR, (2, 2, 2), False),
        (ADJUDICATOR, (None, 2, 2), True),
    ],
)
def test_the_rule_says_what_is_a_disagreement(
    office: Office, rule: str, labels: tuple[int | None, ...], is_open: bool
):
    people = office(3, rule, (7,))
    for who, label in zip(("anna", "ben", "carl"), labels, strict=True):
        # Nothing is bought before all have read it.
        assert people.collect() == Ledger(2, 0, 1, 1)
        say(people.page(who), 7, label)
    head = people.page("prof", adjudicator=True)
    assert [image["sample"] for image in queue(head)] == ([7] if is_open else [])
    readings = [own.kept.answer.reading for own in all_own(people)]
    verdict = decide(readings, 3, rule)
    spent = int(verdict is not None and verdict.label is not None)
    reserved = int(is_open)
    assert people.collect() == Ledger(2, spent, reserved, 2 - spent - reserved)


def all_own(people: People) -> list[Any]:
    desk = Desk(people.folder / "oracle")
    return [own for who in ("anna", "ben", "carl") for own in desk.own(who)]


def test_what_is_to_be_settled_is_listed(office: Office):
    people = office(2)
    for who, label in (("anna", 0), ("ben", 1)):
        for sample in (7, 3):
            say(people.page(who), sample, label if sample == 7 else 2)
    shown = CliRunner().invoke(
        command_line, ["label", str(people.folder), "--list"], env={"COLUMNS": "200"}
    )
    assert shown.exit_code == 0
    (row,) = [line.split("│")[1:-1] for line in shown.output.splitlines() if "entropy" in line]
    assert [cell.strip() for cell in row[-4:]] == ["3", "1", "1", "1"]


# --- a mind that is changed -----------------------------------------------------------------


def test_a_reading_may_be_changed_until_it_is_collected(office: Office):
    people = office(2)
    anna, ben = people.page("anna"), people.page("ben")
    say(anna, 7, 0, comment="first sight")
    assert people.collect().spent == 0
    (own,) = anna("/own").json()["answers"]
    assert (own["label"], own["change"], own["comment"]) == (0, "yes", "first sight")
    changed = answer(anna, 7, 2, path="/changes", comment="second sight")
    assert changed.status_code == 200, changed.text
    say(ben, 7, 2)
    assert people.collect() == Ledger(4, 1, 2, 1)
    (own,) = anna("/own").json()["answers"]
    assert (own["label"], own["change"]) == (2, "no")
    refused = answer(anna, 7, 1, path="/changes")
    assert (refused.status_code, refused.json()["code"]) == (409, "error_collected")
    assert people.collect() == Ledger(4, 1, 2, 1)
    store = people.store()
    assert {(e.what, e.annotator, e.label, e.comment, e.stands) for e in store.history(7)} == {
        ("answer", "anna", 0, "first sight", False),
        ("taken back", "anna", 0, "first sight", False),
        ("answer", "anna", 2, "second sight", True),
        ("answer", "ben", 2, "", True),
    }
    store.close()


def test_a_collected_answer_of_a_single_reader_is_corrected(office: Office):
    people = office(1)
    anna, ben = people.page("anna"), people.page("ben")
    say(anna, 7, 0)
    assert people.collect().spent == 1
    (own,) = anna("/own").json()["answers"]
    assert own["change"] == "correct"
    corrected = answer(anna, 7, 2, path="/changes", comment="seen again")
    assert corrected.status_code == 200, corrected.text
    assert people.collect() == Ledger(4, 1, 2, 1)
    # Of somebody else's answer there is nothing to change, and none is seen.
    assert ben("/own").json() == {"answers": []}
    assert answer(ben, 7, 1, path="/changes").status_code == 500
    (own,) = anna("/own").json()["answers"]
    assert (own["label"], own["corrected"], own["comment"]) == (2, True, "seen again")
    store = people.store()
    assert [(e.what, e.label, e.annotator, e.stands) for e in store.history(7)] == [
        ("answer", 0, "anna", False),
        ("correction", 2, "anna", True),
    ]
    store.close()


# --- what is said besides -------------------------------------------------------------------


def test_doubts_and_comments_are_in_history_and_export(office: Office, tmp_path: Path):
    people = office(2)
    anna, ben = people.page("anna"), people.page("ben")
    say(anna, 7, 2, unsure=True, comment="  =blurred; [red] at the edge  ")
    say(ben, 7, 2, comment="hair")
    people.collect()
    shown = CliRunner().invoke(
        command_line, ["labels", "history", str(people.folder)], env={"COLUMNS": "250"}
    )
    assert shown.exit_code == 0
    rows = [line.split("│")[1:-1] for line in shown.output.splitlines() if "malignant" in line]
    assert [(row[3].strip(), row[6].strip()) for row in rows] == [
        ("anna", "unsure; =blurred; [red] at the edge"),
        ("ben", "hair"),
    ]
    export_labels(people.folder, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        lines = {line["file"]: line for line in csv.DictReader(file)}
    assert lines["ward/7.png"]["label"] == CLASSES[2]
    assert lines["ward/7.png"]["unsure"] == "yes"
    # No spreadsheet takes it for a formula.
    assert lines["ward/7.png"]["comment"] == "'=blurred; [red] at the edge; hair"
    assert (lines["ward/3.png"]["unsure"], lines["ward/3.png"]["comment"]) == ("", "")


def test_a_comment_that_is_too_long_is_refused_and_nothing_kept(office: Office):
    people = office(1)
    page = people.page("anna")
    assert answer(page, 7, 0, comment="x" * 501).status_code == 422
    assert page("/state").json()["answered"] == 0
    assert answer(page, 7, 0, comment="x" * 500).status_code == 200
