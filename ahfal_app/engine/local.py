"""A simulation in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ahfal_app.client_app import app as client_app
from ahfal_app.config import DEFAULT_NUM_CLIENTS, SITES
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import ConfigError
from ahfal_app.results.progress import Progress
from ahfal_app.results.summary import print_summary
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare
from ahfal_app.training.choices import computing_threads, fitting_at_once
from ahfal_app.training.together.choice import resolve_client_batching
from ahfal_app.training.together.trainer import TogetherTrainer


def run_in_process(values: Mapping[str, object], console: Console) -> Path:
    """Run a simulation in this process, print its summary and return the run's folder."""
    folder = simulate(values, Progress(console))
    print_summary(folder, console)
    return folder


def refuse_sites(values: Mapping[str, object]) -> None:
    """Refuse to simulate clients that have data of their own, which nobody has named.

    Raises
    ------
    ConfigError
        The partition is that of sites.
    """
    if values.get("partition") == SITES:
        raise ConfigError(
            [
                f"partition={SITES!r}: allowed in a simulation is another one, since sites have "
                "data of their own; `ahfal rehearse --site …` runs over sites on this machine"
            ]
        )


def simulate(
    values: Mapping[str, object], progress: Progress, clients_at_once: int | None = None
) -> Path:
    """Run a simulation in this process and return the run's folder.

    Parameters
    ----------
    values : Mapping[str, object]
        Flat settings.
    progress : Progress
        Tells how far it is.
    clients_at_once : int, optional
        Clients that are served at the same time; by default as many as there are cores.

    Raises
    ------
    ConfigError
        A setting cannot be used, or the clients have data of their own.
    AhfalError
        The run had to stop.
    """
    refuse_sites(values)
    if not values.get("num-clients") and not values.get("resume"):
        values = {**values, "num-clients": DEFAULT_NUM_CLIENTS}
    start = prepare(values)
    settings = start.settings
    workers = clients_at_once or fitting_at_once(settings)
    # A run that Flower started may have been stopped before it knew its clients.
    num_clients = settings.num_clients or DEFAULT_NUM_CLIENTS
    choice = resolve_client_batching(
        settings.client_batching, start.loaded.device, start.loaded.facts_name
    )
    on_gpu = start.loaded.device.type == "cuda"
    # Clients that train as one have the threads of all that would train at the same time.
    threads = 0 if on_gpu else workers * computing_threads(settings)
    trainer = TogetherTrainer(graphs=on_gpu, threads=threads)
    how = "together" if choice.together else "one after the other"
    progress.note(f"clients train {how}: {choice.reason}")
    engine = {"name": "in-process", "client_batching": choice.together}
    with InProcessGrid(
        client_app, num_clients, workers, trainer if choice.together else None
    ) as grid:
        return execute(replace(start, engine=engine, at_once=workers), grid, progress)
