"""The grid whose nodes live in this process: which answers a pull brings."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Set

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ahfal_app.engine.in_process import InProcessGrid

app = ClientApp()
release = threading.Event()


@app.query("at_once")
def at_once(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


@app.query("held_up")
def held_up(message: Message, context: Context) -> Message:
    release.wait(60)
    return Message(RecordDict(), reply_to=message)


class Lookup(Set[str]):
    """Ids that can be looked up, and not gone through."""

    def __init__(self, ids: set[str]) -> None:
        self._ids = ids

    def __contains__(self, identity: object) -> bool:
        return identity in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all that is waited for was gone through")


@pytest.fixture
def grid() -> Iterator[InProcessGrid]:
    release.clear()
    with InProcessGrid(app, num_clients=3, workers=3) as made:
        try:
            yield made
        finally:
            release.set()


def pushed(grid: InProcessGrid, *kinds: str) -> list[str]:
    messages = [
        Message(RecordDict(), node, f"query.{kind}", ttl=60.0)
        for node, kind in enumerate(kinds, start=1)
    ]
    return list(grid.push_messages(messages))


def pulled(grid: InProcessGrid, ids: Set[str]) -> set[str]:
    return {reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)}


def wait_until_answered(grid: InProcessGrid, ids: list[str]) -> None:
    deadline = time.monotonic() + 30
    while not all(grid._pending[identity].done() for identity in ids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_answer_stays_until_it_is_asked_for(grid: InProcessGrid):
    first, second, third = pushed(grid, "at_once", "at_once", "at_once")
    wait_until_answered(grid, [first, second, third])
    assert pulled(grid, {second}) == {second}
    assert pulled(grid, {first, second, third}) == {first, third}
    assert pulled(grid, {first, second, third}) == set()


def test_what_is_not_answered_comes_later(grid: InProcessGrid):
    early, late = pushed(grid, "at_once", "held_up")
    wait_until_answered(grid, [early])
    assert pulled(grid, {early, late}) == {early}
    assert pulled(grid, {late}) == set()
    release.set()
    wait_until_answered(grid, [late])
    assert pulled(grid, {late}) == {late}


def test_a_pull_costs_as_much_as_its_answers(grid: InProcessGrid):
    ids = pushed(grid, "at_once", "held_up", "held_up")
    wait_until_answered(grid, ids[:1])
    assert pulled(grid, Lookup(set(ids))) == set(ids[:1])
