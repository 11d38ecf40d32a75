"""Momentum of a run's simulated clients: in memory, and of a round in one file.

A process that serves all clients of a run need not write a file for each of them in each round.
What they leave is collected, and written when the engine says that the round is over, before the
server counts on it. At a site, and where each client has a process, `ClientState` writes it at
once.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ahfal_app.flat import ArrayForm, Layout
from ahfal_app.training.flat import FlatTensors
from ahfal_app.training.sgd import TrainingState

_log = logging.getLogger(__name__)

#: A resumed server repeats the round that was under way, or, where its newest checkpoint is
#: damaged, the one before it, too; both start from the state before them.
KEPT_ROUNDS = 3

#: Each client's newest state is remembered, to be read again without the disk.
MOST_BYTES = 1 << 26

_FILE = re.compile(r"(\d+)-(\d+)-(\d+)\.safetensors")
# In a file: a flat array for each type, one row a client, by the type's name, and besides:
_CLIENTS, _EPOCHS, _LAYOUT = "clients", "epochs", "layout"

# Cycle and round.
_When = tuple[int, int]


class _File(NamedTuple):
    """A file of a round; there are several where there is much to write."""

    cycle: int
    round: int
    part: int

    @property
    def name(self) -> str:
        return f"{self.cycle}-{self.round}-{self.part}.safetensors"

    @property
    def when(self) -> _When:
        return self.cycle, self.round


@dataclass(frozen=True)
class _Left:
    """What a client has left in a round."""

    when: _When
    state: TrainingState


class MomentumFiles:
    """Momentum of many clients in few files; of each client that of its last rounds is kept.

    They are not synced to the disk: unlike labels, they can be computed again.

    Parameters
    ----------
    folder : Path
        Made where something is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clients: dict[_File, set[int]] = {}
        self._parts: Counter[_When] = Counter()
        for path in _listed(folder):
            if match := _FILE.fullmatch(path.name):
                file = _File(*map(int, match.groups()))
                self._parts[file.when] = max(self._parts[file.when], file.part + 1)
                self._clients[file] = set(_clients_in(path))

    def write(self, when: _When, states: Mapping[int, TrainingState]) -> None:
        """Keep what clients have left in a round, and forget what none of them needs any more.

        Parameters
        ----------
        when : tuple[int, int]
            Cycle and round.
        states : Mapping[int, TrainingState]
            By client.
        """
        flat = {client: FlatTensors.of(state.momentum) for client, state in states.items()}
        # Clients of a run have one layout, unless some train a part of the model.
        for layout in dict.fromkeys(each.layout for each in flat.values()):
            clients = [client for client, each in flat.items() if each.layout == layout]
            file = _File(*when, self._parts[when])
            self._parts[when] += 1
            arrays = {
                dtype: np.stack([flat[client].numpy().parts[dtype] for client in clients])
                for dtype in layout.sizes
            }
            arrays[_CLIENTS] = np.array(clients)
            arrays[_EPOCHS] = np.array([states[client].epochs for client in clients])
            self._folder.mkdir(exist_ok=True)
            path = self._folder / file.name
            temporary = path.with_name(f".{path.name}.tmp")
            save_file(arrays, temporary, {_LAYOUT: _layout_text(layout)})
            temporary.replace(path)
            self._clients[file] = set(clients)
        self._forget_unneeded(when, set(states))

    def load(self, client: int, cycle: int, before_round: int) -> _Left | None:
        """Return the newest sound state of a client's cycle from before a round, or None."""
        files = [f for f in self._clients if f.cycle == cycle and f.round < before_round]
        # A round that was repeated gave the same again.
        for file in sorted(files, reverse=True):
            if client in self._clients[file]:
                state = _read(self._folder / file.name, client)
                if state is not None:
                    return _Left(file.when, state)
        return None

    def _forget_unneeded(self, when: _When, clients: set[int]) -> None:
        rounds: dict[int, set[_When]] = {client: set() for client in clients}
        for file in sorted(self._clients, reverse=True):
            for client in clients & self._clients[file]:
                rounds[client].add(file.when)
                if len(rounds[client]) > KEPT_ROUNDS:
                    self._clients[file].remove(client)
            # No round of a cycle before the last one is ever repeated.
            if file.cycle < when[0] - 1 or not self._clients[file]:
                (self._folder / file.name).unlink(missing_ok=True)
                del self._clients[file]


class CollectedMomentum:
    """Momentum of clients that one process serves, each newest in memory.

    Parameters
    ----------
    folder : Path
        Where it is written.
    most_bytes : int
        What is more than that is read from the disk again.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._files = MomentumFiles(folder)
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        # The one that was left first is the first.
        self._newest: dict[int, _Left] = {}
        self._unwritten: set[int] = set()
        self._bytes = self._unwritten_bytes = 0

    def keep(self, client: int, when: _When, state: TrainingState) -> None:
        """Remember what a client has left in a round; it must not be changed any more."""
        with self._lock:
            if self._unwritten and self._newest[next(iter(self._unwritten))].when != when:
                self._write()
            elif client in self._unwritten:
                self._unwritten_bytes -= _size(self._newest[client].state)
            self._forget(client)
            self._newest[client] = _Left(when, state)
            self._unwritten.add(client)
            self._bytes += _size(state)
            self._unwritten_bytes += _size(state)
            if self._unwritten_bytes > self._most_bytes // 2:
                self._write()
            while self._bytes > self._most_bytes:
                self._forget(next(iter(self._newest)))

    def load(self, client: int, cycle: int, before_round: int) -> _Left | None:
        """Return the newest sound state of a client's cycle from before a round, or None."""
        with self._lock:
            left = self._newest.get(client)
            if left is not None and left.when[0] == cycle and left.when[1] < before_round:
                return left
            return self._files.load(client, cycle, before_round)

    def settle(self) -> None:
        """Write all that is not on the disk yet."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if not self._unwritten:
            return
        left = {client: self._newest[client] for client in sorted(self._unwritten)}
        when = next(iter(left.values())).when
        self._files.write(when, {client: each.state for client, each in left.items()})
        self._unwritten.clear()
        self._unwritten_bytes = 0

    def _forget(self, client: int) -> None:
        left = self._newest.pop(client, None)
        self._bytes -= _size(left.state) if left is not None else 0


class Collection:
    """What an engine collects for the clients that it serves, by the folder that it belongs in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_folder: dict[Path, CollectedMomentum] = {}

    def of(self, folder: Path) -> CollectedMomentum:
        """Return what is collected for a folder."""
        with self._lock:
            if folder not in self._of_folder:
                self._of_folder[folder] = CollectedMomentum(folder)
            return self._of_folder[folder]

    def settle(self) -> None:
        """Write all that is not on the disk yet."""
        with self._lock:
            for each in self._of_folder.values():
                each.settle()


_collection: ContextVar[Collection | None] = ContextVar("collection", default=None)


@contextmanager
def collected_in(collection: Collection) -> Iterator[None]:
    """Have what this thread's simulated clients leave collected, by an engine that writes it."""
    token = _collection.set(collection)
    try:
        yield
    finally:
        _collection.reset(token)


def collection() -> Collection | None:
    """Return what is collected in this thread; None where nothing is."""
    return _collection.get()


def momentum_in(folder: Path) -> CollectedMomentum | MomentumFiles:
    """Return what is collected for a folder; where nothing is, what has been written there."""
    collection = _collection.get()
    return MomentumFiles(folder) if collection is None else collection.of(folder)


def _size(state: TrainingState) -> int:
    if isinstance(state.momentum, FlatTensors):
        return state.momentum.nbytes
    return sum(tensor.nbytes for tensor in state.momentum.values())


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _clients_in(path: Path) -> list[int]:
    """Return whose momentum a file holds; none where it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            clients: list[int] = file.get_tensor(_CLIENTS).tolist()
    except (OSError, SafetensorError) as error:
        _damaged(path, error)
        return []
    return clients


def _read(path: Path, client: int) -> TrainingState | None:
    """Return what a client has left in a file; None where it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            row = file.get_tensor(_CLIENTS).tolist().index(client)
            epochs = int(file.get_tensor(_EPOCHS)[row])
            layout = _layout_of(file.metadata()[_LAYOUT])
            parts = {
                dtype: torch.from_numpy(file.get_slice(dtype)[row : row + 1][0])
                for dtype in layout.sizes
            }
    except (OSError, SafetensorError) as error:
        _damaged(path, error)
        return None
    return TrainingState(FlatTensors(layout, parts), epochs)


@functools.lru_cache(maxsize=8)
def _layout_text(layout: Layout) -> str:
    forms = {name: asdict(form) for name, form in layout.items()}
    return json.dumps({"forms": forms, "channels-last": sorted(layout.channels_last)})


@functools.lru_cache(maxsize=8)
def _layout_of(text: str) -> Layout:
    told = json.loads(text)
    forms = {n: ArrayForm(tuple(f["shape"]), f["dtype"]) for n, f in told["forms"].items()}
    return Layout.of(forms, told["channels-last"])


def _damaged(path: Path, error: Exception) -> None:
    # A power cut may leave such a file.
    _log.warning("%s is damaged (%s): clients go on without it", path.name, error)
