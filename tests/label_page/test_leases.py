"""Who is handed which image: each to one person at a time, unless several are to read it."""

from __future__ import annotations

import multiprocessing
import re
import sqlite3
from pathlib import Path

import httpx
import pytest
from support.label_pages import asked_site, served, site
from support.labelling import request

from ahfal_app.cli import main
from ahfal_app.errors import OracleError
from ahfal_app.label_page.desk import LEASE_S, SILENT_S, Answer, Desk, Hand
from ahfal_app.labels.store import LabelReceipt
from ahfal_app.oracle import make_oracle


class Clock:
    """Tells the time that it is told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(tmp_path: Path, clock: Clock) -> Desk:
    make_oracle("page", site(tmp_path / "oracle")).submit(request(*range(20, 30)))
    return Desk(tmp_path / "oracle", clock)


def held(hand: Hand) -> list[int]:
    return [handed.item.sample for handed in hand.images]


def say(desk: Desk, sample: int, who: str = "anna", label: int | None = 0) -> None:
    desk.answer(Answer("request1", sample, label, who))


def test_nobody_is_handed_what_another_page_holds(desk: Desk):
    hands = [held(desk.take(*who)) for who in (("anna", "1"), ("ben", "2"), ("anna", "3"))]
    assert hands == [[20, 21, 22], [23, 24, 25], [26, 27, 28]]
    assert held(desk.take("anna", "1")) == [20, 21, 22]
    # Another process, such as the one after a power cut, knows of it.
    assert held(Desk(desk.folder, desk._clock).take("carl", "4"))[0] not in {20, 23, 26}


def test_what_is_answered_is_handed_to_nobody(desk: Desk):
    desk.take("anna", "1")
    say(desk, 20)
    assert held(desk.take("anna", "1", shown=("request1", 21))) == [21, 22, 23]
    say(desk, 24, "ben")  # Whether Ben holds it or not: what was said is never lost.
    assert 24 not in held(desk.take("anna", "1"))


def test_what_is_on_the_screen_stays_first(desk: Desk):
    desk.take("anna", "1")
    assert held(desk.take("anna", "1", shown=("request1", 22))) == [22, 20, 21]
    # Also once it is held no more, if nobody else has it.
    desk.release("anna", "1")
    assert held(desk.take("anna", "1", shown=("request1", 27))) == [27, 20, 21]
    desk.take("ben", "2", shown=("request1", 29))
    assert 29 not in held(desk.take("anna", "1", shown=("request1", 29)))


def test_the_last_images_are_shared(desk: Desk):
    """A page that fetches ahead keeps nobody waiting, and never loses what is on its screen."""
    desk.take("anna", "1")
    for sample in range(23, 30):
        say(desk, sample, "carl")
    assert held(desk.take("ben", "2")) == []
    assert held(desk.take("anna", "1", shown=("request1", 21))) == [21]
    assert held(desk.take("ben", "2")) == [20]
    hand = desk.take("carl", "3")
    assert (held(hand), hand.elsewhere, hand.answered, hand.total) == ([22], 2, 7, 10)


def test_a_page_that_is_not_heard_of_lets_go(desk: Desk, clock: Clock):
    desk.take("anna", "1")
    clock.now += LEASE_S - 1
    assert held(desk.take("ben", "2")) == [23, 24, 25]
    clock.now += 1
    assert held(desk.take("ben", "2")) == [23, 24, 25]
    assert held(desk.take("carl", "3")) == [20, 21, 22]
    # Whoever comes back to it is handed something else.
    assert held(desk.take("anna", "1", shown=("request1", 20))) == [26, 27, 28]


def test_a_page_that_is_heard_of_keeps_what_it_holds(desk: Desk, clock: Clock):
    for _ in range(5):
        assert held(desk.take("anna", "1")) == [20, 21, 22]
        clock.now += LEASE_S / 2
    assert held(desk.take("ben", "2")) == [23, 24, 25]


def test_the_same_person_goes_on_after_a_crash(desk: Desk, clock: Clock):
    """A new page of the same person need not wait until the lost one is forgotten."""
    desk.take("anna", "lost")
    clock.now += SILENT_S
    assert held(desk.take("ben", "2")) == [23, 24, 25]
    assert held(desk.take("anna", "new")) == [20, 21, 22]
    assert held(desk.take("anna", "lost", shown=("request1", 20))) == [26, 27, 28]


def test_a_clock_that_is_set_back_keeps_nothing_for_ever(desk: Desk, clock: Clock):
    desk.take("anna", "1")
    clock.now -= 10 * LEASE_S
    assert held(desk.take("ben", "2")) == [20, 21, 22]


def test_undo_gives_the_image_back_to_who_undoes(desk: Desk):
    desk.take("anna", "1")
    say(desk, 20)
    desk.undo("anna", "1")
    assert 20 not in held(desk.take("ben", "2"))
    assert held(desk.take("anna", "1", shown=("request1", 20)))[0] == 20


def _answer_all(folder: Path, who: str, samples: list[int]) -> None:
    desk = Desk(folder)
    while images := desk.take(who, who).images:
        sample = images[0].item.sample
        samples.append(sample)
        desk.answer(Answer("request1", sample, 0, who))


@pytest.mark.slow
def test_people_who_take_at_the_same_time_are_handed_different_images(desk: Desk):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        samples = manager.list()
        people = [
            context.Process(target=_answer_all, args=(desk.folder, who, samples))
            for who in ("anna", "ben", "carl")
        ]
        for person in people:
            person.start()
        for person in people:
            person.join()
        assert sorted(samples) == list(range(20, 30))


@pytest.mark.slow
def test_two_people_at_two_commands_answer_each_image_once(tmp_path: Path):
    """As over the network: each asks what is next, and answers it, in turn."""
    oracle = asked_site(tmp_path, [request(*range(20, 30))])
    with (
        served(tmp_path, "--annotator", "anna") as first,
        served(tmp_path, "--annotator", "ben") as second,
        httpx.Client(follow_redirects=True, trust_env=False) as anna,
        httpx.Client(follow_redirects=True, trust_env=False) as ben,
    ):
        for person, address in ((anna, first), (ben, second)):
            person.base_url = httpx.URL(address.split("?")[0])
            person.get(address).raise_for_status()
        left = [anna, ben]
        while left:
            for person in list(left):
                following = person.get("/state").json()["next"]
                if following is None:
                    left.remove(person)
                    continue
                said = {key: following[key] for key in ("request", "sample")} | {"label": 1}
                person.post("/answers", json=said).raise_for_status()
    receipts = oracle.collect("request1")
    assert sorted(receipt.sample for receipt in receipts) == list(range(20, 30))
    assert {receipt.annotator for receipt in receipts} == {"anna", "ben"}


# --- desks of older and newer versions ------------------------------------------------------

_VERSION_0 = """
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, sample INTEGER NOT NULL,
    label INTEGER, annotator TEXT NOT NULL, answered TEXT NOT NULL DEFAULT '2026-01-02T03:04:05Z',
    collected INTEGER NOT NULL DEFAULT 0, UNIQUE (request_id, sample, annotator)
) STRICT;
INSERT INTO answers (request_id, sample, label, annotator, collected)
    VALUES ('request1', 20, 2, 'anna', 1), ('request1', 21, NULL, 'anna', 0);
"""


def test_a_desk_of_the_first_version_is_brought_up_to_date(desk: Desk):
    with sqlite3.connect(desk.folder / "answers.sqlite") as connection:
        connection.executescript(_VERSION_0)
    connection.close()
    for _ in range(2):
        assert desk.undoable("anna") == Answer("request1", 21, None, "anna")
        assert held(desk.take("anna", "1")) == [22, 23, 24]
    assert desk.undo("anna") == Answer("request1", 21, None, "anna")
    assert desk.undo("anna") is None
    (receipt,) = desk.collect("request1")
    assert receipt == LabelReceipt("request1", 20, 2, "anna")
    assert receipt.given == "2026-01-02T03:04:05Z"


def test_a_desk_of_a_newer_version_is_refused(desk: Desk):
    desk.answered()
    with sqlite3.connect(desk.folder / "answers.sqlite") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(OracleError, match="version 9"):
        desk.answered()


# --- the command ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_address_is_told_once_it_can_be_opened(tmp_path: Path):
    """Whoever reads it opens it at once; a socket that is bound refuses until it listens."""
    asked_site(tmp_path, [request(20)])
    for _ in range(2):
        with served(tmp_path) as address:
            answer = httpx.get(address, follow_redirects=True, trust_env=False)
            assert answer.status_code == 200


@pytest.mark.parametrize("options", [["--list"], []])
def test_a_missing_folder_is_named(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(["label", str(tmp_path / "no-such"), *options])
    assert ended.value.code == 2
    assert "no such folder" in " ".join(re.findall(r"[^\s│]+", capsys.readouterr().err))
    assert not (tmp_path / "no-such").exists()
