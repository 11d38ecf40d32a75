"""The labelling page as a person uses it, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import browser
from support.deployment import wait_until
from support.label_pages import asked_site, served
from support.labelling import request

from ahfal_app.label_page.desk import Desk
from ahfal_app.oracle import Oracle

pytestmark = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path"
)

_ROOT = "document.documentElement"


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    return asked_site(tmp_path, [request(7, 3, 9), request(1, 2, cycle=2)])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "oracle")


@contextmanager
def opened(
    state_dir: Path,
    *options: str,
    width: int = 1280,
    hold: str = "",
    profile: Path | None = None,
) -> Iterator[Any]:
    """Serve a site's page, and look at it; what `hold` says is held back from the start."""
    from support.devtools import chromium

    with served(state_dir, *options) as address, chromium(profile or state_dir) as tab:
        tab.resize(width)
        if hold:
            tab.hold(hold)
        tab.open(address)
        yield tab


def wait_for_count(tab: Any, number: int, total: int = 5) -> None:
    text = "document.querySelector('#count')?.textContent"
    tab.wait(f"{text} === '{number} of {total} labelled'")


def wait_for_image(tab: Any, name: str) -> None:
    """Wait until an image is on the screen and can be answered."""
    tab.wait(
        f"document.querySelector('#image')?.alt.includes('{name}')"
        " && document.querySelector('#skip')?.getAttribute('aria-disabled') === 'false'"
    )


def said(tab: Any) -> str:
    return str(tab.evaluate("document.querySelector('#said').textContent"))


def answers_of(desk: Desk) -> list[tuple[int, int | None]]:
    """Return what stands on the desk, in the order in which it was given."""
    with desk._answers() as answers:
        return [(k.answer.sample, k.answer.label) for k in answers.kept() if not k.taken_back]


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_a_person_labels_by_keyboard_alone(oracle: Oracle, tmp_path: Path, width: int):
    with opened(tmp_path, "--annotator", "Anna B.", width=width) as tab:
        tab.wait("document.querySelector('#image')?.naturalWidth > 0")
        assert tab.evaluate(f"{_ROOT}.scrollWidth <= {_ROOT}.clientWidth")
        address = tab.evaluate("location.href")
        assert address.endswith("/")
        wait_for_count(tab, 0)
        tab.press("3")
        wait_for_count(tab, 1)
        tab.press("2")
        wait_for_count(tab, 2)
        tab.press("Backspace")
        wait_for_count(tab, 1)
        tab.press("s")
        wait_for_count(tab, 2)
        # The first class's button: Tab goes there, Enter presses it.
        tab.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "healthy1"
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        tab.press("Enter")
        wait_for_count(tab, 3)
        tab.click("#classes button:nth-child(2)")
        wait_for_count(tab, 4)
        tab.press("1")
        wait_for_count(tab, 5)
        tab.wait("!document.querySelector('#empty').hidden")
        assert tab.console == []
        assert {url.split("/")[2] for url in tab.urls if url.startswith("http")} == {
            address.split("/")[2]
        }
    answers = [(r.sample, r.label) for r in oracle.collect("request1")]
    assert answers == [(7, 2), (3, None), (9, 0)]
    answers = [(r.sample, r.label) for r in oracle.collect("request2")]
    assert answers == [(1, 1), (2, 0)]
    assert {r.annotator for r in oracle.collect("request1")} == {"Anna B."}


@pytest.mark.usefixtures("oracle")
def test_no_image_is_answered_before_it_is_on_the_screen(tmp_path: Path, desk: Desk):
    """Images come late; captions, buttons and keys are there at once."""
    with opened(tmp_path, hold="*/images/*") as tab:
        tab.wait("document.querySelectorAll('#classes button').length")
        for key in ("1", "s"):
            tab.press(key)
        tab.click("#classes button:nth-child(2)")
        assert "not on the screen" in said(tab)
        assert tab.evaluate("document.querySelector('#image')") is None
        tab.wait("document.querySelector('#caption').hidden")
        # The first image comes, the others do not.
        tab.let_go("0001.png")
        wait_for_image(tab, "7.png")
        assert answers_of(desk) == []
        tab.press("3")
        tab.press("1")
        tab.click("#classes button:nth-child(2)")
        assert "not on the screen" in said(tab)
        # Neither is the old one shown for the new one.
        assert tab.evaluate("document.querySelector('#image')") is None
        tab.let_go("0002.png")
        wait_for_image(tab, "3.png")
        assert answers_of(desk) == [(7, 2)]
        tab.press("2")
        # Nor is anything answered while one's own last answer is taken back.
        tab.press("Backspace")
        tab.press("1")
        tab.wait("document.querySelector('#said').textContent.includes('taken back')")
        wait_for_image(tab, "3.png")
        assert answers_of(desk) == [(7, 2)]
        tab.hold_nothing()
        tab.press("2")
        wait_for_count(tab, 2)
    assert answers_of(desk) == [(7, 2), (3, 1)]


@pytest.mark.usefixtures("oracle")
def test_what_is_pressed_while_an_answer_is_under_way_is_kept(tmp_path: Path, desk: Desk):
    with opened(tmp_path, hold="*/answers") as tab:
        wait_for_image(tab, "7.png")
        tab.press("3")
        wait_for_image(tab, "3.png")
        tab.press("2")
        wait_for_image(tab, "9.png")
        tab.press("s")
        tab.wait("document.querySelector('#unsaved').textContent.startsWith('saving 3')")
        assert answers_of(desk) == []
        tab.hold_nothing()
        wait_for_count(tab, 3)
        wait_for_image(tab, "1.png")
        assert tab.evaluate("document.querySelector('#unsaved').textContent") == ""
    assert answers_of(desk) == [(7, 2), (3, 1), (9, None)]


@pytest.mark.usefixtures("oracle")
def test_what_could_not_be_sent_is_sent_again(tmp_path: Path, desk: Desk):
    with opened(tmp_path, hold="*/answers") as tab:
        wait_for_image(tab, "7.png")
        tab.press("3")
        wait_for_image(tab, "3.png")
        tab.wait("document.querySelector('#unsaved').textContent")
        assert tab.is_held("/answers")
        tab.let_go(fail=True)
        tab.wait("document.querySelector('#said').textContent.includes('does not answer')")
        tab.press("1")
        assert answers_of(desk) == []
        tab.hold_nothing()
        wait_for_count(tab, 2)
        assert "does not answer" not in said(tab)
    assert answers_of(desk) == [(7, 2), (3, 0)]


@pytest.mark.usefixtures("oracle")
def test_an_image_that_cannot_be_shown_is_not_labelled(tmp_path: Path, desk: Desk):
    (tmp_path / "oracle/requests/request1/images/0001.png").write_bytes(b"no image")
    with opened(tmp_path) as tab:
        tab.wait("document.querySelector('#waiting')?.textContent.includes('cannot be shown')")
        tab.press("1")
        assert "not on the screen" in said(tab)
        tab.press("s")
        wait_for_image(tab, "3.png")
        wait_for_count(tab, 1)
    assert answers_of(desk) == [(7, None)]


def test_an_image_that_is_removed_leaves_the_page(oracle: Oracle, tmp_path: Path, desk: Desk):
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        oracle.withdraw([7, 9])
        # At the latest when the page looks what there is.
        wait_for_image(tab, "3.png")
        tab.press("2")
        wait_for_image(tab, "1.png")
        wait_for_count(tab, 1, total=3)
    assert answers_of(desk) == [(3, 1)]


def test_an_answer_to_an_image_that_was_just_removed_is_refused(
    oracle: Oracle, tmp_path: Path, desk: Desk
):
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        oracle.withdraw([7])
        tab.press("1")
        tab.wait("document.querySelector('#said').textContent.includes('no longer has')")
        wait_for_image(tab, "3.png")
    assert answers_of(desk) == []


@pytest.mark.usefixtures("oracle")
def test_two_people_at_two_pages_answer_each_image_once(tmp_path: Path, desk: Desk):
    other = tmp_path / "other"
    other.mkdir()
    with opened(tmp_path, "--annotator", "anna") as anna:
        wait_for_image(anna, "7.png")
        with opened(tmp_path, "--annotator", "ben", profile=other) as ben:
            # All but the one on Anna's screen, as soon as her page has let the next ones go.
            for number in range(4):
                wait_for_image(ben, "png")
                ben.press("2")
                wait_for_count(ben, number + 1)
            ben.wait("document.querySelector('#empty').textContent.includes('other people: 1')")
            ben.press("2")
        anna.press("1")
        wait_for_count(anna, 5)
    assert sorted(answers_of(desk)) == [(1, 1), (2, 1), (3, 1), (7, 0), (9, 1)]


@pytest.mark.usefixtures("oracle")
def test_a_page_that_is_closed_lets_its_images_go(tmp_path: Path, desk: Desk):
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        assert 7 not in {handed.item.sample for handed in desk.take("carl").images}
        tab.open("about:blank")
        tab.wait("location.href === 'about:blank'")
        wait_until(lambda: desk.take("carl").images[0].item.sample == 7)


@pytest.mark.usefixtures("oracle")
def test_a_program_that_ends_lets_its_images_go(tmp_path: Path, desk: Desk):
    with opened(tmp_path, hold="*/release") as tab:
        wait_for_image(tab, "7.png")
    assert desk.take("carl").images[0].item.sample == 7
