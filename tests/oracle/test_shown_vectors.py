"""What people see of vectors: the text beside them, drawn, from every oracle that asks people."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from support.attacks import IMAGES, VectorTarget

from ahfal_app.data.shown import drawn, link_of
from ahfal_app.oracle.label_studio.connection import Connection

_TO_LABEL = {"initial-fraction": 0.05}


@pytest.fixture
def texts() -> dict[str, bytes]:
    """What is drawn of each row."""
    return {f"#{row}": drawn(VectorTarget.text(row)) for row in range(IMAGES)}


class LinkTarget(VectorTarget):
    """Its texts are addresses, but for every other one, which would run code."""

    @staticmethod
    def text(row: int) -> str:
        if row % 2:
            return f"javascript:alert({row})"
        return f"https://records.example/case/{row}?a=1&b='2'"


def links_of(names: list[str]) -> list[str]:
    """Return what is to be followed of rows, by their names."""
    rows = [int(name.rpartition("#")[2]) for name in names]
    return ["" if row % 2 else LinkTarget.text(row) for row in rows]


def _asked(
    tmp_path: Path, oracle: str, kind: type[VectorTarget] = VectorTarget, **node: object
) -> VectorTarget:
    target = kind(tmp_path, oracle=oracle, **node)
    reply = target.send("query.join", _TO_LABEL)
    assert not reply.has_error(), reply.error.reason
    (ledger,) = target.ledgers().values()
    assert ledger.reserved == 3
    return target


def test_in_the_folder_for_people(tmp_path: Path, texts: dict[str, bytes]):
    folder = tmp_path / "to-label"
    _asked(tmp_path, "files", **{"oracle-dir": str(folder)})
    images = sorted(folder.glob("cycle-000-*/images/*"))
    # By its end a picture, so that a double click opens it.
    assert [image.suffix for image in images] == [".png"] * 3
    assert {image.read_bytes() for image in images} < set(texts.values())


def test_on_the_page(tmp_path: Path, texts: dict[str, bytes]):
    target = _asked(tmp_path, "page")
    images = sorted(target.state.rglob("images/*.png"))
    assert len(images) == 3
    assert {image.read_bytes() for image in images} < set(texts.values())


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a Label Studio that takes everything was given."""
    tasks: list[dict[str, Any]] = []
    projects: list[tuple[int, str]] = []

    def make_project(self: Connection, title: str, mark: str, interface: str) -> int:
        projects.append((1, interface))
        return 1

    for name, does in {
        "__init__": lambda self, url, token: None,
        "find_project": lambda self, title, mark: projects[0] if projects else None,
        "make_project": make_project,
        "samples": lambda self, project, request: set(),
        "annotated": lambda self, project, request: [],
        "import_tasks": lambda self, project, more: tasks.extend(more),
    }.items():
        monkeypatch.setattr(Connection, name, does)
    (tmp_path / "token").write_text("secret")
    return tasks


def _studio(tmp_path: Path) -> dict[str, object]:
    return {"oracle-url": "https://studio", "oracle-token-file": str(tmp_path / "token")}


def test_in_label_studio(tmp_path: Path, texts: dict[str, bytes], tasks: list[dict[str, Any]]):
    _asked(tmp_path, "label-studio", **_studio(tmp_path))
    assert len(tasks) == 3
    for task in tasks:
        kind, content = task["data"]["image"].split(",")
        assert kind == "data:image/png;base64"
        row = "#" + task["data"]["file"].rpartition("#")[2]
        assert base64.b64decode(content) == texts[row]
        assert "link" not in task["data"]


# --- addresses ------------------------------------------------------------------------------


def test_an_address_is_text_in_the_spreadsheet(tmp_path: Path):
    folder = tmp_path / "to-label"
    _asked(tmp_path, "files", LinkTarget, **{"oracle-dir": str(folder)})
    (path,) = folder.glob("cycle-000-*/request.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    links = links_of([row["original"] for row in rows])
    assert [row["link"] for row in rows] == links
    assert {bool(link) for link in links} == {True, False}


def test_texts_alone_make_no_column_more(tmp_path: Path):
    folder = tmp_path / "to-label"
    _asked(tmp_path, "files", **{"oracle-dir": str(folder)})
    (path,) = folder.glob("cycle-000-*/request.csv")
    assert path.read_text(encoding="utf-8-sig").splitlines()[0].endswith(",position,original")


def test_an_address_lies_on_the_desk(tmp_path: Path):
    target = _asked(tmp_path, "page", LinkTarget)
    (path,) = target.state.rglob("requests/*/request.json")
    items = json.loads(path.read_text())["items"]
    assert [item["link"] for item in items] == links_of([item["original"] for item in items])


def test_an_address_is_with_the_task_in_label_studio(tmp_path: Path, tasks: list[dict[str, Any]]):
    _asked(tmp_path, "label-studio", LinkTarget, **_studio(tmp_path))
    found = [task["data"].get("link", "") for task in tasks]
    assert found == links_of([task["data"]["file"] for task in tasks])


@pytest.mark.parametrize(
    "text",
    [
        "https://records.example/case/7",
        "HTTP://records.example:8080/?id=7&x='y'#part",
        "https://[2001:db8::1]/scan",
        "https://klinik.example/fälle/7",
    ],
)
def test_an_address_is_known(text: str):
    assert link_of(text.encode()) == text
    assert link_of(f" {text}\n".encode()) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no address",
        "see https://records.example/7",
        "https://records.example/7 and more",
        "https://records.example/7\nhttps://records.example/8",
        "https://",
        "https:///path",
        "https://[2001:db8",
        "javascript:alert(1)",
        "JavaScript://records.example/%0aalert(1)",
        "java\nscript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "file:///etc/passwd",
        "//records.example/7",
        'https://records.example/"onmouseover="alert(1)',
        "https://records.example/<script>alert(1)</script>",
        "https://records.example\\@evil.example/",
        "https://records.example@evil.example/",
        "https://evil.example/\u202e7/elpmaxe.sdrocer",
        "https://evil.example/\x00",
        "https://records.example/" + "7" * 2048,
    ],
)
def test_what_else_a_column_holds_is_no_address(text: str):
    assert link_of(text.encode()) == ""


def test_an_image_is_no_address():
    assert link_of(drawn("https://records.example/7")) == ""
    assert link_of(b"https://records.example/\xff") == ""
