"""What a client keeps between messages: its labels, its momentum, its local model.

Everything is a named piece of bytes, in a folder or in Flower's `context.state`, except
that the label store in a folder is a database file of its own.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.numpy import save_file
from safetensors.torch import load as load_tensors
from torch import Tensor

from ahfal_app.client.momentum import KEPT_ROUNDS, CollectedMomentum, MomentumFiles
from ahfal_app.labels.schema import prepare_schema
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.privacy.store import PrivacyStore, prepare_privacy
from ahfal_app.storage.database import begin, begun_with
from ahfal_app.training.sgd import TrainingState

_log = logging.getLogger(__name__)

_ORACLE = "oracle"
_MODELS = "model"
_TRAINING = re.compile(r"training-(\d+)-(\d+)\.safetensors")
_LOCAL_MODEL = re.compile(r"local-model-(\d+)\.safetensors")
_WATCHED = re.compile(r"watched-(\d+)-(\d+)\.safetensors")
_PREDICTED = re.compile(r"predictions-(\d+)\.safetensors")
_STOP_SET = "stop-set.safetensors"
_EPOCHS = "epochs"
_MOMENTUM = "momentum."

# Predictions are compared with those of the cycle before, also where a cycle is closed again.
_KEPT_CYCLES = 3


@functools.cache
def _begun() -> bytes:
    """Return a client's database before anything is in it."""
    return begun_with(prepare_schema, prepare_privacy)


class FolderPieces(MutableMapping[str, bytes]):
    """Named pieces of bytes as the files of a folder, each replaced as a whole.

    They are not synced to the disk: unlike labels, they can be computed again.

    Parameters
    ----------
    folder : Path
        Made where it is missing; files that begin with a dot are no pieces.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, content: bytes) -> None:
        self.write(name, lambda path: path.write_bytes(content))

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Keep what a function writes to the path that it is given."""
        temporary = self._folder / f".{name}.tmp"
        write(temporary)
        temporary.replace(self._folder / name)

    def __delitem__(self, name: str) -> None:
        try:
            (self._folder / name).unlink()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter([path.name for path in self._folder.iterdir() if not path.name.startswith(".")])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class ClientState:
    """A client's labels, momentum and local model.

    Parameters
    ----------
    pieces : MutableMapping[str, bytes]
        Where the pieces are kept.
    folder : Path | None
        Where the label store is a database file; None keeps it among the pieces.
    root : Path | None
        The folder in which a site keeps the states of all runs.
    shared : tuple[int, CollectedMomentum | MomentumFiles] | None
        The client's number, and what is kept for all clients of a simulation. Momentum is kept
        there where it is collected, and otherwise read, as another engine may have left it.
    """

    def __init__(
        self,
        pieces: MutableMapping[str, bytes],
        folder: Path | None,
        root: Path | None = None,
        shared: tuple[int, CollectedMomentum | MomentumFiles] | None = None,
    ) -> None:
        self._pieces = pieces
        self._folder = folder
        self._root = root
        self._shared = shared

    @classmethod
    def on_disk(
        cls,
        folder: Path,
        root: Path | None = None,
        shared: tuple[int, CollectedMomentum | MomentumFiles] | None = None,
    ) -> ClientState:
        """Return a state that survives the process."""
        return cls(FolderPieces(folder), folder, root, shared)

    @classmethod
    def in_record(cls, record: MutableMapping[str, bytes]) -> ClientState:
        """Return a state that lives as long as a mapping does."""
        return cls(record, None)

    @property
    def oracle_folder(self) -> Path | None:
        """Where this client's oracle may keep files of its own, or None."""
        return self._folder / _ORACLE if self._folder is not None else None

    @property
    def models_folder(self) -> Path | None:
        """Where a site leaves the models of its newest run, or None where this is no site."""
        return self._root / _MODELS if self._root is not None else None

    def holds(self, folder: Path) -> bool:
        """Return whether a folder is part of a site's own state."""
        return self._root is not None and folder.resolve().is_relative_to(self._root.resolve())

    def labels_on_disk(self) -> tuple[str, int] | None:
        """Return the file of the label store, as path and number; None where there is none."""
        if self._folder is None:
            return None
        path = self._folder / STORE_FILE
        try:
            return str(path), path.stat().st_ino
        except FileNotFoundError:
            return None

    @contextmanager
    def labels(
        self, samples_N: NDArray[np.int64], num_classes: int, grows: bool = False
    ) -> Iterator[LabelStore]:
        """Open the label store of a client with these samples, which may come and go or not."""
        if self._folder is not None:
            begin(self._folder / STORE_FILE, _begun())
            store = LabelStore.open_file(self._folder / STORE_FILE, samples_N, num_classes, grows)
        else:
            content = self._pieces.get(STORE_FILE, b"")
            store = LabelStore.from_bytes(content, samples_N, num_classes, grows)
        try:
            yield store
        finally:
            # Also after an error: what was committed before it stays committed.
            if self._folder is None:
                self._pieces[STORE_FILE] = store.to_bytes()
            store.close()

    @contextmanager
    def privacy(self) -> Iterator[PrivacyStore]:
        """Open the record of what the client has told, in the database of its labels.

        Without a folder it is empty each time: settings refuse every privacy but `none` there.
        """
        path = Path(":memory:")
        if self._folder is not None:
            path = self._folder / STORE_FILE
            begin(path, _begun())
        store = PrivacyStore(path)
        try:
            yield store
        finally:
            store.close()

    def save_training(self, cycle: int, round_: int, state: TrainingState) -> None:
        """Keep the state after a round of local training."""
        client, shared = self._shared or (0, None)
        if isinstance(shared, CollectedMomentum):
            shared.keep(client, (cycle, round_), state)
            return
        arrays = {_MOMENTUM + name: array_of(tensor) for name, tensor in state.momentum.items()}
        arrays[_EPOCHS] = np.array(state.epochs)
        self._save(f"training-{cycle}-{round_}.safetensors", arrays)
        for old in self._training_rounds()[:-KEPT_ROUNDS]:
            self._forget("training-{}-{}.safetensors".format(*old))

    def load_training(self, cycle: int, before_round: int) -> TrainingState | None:
        """Return the newest sound state of a cycle from before a round, or None."""
        left = self._shared[1].load(self._shared[0], cycle, before_round) if self._shared else None
        if left is not None and left.when[1] == before_round - 1:
            return left.state  # There is no newer one.
        newer_than = left.when[1] if left is not None else 0
        own = self._own_training(cycle, newer_than, before_round)
        return left.state if own is None and left is not None else own

    def _own_training(self, cycle: int, newer_than: int, before_round: int) -> TrainingState | None:
        """Return the newest sound state of a cycle from between two rounds, of one's own."""
        rounds = [r for c, r in self._training_rounds() if c == cycle]
        for round_ in reversed([r for r in rounds if newer_than < r < before_round]):
            tensors = self._load(f"training-{cycle}-{round_}.safetensors")
            if tensors is not None and _EPOCHS in tensors:
                epochs = int(tensors.pop(_EPOCHS))
                momentum = {name.removeprefix(_MOMENTUM): t for name, t in tensors.items()}
                return TrainingState(momentum, epochs)
        return None

    def save_local_model(self, cycle: int, state_dict: Mapping[str, Tensor]) -> None:
        """Keep the local model f^L of a cycle, and no other."""
        name = f"local-model-{cycle}.safetensors"
        self._save(name, {key: array_of(tensor) for key, tensor in state_dict.items()})
        for other in list(self._pieces):
            if other.startswith("local-model-") and other != name:
                self._forget(other)

    def load_local_model(self, cycle: int) -> dict[str, Tensor] | None:
        """Return the local model f^L of a cycle, or None where it is missing or damaged."""
        return self._load(f"local-model-{cycle}.safetensors")

    def newest_local_model(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return the newest local model f^L and its cycle; None where nothing sound is left."""
        matches = (_LOCAL_MODEL.fullmatch(name) for name in self._pieces)
        for cycle in sorted((int(match[1]) for match in matches if match), reverse=True):
            if (tensors := self.load_local_model(cycle)) is not None:
                return cycle, tensors
        return None

    def save_watched(self, cycle: int, round_: int, watched: Mapping[str, Tensor]) -> None:
        """Keep what a query strategy has watched of the pool up to a round of a cycle."""
        arrays = {name: array_of(tensor) for name, tensor in watched.items()}
        self._save(f"watched-{cycle}-{round_}.safetensors", arrays)
        for old in self._watched_rounds()[:-KEPT_ROUNDS]:
            self._forget("watched-{}-{}.safetensors".format(*old))

    def load_watched(self, cycle: int, before_round: int) -> dict[str, Tensor] | None:
        """Return what was watched in a cycle before a round; None where nothing sound is left."""
        rounds = [r for c, r in self._watched_rounds() if c == cycle and r < before_round]
        for round_ in reversed(rounds):
            watched = self._load(f"watched-{cycle}-{round_}.safetensors")
            if watched is not None:
                return watched
        return None

    def save_stop_set(self, ids_N: NDArray[np.int64]) -> None:
        """Keep which samples were drawn for the stop set."""
        self._save(_STOP_SET, {"ids": ids_N})

    def load_stop_set(self) -> NDArray[np.int64] | None:
        """Return which samples were drawn for the stop set; None where nothing sound is left."""
        tensors = self._load(_STOP_SET)
        return None if tensors is None else tensors["ids"].numpy()

    def save_predictions(self, cycle: int, predictions: Mapping[str, NDArray[np.int64]]) -> None:
        """Keep what was predicted of the stop set after a cycle, and after those just before."""
        self._save(f"predictions-{cycle}.safetensors", dict(predictions))
        cycles = sorted(int(m[1]) for name in self._pieces if (m := _PREDICTED.fullmatch(name)))
        for old in [each for each in cycles if each <= cycle - _KEPT_CYCLES]:
            self._forget(f"predictions-{old}.safetensors")

    def load_predictions(self, cycle: int) -> dict[str, NDArray[np.int64]] | None:
        """Return what was predicted after a cycle; None where nothing sound is left."""
        tensors = self._load(f"predictions-{cycle}.safetensors")
        if tensors is None:
            return None
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def save_coordinated_pool(self, what: str, cycle: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what is asked about, while clients coordinate something, and forget the rest."""
        for name in [name for name in self._pieces if name.startswith(f"{what}-")]:
            self._forget(name)
        arrays = {name: array_of(tensor) for name, tensor in tensors.items()}
        self._save(f"{what}-pool-{cycle}.safetensors", arrays)

    def save_coordinated(
        self, what: str, cycle: int, arrays: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Keep how far a coordination of a cycle is."""
        self._save(f"{what}-{cycle}.safetensors", dict(arrays))

    def load_coordinated(
        self, what: str, cycle: int
    ) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """Return what is asked about, and how far it is; None where nothing sound is left."""
        pool, how_far = (f"{what}-{part}{cycle}.safetensors" for part in ("pool-", ""))
        return self._load(pool), self._load(how_far)

    def coordinated_file(self, what: str, cycle: int) -> tuple[int, ...]:
        """Return what tells one version of how far a coordination is from another, on disk."""
        if self._folder is None:
            return ()
        return _identity(self._folder / f"{what}-{cycle}.safetensors")

    def _watched_rounds(self) -> list[tuple[int, int]]:
        matches = (_WATCHED.fullmatch(name) for name in self._pieces)
        return sorted((int(match[1]), int(match[2])) for match in matches if match)

    def _forget(self, name: str) -> None:
        with suppress(KeyError):  # Where a round is repeated, another process may be at it, too.
            del self._pieces[name]

    def _training_rounds(self) -> list[tuple[int, int]]:
        matches = (_TRAINING.fullmatch(name) for name in self._pieces)
        return sorted((int(match[1]), int(match[2])) for match in matches if match)

    def _save(self, name: str, arrays: dict[str, NDArray[np.generic]]) -> None:
        pieces = self._pieces
        if isinstance(pieces, FolderPieces):
            # From where they are to the disk: a copy of a whole model takes time to make room for.
            pieces.write(name, lambda path: save_file(arrays, path))
        else:
            pieces[name] = save_arrays(arrays)

    def _load(self, name: str) -> dict[str, Tensor] | None:
        """Return tensors, or None: a power cut may damage what is not synced to the disk."""
        content = self._pieces.get(name)
        if content is None:
            return None
        try:
            return load_tensors(content)
        except SafetensorError as error:
            _log.warning("%s is damaged (%s): the client goes on without it", name, error)
            return None


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def array_of(tensor: Tensor) -> NDArray[np.generic]:
    """Return a tensor's values, one row after the other, whatever its layout is."""
    values: NDArray[np.generic] = tensor.detach().cpu().numpy()
    return values if values.flags.c_contiguous else values.copy(order="C")
