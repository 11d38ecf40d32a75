"""Where clients in threads of their own wait for each other, to train as one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ahfal_app.training.sgd import LocalUpdate, TrainingResult

#: Trains several clients in place; results in the same order.
TrainTogether = Callable[[Sequence[LocalUpdate]], Sequence[TrainingResult]]


class Gathering:
    """Collects the updates of a known number of clients and carries them out together.

    Each client either brings one update (`train`, which returns when it is done) or tells
    that it has none (`leave`). The last to come carries out the updates of all.

    Parameters
    ----------
    clients : Sequence[int]
        Who is expected; updates are carried out in this order, whoever comes first.
    train_together : TrainTogether
        Carries them out.
    """

    def __init__(self, clients: Sequence[int], train_together: TrainTogether) -> None:
        self._expected = dict.fromkeys(clients)
        self._order = tuple(clients)
        self._train_together = train_together
        self._updates: dict[int, LocalUpdate] = {}
        self._results: dict[int, TrainingResult] = {}
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()

    def train(self, client: int, update: LocalUpdate) -> TrainingResult:
        """Bring an update, wait for the others, and return its result.

        Raises
        ------
        Exception
            Whatever stopped the training; every client that waits is told.
        """
        with self._lock:
            self._updates[client] = update
            is_last = self._strike_off(client)
        if is_last:
            self._carry_out()
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._results[client]

    def leave(self, client: int) -> None:
        """Tell that a client brings nothing (any more); it may be told twice."""
        with self._lock:
            was_expected = client in self._expected
            is_last = self._strike_off(client) and was_expected
        if is_last:
            self._carry_out()

    def _strike_off(self, client: int) -> bool:
        self._expected.pop(client, None)
        return not self._expected

    def _carry_out(self) -> None:
        clients = [client for client in self._order if client in self._updates]
        try:
            if clients:
                results = self._train_together([self._updates[client] for client in clients])
                self._results = dict(zip(clients, results, strict=True))
        except BaseException as error:  # noqa: BLE001
            # Whatever it is: the others would wait for ever, and each of them raises it.
            self._error = error
        finally:
            self._done.set()
