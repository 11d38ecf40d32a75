"""Folders and files for their owner alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ahfal_app.storage.private import for_others, make_private, open_within, owner_only
from ahfal_app.storage.usage import bytes_in


@pytest.fixture(autouse=True)
def _as_shells_are() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_whatever_is_written_inside_is_for_its_owner_alone(tmp_path: Path):
    with owner_only():
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_text("")
        with owner_only():
            (tmp_path / "within").touch()
        (tmp_path / "still").touch()
        with for_others():
            (tmp_path / "for people").touch()
        (tmp_path / "again").touch()
    (tmp_path / "outside").touch()
    modes = {path.name: _mode(path) for path in tmp_path.rglob("*")}
    assert modes == {
        "folder": 0o700,
        "file": 0o600,
        "within": 0o600,
        "still": 0o600,
        "for people": 0o644,
        "again": 0o600,
        "outside": 0o644,
    }


def test_an_error_inside_leaves_the_process_as_it_was(tmp_path: Path):
    with pytest.raises(RuntimeError), owner_only(), for_others():
        raise RuntimeError
    (tmp_path / "file").touch()
    assert _mode(tmp_path / "file") == 0o644


def test_outside_of_it_what_is_for_others_is_as_ever(tmp_path: Path):
    with for_others():
        (tmp_path / "file").touch()
    assert _mode(tmp_path / "file") == 0o644


def test_a_folder_that_was_open_is_closed_with_all_that_is_in_it(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.touch()
    folder = tmp_path / "state"
    (folder / "run" / "0").mkdir(parents=True)
    (folder / "run" / "0" / "labels.sqlite").touch()
    (folder / "link").symlink_to(outside)
    assert len(open_within(folder)) == 3
    make_private(folder)
    assert not open_within(folder)
    assert _mode(folder) == 0o700
    assert _mode(folder / "run" / "0" / "labels.sqlite") == 0o600
    # What a link leads to is somebody else's.
    assert _mode(outside) == 0o644


def test_a_folder_that_cannot_be_closed_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    make_private(tmp_path / "state")
    tmp_path.joinpath("open").mkdir()
    make_private(tmp_path / "open")
    assert "others can read it, and it cannot be closed" in caplog.text


def test_sizes_of_files_and_not_of_what_links_lead_to(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(bytes(1000))
    (tmp_path / "a" / "b" / "two").write_bytes(bytes(500))
    (tmp_path / "large").write_bytes(bytes(10_000))
    (tmp_path / "a" / "link").symlink_to(tmp_path / "large")
    assert 1500 <= bytes_in(tmp_path / "a") < 2000
    assert bytes_in(tmp_path / "nowhere") == 0
