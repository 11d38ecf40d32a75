"""Experiment files, scales and sweeps: grids by hand, and sweeps that are stopped and resumed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from support.sweeps import sweeps_here

from ahfal_app.config import parse_settings
from ahfal_app.errors import ConfigError, SweepError
from ahfal_app.experiments import workers
from ahfal_app.experiments.files import Experiment, load_experiment, load_experiments
from ahfal_app.experiments.results import FAILURES, RUNS, is_done
from ahfal_app.experiments.scales import Scale, seeds_at, settings_at
from ahfal_app.experiments.sweep import SweepResult, default_jobs, gpus_to_share, run_sweep
from ahfal_app.results.reading import read_run
from ahfal_app.server.preflight import check_clients, check_data, planned_labels

TINY_FILE = """
title: Tiny
dataset: digits
num-clients: 3
rounds: 1
local-epochs: 1
max-train-samples: 300
max-test-samples: 60
cycles: 2
data-dir: {data_dir}
"""


@pytest.fixture
def tiny(tmp_path: Path, simulation) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY_FILE.format(data_dir=simulation.base["data-dir"]))
    return file


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def points(experiment: Experiment) -> list[tuple[object, ...]]:
    return [tuple(run.labels.values()) for run in experiment.runs]


class TestFiles:
    def test_a_grid_is_the_product_of_its_axes_in_order(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.yaml", "sweep: {strategy: [random, ahfal], seed: [3, 4]}")
        experiment = load_experiment(file)
        assert points(experiment) == [("random", 3), ("random", 4), ("ahfal", 3), ("ahfal", 4)]
        assert [run.settings.seed for run in experiment.runs] == [3, 4, 3, 4]
        assert experiment.title == "a"

    def test_a_file_says_whom_its_methods_are_compared_with(self, tmp_path: Path) -> None:
        text = "sweep: {seed: [0, 1], alpha: [0.1, 1.0], strategy: [random, ahfal]}\n"
        assert load_experiment(write(tmp_path / "a.yaml", text)).reference is None
        base = write(tmp_path / "b.yaml", text + "reference: 1.0\n")
        assert load_experiment(base).reference == 1.0
        # Who runs one of them alone compares nothing.
        assert load_experiment(base, overrides={"alpha": 0.1}).reference is None
        assert load_experiment(write(tmp_path / "c.yaml", "base: b.yaml")).reference is None
        for said, allowed in (
            ("reference: 2", "alpha: 0.1 | 1.0"),
            ("reference: random", "alpha"),
            ("reference:", "alpha: 0.1 | 1.0"),
        ):
            with pytest.raises(ConfigError, match=r"reference=.*allowed is a label") as refused:
                load_experiment(write(tmp_path / "d.yaml", text + said))
            assert allowed in str(refused.value)
        alone = write(tmp_path / "e.yaml", "reference: random\nsweep: {seed: [0]}")
        with pytest.raises(ConfigError, match="allowed is with an axis"):
            load_experiment(alone)

    def test_an_axis_of_groups_sets_several_settings(self, tmp_path: Path) -> None:
        text = """
        sweep:
          variant:
            full: {}
            local: {strategy.toggle: local, tau: 5.0}
            nothing:
        """
        runs = load_experiment(write(tmp_path / "a.yaml", text)).runs
        assert [run.labels for run in runs] == [
            {"variant": "full"},
            {"variant": "local"},
            {"variant": "nothing"},
        ]
        assert [run.settings.tau for run in runs] == [12, 5, 12]
        assert runs[1].settings.parameters_of("strategy") == {"toggle": "local"}

    def test_a_file_inherits_and_replaces_axis_by_axis(self, tmp_path: Path) -> None:
        (tmp_path / "below").mkdir()
        write(
            tmp_path / "base.yaml",
            "title: Base\nrounds: 3\ntau: 4.0\nsweep: {seed: [0, 1], alpha: [0.1]}\n"
            "paper: [{alpha: 0.1, accuracy: 50}]",
        )
        write(tmp_path / "middle.yaml", "base: base.yaml\nrounds: 7")
        file = write(
            tmp_path / "below/top.yaml", "base: ../middle.yaml\ntau: 9.0\nsweep: {seed: [5]}"
        )
        experiment = load_experiment(file)
        assert experiment.axes == {"seed": (5,), "alpha": (0.1,)}
        (run,) = experiment.runs
        assert (run.settings.rounds, run.settings.tau) == (7, 9)
        assert experiment.title == "top"
        assert experiment.paper == ()

    def test_a_file_that_is_its_own_base_by_another_way(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        file = write(tmp_path / "x/self.yaml", "base: ../x/self.yaml")
        with pytest.raises(ConfigError, match="files inherit from each other"):
            load_experiment(file)

    def test_paper_numbers_keep_their_place_on_the_axes(self, tmp_path: Path) -> None:
        text = "sweep: {tau: [1.0]}\npaper: [{tau: 1.0, accuracy: 64.6, std: 0.5}]"
        (number,) = load_experiment(write(tmp_path / "a.yaml", text)).paper
        assert (number.accuracy, number.std, number.labels) == (64.6, 0.5, {"tau": 1.0})

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("sweep: [1]", "sweep=.*allowed is a mapping of axes"),
            ("sweep: {tau: 3}", r"sweep.tau=3: allowed is a list"),
            ("sweep: {tau: []}", r"sweep.tau=\[\]: allowed is a list"),
            ("sweep: {x: {a: 1}}", "mapping of labels to settings"),
            ("base: [a]", r"base=\['a'\]: allowed is a file"),
            ("base: missing.yaml", "missing.yaml: No such file"),
            ("base: a.yaml", "files inherit from each other: .*a.yaml -> .*a.yaml"),
            ("paper: 3", "paper=3: allowed is a list"),
            ("paper: [{accuracy: 101}]", "paper.accuracy=101: .*100"),
            ("sweep: {taus: [1.0]}", r"taus: unknown setting; did you mean 'tau'\?.*at taus=1.0"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_experiment(write(tmp_path / "a.yaml", text))

    def test_all_problems_of_a_grid_are_told_each_once(self, tmp_path: Path) -> None:
        text = "rounds: 0\nsweep: {strategy: [ahfal, entropi], alpha: [-1.0, 0.5]}"
        with pytest.raises(ConfigError) as caught:
            load_experiment(write(tmp_path / "a.yaml", text))
        problems = caught.value.problems
        assert len(problems) == 3
        assert sum(problem.startswith("rounds=0") for problem in problems) == 1
        assert any("alpha=-1.0" in p and "(at strategy=ahfal alpha=-1.0)" in p for p in problems)
        assert any("did you mean 'entropy'" in problem for problem in problems)

    def test_overrides_replace_settings_and_axes(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.yaml", "sweep: {strategy: [random, ahfal], seed: [0, 1]}")
        experiment = load_experiment(file, overrides={"strategy": "entropy", "rounds": 2})
        assert points(experiment) == [(0,), (1,)]
        assert {run.settings.strategy for run in experiment.runs} == {"entropy"}
        assert {run.settings.rounds for run in experiment.runs} == {2}

    def test_a_run_is_known_by_what_changes_its_result(self, tmp_path: Path) -> None:
        def key(text: str, **overrides: object) -> str:
            return (
                load_experiment(write(tmp_path / "a.yaml", text), overrides=overrides).runs[0].key
            )

        same = key("strategy: entropy")
        assert key("title: Other\nstrategy: entropy") == same
        assert key("sweep: {strategy: [entropy]}") == same
        assert key("strategy: entropy", **{"data-dir": "/somewhere"}) == same
        assert key("strategy: entropy", seed=1) != same
        assert key("strategy: entropy\nstrategy.model: global") != same


class TestScales:
    def test_paper_changes_nothing(self) -> None:
        assert settings_at(Scale.PAPER, {"rounds": 100}) == {"rounds": 100}
        assert seeds_at(Scale.PAPER, [1, 2, 3, 4]) == [1, 2, 3, 4]

    def test_small_shrinks_rounds_epochs_and_data_and_keeps_the_schedule(self) -> None:
        values = settings_at(Scale.SMALL, {"rounds": 100, "local-epochs": 5, "tau": 3.0})
        assert values == {
            "rounds": 10,
            "local-epochs": 5,
            "lr-decay-epochs": 26,  # 260 of 500 epochs become 26 of 50
            "max-train-samples": 10_000,
            "tau": 3.0,
        }
        assert seeds_at(Scale.SMALL, [4, 5, 6, 7]) == [4, 5, 6]

    def test_small_never_enlarges(self) -> None:
        values = settings_at(
            Scale.SMALL,
            {"rounds": 2, "local-epochs": 1, "max-train-samples": 500, "lr-decay-epochs": 1},
        )
        assert values == {
            "rounds": 2,
            "local-epochs": 1,
            "max-train-samples": 500,
            "lr-decay-epochs": 1,
        }

    def test_smoke_runs_on_what_every_machine_has(self) -> None:
        values = settings_at(Scale.SMOKE, {"dataset": "uoft-cs/cifar10", "num-clients": 100})
        settings = parse_settings(values)
        assert (settings.dataset, settings.num_clients, settings.num_cycles) == ("digits", 3, 2)
        assert seeds_at(Scale.SMOKE, [7, 8]) == [7]

    @pytest.mark.parametrize(
        "text",
        [
            "backbone: torchvision/resnet18\nmodel: linear\nfeature-views: 4",
            "dataset: vectors.parquet\nmodel: mlp\ninitial-strategy: typicality",
            "classes: a,b,c\nimage-size: 224\ntest-fraction: 0.95",
            "initial-labels: 200\nquery-labels: 100\ntarget-labels: 1000",
            "budget: global\ninitial-labels: 2000\nquery-labels: 900\ntarget-labels: 9000",
            "label-steps: 200,300,1000",
            "budget: global\nlabel-steps: 10,900,9000",
            "initial-fraction: 0.5\nquery-fraction: 0.001\ntarget-fraction: 0.9",
            "arrivals: count\narrival-start: 1000\narrival-rate: 500\ninitial-labels: 900\n"
            "query-labels: 100\ntarget-labels: 1900",
            "arrival-order: class-incremental\narrivals: count\narrival-start: 10\n"
            "arrival-rate: 20\ninitial-labels: 10\nquery-labels: 2\ntarget-labels: 90",
            "aggregation: fedmedian\nclient-fraction: 0.3",
        ],
        ids=lambda text: text.split(":")[0],
    )
    def test_smoke_shrinks_a_valid_file_to_a_valid_run(
        self, text: str, tmp_path: Path, data_dir: Path
    ) -> None:
        file = write(tmp_path / "a.yaml", text)
        assert load_experiment(file).runs
        (run,) = load_experiment(file, Scale.SMOKE, {"data-dir": str(data_dir)}).runs
        loaded = check_data(run.settings)
        sizes = [len(rows) for rows in loaded.partition.indices]
        check_clients(run.settings, sizes)
        assert loaded.dataset.image_shape == (8, 8, 1)
        assert len(loaded.dataset.test.labels_N) == 100
        assert planned_labels(run.settings, sizes) <= sum(sizes) // 2

    def test_smoke_refuses_what_the_file_s_own_scale_refuses(self, tmp_path: Path) -> None:
        text = "initial-labels: 200\nquery-labels: 100\ntarget-labels: 100\nclient-fraction: 3.0"
        with pytest.raises(ConfigError) as refused:
            load_experiment(write(tmp_path / "a.yaml", text), Scale.SMOKE)
        for problem in ("target-labels=100", "client-fraction=3.0"):
            assert any(line.startswith(problem) for line in refused.value.problems)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "file",
        sorted(path for path in Path("conf").glob("*/*.yaml") if path.parent.name != "benchmark"),
        ids=lambda f: f.stem,
    )
    @pytest.mark.parametrize("scale", list(Scale))
    def test_every_file_of_the_paper_is_valid(self, file: Path, scale: Scale) -> None:
        experiment = load_experiment(file, scale)
        assert experiment.runs
        assert len({tuple(run.labels.values()) for run in experiment.runs}) == len(experiment.runs)
        for number in experiment.paper:
            for axis, label in number.labels.items():
                assert label in experiment.axes[axis], number


def sweep(
    file: Path, out: Path, overrides: dict[str, object] | None = None, **more: object
) -> tuple[SweepResult, str]:
    output = io.StringIO()
    experiment = load_experiment(file, overrides=overrides)
    result = run_sweep([experiment], out, Console(file=output, width=200), **more)  # type: ignore[arg-type]
    return result, output.getvalue()


class TestSweep:
    @pytest.mark.slow
    @pytest.mark.usefixtures("sweeps_here")
    def test_runs_what_is_missing_and_nothing_twice(self, tiny: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        tiny.write_text(tiny.read_text() + "sweep: {strategy: [random, entropy]}\n")
        first, log = sweep(tiny, out, jobs=2)
        assert len(first.done) == 2
        assert not first.failed
        assert "done (2/2)" in log
        stamps = {path: path.stat().st_mtime_ns for path in (out / RUNS).glob("*/summary.json")}
        assert len(stamps) == 2
        plan = json.loads((out / "experiments" / "tiny-paper.json").read_text())
        assert [run["labels"] for run in plan["runs"]] == [
            {"strategy": "random"},
            {"strategy": "entropy"},
        ]
        assert all(is_done(out / RUNS / run["folder"]) for run in plan["runs"])

        again, log = sweep(tiny, out)
        assert again.done == []
        assert len(again.skipped) == 2
        assert "2 of 2 runs are done already" in log
        assert stamps == {path: path.stat().st_mtime_ns for path in stamps}

        tiny.write_text(tiny.read_text().replace("[random, entropy]", "[entropy, ahfal]"))
        third, _ = sweep(tiny, out)
        assert (len(third.skipped), len(third.done)) == (1, 1)

        forced, _ = sweep(tiny, out, force=True)
        assert len(forced.done) == 2

    @pytest.mark.slow
    @pytest.mark.usefixtures("sweeps_here")
    def test_what_experiments_have_in_common_is_done_once(self, tiny: Path, tmp_path: Path) -> None:
        base = "base: tiny.yaml\n"
        both = write(tmp_path / "both.yaml", f"{base}sweep: {{strategy: [random, ahfal]}}")
        same = write(tmp_path / "same.yaml", f"{base}sweep: {{x: {{a: {{}}, b: {{tau: 12.0}}}}}}")
        out, output = tmp_path / "out", io.StringIO()
        experiments = load_experiments([both, same])
        result = run_sweep(experiments, out, Console(file=output, width=200), jobs=1)
        assert len(result.done) == len(set(result.done)) == 2
        assert "done (2/2)" in output.getvalue()
        for name in ("both", "same"):
            plan = json.loads((out / "experiments" / f"{name}-paper.json").read_text())
            assert len(plan["runs"]) == 2
            assert all(is_done(out / RUNS / run["folder"]) for run in plan["runs"])

    def test_files_that_cannot_be_used_are_all_named(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "below").mkdir()
        same_name = write(tmp_path / "below/tiny.yaml", "")
        files = [tiny, same_name, write(tmp_path / "a.yaml", "tauu: 1")]
        with pytest.raises(ConfigError) as caught:
            load_experiments(files)
        assert f"{same_name}: allowed is one file named 'tiny'; {tiny} is, too" in str(caught.value)
        assert "tauu: unknown setting; did you mean 'tau'?" in str(caught.value)
        with pytest.raises(ConfigError, match="no experiment: allowed is at least one YAML file"):
            load_experiments([])

    @pytest.mark.slow
    @pytest.mark.usefixtures("sweeps_here")
    def test_a_failure_does_not_stop_the_others(self, tiny: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        # Ten thousand samples a client at least: this partition cannot be made.
        tiny.write_text(tiny.read_text() + "sweep: {min-partition-size: [10000, 1, 2]}\n")
        result, log = sweep(tiny, out, jobs=1)
        assert len(result.done) == 2
        assert all(is_done(out / RUNS / name) for name in result.done)
        ((name, reason),) = result.failed.items()
        assert "min-partition-size" in reason
        assert "Traceback" in (out / FAILURES / f"{name}.txt").read_text()
        assert f"failed: {name}" in log

    def test_only_one_process_at_a_time(self, tiny: Path, tmp_path: Path) -> None:
        from filelock import FileLock

        out = tmp_path / "out"
        out.mkdir()
        with FileLock(out / ".lock"), pytest.raises(SweepError, match="another process"):
            sweep(tiny, out)


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_ends_the_same(tiny: Path, tmp_path: Path) -> None:
    """Interrupted first, and killed when it goes on."""
    tiny.write_text(
        tiny.read_text().replace("rounds: 1", "rounds: 25")
        + "model: mlp\nsweep: {strategy: [random, ahfal]}\n"
    )
    whole, out = tmp_path / "whole", tmp_path / "out"
    with sweeps_here():
        sweep(tiny, whole)
    for how in (signal.SIGINT, signal.SIGKILL):
        _stop_sweep(tiny, out, how)
    result, _ = sweep(tiny, out)
    assert not result.failed
    for folder in (whole / RUNS).iterdir():
        ours = read_run(out / RUNS / folder.name).summary
        assert ours["accuracy_per_cycle"] == read_run(folder).summary["accuracy_per_cycle"]


def _stop_sweep(tiny: Path, out: Path, how: signal.Signals) -> None:
    """Begin a sweep, or go on with it, and stop it when a round was recorded."""

    def recorded() -> int:
        files = (out / RUNS).glob("*/metrics.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    before = recorded()
    command = [sys.executable, "-m", "ahfal_app", "sweep", str(tiny), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--jobs", "2"],
        # So that the interrupt reaches it and not the test.
        start_new_session=True,
        # A shell that started the tests in the background would have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while recorded() == before and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, how)
    assert process.wait(60) in (130, -signal.SIGKILL)
    started = list((out / RUNS).glob("*"))
    assert started
    assert not all(is_done(folder) for folder in started)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tiny: Path, tmp_path: Path) -> None:
    experiment = load_experiment(tiny, overrides={"rounds": 500})
    folder = tmp_path / "out" / "run"
    settings = experiment.runs[0].settings.model_copy(
        update={"output_dir": str(folder.parent), "name": folder.name}
    )
    with workers.Workers(1, 1) as ours:
        (worker,) = ours.idle()
        worker.start(workers.Task("run", settings.to_flat(), folder))
        while not ours.wait(1):
            pass
        os.kill(worker._process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        reports = []
        while not any(isinstance(report, workers.RunDone) for _, report in reports):
            reports += ours.wait(1)
        assert "killed by signal 9" in reports[-1][1].failure
        assert len(ours.idle()) == 1
        assert ours.idle()[0] is not worker


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps what is freed")
def test_memory_that_nothing_uses_is_given_back() -> None:
    """Below the last block in use, where it is not given back by itself."""
    program = """if True:
        import threading
        from pathlib import Path
        from ahfal_app.experiments.workers import give_back_memory

        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

        kept = []

        def work():
            blocks = [bytearray(100_000) for _ in range(3000)]
            kept.append(blocks[-1])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        before = resident()
        give_back_memory()
        print(before - resident())
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 200


def test_jobs_by_default() -> None:
    assert default_jobs(cores=2, gpus=0) == 2
    assert default_jobs(cores=16, gpus=1) == 4
    assert default_jobs(cores=16, gpus=2) == 8
    assert default_jobs(cores=2, gpus=1) == 2


class TestSeveralGPUs:
    def test_workers_are_dealt_out_to_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Worker:
            def __init__(self, clients_at_once: int, gpu: int | None) -> None:
                self.gpu = gpu

            def stop(self) -> None:
                pass

        monkeypatch.setattr(workers, "Worker", Worker)
        dealt = workers.Workers(5, 1, gpus=2)
        assert [worker.gpu for worker in dealt._workers] == [0, 1, 0, 1, 0]  # type: ignore[attr-defined]
        dealt._replace(dealt._workers[1])
        assert dealt._workers[1].gpu == 1  # type: ignore[attr-defined]
        assert all(worker.gpu is None for worker in workers.Workers(2, 1)._workers)  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("visible", "gpu", "expected"),
        [(None, 1, "1"), ("", 2, "2"), ("3, 5", 1, "5"), ("GPU-ab,GPU-cd", 0, "GPU-ab")],
    )
    def test_a_worker_sees_its_own(self, visible: str | None, gpu: int, expected: str) -> None:
        environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        workers.see_one_gpu(gpu, environment)
        assert environment == {"CUDA_VISIBLE_DEVICES": expected}

    def test_a_run_that_names_one_finds_it(self, tiny: Path) -> None:
        runs = load_experiment(tiny).runs
        assert gpus_to_share(runs, 2) == 2
        named = [
            dataclasses.replace(r, settings=r.settings.model_copy(update={"device": "cuda:1"}))
            for r in runs
        ]
        assert gpus_to_share(named, 2) == 0
