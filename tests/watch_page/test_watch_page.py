"""The watching page over HTTP: who may see it, and what it is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.label_pages import HOST, PORT, TOKEN, Visitor
from support.watched_runs import HOSTILE_NAME, waiting_run

from ahfal_app.cli import main
from ahfal_app.watch_page.app import make_app
from ahfal_app.web.serving import loopback_socket

PATHS = ("/", "/state", "/page.js", "/page.css", "/favicon.ico")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return waiting_run(tmp_path / "runs")


@pytest.fixture
def visit(run: Path) -> Visitor:
    return Visitor(make_app(run, TOKEN, PORT))


def test_a_run_is_told_with_its_sites(visit: Visitor, run: Path):
    state = visit("/state").json()
    assert state["is_one"]
    assert state["run"]["condition"] == "waiting for labels"
    assert [site["missing"] for site in state["run"]["sites"]] == [0, 4, 0]
    assert state["run"]["longest"]["images"] == 3
    assert [line["name"] for line in state["runs"]] == ["spring"]
    assert "sites" not in state["runs"][0]


def test_of_several_runs_the_chosen_one_is_told_and_no_path_leads_elsewhere(run: Path):
    waiting_run(run.parent, "autumn")
    visit = Visitor(make_app(run.parent, TOKEN, PORT))
    assert [line["key"] for line in visit("/state").json()["runs"]] == ["autumn", "spring"]
    assert visit("/state?run=spring").json()["run"]["name"] == "spring"
    for other in ("../runs/spring", str(run), "nowhere", ".", "%2e%2e"):
        assert visit(f"/state?run={other}").json()["chosen"] == "autumn"


def test_a_folder_that_has_gone_is_told(visit: Visitor, run: Path):
    shutil.rmtree(run)
    answer = visit("/state")
    assert answer.status_code == 404
    assert "no such folder" in answer.json()["error"]


def test_a_run_that_cannot_be_read_is_told(visit: Visitor, run: Path):
    (run / "config.yaml").write_text("strategy: {")
    state = visit("/state").json()
    assert state["run"]["condition"] == "unreadable"
    assert "config.yaml" in state["run"]["reason"]


def test_names_travel_as_json_and_the_page_has_none(visit: Visitor):
    answer = visit("/state")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.text)["run"]["sites"][1]["name"] == HOSTILE_NAME
    assert "Hill" not in visit("/").text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cookie", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()])
def test_nothing_without_the_token(visit: Visitor, path: str, cookie: str | None):
    answer = visit(path, cookie=cookie)
    assert answer.status_code == 403
    assert "`ahfal watch`" in answer.text
    assert "North" not in answer.text


def test_the_token_is_exchanged_for_a_cookie(visit: Visitor):
    answer = visit(f"/?token={TOKEN}", cookie=None)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert visit(f"/state?token={TOKEN}", cookie=None).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:80"])
def test_names_that_point_here_are_refused(visit: Visitor, host: str):
    for path in (*PATHS, f"/?token={TOKEN}"):
        assert visit(path, Host=host).status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:80"])
def test_other_sites_cannot_read(visit: Visitor, origin: str):
    assert visit("/state", Origin=origin).status_code == 403
    assert visit("/state", Origin=f"http://{HOST}").status_code == 200


@pytest.mark.parametrize("cookie", [TOKEN, None])
def test_every_answer_has_the_headers(visit: Visitor, cookie: str | None):
    for path in (*PATHS, "/nowhere"):
        headers = visit(path, cookie=cookie).headers
        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"


def test_nothing_can_be_changed(visit: Visitor):
    assert visit("/state", json={}).status_code == 405


def test_a_taken_port_is_named(run: Path, capsys: pytest.CaptureFixture[str]):
    with loopback_socket(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            main(["watch", str(run), "--port", str(port)])
    assert caught.value.code == 1
    assert f"PageError: port={port}: allowed is a free port" in capsys.readouterr().err
