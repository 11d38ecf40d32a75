"""What a client keeps between messages, in a folder and in a record."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from ahfal_app.client.state import ClientState, FolderPieces
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.privacy.store import PrivacyStore
from ahfal_app.training.sgd import TrainingState


@pytest.fixture(params=["folder", "record"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> ClientState:
    return ClientState.on_disk(tmp_path) if request.param == "folder" else ClientState.in_record({})


def _after(epochs: int) -> TrainingState:
    return TrainingState({"weight": torch.full((2,), float(epochs))}, epochs)


def test_the_last_rounds_of_training_are_kept(state: ClientState):
    for round_ in range(1, 6):
        state.save_training(0, round_, _after(round_))
    found = {before: state.load_training(0, before) for before in range(1, 7)}
    assert {before: kept.epochs if kept else None for before, kept in found.items()} == {
        **dict.fromkeys((1, 2, 3)),
        **{before: before - 1 for before in (4, 5, 6)},
    }
    assert found[6] is not None
    assert torch.equal(found[6].momentum["weight"], torch.full((2,), 5.0))
    assert state.load_training(1, 1) is None


def test_what_another_process_has_written_is_read(tmp_path: Path):
    """Nothing is remembered that a file does not hold any more."""
    ours, theirs = ClientState.on_disk(tmp_path / "a"), ClientState.on_disk(tmp_path / "b")
    ours.save_training(0, 1, _after(1))
    theirs.save_training(0, 1, _after(7))
    name = "training-0-1.safetensors"
    (tmp_path / "b" / name).replace(tmp_path / "a" / name)
    found = ours.load_training(0, 2)
    assert found is not None
    assert found.epochs == 7
    assert theirs.load_training(0, 2) is None


def test_one_local_model_is_kept(state: ClientState):
    for cycle in range(3):
        state.save_local_model(cycle, {"weight": torch.full((2,), float(cycle))})
    assert [state.load_local_model(cycle) for cycle in (0, 1)] == [None, None]
    newest = state.load_local_model(2)
    assert newest is not None
    assert torch.equal(newest["weight"], torch.full((2,), 2.0))


def test_a_clients_database_is_the_one_that_its_stores_would_make(tmp_path: Path):
    """It begins as a whole file, with the tables of both of its stores."""
    samples_N = np.arange(3)
    with ClientState.on_disk(tmp_path / "begun").labels(samples_N, 2):
        pass
    (tmp_path / "made").mkdir()
    PrivacyStore(tmp_path / "made" / STORE_FILE).close()
    LabelStore.open_file(tmp_path / "made" / STORE_FILE, samples_N, 2).close()
    begun, made = (_schema(tmp_path / name / STORE_FILE) for name in ("begun", "made"))
    assert begun == made
    assert {"samples", "ledger", "privacy_terms"} <= {name for name, _ in begun}


def _schema(path: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        return set(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())


def test_what_was_watched_is_kept_of_the_last_rounds_of_a_cycle(state: ClientState):
    """A round that is repeated goes on from what was watched before it."""
    for round_ in (1, 2, 4, 5):
        state.save_watched(3, round_, {"seen": torch.full((2, 1), float(round_))})
    found = {before: state.load_watched(3, before) for before in range(1, 7)}
    assert {before: float(kept["seen"][0]) if kept else None for before, kept in found.items()} == {
        **dict.fromkeys((1, 2)),
        **dict.fromkeys((3, 4), 2.0),
        5: 4.0,
        6: 5.0,
    }
    assert state.load_watched(4, 9) is None
    state.save_watched(4, 1, {"seen": torch.zeros(2, 1), "number": torch.tensor(7)})
    kept = state.load_watched(4, 2)
    assert kept is not None
    assert int(kept["number"]) == 7


def test_pieces_in_a_folder_are_a_mapping(tmp_path: Path):
    folder = tmp_path / "client" / "3"
    pieces = FolderPieces(folder)
    assert dict(pieces) == {}
    pieces["a"], pieces["b"], pieces["a"] = b"old", b"", b"new"
    (folder / ".a.tmp").write_bytes(b"half of a piece that was being written")
    assert dict(FolderPieces(folder)) == {"a": b"new", "b": b""}
    assert len(pieces) == 2
    del pieces["a"]
    for use in (pieces.__getitem__, pieces.__delitem__):
        with pytest.raises(KeyError, match="a"):
            use("a")
    assert pieces.get("a") is None
    assert list(pieces) == ["b"]
