"""Models that may turn out to be the best of a run, kept until another one is better.

Each is a file of its own, named after its cycle and round, and durable before the record of its
test is. Which one counts, the records say. So a run that goes on from a checkpoint finds the one
that was the best there, and what was written after it does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ahfal_app.config import Settings
from ahfal_app.errors import CheckpointError
from ahfal_app.results.kept import BEST, Candidate, best_of, is_better, tested
from ahfal_app.results.records import Record
from ahfal_app.server.checkpoint import Arrays, ordered
from ahfal_app.storage.files import write_bytes


class Candidates:
    """The models of a run with `keep=best`; with `keep=last` it does nothing.

    Parameters
    ----------
    folder : Path
        Where they lie; made with the first one.
    settings : Settings
        Read are `keep`, `metric` and `rounds`.
    history : Sequence[Record]
        The records of a run that goes on, up to where it does.

    Raises
    ------
    CheckpointError
        The best of them is not there, or damaged.
    """

    def __init__(self, folder: Path, settings: Settings, history: Sequence[Record]) -> None:
        self._folder = folder
        self._settings = settings
        self._is_on = settings.keep == BEST
        self._best = best_of(history, settings) if self._is_on else None
        # A checkpoint may be damaged; then the run goes on from the one before it.
        self._before = self._best
        if self._best is not None:
            self._read(self._best)

    def tested(self, record: Record, arrays: Callable[[], Arrays]) -> None:
        """Keep a model if it is better than all before; durable when this returns.

        Parameters
        ----------
        record : Record
            Of its test.
        arrays : Callable[[], Arrays]
            Returns the model; called where it is kept.
        """
        found = tested(record, self._settings) if self._is_on else None
        if found is None or not is_better(found, self._best, self._settings.metric):
            return
        self._folder.mkdir(exist_ok=True)
        write_bytes(self._path(found), save_arrays(ordered(arrays())))
        self._best = found

    def committed(self) -> None:
        """Forget what neither the newest checkpoint nor the one before it needs any more."""
        if not self._is_on or not self._folder.is_dir():
            return
        needed = {self._path(each) for each in (self._best, self._before) if each is not None}
        for path in self._folder.iterdir():
            if path not in needed:
                path.unlink()
        self._before = self._best

    def chosen(self, last: Arrays) -> Arrays:
        """Return the model that the run leaves.

        Parameters
        ----------
        last : Arrays
            That of its last cycle.

        Raises
        ------
        CheckpointError
            The best one is not there any more, or damaged.
        """
        return last if self._best is None else self._read(self._best)

    def _path(self, of: Candidate) -> Path:
        return self._folder / f"{of.cycle}-{of.round}.safetensors"

    def _read(self, of: Candidate) -> Arrays:
        path = self._path(of)
        try:
            return load_arrays(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: the best model so far, unreadable: {error}") from error
