"""Trackers show what `metrics.jsonl` holds: each record once, whatever happens on the way."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from support.killing import Killed
from support.simulation import Outcome, Simulation

from ahfal_app.errors import ConfigError
from ahfal_app.ledger import Ledger
from ahfal_app.parameters import Scalar
from ahfal_app.results.records import CycleRecord, RoundRecord, SiteTest, TestRecord
from ahfal_app.server import run as run_module
from ahfal_app.server import start as start_module
from ahfal_app.server.checkpoint import Checkpoint
from ahfal_app.server.preflight import check_settings
from ahfal_app.trackers import Point, TrackedRun, Tracking, open_tracking
from ahfal_app.trackers import tensorboard as tensorboard_tracker
from ahfal_app.trackers.core.points import point_of

#: Values by (metric, step), in the order in which they were logged.
Logged = dict[tuple[str, int], list[float]]

CLASSES = ("cat", "T-shirt / top", "2")


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


# --- what stores hold, by their own libraries ----------------------------------------------


def read_tensorboard(folder: Path) -> Logged:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(folder / "tensorboard"), {"scalars": 0}, purge_orphaned_data=False
    )
    events.Reload()
    logged: Logged = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            logged.setdefault((name, event.step), []).append(event.value)
    return logged


def read_mlflow(folder: Path) -> Logged:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ahfal").experiment_id])
    return mlflow_metrics(client, run)


def mlflow_metrics(client, run) -> Logged:
    logged: Logged = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            logged.setdefault((name, metric.step), []).append(metric.value)
    return logged


def wandb_records(file: Path) -> Iterator[bytes]:
    """Return the records of an offline run: LevelDB's log format behind seven bytes."""
    content, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        if not kind:
            return
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        # Whole, or the last part of several.
        if kind in (1, 4):
            yield parts
            parts = b""


def read_wandb(folder: Path) -> Logged:
    from wandb.proto import wandb_internal_pb2

    logged: Logged = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for name, value in row.items():
                if name.startswith(("round/", "cycle/")):
                    logged.setdefault((name, int(row["rounds"])), []).append(value)
    return logged


READERS: dict[str, Callable[[Path], Logged]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


@pytest.fixture(params=READERS)
def tracker(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name, reason=f"the extra {name} is not installed")
    return name


def check_mirrors(logged: Logged, outcome: Outcome) -> None:
    """Each record of the run is there once, with its own numbers."""
    metrics = outcome.metrics
    rounds = {2 * r.cycle + r.round: r for r in metrics.rounds}
    cycles = {2 * c.cycle + 2: c for c in metrics.cycles}
    assert len(rounds) == 6
    assert len(cycles) == 3
    assert {len(values) for values in logged.values()} == {1}
    assert {step for name, step in logged if name.startswith("round/")} == set(rounds)
    assert {step for name, step in logged if name.startswith("cycle/")} == set(cycles)
    for step, record in rounds.items():
        assert logged["round/train_loss", step] == pytest.approx([record.train_loss])
        assert logged["round/bytes_up", step] == [record.bytes_up]
        assert logged["round/seconds/train", step] == pytest.approx([record.seconds["train"]])
    for step, cycle in cycles.items():
        assert logged["cycle/accuracy", step] == pytest.approx([cycle.accuracy])
        assert logged["cycle/loss", step] == pytest.approx([cycle.loss])
        assert logged["cycle/labels", step] == [cycle.labels]
        assert logged["cycle/class_accuracy/7", step] == pytest.approx([cycle.class_accuracy[7]])
        if cycle.deviation is None:
            assert ("cycle/deviation/3", step) not in logged
        else:
            assert logged["cycle/deviation/3", step] == pytest.approx([cycle.deviation[3]])


def kill_at(call: int, patch: pytest.MonkeyPatch, *, written: bool) -> None:
    """Kill at the n-th checkpoint, before or after it is written; nothing is ended properly."""
    write, calls = run_module.write_checkpoint, 0

    def killing(folder: Path, checkpoint: Checkpoint) -> None:
        nonlocal calls
        calls += 1
        if calls != call or written:
            write(folder, checkpoint)
        if calls == call:
            if hasattr(sys.modules.get("wandb"), "teardown"):
                # Its process ends with ours; else it would go on with the run it has.
                sys.modules["wandb"].teardown()
            raise Killed

    for module in (start_module, run_module):
        patch.setattr(module, "write_checkpoint", killing)
    patch.setattr(Tracking, "__exit__", lambda *_: None)


@pytest.mark.slow
def test_a_run_that_is_killed_twice_appears_once(
    tracker: str, simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # The checkpoint is there, and the tracker has not heard of its record.
        kill_at(3, patch, written=True)
        with pytest.raises(Killed):
            simulation(name="killed", tracker=tracker)
    folder = Path(str(simulation.base["output-dir"])) / "killed"
    with monkeypatch.context() as patch:
        # The record is there without its checkpoint: it is made again.
        kill_at(2, patch, written=False)
        with pytest.raises(Killed):
            simulation.resume(folder)
    outcome = simulation.resume(folder)
    check_mirrors(READERS[tracker](folder), outcome)
    if tracker == "mlflow":
        check_mlflow_run(folder)
    if tracker == "tensorboard":
        check_hyperparameters(folder)


def check_mlflow_run(folder: Path) -> None:
    """Settings, status and report are there, all of them in the run's folder."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ahfal").experiment_id])
    assert run.info.run_name == "killed"
    assert run.info.status == "FINISHED"
    assert run.data.params["tau"] == "12.0"
    assert run.data.params["num-clients"] == "3"
    (report,) = (folder / "mlflow-artifacts").rglob("report.html")
    assert report.read_text() == (folder / "report.html").read_text()


def check_hyperparameters(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata
    (text,) = events.Tensors("settings/text_summary")
    assert b"strategy: ahfal" in text.tensor_proto.string_val[0]


# --- what MLflow has heard and the run no longer holds ---------------------------------------


def points(values: Sequence[float]) -> list[Point]:
    return [
        Point(index, index + 1, {"round/train_loss": value}, 1000.0 + index)
        for index, value in enumerate(values)
    ]


@pytest.mark.slow
def test_a_run_that_falls_back_replaces_what_mlflow_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    from ahfal_app.trackers.mlflow import make

    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run = TrackedRun("abc", tmp_path, 10, CLASSES)
    client = MlflowClient(uri)

    def series() -> tuple[str, Logged]:
        experiment = client.get_experiment_by_name("mine")
        (found,) = client.search_runs([experiment.experiment_id])
        return found.info.run_id, mlflow_metrics(client, found)

    tracker = make(run, [])
    tracker.log(points([3.0, 2.0]))
    # A request that is sent again, since its answer was lost, counts once.
    tracker.log(points([3.0, 2.0]))
    first, logged = series()
    assert logged == {("round/train_loss", 1): [3.0], ("round/train_loss", 2): [2.0]}
    make(run, points([3.0, 2.0, 1.5]))
    assert series() == (first, {**logged, ("round/train_loss", 3): [1.5]})
    # From an older checkpoint: the second round is done again, and ends otherwise.
    make(run, points([3.0])).log(points([3.0, 2.25])[1:])
    second, logged = series()
    assert second != first
    assert logged == {("round/train_loss", 1): [3.0], ("round/train_loss", 2): [2.25]}


def test_a_server_that_is_not_there_is_told_before_anything_is_trained(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"tracker='mlflow': cannot be opened .*127\.0\.0\.1"):
        simulation(name="refused", tracker="mlflow")
    folder = Path(str(simulation.base["output-dir"])) / "refused"
    assert not (folder / "metrics.jsonl").read_text()


# --- settings ----------------------------------------------------------------------------------


def test_a_tracker_without_its_library_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError) as caught:
        check_settings({"tracker": "mlflow", "strategy": "randm"})
    text = str(caught.value)
    assert "tracker='mlflow': the library mlflow is not installed" in text
    assert "uv sync --extra mlflow" in text
    # With all other problems.
    assert "strategy='randm'" in text


def test_a_folder_of_the_library_s_name_is_not_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="the library wandb is not installed"):
        check_settings({"tracker": "wandb"})
    # The folder was imported, and would be taken for the library by whoever asks next.
    sys.modules.pop("wandb", None)


def test_an_unknown_tracker_is_refused() -> None:
    allowed = r"mlflow \| tensorboard \| wandb; did you mean 'tensorboard'\?"
    with pytest.raises(ConfigError, match=rf"tracker='tensorbord': allowed is none \| {allowed}"):
        check_settings({"tracker": "tensorbord"})


def test_a_resumed_run_takes_another_tracker(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(3, patch, written=True)
        with pytest.raises(Killed):
            simulation(name="killed", tracker="tensorboard")
    folder = Path(str(simulation.base["output-dir"])) / "killed"

    def resumed(**values: object) -> str:
        return start_module.prepare({"resume": str(folder), **values}).settings.tracker

    assert resumed() == "tensorboard"
    assert resumed(tracker="none") == "none"


# --- the wall around a tracker -------------------------------------------------------------


class Flaky:
    """A tracker that fails in some of its calls."""

    def __init__(self, failing: Sequence[int]) -> None:
        self.failing = failing
        self.calls = 0
        self.settings: list[Mapping[str, Scalar]] = []
        self.points: list[Point] = []
        self.finished: list[tuple[Path | None, str]] = []

    def _call(self) -> None:
        self.calls += 1
        if self.calls in self.failing:
            raise RuntimeError(f"call {self.calls}")

    def log_settings(self, settings: Mapping[str, Scalar]) -> None:
        self._call()
        self.settings.append(settings)

    def log(self, points: Sequence[Point]) -> None:
        self._call()
        self.points += points

    def finish(self, report: Path | None, stopped: str) -> None:
        self._call()
        self.finished.append((report, stopped))


def round_record(cycle: int, round_: int) -> RoundRecord:
    return RoundRecord(cycle=cycle, round=round_, clients=3, num_examples=7, train_loss=0.5)


def tracking_of(tracker: Flaky, warnings: list[str]) -> Tracking:
    return Tracking(tracker, "flaky", TrackedRun("a", Path(), 4, CLASSES), 0, warnings.append)


def test_what_has_no_checkpoint_is_not_told() -> None:
    tracker = Flaky([])
    tracking = tracking_of(tracker, [])
    tracking.recorded(round_record(0, 1))
    assert tracker.points == []
    tracking.committed()
    tracking.recorded(round_record(0, 2))
    tracking.finish(None, "stopped")
    assert [(p.index, p.step) for p in tracker.points] == [(0, 1)]
    assert tracker.finished == [(None, "stopped")]


def test_the_same_settings_are_told_once() -> None:
    tracker = Flaky([])
    tracking = tracking_of(tracker, [])
    for tau in (12.0, 12.0, 13.0):
        tracking.log_settings({"tau": tau})
    assert tracker.settings == [{"tau": 12.0}, {"tau": 13.0}]


def test_after_a_failure_the_rest_is_told_at_the_end(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = Flaky([2])
    with tracking_of(tracker, warnings) as tracking:
        for number in (1, 2, 3):
            tracking.recorded(round_record(0, number))
            tracking.committed()
        # One good call, one bad one, and no more until the end.
        assert tracker.calls == 2
        tracking.finish(tmp_path)
    assert [point.index for point in tracker.points] == [0, 1, 2]
    assert tracker.finished == [(tmp_path, "")]
    assert len(warnings) == 1
    assert "tracker=flaky: RuntimeError: call 2; the run goes on" in warnings[0]


def test_an_interrupted_run_ends_its_tracking() -> None:
    tracker = Flaky([])
    with pytest.raises(KeyboardInterrupt), tracking_of(tracker, []):
        raise KeyboardInterrupt
    assert tracker.finished == [(None, "KeyboardInterrupt")]


def test_a_run_outlives_its_tracker(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tensorboard_tracker.SummaryWriter, "add_scalar", broken)
    outcome = simulation(tracker="tensorboard")
    assert outcome.summary["complete"]
    assert outcome.log.count("disk full") == 1


def test_records_as_points() -> None:
    run = TrackedRun("a", Path(), 4, CLASSES)
    cycle = CycleRecord(
        cycle=1,
        labels=30,
        labels_per_client=(10, 20),
        accuracy=0.5,
        class_accuracy=(0.25, None, 1.0),
        loss=float("nan"),
        low=(True, False, True),
        tau=12,
        ledger=Ledger(allotted=3, spent=2, reserved=1, free=0),
        seconds={"evaluate": 1.5},
        held_out=4,
        tests=(TestRecord(where="sites", samples=4, metrics={"auroc": 0.75, "loss": None}),),
        sites=(
            SiteTest(
                client=1, test=TestRecord(where="sites", samples=4, metrics={"accuracy": 0.25})
            ),
        ),
    )
    point = point_of(cycle, 5, run)
    assert (point.index, point.step) == (5, 8)
    expected = {
        "cycle/labels": 30,
        "cycle/accuracy": 0.5,
        "cycle/class_accuracy/0-cat": 0.25,
        "cycle/class_accuracy/2": 1.0,
        "cycle/low/0-cat": 1,
        "cycle/low/1-T-shirt-top": 0,
        "cycle/low/2": 1,
        "cycle/tau": 12,
        "cycle/ledger/allotted": 3,
        "cycle/ledger/spent": 2,
        "cycle/ledger/reserved": 1,
        "cycle/ledger/free": 0,
        "cycle/budget": 0,
        "cycle/bought": 0,
        "cycle/pending": 0,
        "cycle/failed": 0,
        "cycle/seconds/evaluate": 1.5,
        "cycle/bytes_down": 0,
        "cycle/bytes_up": 0,
        "cycle/held_out": 4,
        "cycle/sites/auroc": 0.75,
        "cycle/site-1/accuracy": 0.25,
    }
    assert point.metrics == expected
    assert point_of(round_record(2, 3), 0, run).step == 11


def test_no_tracker_tells_nothing() -> None:
    tracking = open_tracking("none", TrackedRun("a", Path(), 4, CLASSES), [], pytest.fail)
    with tracking:
        tracking.log_settings({"tau": 1.0})
        tracking.recorded(round_record(0, 1))
        tracking.committed()
