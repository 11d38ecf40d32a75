"""A query strategy's half at the server in a run: what it is told, and what it tells clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import ArrayRecord
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ahfal_app.config import Settings
from ahfal_app.errors import CheckpointError, NonFiniteModel
from ahfal_app.messages.keys import POLICY_KEY, REPORT_KEY
from ahfal_app.messages.reports import arrays_to, report_from
from ahfal_app.query import make_strategy
from ahfal_app.query.core.server_side import Arrays, HeldOut, RowsForm, ServerSide, Task
from ahfal_app.server.checkpoint import ordered
from ahfal_app.server.federation import NOTHING, Records, Replies

#: Returns what a global model makes of the held-out samples, if there are any.
Measure = Callable[[ArrayRecord], HeldOut | None]


class StrategySide:
    """The half at the server of the run's query strategy; of most strategies there is none.

    Parameters
    ----------
    measure : Measure
        Tests a model on what is held out.
    state : bytes
        Of an interrupted run, as `state` gave it; empty: there is none.
    """

    def __init__(self, measure: Measure = lambda _: None, state: bytes = b"") -> None:
        self._measure = measure
        self._side: ServerSide | None = None
        self._forms: Mapping[str, RowsForm] = {}
        self._most_rows = 0
        #: All that it must know again, as safetensors; it changes with a purchase alone.
        self.state = state
        #: What its work in the cycle took.
        self.seconds: dict[str, float] = {}

    def begin(self, settings: Settings, num_classes: int) -> None:
        """Make it, now that the clients are known, and restore its state if there is one.

        Raises
        ------
        CheckpointError
            The state is not that of such a strategy.
        """
        strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
        task = Task.of(settings, num_classes)
        self._side = strategy.server_side(task)
        if self._side is None:
            return
        self._forms, self._most_rows = strategy.report_forms(task), settings.max_client_samples
        if self.state:
            try:
                self._side.restore(load_arrays(self.state))
            except (KeyError, ValueError, SafetensorError) as error:
                raise CheckpointError(f"policy: {error}") from error

    def trained(self, cycle: int, arrays: ArrayRecord) -> None:
        """Tell it of a cycle's model, after which labels will be bought."""
        if self._side is not None:
            start = time.monotonic()
            self._side.trained(cycle, self._measure(arrays))
            self.seconds = {"learn": time.monotonic() - start}

    def records(self) -> Records:
        """Return what a selection's message says of the policy; the same record for all.

        Raises
        ------
        NonFiniteModel
            What was learned has diverged.
        """
        policy = self._side.policy() if self._side is not None else {}
        for name, values in policy.items():
            if not np.isfinite(values).all():
                raise NonFiniteModel(
                    f"policy: {name!r} has values that are not finite, so that nobody can choose "
                    "by it; a smaller strategy.learning-rate may help"
                )
        return {POLICY_KEY: arrays_to(policy)} if policy else NOTHING

    def reports(self, replies: Replies) -> dict[int, Arrays]:
        """Return what clients tell of their choices; what cannot be used becomes a failure."""
        found: dict[int, Arrays] = {}
        if self._side is None:
            return found
        for client in list(replies.messages):
            record = replies.messages[client].content.array_records.get(REPORT_KEY)
            if record is None:
                continue  # It had nothing to choose.
            try:
                report = report_from(record, self._forms, self._most_rows)
                self._side.check_report(report)
                found[client] = report
            except ValueError as error:
                replies.reject(client, f"report: {error}")
        return found

    def reported(self, cycle: int, reports: Mapping[int, Arrays]) -> None:
        """Tell it of all choices after a cycle; its state is another from now on."""
        if self._side is None:
            return
        start = time.monotonic()
        self._side.reported(cycle, reports)
        self.state = save_arrays(ordered(dict(self._side.state())))
        self.seconds["learn"] = self.seconds.get("learn", 0.0) + time.monotonic() - start

    @property
    def figures(self) -> dict[str, float]:
        """What people may want to know of it in this cycle, by name."""
        return dict(self._side.figures()) if self._side is not None else {}
