"""Experiment trackers by name, one file each; their libraries are optional extras.

A tracker shows what `metrics.jsonl` holds, and nothing reads it back: the run's folder
stays the record, so that a tracker may fail without harm.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence

from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar
from ahfal_app.plugins import TRACKERS
from ahfal_app.results.records import Record
from ahfal_app.trackers.core.points import Point, TrackedRun, Tracker, point_of
from ahfal_app.trackers.core.tracking import Tracking

__all__ = [
    "NO_TRACKER",
    "Point",
    "TrackedRun",
    "Tracker",
    "Tracking",
    "library_problem",
    "open_tracking",
    "tracker_names",
]

#: The setting that asks for no tracker.
NO_TRACKER = "none"


def tracker_names() -> tuple[str, ...]:
    """Return what `tracker` may be: `none`, or the name of a tracker."""
    return (NO_TRACKER, *TRACKERS.names())


def library_problem(name: str) -> str | None:
    """Return why a tracker's library cannot be used, with what installs it, or None.

    The extra has the tracker's name, and so has the library; another package installs what its
    own tracker needs.
    """
    if name not in TRACKERS.own_names():
        return None
    found = importlib.util.find_spec(name)
    # wandb and MLflow leave folders of their own name behind, which Python takes for packages.
    if found is not None and found.origin is not None:
        return None
    return (
        f"tracker={name!r}: the library {name} is not installed; allowed is tracker={NO_TRACKER!r} "
        f"or, after `uv sync --extra {name}` (pip install 'ahfal-app[{name}]'), this one"
    )


def open_tracking(
    name: str,
    run: TrackedRun,
    history: Sequence[Record],
    warn: Callable[[str], None],
    parameters: Mapping[str, Scalar] | None = None,
) -> Tracking:
    """Open a tracker, give it what it lacks of a run's history, and return what to tell it by.

    Parameters
    ----------
    name : str
        One of `tracker_names()`.
    run : TrackedRun
        The run to track.
    history : Sequence[Record]
        What a resumed run keeps of what was done before; empty for a new run.
    warn : Callable[[str], None]
        Tells people about the first failure.
    parameters : Mapping[str, Scalar], optional
        The settings `tracker.<parameter>`, without the prefix.

    Raises
    ------
    ConfigError
        The tracker cannot be opened: no server there, not logged in.
    """
    points = [point_of(record, index, run) for index, record in enumerate(history)]
    tracker = None if name == NO_TRACKER else _open(name, run, points, parameters or {})
    return Tracking(tracker, name, run, len(points), warn)


def _open(
    name: str, run: TrackedRun, history: Sequence[Point], parameters: Mapping[str, Scalar]
) -> Tracker:
    try:
        model, make = TRACKERS.parameters(name), TRACKERS.component(name)
        arguments = [model.model_validate(dict(parameters))] if model.model_fields else []
        tracker: Tracker = make(run, history, *arguments)
    except Exception as error:
        # Every library has errors of its own; nothing has been trained or bought yet.
        raise ConfigError(
            [
                f"tracker={name!r}: cannot be opened ({type(error).__name__}: {error}); allowed is "
                f"tracker={NO_TRACKER!r}, or this tracker once that is mended"
            ]
        ) from error
    return tracker
