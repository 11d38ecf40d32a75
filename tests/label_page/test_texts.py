"""What the page says, in every language, and what its captions do not say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.label_pages import PORT, TOKEN, Visitor, asked_site
from support.labelling import request
from typer.testing import CliRunner

from ahfal_app.cli import app as command_line
from ahfal_app.label_page import app as app_module
from ahfal_app.label_page import page as page_module
from ahfal_app.label_page.app import make_app
from ahfal_app.label_page.desk import Desk
from ahfal_app.label_page.script import SCRIPT
from ahfal_app.label_page.texts import AUTO, TEXTS, language_for

# Texts that say the same in both languages, on purpose.
_SAME = {"reading", "said", "caption"}


@pytest.mark.parametrize("language", TEXTS)
def test_every_language_has_every_text_with_the_same_words_to_fill_in(language: str):
    english, texts = TEXTS["en"], TEXTS[language]
    assert texts.keys() == english.keys()
    for key, text in texts.items():
        assert text.strip() == text != ""
        assert sorted(re.findall(r"{(\w+)}", text)) == sorted(re.findall(r"{(\w+)}", english[key]))
        assert language == "en" or text != english[key] or key in _SAME, key


def test_the_page_says_nothing_that_is_not_in_the_tables_and_nothing_there_is_left_over():
    template, server = page_module._PAGE.template, Path(app_module.__file__).read_text()
    in_script = set(re.findall(r'text\(\s*"(\w+)"', SCRIPT))
    # What is chosen first and told then.
    in_script |= set(re.findall(r'"(\w+)"', SCRIPT)) & TEXTS["en"].keys()
    in_page = set(re.findall(r"\$(\w+)", template)) - {"language", "texts"}
    errors = set(re.findall(r'"(error_\w+)"', server))
    assert in_script | in_page | errors == TEXTS["en"].keys()
    # No words stand in the page itself.
    assert re.sub(r"<[^>]*>|\$\w+|[⌫←→#?+−=*s]|Esc|\s", "", template) == ""


@pytest.mark.parametrize(
    ("wanted", "accepted", "language"),
    [
        (AUTO, "", "en"),
        (AUTO, "de", "de"),
        (AUTO, "de-AT,de;q=0.9,en;q=0.8", "de"),
        (AUTO, "en-GB,en;q=0.9,de;q=0.8", "en"),
        (AUTO, "fr,de;q=0.3,en;q=0.7", "en"),
        (AUTO, "fr,de;q=0.3", "de"),
        (AUTO, "fr, it", "en"),
        (AUTO, "de;q=0, en;q=0.1", "en"),
        (AUTO, "de;q=0", "en"),
        (AUTO, "DE", "de"),
        (AUTO, "*;q=x, de", "de"),
        ("de", "en", "de"),
        ("en", "de", "en"),
    ],
)
def test_the_language_is_what_is_set_or_what_the_browser_asks_for(
    wanted: str, accepted: str, language: str
):
    assert language_for(wanted, accepted) == language


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asked_site(tmp_path, [request(7, 3)])
    return tmp_path


def visitor(folder: Path, **options: object) -> Visitor:
    return Visitor(make_app(Desk(folder / "oracle"), "anna", TOKEN, PORT, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("language", "accepted"), [("auto", "de-DE,de;q=0.9"), ("de", "en")])
def test_a_german_page_is_german_from_title_to_errors(folder: Path, language: str, accepted: str):
    visit, headers = visitor(folder, language=language), {"Accept-Language": accepted}
    page = visit("/", **headers)
    assert page.headers["vary"] == "Accept-Language"
    assert '<html lang="de">' in page.text
    assert "<title>Bilder beurteilen</title>" in page.text
    embedded = re.search(r'<script type="application/json" id="texts">(.*?)</script>', page.text)
    assert embedded is not None
    assert json.loads(embedded[1]) == TEXTS["de"]
    visit("/answers", {"request": "request1", "sample": 7, "label": 0}, **headers)
    refused = visit("/answers", {"request": "request1", "sample": 7, "label": 1}, **headers)
    assert refused.status_code == 409
    assert refused.json()["error"] == TEXTS["de"]["error_answered"]
    assert refused.json()["error"] != TEXTS["en"]["error_answered"]


def test_an_unknown_language_is_refused_with_what_is_allowed(folder: Path):
    done = CliRunner().invoke(command_line, ["label", str(folder), "--language", "fr"])
    assert done.exit_code == 2
    assert "auto | en | de" in re.sub(r"[\s│]+", " ", done.output)


def test_without_names_nothing_that_is_sent_says_what_a_file_is_called(folder: Path):
    sent = {}
    for hide_names in (False, True):
        visit = visitor(folder, hide_names=hide_names)
        visit("/answers", {"request": "request1", "sample": 7, "label": 0})
        sent[hide_names] = [visit(path).text for path in ("/", "/state", "/own")]
    assert ['"3.png"' in sent[False][1], '"7.png"' in sent[False][2]] == [True, True]
    # An image's address is its number in the request.
    found = re.findall(r"[^\"]*\.png", "".join(sent[True]))
    assert set(found) == {f"/images/request1/000{number}.png" for number in (1, 2)}
    state = visitor(folder, hide_names=True)("/state").json()
    assert (state["next"]["name"], state["next"]["number"]) == (None, 2)
