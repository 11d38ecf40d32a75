"""What people see of vectors: the text beside them, drawn, from every oracle that asks people."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from support.attacks import IMAGES, VectorTarget

from ahfal_app.data.shown import drawn
from ahfal_app.oracle.label_studio.connection import Connection

_TO_LABEL = {"initial-fraction": 0.05}


@pytest.fixture
def texts() -> dict[str, bytes]:
    """What is drawn of each row."""
    return {f"#{row}": drawn(VectorTarget.text(row)) for row in range(IMAGES)}


def _asked(tmp_path: Path, oracle: str, **node: object) -> VectorTarget:
    target = VectorTarget(tmp_path, oracle=oracle, **node)
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


def test_in_label_studio(tmp_path: Path, texts: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
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
    where = {"oracle-url": "https://studio", "oracle-token-file": str(tmp_path / "token")}
    _asked(tmp_path, "label-studio", **where)
    assert len(tasks) == 3
    for task in tasks:
        kind, content = task["data"]["image"].split(",")
        assert kind == "data:image/png;base64"
        row = "#" + task["data"]["file"].rpartition("#")[2]
        assert base64.b64decode(content) == texts[row]
