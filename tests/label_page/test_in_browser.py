"""The labelling page as a person uses it, in headless Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import browser
from support.deployment import wait_until
from support.label_pages import asked_site, served, served_here
from support.labelling import encoded, request

from ahfal_app.label_page.desk import Answer, Desk
from ahfal_app.oracle import EncodedImage, Oracle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.CHROMIUM is None,
        reason="no chromium, chromium-browser or google-chrome on the path",
    ),
]

_ROOT = "document.documentElement"


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    return asked_site(tmp_path, [request(7, 3, 9), request(1, 2, cycle=2)])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "oracle")


Opened = Callable[..., AbstractContextManager[Any]]
Served = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def opened(chromium: Any) -> Opened:
    @contextmanager
    def opened(
        state_dir: Path,
        *options: str,
        width: int = 1280,
        hold: str = "",
        languages: str = "",
        served: Served = served_here,
    ) -> Iterator[Any]:
        """Serve a site's page, and look at it; addresses like those in `hold` are held back."""
        with served(state_dir, *options) as address, chromium.tab() as tab:
            tab.resize(width)
            if languages:
                tab.ask_for(languages)
            if hold:
                tab.hold(*hold.split())
            tab.open(address)
            yield tab

    return opened


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
def test_a_person_labels_by_keyboard_alone(
    oracle: Oracle, tmp_path: Path, opened: Opened, width: int
):
    # Once as the program that people start.
    program = served if width == 1280 else served_here
    with opened(tmp_path, "--annotator", "Anna B.", width=width, served=program) as tab:
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
def test_no_image_is_answered_before_it_is_on_the_screen(
    tmp_path: Path, opened: Opened, desk: Desk
):
    """Images come late; captions, buttons and keys are there at once."""
    with opened(tmp_path, hold="*/images/* */undo") as tab:
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
        # It is said what was taken in.
        tab.wait("document.querySelector('#said').textContent === '7.png: malignant'")
        tab.press("1")
        assert "not on the screen" in said(tab)
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
        wait_until(lambda: tab.is_held("/undo"))
        tab.press("1")
        assert "not on the screen" in said(tab)
        tab.let_go("/undo")
        tab.wait("document.querySelector('#said').textContent.includes('taken back')")
        wait_for_image(tab, "3.png")
        assert answers_of(desk) == [(7, 2)]
        tab.hold_nothing()
        tab.press("2")
        wait_for_count(tab, 2)
    assert answers_of(desk) == [(7, 2), (3, 1)]


@pytest.mark.usefixtures("oracle")
def test_what_is_pressed_while_an_answer_is_under_way_is_kept(
    tmp_path: Path, opened: Opened, desk: Desk
):
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
def test_what_could_not_be_sent_is_sent_again(tmp_path: Path, opened: Opened, desk: Desk):
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
def test_an_image_that_cannot_be_shown_is_not_labelled(tmp_path: Path, opened: Opened, desk: Desk):
    (tmp_path / "oracle/requests/request1/images/0001.png").write_bytes(b"no image")
    with opened(tmp_path) as tab:
        tab.wait("document.querySelector('#waiting')?.textContent.includes('cannot be shown')")
        tab.press("1")
        assert "not on the screen" in said(tab)
        tab.press("s")
        wait_for_image(tab, "3.png")
        wait_for_count(tab, 1)
    assert answers_of(desk) == [(7, None)]


def test_an_image_that_is_removed_leaves_the_page(
    oracle: Oracle, tmp_path: Path, opened: Opened, desk: Desk
):
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
    oracle: Oracle, tmp_path: Path, opened: Opened, desk: Desk
):
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        oracle.withdraw([7])
        tab.press("1")
        tab.wait("document.querySelector('#said').textContent.includes('no longer has')")
        wait_for_image(tab, "3.png")
    assert answers_of(desk) == []


@pytest.mark.usefixtures("oracle")
def test_two_people_at_two_pages_answer_each_image_once(tmp_path: Path, opened: Opened, desk: Desk):
    with opened(tmp_path, "--annotator", "anna") as anna:
        wait_for_image(anna, "7.png")
        with opened(tmp_path, "--annotator", "ben") as ben:
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
def test_a_page_that_is_closed_lets_its_images_go(tmp_path: Path, opened: Opened, desk: Desk):
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        assert 7 not in {handed.item.sample for handed in desk.take("carl").images}
        tab.open("about:blank")
        tab.wait("location.href === 'about:blank'")
        wait_until(lambda: desk.take("carl").images[0].item.sample == 7)


@pytest.mark.usefixtures("oracle")
def test_a_program_that_ends_lets_its_images_go(tmp_path: Path, opened: Opened, desk: Desk):
    with opened(tmp_path, hold="*/release", served=served) as tab:
        wait_for_image(tab, "7.png")
    assert desk.take("carl").images[0].item.sample == 7


# --- zoom -----------------------------------------------------------------------------------

_BOX = """(() => { const b = document.querySelector('%s').getBoundingClientRect();
    return [b.x, b.y, b.width, b.height]; })()"""


def box(tab: Any, selector: str = "#image") -> tuple[float, float, float, float]:
    x, y, width, height = tab.evaluate(_BOX % selector)
    return x, y, width, height


def middle(tab: Any, selector: str = "#view") -> tuple[float, float]:
    x, y, width, height = box(tab, selector)
    return x + width / 2, y + height / 2


@pytest.mark.usefixtures("oracle")
def test_an_image_is_zoomed_and_moved_and_answered_all_the_same(
    tmp_path: Path, opened: Opened, desk: Desk
):
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        whole = box(tab)
        tab.press("+")
        tab.press("+")
        wide = box(tab)
        assert wide[2:] == pytest.approx([2.25 * size for size in whole[2:]])
        assert middle(tab, "#image") == pytest.approx(middle(tab))
        # What is zoomed stays in its frame, and nothing else moves.
        assert tab.evaluate("getComputedStyle(document.querySelector('#view')).overflow") == (
            "hidden"
        )
        assert tab.evaluate(f"{_ROOT}.scrollWidth <= {_ROOT}.clientWidth")
        tab.press("ArrowLeft", shift=True)
        assert box(tab)[0] > wide[0]
        tab.press("ArrowUp", shift=True)
        assert box(tab)[1] > wide[1]
        x, y = middle(tab)
        before = box(tab)
        tab.drag((x, y), (x - 30, y - 20))
        assert box(tab)[:2] == pytest.approx((before[0] - 30, before[1] - 20))
        tab.click("#zoom-fit")
        assert box(tab) == pytest.approx(whole)
        # The point under the wheel stays where it is.
        x, y = whole[0] + whole[2] / 4, whole[1] + whole[3] / 4
        tab.turn_wheel((x, y), -200)
        tab.wait("document.querySelector('#view').classList.contains('zoomed')")
        left, top, width, height = box(tab)
        assert width > whole[2]
        assert ((x - left) / width, (y - top) / height) == pytest.approx((0.25, 0.25), abs=0.01)
        for _ in range(12):
            tab.press("+")
        assert box(tab)[2] == pytest.approx(16 * whole[2])
        assert answers_of(desk) == []
        tab.press("2")
        # The next one is seen as a whole.
        wait_for_image(tab, "3.png")
        assert box(tab) == pytest.approx(whole)
        for _ in range(3):
            tab.press("-")
        assert box(tab) == pytest.approx(whole)
    assert answers_of(desk) == [(7, 1)]


@pytest.mark.usefixtures("oracle")
def test_a_full_screen_is_entered_answered_on_and_left(tmp_path: Path, opened: Opened, desk: Desk):
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        tab.press("*")
        tab.wait("document.fullscreenElement !== null")
        tab.wait("document.querySelector('#full-screen').getAttribute('aria-pressed') === 'true'")
        tab.press("1")
        wait_for_image(tab, "3.png")
        tab.click("#full-screen")
        tab.wait("document.fullscreenElement === null")
        tab.wait("document.querySelector('#full-screen').getAttribute('aria-pressed') === 'false'")
        wait_for_count(tab, 1)
    assert answers_of(desk) == [(7, 0)]


# --- one's own answers, doubts and comments -------------------------------------------------


@pytest.mark.usefixtures("oracle")
def test_one_goes_back_to_ones_answers_and_changes_one(tmp_path: Path, opened: Opened, desk: Desk):
    pressed = "[...document.querySelectorAll('#classes [aria-pressed=true] span')].map("
    pressed += "(e) => e.textContent).join()"
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        tab.press("ArrowLeft")
        tab.wait("document.querySelector('#said').textContent.includes('not answered anything')")
        for key, following in (("3", "3.png"), ("2", "9.png"), ("1", "1.png")):
            tab.press(key)
            wait_for_image(tab, following)
        wait_for_count(tab, 3)
        tab.press("ArrowLeft")
        wait_for_image(tab, "9.png")
        assert tab.evaluate(pressed) == "healthy"
        assert "can be changed" in tab.evaluate("document.querySelector('#given').textContent")
        tab.press("ArrowLeft")
        tab.press("ArrowLeft")
        wait_for_image(tab, "7.png")
        tab.press("ArrowLeft")  # There is none before it.
        assert tab.evaluate(pressed) == "malignant"
        tab.press("ArrowRight")
        wait_for_image(tab, "3.png")
        tab.press("s")
        tab.wait("document.querySelector('#said').textContent.includes('nobody can tell')")
        tab.press("1")
        tab.wait("document.querySelector('#said').textContent === '3.png: changed to healthy.'")
        tab.press("Escape")
        # Where one was, and nothing is answered by the way.
        wait_for_image(tab, "1.png")
        wait_for_count(tab, 3)
        tab.press("2")
        wait_for_count(tab, 4)
        assert tab.console == []
    assert answers_of(desk) == [(7, 2), (9, 0), (3, 0), (1, 1)]


@pytest.mark.usefixtures("oracle")
def test_the_newest_of_ones_answers_may_be_under_way(tmp_path: Path, opened: Opened, desk: Desk):
    with opened(tmp_path, hold="*/answers") as tab:
        wait_for_image(tab, "7.png")
        tab.press("3")
        wait_for_image(tab, "3.png")
        tab.press("ArrowLeft")
        assert tab.is_held("/answers")
        assert "not answered anything" not in said(tab)
        tab.let_go()
        wait_for_image(tab, "7.png")
        tab.press("Escape")
        wait_for_image(tab, "3.png")
        # Who answers another one before that comes to it has gone on.
        tab.press("2")
        wait_for_image(tab, "9.png")
        tab.press("ArrowLeft")
        tab.press("1")
        wait_for_image(tab, "1.png")
        tab.hold_nothing()
        wait_for_count(tab, 3)
        assert tab.evaluate("document.querySelector('#given').hidden")
    assert answers_of(desk) == [(7, 2), (3, 1), (9, 0)]


@pytest.mark.usefixtures("oracle")
def test_doubts_and_comments_go_with_the_image_that_they_are_about(
    tmp_path: Path, opened: Opened, desk: Desk
):
    with opened(tmp_path) as tab:
        wait_for_image(tab, "7.png")
        tab.press("#")
        assert tab.evaluate("document.activeElement.id") == "comment"
        # What is written is no answer, whatever keys it has.
        for letter in "1 s":
            tab.press(letter)
        tab.write("? #blurred, at the “edge”")
        tab.press("Enter")
        assert tab.evaluate("document.activeElement.id") != "comment"
        assert answers_of(desk) == []
        tab.press("?")
        tab.wait("document.querySelector('#unsure').getAttribute('aria-pressed') === 'true'")
        tab.press("2")
        wait_for_image(tab, "3.png")
        # The next one starts without them.
        assert tab.evaluate("document.querySelector('#comment').value") == ""
        assert tab.evaluate("document.querySelector('#unsure').getAttribute('aria-pressed')") == (
            "false"
        )
        tab.press("1")
        wait_for_count(tab, 2)
        tab.press("ArrowLeft")
        wait_for_image(tab, "3.png")
        tab.press("ArrowLeft")
        wait_for_image(tab, "7.png")
        given = tab.evaluate("document.querySelector('#given').textContent")
        assert given.endswith("I am unsure · 1 s? #blurred, at the “edge”")
        # What is changed is the class alone.
        tab.press("3")
        tab.wait("document.querySelector('#said').textContent.includes('changed to malignant')")
    kept = [own.kept.answer for own in desk.own("page")]
    said = {answer.sample: (answer.label, answer.unsure, answer.comment) for answer in kept}
    assert said == {3: (0, False, ""), 7: (2, True, "1 s? #blurred, at the “edge”")}


# --- readers, languages and names -----------------------------------------------------------


def test_what_readers_disagree_on_is_settled_at_the_page(
    tmp_path: Path, opened: Opened, desk: Desk
):
    oracle = asked_site(tmp_path, [request(7, 3, 9, readers=2)])
    for who, labels in (("anna", (0, 1, 2)), ("ben", (2, 1, 0))):
        for sample, label in zip((7, 3, 9), labels, strict=True):
            doubt = {"unsure": True, "comment": "hair"} if (who, sample) == ("ben", 7) else {}
            desk.answer(Answer("request1", sample, label, who, **doubt))
    with opened(tmp_path, "--annotator", "prof", "--adjudicator") as tab:
        tab.wait("document.querySelector('#empty')?.hidden === false")
        tab.click("#queue-settle")
        wait_for_image(tab, "7.png")
        readings = "[...document.querySelectorAll('#readings li')].map((e) => e.textContent)"
        assert tab.evaluate(readings) == ["anna: healthy", "ben: malignant (unsure)hair"]
        assert tab.evaluate("document.querySelector('#count').textContent") == "disagreements: 2"
        tab.press("3")
        wait_for_image(tab, "9.png")
        tab.press("2")
        tab.wait("document.querySelector('#empty').hidden === false")
        tab.wait("document.querySelector('#unsaved').textContent === ''")
        # Nothing was taken in by accident, and the last one is taken back and settled anew.
        tab.press("Backspace")
        wait_for_image(tab, "9.png")
        tab.press("1")
        tab.wait("document.querySelector('#count').textContent === 'disagreements: 0'")
        assert tab.console == []
    decided = [(r.sample, r.label) for r in oracle.collect("request1") if r.decides]
    assert decided == [(7, 2), (9, 0)]


@pytest.mark.usefixtures("oracle")
def test_a_browser_that_asks_for_german_gets_a_german_page_without_names(
    tmp_path: Path, opened: Opened
):
    with opened(tmp_path, "--hide-names", languages="de-CH,de;q=0.9,en;q=0.5") as tab:
        wait_for_image(tab, "Bild 1")
        assert tab.evaluate("document.querySelector('#caption').textContent") == "Bild 1, Zyklus 1"
        assert tab.evaluate("document.querySelector('#count').textContent") == "0 von 5 beurteilt"
        tab.press("2")
        wait_for_image(tab, "Bild 2")
        tab.press("ArrowLeft")
        wait_for_image(tab, "Bild 1")
        assert "Gegeben" in tab.evaluate("document.querySelector('#given').textContent")
        seen = tab.evaluate("document.body.innerText + document.querySelector('#image').alt")
        assert ".png" not in seen
        assert not [text for text in ("Which", "Undo", "Zoom in", "labelled") if text in seen]


def test_an_address_can_be_followed_and_nothing_that_runs_code(tmp_path: Path, opened: Opened):
    address = "https://records.example/case/7?a=1&b='2'"
    # The second one as if somebody had written it into the request's file.
    links = {7: address, 3: "javascript:document.title='ran'", 9: ""}

    def image(sample: int) -> EncodedImage:
        return EncodedImage(encoded(sample).name, encoded(sample).content, links[sample])

    asked_site(tmp_path, [request(7, 3, 9)], image)
    with opened(tmp_path, "--annotator", "anna") as tab:
        wait_for_image(tab, "7")
        link = "document.querySelector('#link a')"
        assert tab.evaluate(f"{link}.checkVisibility()")
        assert tab.evaluate(f"{link}.textContent") == address
        assert tab.evaluate(f"{link}.href") == address.replace("'", "%27")
        assert tab.evaluate(f"[{link}.target, {link}.rel].join()") == "_blank,noopener noreferrer"
        for key, name in (("1", "3"), ("1", "9")):
            tab.press(key)
            wait_for_image(tab, name)
            assert not tab.evaluate(f"{link}.checkVisibility()")
            assert "javascript" not in tab.evaluate(f"{link}.href")
        # One goes back to it, and sees it again.
        for name in ("3", "7"):
            tab.press("Backspace")
            wait_for_image(tab, name)
        assert tab.evaluate(f"{link}.checkVisibility()")
