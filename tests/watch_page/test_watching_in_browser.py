"""The watching page as people see it, in headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import browser
from support.served_pages import page_of
from support.watched_runs import HOSTILE_NAME, tell_status, waiting_run

from ahfal_app.results.status import Phase, State

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.CHROMIUM is None,
        reason="no chromium, chromium-browser or google-chrome on the path",
    ),
]

_ROOT = "document.documentElement"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return waiting_run(tmp_path / "runs")


def text(tab: Any, selector: str) -> str:
    return str(tab.evaluate(f"document.querySelector({selector!r}).innerText"))


def cells(tab: Any) -> list[list[str]]:
    found: list[list[str]] = tab.evaluate(
        "[...document.querySelectorAll('#sites tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return found


@pytest.mark.parametrize("width", [1440, 390])
def test_it_tells_whom_a_run_waits_for_and_names_are_text(chromium: Any, run: Path, width: int):
    with page_of("watch", str(run)) as address, chromium.tab() as tab:
        tab.resize(width)
        tab.open(address)
        tab.wait("document.querySelectorAll('#sites tbody tr').length === 5")
        assert tab.evaluate("location.search") == ""
        assert text(tab, "#name") == "spring"
        assert text(tab, "#condition") == "waiting for labels"
        rows = cells(tab)
        assert rows[0][0] == "North"
        assert rows[0][2:7] == ["24", "24", "0", "–", "–"]
        assert rows[1][0] == HOSTILE_NAME
        assert rows[1][1:8] == ["5 h ago", "24", "20", "4", "1 d 7 h", "3 images for 1 d 7 h", "0"]
        assert rows[2] == ["fails for 4 h: </td><script>document.title=3</script>"]
        assert rows[4] == ["last failure: <script>document.title=2</script>"]
        assert "3 images" in text(tab, "#facts")
        assert tab.evaluate("document.querySelectorAll('#plot circle').length") == 2
        # What people see has no element of a name's making, and nothing of it was run.
        made = "document.querySelectorAll('main img, main b, main script').length"
        assert tab.evaluate(made) == 0
        assert tab.evaluate("document.title") == "waiting for labels · spring"
        assert tab.evaluate(f"{_ROOT}.scrollWidth <= {_ROOT}.clientWidth")
        wide = "[...document.querySelectorAll('main *')].filter((e) => !e.closest('thead') && "
        wide += f"e.getBoundingClientRect().right > {_ROOT}.clientWidth + 0.5)"
        assert tab.evaluate(f"{wide}.map((e) => e.outerHTML)") == []
        assert tab.console == []
        assert {url.split("/")[2] for url in tab.urls} == {address.split("/")[2]}


def test_it_updates_by_itself_and_says_where_it_does_not(chromium: Any, run: Path):
    with chromium.tab() as tab:
        with page_of("watch", str(run)) as address:
            tab.open(address)
            tab.wait("document.querySelector('#condition')?.innerText === 'waiting for labels'")
            tab.evaluate("document.querySelector('#sites tbody tr').id = 'kept'")
            tell_status(run, given=24, phase=Phase.TRAINING)
            tab.wait("document.querySelector('#condition').innerText === 'running'")
            assert cells(tab)[1][4] == "0"
            # Rows stay where they are, so that nobody's place or selection is lost.
            assert tab.evaluate("document.querySelector('#sites tbody tr').id") == "kept"
            reason = "<b>QuorumNotReached</b>"
            tell_status(run, state=State.FAILED, phase=Phase.ENDED, reason=reason)
            tab.evaluate("ask()")
            tab.wait("!document.querySelector('#reason').hidden")
            assert text(tab, "#reason") == reason
        tab.wait("!document.querySelector('#trouble').hidden")
        assert "does not answer" in text(tab, "#trouble")


def test_one_of_several_runs_is_chosen_by_its_name(chromium: Any, run: Path):
    waiting_run(run.parent, "autumn")
    with page_of("watch", str(run.parent)) as address, chromium.tab() as tab:
        tab.open(address)
        tab.wait("document.querySelectorAll('#runs tbody tr').length === 2")
        assert text(tab, "#name") == "autumn"
        tab.click("#runs a[href='#spring']")
        tab.wait("document.querySelector('#name').innerText === 'spring'")
        assert tab.evaluate("document.querySelector('[aria-current] a').textContent") == "spring"
