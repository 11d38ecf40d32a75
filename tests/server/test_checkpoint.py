from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.disk import watched_disk

from ahfal_app.errors import CheckpointError
from ahfal_app.server.checkpoint import Checkpoint, Position, read_checkpoint, write_checkpoint


def _checkpoint(number: int) -> Checkpoint:
    arrays = {
        "weight": np.full((2, 3), number, dtype=np.float32),
        "batches": np.array(number, dtype=np.int64),
    }
    velocity = {"velocity/weight": np.full((2, 3), -number, dtype=np.float32)}
    return Checkpoint(Position("run", number // 3, number % 3), arrays, {}, velocity)


def test_newest_is_read_back_and_two_are_kept(tmp_path: Path):
    for number in range(5):
        write_checkpoint(tmp_path, _checkpoint(number))
    found = read_checkpoint(tmp_path)
    assert found.position == Position("run", 1, 1)
    assert found.arrays["batches"].dtype == np.int64
    assert found.arrays["batches"].shape == ()
    np.testing.assert_array_equal(found.arrays["weight"], np.full((2, 3), 4, dtype=np.float32))
    np.testing.assert_array_equal(
        found.aggregation["velocity/weight"], np.full((2, 3), -4, dtype=np.float32)
    )
    assert len(list(tmp_path.iterdir())) == 2


@given(bought=st.dictionaries(st.integers(0, 30), st.integers(-1, 3)))
def test_who_bought_for_which_cycle_is_read_back(
    bought: dict[int, int], tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("bought")
    write_checkpoint(folder, dataclasses.replace(_checkpoint(0), bought=bought))
    assert read_checkpoint(folder).bought == bought


def test_of_many_clients_that_bought_alike_few_words_are_made(tmp_path: Path):
    """0 to 4,999 and 5,001 to 9,999 for cycle 2, 5,000 for cycle 1."""
    bought = dict.fromkeys(range(10_000), 2) | {5000: 1}
    write_checkpoint(tmp_path, dataclasses.replace(_checkpoint(0), bought=bought))
    state = json.loads((max(tmp_path.iterdir()) / "state.json").read_text())
    assert state["bought"] == [[0, 4999, 2], [5000, 5000, 1], [5001, 9999, 2]]
    assert read_checkpoint(tmp_path).bought == bought


def test_what_changes_once_a_cycle_is_written_twice_a_cycle(tmp_path: Path):
    """Each of the two that are kept has a file of its own, for more checkpoints the same two."""
    inodes = []
    for number, policy in enumerate([b"one"] * 5 + [b"two"] * 3):
        write_checkpoint(tmp_path, dataclasses.replace(_checkpoint(number), policy=policy))
        assert read_checkpoint(tmp_path).policy == policy
        inodes.append((max(tmp_path.iterdir()) / "policy.safetensors").stat().st_ino)
    assert inodes[0] == inodes[2] == inodes[4] != inodes[1] == inodes[3]
    assert inodes[5] == inodes[7] != inodes[6]
    write_checkpoint(tmp_path, _checkpoint(8))
    assert read_checkpoint(tmp_path).policy == b""
    assert not (max(tmp_path.iterdir()) / "policy.safetensors").exists()


def test_without_links_a_policy_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(self: Path, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    for number in range(4):
        write_checkpoint(tmp_path, dataclasses.replace(_checkpoint(number), policy=b"one"))
    assert read_checkpoint(tmp_path).policy == b"one"


@pytest.mark.parametrize(
    "file", ["state.json", "model.safetensors", "aggregation.safetensors", "policy.safetensors"]
)
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, file: str, damage: str):
    for number in range(2):
        write_checkpoint(tmp_path, dataclasses.replace(_checkpoint(number), policy=b"policy"))
    path = max(tmp_path.iterdir()) / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        half = len(content) // 2
        path.write_bytes(content[:half] + (b"" if damage == "cut" else b"#" + content[half + 1 :]))
    assert read_checkpoint(tmp_path).position.round == 0


def test_nothing_usable_is_a_named_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path / "missing")
    write_checkpoint(tmp_path, _checkpoint(0))
    state = next(tmp_path.iterdir()) / "state.json"
    state.write_text(json.dumps({"schema": 1}))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path)


def test_a_crash_at_any_step_of_a_write_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_checkpoint(tmp_path, _checkpoint(0))
    real_fsync, real_rename = os.fsync, Path.rename
    for failing_call in range(6):
        calls = 0

        def step() -> None:
            nonlocal calls
            calls += 1
            if calls > failing_call:  # noqa: B023
                raise OSError("disk gone")

        def fsync(descriptor: int) -> None:
            step()
            real_fsync(descriptor)

        def rename(self: Path, target: Path) -> Path:
            step()
            return real_rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            patch.setattr(Path, "rename", rename)
            with pytest.raises(OSError, match="disk gone"):
                write_checkpoint(tmp_path, _checkpoint(1))
        renamed = failing_call == 5
        assert read_checkpoint(tmp_path).position.round == (1 if renamed else 0)
    write_checkpoint(tmp_path, _checkpoint(2))
    assert read_checkpoint(tmp_path).position.round == 2


def test_a_checkpoint_is_on_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with watched_disk(monkeypatch) as disk:
        write_checkpoint(tmp_path, _checkpoint(0))
    disk.check("00000001")
