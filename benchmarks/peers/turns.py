"""Programs that compute in turns, a round each; known to the environments of both sides.

The speed of a shared machine drifts, so rounds that are compared follow each other closely. The
referee listens at a socket; each process of a player connects, waits until it is told to go, does
one round, says so and waits again.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Client, Connection, Listener
from types import TracebackType
from typing import Any, Self

_GO, _STOP = "go", "stop"


class Stopped(Exception):
    """The referee wants no more rounds."""


class Player:
    """One process's side of it.

    Parameters
    ----------
    address : str
        The referee's socket.
    name : str
        Of the player; its processes have the same.
    """

    def __init__(self, address: str, name: str) -> None:
        self._referee = Client(address)
        self._referee.send(name)

    def wait(self) -> None:
        """Wait for the turn.

        Raises
        ------
        Stopped
            There are no more.
        """
        if self._referee.recv() != _GO:
            raise Stopped

    def done(self, report: Mapping[str, Any] | None = None) -> None:
        """Say that the round is over, and what there is to tell of it."""
        self._referee.send(dict(report or {}))


class Referee:
    """Starts players, has them take turns, and ends them; a context manager.

    Parameters
    ----------
    address : str
        Where a socket can be made.
    """

    def __init__(self, address: str) -> None:
        self._listener = Listener(address, "AF_UNIX")
        self._players: dict[str, list[Connection]] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Return the referee."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop all players."""
        for connections in self._players.values():
            for connection in connections:
                try:
                    connection.send(_STOP)
                except OSError:
                    continue
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        self._listener.close()

    def start(
        self,
        name: str,
        command: Sequence[str],
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a player, and return when all of its processes wait for their turn."""
        self._processes.append(subprocess.Popen(command, env={**os.environ, **(environment or {})}))
        connections = []
        for _ in range(processes):
            connection = self._listener.accept()
            said = connection.recv()
            if said != name:
                raise ValueError(f"{said!r} came, where {name!r} was started")
            connections.append(connection)
        self._players[name] = connections

    def round(self, name: str) -> tuple[float, dict[str, Any]]:
        """Have a player do a round; return its seconds, and what its first process tells."""
        connections = self._players[name]
        start = time.perf_counter()
        for connection in connections:
            connection.send(_GO)
        reports = [connection.recv() for connection in connections]
        return time.perf_counter() - start, reports[0]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {
        "median": statistics.median(seconds),
        "smallest": min(seconds),
        "largest": max(seconds),
    }
