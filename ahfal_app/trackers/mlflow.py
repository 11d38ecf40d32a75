"""MLflow: a database in the run's folder, or whatever MLFLOW_TRACKING_URI names.

The run is found again by a tag, so that nothing about MLflow need be kept besides.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

# Anonymous reports to MLflow's makers are nothing that a run should send by itself, and one
# minute of attempts is enough for a server that is down; both are read at the first use.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from ahfal_app.parameters import Scalar
from ahfal_app.trackers.core.points import REPORT_ARTIFACT, Point, TrackedRun

DATABASE = "mlflow.db"
ARTIFACTS = "mlflow-artifacts"
EXPERIMENT = "ahfal"
RUN_TAG = "ahfal.run"

# MLflow takes no more in one request.
_MOST_METRICS = 1000
_MOST_PARAMS = 100

T = TypeVar("T")


def make(run: TrackedRun, history: Sequence[Point]) -> Mlflow:
    """Return the tracker of a run, with its history in it."""
    return Mlflow(run, history)


class Mlflow:
    """Writes to an MLflow store."""

    def __init__(self, run: TrackedRun, history: Sequence[Point]) -> None:
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=given or f"sqlite:///{run.folder / DATABASE}")
        artifacts = None if given else (run.folder / ARTIFACTS).as_uri()
        self._experiment = self._experiment_id(artifacts)
        found = self._find(run.id)
        missing = None if found is None else self._missing(found, history)
        if found is not None and missing is None:
            # A point cannot be taken back, so what the run has fallen back behind goes as a whole.
            self._client.delete_run(found.info.run_id)
        if found is None or missing is None:
            tags = {RUN_TAG: run.id}
            found = self._client.create_run(self._experiment, tags=tags, run_name=run.folder.name)
            missing = _metrics(history)
        self._run = found.info.run_id
        self._params = set(found.data.params)
        self._client.update_run(self._run, status="RUNNING")
        self._log_metrics(missing)

    def log_settings(self, settings: Mapping[str, Scalar]) -> None:
        """Log the settings as parameters, which MLflow lets no one change."""
        missing = {key: value for key, value in settings.items() if key not in self._params}
        params = [Param(key, str(value)) for key, value in missing.items()]
        for batch in _batches(params, _MOST_PARAMS):
            self._client.log_batch(self._run, params=batch)
        self._params |= set(missing)

    def log(self, points: Sequence[Point]) -> None:
        """Log points; MLflow drops what it has already, to the millisecond."""
        self._log_metrics(_metrics(points))

    def finish(self, report: Path | None, stopped: str) -> None:
        """Log the report and close the run."""
        if report is not None:
            self._client.log_artifact(self._run, str(report), REPORT_ARTIFACT)
        if stopped:
            self._client.set_tag(self._run, "ahfal.stopped", stopped)
        self._client.set_terminated(self._run, "FAILED" if stopped else "FINISHED")

    def _experiment_id(self, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:
                # Another run of a sweep was faster.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _find(self, run_id: str) -> Run | None:
        found = self._client.search_runs([self._experiment], f"tags.`{RUN_TAG}` = '{run_id}'")
        return found[0] if found else None

    def _missing(self, found: Run, history: Sequence[Point]) -> list[Metric] | None:
        """Return the part of the history that a run lacks; None if it holds anything else."""
        metrics = _metrics(history)
        logged = {
            _identity(metric)
            for name in found.data.metrics
            for metric in self._client.get_metric_history(found.info.run_id, name)
        }
        if logged - {_identity(metric) for metric in metrics}:
            return None
        return [metric for metric in metrics if _identity(metric) not in logged]

    def _log_metrics(self, metrics: Sequence[Metric]) -> None:
        for batch in _batches(metrics, _MOST_METRICS):
            self._client.log_batch(self._run, metrics=batch)


def _metrics(points: Sequence[Point]) -> list[Metric]:
    return [
        Metric(name, value, round(1000 * point.time), point.step)
        for point in points
        for name, value in point.metrics.items()
    ]


def _identity(metric: Metric) -> tuple[str, int, float]:
    return metric.key, metric.step, metric.value


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in itertools.count(0, size):
        batch = values[start : start + size]
        if not batch:
            return
        yield batch
