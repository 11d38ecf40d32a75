"""How the server learns whether clients' class mixes change."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flwr.app import ArrayRecord
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ahfal_app.config import Settings
from ahfal_app.drift import DriftTest, Found, Refusal, pooled_p
from ahfal_app.messages.answers import drift_from_metrics
from ahfal_app.messages.arrays import held_record
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.keys import ARRAYS_KEY
from ahfal_app.messages.protocol import DRIFT, Order
from ahfal_app.multiple_tests import holm
from ahfal_app.results.records import DriftRecord, SiteDrift
from ahfal_app.server.checkpoint import Arrays, ordered
from ahfal_app.server.federation import NOTHING, Federation, Records, ask
from ahfal_app.storage.files import write_bytes

_PHASE = "drift"


@dataclass(frozen=True)
class Judged:
    """What came of a comparison of two windows.

    Attributes
    ----------
    record : DriftRecord | None
        What it says; None where nobody asked, or nobody could be asked.
    failures : dict[int, str]
        Clients that are not in it, and why.
    seconds : dict[str, float]
        Wall time; empty where nobody asked.
    """

    record: DriftRecord | None = None
    failures: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class ReferenceModels:
    """Models of windows' last cycles, with `drift-test=predicted`; else it does nothing.

    One predicts the window that it ends and the one after, which may end after a resume.

    Parameters
    ----------
    folder : Path
        Where they lie; made with the first one.
    settings : Settings
        Read are `drift-test` and `drift-window`.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._is_on = settings.drift_test == "predicted"
        self._window = settings.drift_window

    def tested(self, cycle: int, arrays: Callable[[], Arrays]) -> None:
        """Keep a cycle's model if a window ends with it; durable when this returns.

        Parameters
        ----------
        cycle : int
            The cycle that was just trained.
        arrays : Callable[[], Arrays]
            Returns the model; called where it is kept.
        """
        if not self._is_on or (cycle + 1) % self._window:
            return
        self._folder.mkdir(exist_ok=True)
        write_bytes(self._path(cycle), save_arrays(ordered(arrays())))
        # A checkpoint may be damaged; then the run goes on from the one before it.
        for path in self._folder.glob("*.safetensors"):
            if path.stem.isdecimal() and int(path.stem) < cycle - 2 * self._window:
                path.unlink()

    def before(self, cycle: int) -> ArrayRecord | None:
        """Return the model of the window before the one that ends with a cycle, if there is one."""
        try:
            return held_record(load_arrays(self._path(cycle - self._window).read_bytes()))
        except (OSError, SafetensorError):
            return None

    def _path(self, cycle: int) -> Path:
        return self._folder / f"{cycle}.safetensors"


def judge_drift(
    federation: Federation,
    order: Order,
    num_classes: int,
    reference: Callable[[int], ArrayRecord | None],
    note: Callable[[str], None],
) -> Judged:
    """Have all clients compare two windows, where these end with the cycle that was just trained.

    A client that fails is missing; it stops no run.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that was just trained.
    num_classes : int
        Number of classes.
    reference : Callable[[int], ArrayRecord | None]
        Returns the model of the window before the one that ends with a cycle.
    note : Callable
        Called with what people should know.
    """
    settings = order.settings
    if settings.drift_test == "none" or not settings.compares_windows(order.cycle):
        return Judged()
    model: Records = NOTHING
    if settings.drift_test == "predicted":
        arrays = reference(order.cycle)
        if arrays is None:
            note("drift-test='predicted': the model of the window before is not there any more")
            return Judged()
        model = {ARRAYS_KEY: arrays}
    start = time.monotonic()
    replies = ask(federation, order, DRIFT, dict.fromkeys(federation.clients, model))
    found: dict[int, Found] = {}
    for client in list(replies.messages):
        try:
            metrics = metrics_of(replies.messages[client].content)
            found[client] = drift_from_metrics(metrics, settings.drift_test, num_classes)
        except ValueError as error:
            replies.reject(client, str(error))
    record = _record(found, settings, federation.site)
    return Judged(record, replies.failures, {_PHASE: time.monotonic() - start})


def _record(
    found: Mapping[int, Found], settings: Settings, site: Callable[[int], str]
) -> DriftRecord:
    clients = sorted(found)
    tests = [each if isinstance(each := found[c], DriftTest) else None for c in clients]
    corrected = holm([test.p if test else None for test in tests])
    # Values of relabelling are no sums of chi-squares.
    is_pooled = settings.drift_test == "chi-square"
    return DriftRecord(
        method=settings.drift_test,
        window=settings.drift_window,
        sites=tuple(
            _site(client, site(client), found[client], p)
            for client, p in zip(clients, corrected, strict=True)
        ),
        pooled=pooled_p(test for test in tests if test) if is_pooled else None,
    )


def _site(client: int, name: str, found: Found, corrected: float | None) -> SiteDrift:
    if isinstance(found, Refusal):
        return SiteDrift(client=client, site=name, refusal=found.words)
    return SiteDrift(client=client, site=name, corrected=corrected, **asdict(found))
