"""Files and folders are whole and on disk, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.disk import watched_disk

from ahfal_app.storage import files


def _fill(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images" / "1.png").write_bytes(b"image")
    (folder / "index.json").write_text("{}")


def test_a_folder_is_there_with_all_that_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "above" / "request"
    with watched_disk(monkeypatch) as disk, files.new_folder(target) as part:
        _fill(part)
        assert not target.exists()
    disk.check("request")
    assert [path.name for path in target.parent.iterdir()] == ["request"]
    assert (target / "images" / "1.png").read_bytes() == b"image"


@pytest.mark.parametrize("failing_call", range(6))
def test_a_folder_that_fails_at_any_step_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    """Steps: two files, two folders, the rename, the folder above."""
    calls = 0

    def failing(real):  # type: ignore[no-untyped-def]
        def step(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls > failing_call:
                raise OSError("disk gone")
            return real(*arguments)

        return step

    target = tmp_path / "request"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "rename", failing(Path.rename))
        with pytest.raises(OSError, match="disk gone"), files.new_folder(target) as part:
            _fill(part)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["request"] if failing_call == 5 else [])
    assert all((target / name).exists() for name in ("images/1.png", "index.json") if left)


def test_what_fails_while_a_folder_is_filled_is_told_and_nothing_stays(tmp_path: Path) -> None:
    def lose(part: Path) -> None:
        _fill(part)
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"), files.new_folder(tmp_path / "request") as part:
        lose(part)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_never_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "request"
    target.mkdir()
    (target / "index.json").write_text("first")
    with pytest.raises(OSError, match="not empty"), files.new_folder(target) as part:
        _fill(part)
    assert [path.name for path in tmp_path.iterdir()] == ["request"]
    assert [path.name for path in target.iterdir()] == ["index.json"]
    assert (target / "index.json").read_text() == "first"


def test_only_a_folders_own_parts_are_removed(tmp_path: Path) -> None:
    for name in (".request.1.part", ".request.2.part", ".request2.1.part", "request"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text("{}")
    files.remove_parts(tmp_path / "request")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".request2.1.part", "request"]


def test_what_is_appended_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    for number, names in enumerate([True, False]):
        with watched_disk(monkeypatch) as disk:
            files.append_bytes(path, b"%d\n" % number)
        assert disk.is_synced(path)
        assert disk.is_synced(tmp_path) == names
    assert path.read_bytes() == b"0\n1\n"


def test_files_are_on_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched_disk(monkeypatch) as disk:
        files.write_bytes(tmp_path / "a", b"1")
        files.write_text(tmp_path / "b", "2")
        files.write_json(tmp_path / "c", {"value": 3})
    disk.check("a", "b", "c")


def test_a_new_file_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched_disk(monkeypatch) as disk:
        files.write_new(tmp_path / "a", b"1")
    disk.check("a")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_file_never_takes_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    files.write_new(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_file_that_cannot_get_its_name_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_links(monkeypatch)
    with pytest.raises(OSError, match="no links"):
        files.write_new(tmp_path / "a", b"1")
    assert list(tmp_path.iterdir()) == []


def _without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("there are no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
