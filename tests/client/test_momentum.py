"""Momentum of a run's simulated clients: collected in memory, and a round's in one file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from ahfal_app.client.momentum import (
    CollectedMomentum,
    Collection,
    MomentumFiles,
    collected_in,
    momentum_in,
)
from ahfal_app.client.state import ClientState
from ahfal_app.training.sgd import TrainingState


def _state(client: int, epochs: int) -> TrainingState:
    return TrainingState({"w": torch.full((2, 3), 100.0 * client + epochs)}, epochs)


def _kept(momentum: CollectedMomentum | MomentumFiles, client: int, before: int, cycle: int = 0):
    """Return which round is kept, and whose and which state that is."""
    left = momentum.load(client, cycle, before)
    if left is None:
        return None
    value = int(left.state.momentum["w"][1, 2])
    assert left.state.momentum["w"].shape == (2, 3)
    assert left.when[0] == cycle
    return left.when[1], value // 100, left.state.epochs


def test_what_is_settled_is_read_by_whoever_comes_after(tmp_path: Path) -> None:
    momentum = CollectedMomentum(tmp_path / "momentum")
    for round_ in (1, 2):
        for client in (7, 2):
            momentum.keep(client, (0, round_), _state(client, round_))
        if round_ == 1:
            momentum.settle()
    assert [_kept(momentum, client, 3) for client in (2, 7)] == [(2, 2, 2), (2, 7, 2)]
    # The second round is in memory alone: who is killed now repeats it, from what was before.
    after = CollectedMomentum(tmp_path / "momentum")
    assert [_kept(after, client, 3) for client in (2, 7)] == [(1, 2, 1), (1, 7, 1)]
    assert _kept(after, 2, 1) is None
    assert _kept(after, 2, 3, cycle=1) is None
    momentum.settle()
    momentum.settle()
    after = CollectedMomentum(tmp_path / "momentum")
    assert [_kept(after, client, 3) for client in (2, 7)] == [(2, 2, 2), (2, 7, 2)]
    assert len(list((tmp_path / "momentum").iterdir())) == 2


def test_a_round_that_is_repeated_starts_from_what_was_before_it(tmp_path: Path) -> None:
    momentum = CollectedMomentum(tmp_path)
    for round_ in (1, 2):
        momentum.keep(0, (0, round_), _state(0, round_))
    assert _kept(momentum, 0, 2) == (1, 0, 1)
    momentum.keep(0, (0, 2), _state(0, 3))
    momentum.settle()
    momentum.keep(0, (0, 2), _state(0, 4))
    momentum.settle()
    assert _kept(momentum, 0, 3) == _kept(MomentumFiles(tmp_path), 0, 3) == (2, 0, 4)


def test_of_each_client_the_last_rounds_are_kept(tmp_path: Path) -> None:
    files = MomentumFiles(tmp_path)
    # The last one seldom trains.
    for round_ in range(1, 8):
        clients = (0, 1, 2) if round_ in (1, 3) else (0, 1)
        files.write((0, round_), {client: _state(client, round_) for client in clients})
    for known in (files, MomentumFiles(tmp_path)):
        assert [_kept(known, 2, before) for before in (2, 4, 9)] == [(1, 2, 1), *[(3, 2, 3)] * 2]
        assert [_kept(known, 0, before) for before in (6, 7, 8)] == [(r, 0, r) for r in (5, 6, 7)]
    assert len(list(tmp_path.iterdir())) == 5
    # Of cycles no round of which is ever repeated nothing is left.
    files.write((1, 1), {0: _state(0, 1)})
    assert _kept(files, 2, 9) == (3, 2, 3)
    files.write((2, 1), {1: _state(1, 1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1-1-0.safetensors",
        "2-1-0.safetensors",
    ]


def test_memory_is_bounded_and_so_is_the_number_of_files(tmp_path: Path) -> None:
    bytes_of_one = _state(0, 0).momentum["w"].nbytes
    momentum = CollectedMomentum(tmp_path, most_bytes=8 * bytes_of_one)
    for round_ in (1, 2):
        for client in range(40):
            momentum.keep(client, (0, round_), _state(client, round_))
        momentum.settle()
        assert [_kept(momentum, c, round_ + 1) for c in range(40)] == [
            (round_, client, round_) for client in range(40)
        ]
    # Five at a time, once more than half of the memory is not on the disk yet.
    assert len(list(tmp_path.iterdir())) == 2 * 40 / 5
    remembered = [client for client in range(40) if client in momentum._newest]
    assert remembered == list(range(32, 40))


def test_clients_that_train_other_parts_of_a_model_have_files_of_their_own(tmp_path: Path) -> None:
    momentum = CollectedMomentum(tmp_path)
    momentum.keep(0, (0, 1), TrainingState({"w": torch.ones(2, 3), "b": torch.zeros(3)}, 1))
    momentum.keep(1, (0, 1), _state(1, 1))
    momentum.keep(2, (0, 1), TrainingState({}, 1))
    momentum.settle()
    files = MomentumFiles(tmp_path)
    loaded = [files.load(client, 0, 2) for client in range(3)]
    assert [sorted(left.state.momentum) if left else None for left in loaded] == [
        ["b", "w"],
        ["w"],
        [],
    ]
    assert _kept(files, 1, 2) == (1, 1, 1)


@pytest.mark.parametrize("content", [b"", b"half of a file"])
def test_without_a_damaged_file_the_round_before_is_used(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = MomentumFiles(tmp_path)
    for round_ in (1, 2):
        files.write((0, round_), {3: _state(3, round_)})
    (tmp_path / "0-2-0.safetensors").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert _kept(files, 3, 3) == _kept(MomentumFiles(tmp_path), 3, 3) == (1, 3, 1)
    assert caplog.text.count("0-2-0.safetensors is damaged") == 2


def test_what_another_engine_has_left_is_gone_on_with(tmp_path: Path) -> None:
    """A run may be resumed on an engine that writes each client's momentum at once, and back."""

    def client() -> ClientState:
        shared = momentum_in(tmp_path / "momentum")
        return ClientState.on_disk(tmp_path / "client", shared=(4, shared))

    def epochs(state: ClientState, before: int) -> int | None:
        found = state.load_training(0, before)
        return found.epochs if found else None

    collection = Collection()
    with collected_in(collection):
        client().save_training(0, 1, _state(4, 1))
        assert epochs(client(), 2) == 1
    assert epochs(client(), 2) is None
    collection.settle()
    assert epochs(client(), 2) == 1
    client().save_training(0, 2, _state(4, 2))
    assert [epochs(client(), before) for before in (1, 2, 3, 4)] == [None, 1, 2, 2]
    with collected_in(Collection()):
        assert [epochs(client(), before) for before in (1, 2, 3, 4)] == [None, 1, 2, 2]
        client().save_training(0, 3, _state(4, 3))
        assert [epochs(client(), before) for before in (3, 4, 5)] == [2, 3, 3]
