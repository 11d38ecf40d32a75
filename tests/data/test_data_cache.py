"""The folder of decoded data: built once, whole or absent, rebuilt when damaged."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ahfal_app.data.cache import (
    SCHEMA,
    Description,
    Entry,
    cache_key,
    load_arrays,
    open_or_build,
    save_arrays,
)
from ahfal_app.errors import DatasetError

KEY = cache_key("toy", path="somewhere")
DESCRIPTION = Description(class_names=("a", "b"), mean_C=(0.5,), std_C=(0.25,), fingerprint="f")
PIXELS = np.arange(4096, dtype=np.uint8).reshape(16, 16, 16, 1)


def build(folder: Path) -> Description:
    """Write an entry, and leave a line in a file beside the cache."""
    with (folder.parent.parent / "builds").open("a") as builds:
        builds.write("built\n")
    np.save(folder / "images.npy", PIXELS)
    return DESCRIPTION


def builds(root: Path) -> int:
    return len((root / "builds").read_text().splitlines())


def open_entry(root: Path) -> Entry:
    entry = open_or_build(root, KEY, build)
    assert entry.description == DESCRIPTION
    np.testing.assert_array_equal(entry.arrays["images"], PIXELS)
    return entry


def test_an_entry_is_built_once_and_mapped_read_only(tmp_path: Path) -> None:
    open_entry(tmp_path)
    images = open_entry(tmp_path).arrays["images"]
    assert builds(tmp_path) == 1
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable


@pytest.mark.slow
def test_two_processes_at_once_build_one_entry(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        entries = pool.map(_open_in_process, [tmp_path] * 4, chunksize=1)
    assert entries == [PIXELS.sum(dtype=int)] * 4
    assert builds(tmp_path) == 1


def _open_in_process(root: Path) -> int:
    return int(open_entry(root).arrays["images"].sum(dtype=int))


def _truncate(folder: Path) -> None:
    os.truncate(folder / "images.npy", 1000)


def _flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "images.npy").read_bytes())
    content[-7] ^= 1
    (folder / "images.npy").write_bytes(content)
    os.utime(folder / "images.npy", ns=(1, 1))


def _remove_array(folder: Path) -> None:
    (folder / "images.npy").unlink()


def _remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _cut_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 40)


def _empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def _other_version(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA}', '"schema_version": 0'))


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_a_bit,
        _remove_array,
        _remove_manifest,
        _cut_manifest,
        _empty_manifest,
        _other_version,
    ],
)
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    open_entry(tmp_path)
    damage(tmp_path / "decoded" / KEY)
    open_entry(tmp_path)
    open_entry(tmp_path)
    assert builds(tmp_path) == 2


def test_a_copied_entry_is_still_good(tmp_path: Path) -> None:
    open_entry(tmp_path)
    images = tmp_path / "decoded" / KEY / "images.npy"
    os.utime(images, ns=(1, 1))
    open_entry(tmp_path)
    assert builds(tmp_path) == 1
    assert '"modified_ns": 1,' in (images.parent / "manifest.json").read_text()


def test_what_a_killed_process_left_is_neither_used_nor_kept(tmp_path: Path) -> None:
    left = tmp_path / "decoded" / f".{KEY}.0123.part"
    left.mkdir(parents=True)
    (left / "images.npy").write_bytes(b"half")
    open_entry(tmp_path)
    assert not left.exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> Description:
        (folder / "images.npy").write_bytes(b"half")
        raise DatasetError("no such pixels")

    with pytest.raises(DatasetError, match="no such pixels"):
        open_or_build(tmp_path, KEY, fail)
    assert not any(path.is_dir() for path in (tmp_path / "decoded").iterdir())
    open_entry(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(DatasetError, match=r"data-dir='.*blocked'"):
        open_or_build(blocked, KEY, build)
    with pytest.raises(DatasetError, match=r"data-dir: .*blocked"):
        save_arrays(blocked / "rows.npz", rows=PIXELS)


def test_keys_differ_with_every_part_of_the_source() -> None:
    keys = {
        cache_key("a", path="x"),
        cache_key("b", path="x"),
        cache_key("a", path="y"),
        cache_key("a", path="x", column="z"),
    }
    assert len(keys) == 4
    assert cache_key("a", path="x", column="z") == cache_key("a", column="z", path="x")


def test_arrays_are_kept_and_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "rows.npz"
    assert load_arrays(path) is None
    save_arrays(path, rows=PIXELS, name=np.array("text"))
    kept = load_arrays(path)
    assert kept is not None
    np.testing.assert_array_equal(kept["rows"], PIXELS)
    assert str(kept["name"]) == "text"
    os.truncate(path, 100)
    assert load_arrays(path) is None
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.npz"]


@pytest.mark.slow
def test_opening_decoded_data_imports_no_heavy_package(tmp_path: Path) -> None:
    program = (
        "import sys; from ahfal_app.config import Settings;"
        "from ahfal_app.data.sources import load_dataset;"
        "from ahfal_app.data.partition import make_partition;"
        "settings = Settings(data_dir=sys.argv[1]); data = load_dataset(settings);"
        "make_partition(settings, data.train.labels_N, data.num_classes, 10);"
        "print([name for name in ('torch', 'datasets', 'flwr_datasets', 'sklearn', 'PIL')"
        " if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert "sklearn" in outputs[0]
    assert outputs[1].strip() == "[]"
