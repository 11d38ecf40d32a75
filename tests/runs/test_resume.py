"""A run that is killed and resumed ends as one that ran through, bit for bit."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
from filelock import FileLock
from flwr.app import Context, Message
from flwr.common.config import flatten_dict, fuse_dicts, parse_config_args
from rich.console import Console
from support.killing import (
    Killed,
    KillSwitch,
    Uninterrupted,
    killed_at,
    killed_at_each,
    killed_in_features,
    uninterrupted,
)
from support.simulation import TINY, Outcome, SharedRuns, Simulation
from support.small_backbone import SETTINGS as BACKBONE
from support.small_backbone import features_in, small_backbone

from ahfal_app.cli import main
from ahfal_app.client_app import app as client_app
from ahfal_app.config import Settings
from ahfal_app.engine import flower
from ahfal_app.errors import CheckpointError, ConfigError, ResumeError
from ahfal_app.privacy.store import PrivacyStore
from ahfal_app.results.reading import read_metrics
from ahfal_app.results.status import State, read_status
from ahfal_app.server.start import prepare

ROOT = Path(__file__).parents[2]

#: Statistics of batch norm, whole numbers among them, have to survive, too.
NETWORK: dict[str, object] = {"model.normalise": "batch"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    return uninterrupted(Simulation(tmp_path_factory.mktemp("straight"), data_dir), **NETWORK)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_resumed_run_equals_an_uninterrupted_one(
    share: float, straight: Uninterrupted, simulation: Simulation
):
    folder = killed_at(max(3, round(share * straight.events)), simulation, **NETWORK)
    assert simulation.resume(folder).result == straight.result


#: A cycle with a purchase, and one without.
TWO_CYCLES = {**NETWORK, "cycles": 2}


@pytest.fixture(scope="module")
def straight_two(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    return uninterrupted(Simulation(tmp_path_factory.mktemp("two"), data_dir), **TWO_CYCLES)


@pytest.mark.slow
@pytest.mark.parametrize("first", [3, 4])
def test_killed_at_every_event(first: int, straight_two: Uninterrupted, simulation: Simulation):
    """In two parts, which can be tested at the same time."""
    events = range(first, straight_two.events + 1, 2)
    for event, folder in killed_at_each(events, simulation, **TWO_CYCLES):
        assert simulation.resume(folder).result == straight_two.result, f"killed at event {event}"


# What a client has seen of its pool while it trained is part of what a resumed run goes on with.
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [{"strategy": "chase", "strategy.window": "cycle"}, {"strategy": "temporal"}]
)
def test_what_was_watched_survives_a_kill(
    strategy: dict[str, object], simulation: Simulation
) -> None:
    settings = {**strategy, "local-epochs": 2, "target-fraction": 0.1}
    if strategy["strategy"] == "temporal":
        settings["strategy.step"] = 1
    straight = uninterrupted(simulation, **settings)
    for share in (0.35, 0.55):  # In the second round of the first cycle, and after it.
        folder = killed_at(round(share * straight.events), simulation, **settings)
        assert simulation.resume(folder).result == straight.result


# Features that a killed run has computed are there for the one that goes on.
@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 1])
def test_a_run_on_features_survives_a_kill(
    simulation: Simulation, tmp_path: Path, views: int
) -> None:
    settings = {**BACKBONE, "max-train-samples": 120, "max-test-samples": 40}
    settings |= {"feature-views": views, "augment": "crop"}
    straight = uninterrupted(simulation, **settings)
    rows = []
    for share in (0.02, 0.5):
        again = Simulation(tmp_path / str(share), tmp_path / f"data {share}")
        folder = killed_at(max(1, round(share * straight.events)), again, **settings)
        assert again.resume(folder).result == straight.result
        (kept,) = (tmp_path / f"data {share}" / "features").glob("*/features.f16")
        rows.append(kept.stat().st_size / (2 * small_backbone().features))
    # A view that is not moved is the image itself, and shares its row.
    assert rows == [160, 160] or (views and rows[0] == rows[1] and 260 < rows[0] <= 280)


#: Features of 90 images for training in three parts, and of 30 for testing in one.
IN_PARTS: dict[str, object] = {
    **BACKBONE,
    **{"max-train-samples": 90, "max-test-samples": 30, "cycles": 2, "rounds": 1},
}


@pytest.fixture
def _in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ahfal_app.data.features._BATCH_ON_CPU", 15)
    monkeypatch.setattr("ahfal_app.data.features._WRITTEN_AFTER", 30)


@pytest.mark.slow
@pytest.mark.usefixtures("_in_parts")
def test_a_run_that_is_killed_at_a_write_of_features_is_run_again(tmp_path: Path) -> None:
    def place(data: str) -> Simulation:
        return Simulation(tmp_path / f"runs {data}", tmp_path / data)

    outcomes: list[Outcome] = []
    events = killed_in_features(lambda: outcomes.append(place("straight")(IN_PARTS)))
    straight, expected = outcomes[0].result, features_in(tmp_path / "straight")
    assert len(expected) == 120
    assert events == 4 * 4 + 2 * 2  # Features and hashes of four parts, and two notes of rows.
    for event in range(1, events + 1):
        again = place(data := str(event))
        killed_in_features(lambda again=again: again(IN_PARTS), event)
        if event % 4 == 3:  # As hashes are written, or a note.
            assert again(IN_PARTS).result == straight, f"killed at event {event}"
        else:
            prepare({**TINY, **again.base, **IN_PARTS})
        assert features_in(tmp_path / data) == expected, f"killed at event {event}"


@pytest.mark.slow
@pytest.mark.usefixtures("_in_parts")
def test_a_run_that_is_resumed_without_its_features_computes_them_again(tmp_path: Path) -> None:
    """Killed in the middle of its rounds, and again and again while it has its features back."""
    before = Simulation(tmp_path / "runs", tmp_path / "before")
    straight = uninterrupted(before, **IN_PARTS)
    folder = killed_at(round(0.6 * straight.events), before, **IN_PARTS)

    def resumed() -> Outcome:
        return before.resume(folder, **{"data-dir": str(tmp_path / "after")})

    # Of the 20 events of all features: as the first part is hashed, the third and the last.
    for event in (3, 7, 9):
        killed_in_features(resumed, event)
    assert resumed().result == straight.result
    assert features_in(tmp_path / "after") == features_in(tmp_path / "before")


SECURE = {"privacy": "secure-aggregation"}


@pytest.fixture(scope="module")
def straight_secure(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    return uninterrupted(Simulation(tmp_path_factory.mktemp("secure"), data_dir), **SECURE)


# While keys are told, vectors masked, the sum unmasked (twice) and kept.
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.3, 0.353, 0.392, 0.737])
def test_secure_sums_are_the_same_after_a_resume(
    share: float,
    straight_secure: Uninterrupted,
    simulation: Simulation,
):
    folder = killed_at(round(share * straight_secure.events), simulation, **SECURE)
    assert simulation.resume(folder).result == straight_secure.result


@pytest.mark.slow
def test_secure_run_killed_at_events_of_all_kinds(
    straight_secure: Uninterrupted, simulation: Simulation
):
    for event, folder in killed_at_each(straight_secure.spread(16), simulation, **SECURE):
        assert simulation.resume(folder).result == straight_secure.result, f"at event {event}"


NOISY = {"privacy": "local-dp", "privacy.epsilon": 0.2}


@pytest.fixture(scope="module")
def noisy_events(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> int:
    return uninterrupted(Simulation(tmp_path_factory.mktemp("noisy"), data_dir), **NOISY).events


class Heard:
    """Every histogram that leaves a client, in all lives of a run."""

    def __init__(self) -> None:
        self.histograms: dict[tuple[int, int], set[tuple[int, ...]]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.histogram":
            cycle = message.content.config_records["config"]["cycle"]
            counts = reply.content.metric_records["metrics"]["counts"]
            key = (int(context.node_config["partition-id"]), int(cycle))
            self.histograms.setdefault(key, set()).add(tuple(counts))
        return reply


def _check_noise(heard: Heard, outcome: Outcome) -> None:
    """Each client has told each cycle's histogram once, and spent what was said."""
    assert set(heard.histograms) == {(client, cycle) for client in range(3) for cycle in range(2)}
    assert all(len(told) == 1 for told in heard.histograms.values())
    assert [cycle.epsilon_spent for cycle in outcome.metrics.cycles] == [0.1, 0.2, None]
    for client in range(3):
        store = PrivacyStore(outcome.folder / "clients" / str(client) / "labels.sqlite")
        assert store.spent() == Fraction("0.2")
        store.close()


# With a release stored and not told, told by one client, told by two; in the next cycle.
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.288, 0.294, 0.318, 0.641])
def test_noise_is_the_same_after_a_resume(share: float, noisy_events: int, simulation: Simulation):
    heard = Heard()
    folder = killed_at(round(share * noisy_events), simulation, watch=heard, **NOISY)
    _check_noise(heard, simulation.resume(folder, heard))


@pytest.mark.slow
def test_noisy_run_killed_at_every_fifth_event(noisy_events: int, simulation: Simulation):
    for event in range(3, noisy_events + 1, 5):
        heard = Heard()
        folder = killed_at(event, simulation, watch=heard, **NOISY)
        _check_noise(heard, simulation.resume(folder, heard))
        shutil.rmtree(folder)


@pytest.mark.slow
def test_killed_again_and_again(straight: Uninterrupted, simulation: Simulation):
    folder = killed_at(20, simulation, **NETWORK)
    for event in (5, 17, 31):
        killed_at(event, simulation, folder)
    assert simulation.resume(folder).result == straight.result


def test_finished_run_resumes_to_itself(straight: Outcome, simulation: Simulation):
    before = straight.result
    assert simulation.resume(straight.folder).result == before


@pytest.mark.slow
def test_sigkilled_process_is_resumed(
    straight: Outcome, simulation: Simulation, data_dir: Path, tmp_path: Path
):
    """The real thing, through the command line; another process goes on."""
    values = {**TINY, **NETWORK, "output-dir": tmp_path, "data-dir": data_dir, "name": "real"}
    command = [sys.executable, "-m", "ahfal_app", "run"]
    arguments = [f"{key}={value}" for key, value in values.items()]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
    metrics = tmp_path / "real" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 600):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = read_status(tmp_path / "real")
    assert left is not None
    assert left.state is State.RUNNING
    with pytest.raises(SystemExit) as ended:
        main(["run", f"resume={tmp_path / 'real'}"])
    assert not ended.value.code
    assert Outcome(tmp_path / "real", "").result == straight.result
    status = read_status(tmp_path / "real")
    assert status is not None
    assert (status.state, status.resumed, status.started) == (State.FINISHED, 1, left.started)


@pytest.mark.slow
def test_client_that_missed_a_purchase_does_not_stand_in_the_way(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
):
    def run(switch: KillSwitch) -> dict[str, object]:
        missed = False

        def handler(message: Message, context: Context) -> Message:
            nonlocal missed
            is_select = message.metadata.message_type == "query.select"
            if is_select and context.node_config["partition-id"] == 2 and not missed:
                missed = True
                raise RuntimeError("away")
            return switch.handler(message, context)

        return {"handler": handler, "name": f"missed-{switch.fatal}"}

    straight = simulation(**run(KillSwitch()))
    counting = KillSwitch()
    with monkeypatch.context() as patch:
        counting.install(patch)
        simulation(**{**run(counting), "name": "counted"})
    # While the second cycle is trained, and client 2 still lacks what the others bought.
    switch = KillSwitch(round(0.62 * counting.events))
    with monkeypatch.context() as patch:
        switch.install(patch)
        with pytest.raises(Killed):
            simulation(**run(switch))
    folder = straight.folder.parent / f"missed-{switch.fatal}"
    metrics = read_metrics(folder)
    assert len(metrics.cycles) == 1
    assert [f.client for f in metrics.cycles[0].failed] == [2]
    assert simulation.resume(folder).metrics.cycles[-1].ledger == (
        straight.metrics.cycles[-1].ledger
    )


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_damaged_newest_checkpoint_gives_the_same_result(
    share: float, straight: Uninterrupted, simulation: Simulation
):
    folder = killed_at(round(share * straight.events), simulation, **NETWORK)
    newest = max((folder / "checkpoint").glob("[0-9]*"))
    (newest / "model.safetensors").write_bytes(b"damaged")
    resumed = simulation.resume(folder)
    assert "a newer checkpoint cannot be used" in resumed.log
    assert resumed.result == straight.result


def test_two_processes_do_not_run_the_same_run(straight: Outcome, simulation: Simulation):
    with FileLock(straight.folder / ".lock"), pytest.raises(ResumeError, match="another process"):
        simulation.resume(straight.folder)


def test_what_flower_lists_as_default_changes_nothing_on_resume(simulation: Simulation):
    folder = simulation(cycles=1, **{"round-timeout": 77.0}).folder
    everything = {**Settings().to_flat(), "resume": str(folder)}
    assert prepare(everything).settings.round_timeout == 77.0
    with pytest.raises(ConfigError, match=r"rounds=10: the run was started with 2"):
        prepare({"resume": str(folder), "rounds": 10})


def _as_flower_gives(*written: str) -> dict[str, object]:
    """Return what a ServerApp gets of what stands behind `flwr run --run-config`."""
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return dict(fuse_dicts(flatten_dict(manifest), parse_config_args(list(written))))


@pytest.fixture(scope="module")
def with_a_rule(shared_runs: SharedRuns) -> Path:
    """The folder of a run whose rule is not the default one, and which has a price."""
    return shared_runs(cycles=1, stopping="target", seed=3, **{"label-cost": 2.0}).folder


def test_a_default_that_was_said_on_resume_travels_through_flower(
    with_a_rule: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tmp_path / "run.toml"

    def run(_home: Path, written: Path, *_: object) -> None:
        shutil.copy(written, config)

    monkeypatch.setattr(flower, "_run", run)
    values = {"resume": str(with_a_rule), "stopping": "none", "label-cost": 0.0}
    flower.run_on_flower(values, Console(file=io.StringIO()))
    for given in (values, _as_flower_gives(str(config))):
        found = prepare(given).settings
        assert (found.stopping, found.label_cost) == ("none", 0.0)


def test_a_default_is_said_to_flower_in_one_text(with_a_rule: Path):
    resume = f'resume="{with_a_rule}"'
    assert prepare(_as_flower_gives(resume)).settings.stopping == "target"
    assert prepare(_as_flower_gives(resume, 'more="stopping=none"')).settings.stopping == "none"
    with pytest.raises(ConfigError, match=r"seed=0: the run was started with 3"):
        prepare(_as_flower_gives(resume, 'more="seed=0"'))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (
            'stopping=none" stopping="gain',
            "stopping: stands in more and beside it; allowed is once",
        ),
        ("stopping=nothing", "stopping='nothing'"),
        ("cycles", "more: 'cycles': allowed is <setting>.<parameter>=value"),
        ("'cycles", "No closing quotation"),
    ],
)
def test_what_cannot_be_said_in_one_text(more: str, why: str, with_a_rule: Path):
    with pytest.raises(ConfigError, match=re.escape(why)):
        prepare(_as_flower_gives(f'resume="{with_a_rule}"', f'more="{more}"'))


def test_resume_refuses_other_settings(straight: Outcome, simulation: Simulation):
    with pytest.raises(ConfigError, match=r"seed=7: the run was started with 0"):
        simulation({"resume": str(straight.folder)}, seed=7)


def test_resume_refuses_other_data(straight: Outcome, tmp_path: Path):
    """Rows that clients have labelled would be other samples."""
    folder = Path(shutil.copytree(straight.folder, tmp_path / "run"))
    environment = json.loads((folder / "environment.json").read_text())
    assert prepare({"resume": str(folder)}).folder == folder
    environment["data"]["fingerprint"] = "ab" * 32
    (folder / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(ResumeError, match=r"dataset='digits': .*started with abababababab; allow"):
        prepare({"resume": str(folder)})


def test_resume_needs_a_run(simulation: Simulation, tmp_path: Path):
    with pytest.raises(ResumeError, match="allowed is the folder of a run"):
        simulation({"resume": str(tmp_path)})


def test_resume_without_a_usable_checkpoint(simulation: Simulation):
    folder = simulation(cycles=1).folder
    shutil.rmtree(folder / "checkpoint")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        simulation.resume(folder)


# Before the first round is trained, in the first cycle, after it, and at the end.
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, None])
def test_labels_in_memory_end_with_the_run(share: float | None, simulation: Simulation):
    settings = {"client-state": "memory"}
    run = uninterrupted(simulation, **settings)
    event = None if share is None else round(share * run.events)
    folder = run.folder if event is None else killed_at(event, simulation, **settings)
    with pytest.raises(ResumeError, match=r"lost labels, which client-state='memory' keeps no"):
        simulation.resume(folder)


def test_a_run_that_is_over_and_was_asked_again_may_get_more(
    straight: Outcome, simulation: Simulation
):
    """Nothing of a cycle that was not to come is fixed when nothing is left to be done."""
    folder = simulation(**NETWORK, **{"target-fraction": 0.1}).folder
    simulation.resume(folder)
    assert simulation.resume(folder, **{"target-fraction": 0.15}).result == straight.result
