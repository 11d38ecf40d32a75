from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_run import make_fake_run

from ahfal_app.config import Settings, parse_settings
from ahfal_app.errors import ConfigError, ReportError
from ahfal_app.ledger import Ledger
from ahfal_app.results.environment import code_hash, describe_environment
from ahfal_app.results.reading import Metrics, read_metrics, read_run
from ahfal_app.results.records import CycleRecord, RoundRecord
from ahfal_app.results.run_folder import Recorder, describe_partition, new_run_folder
from ahfal_app.results.selections import (
    merge_selections,
    read_class_counts,
    write_client_selection,
)
from ahfal_app.results.summary import summary_text
from ahfal_app.results.units import bytes_text, percent, seconds_text
from ahfal_app.storage import files


def round_record(cycle: int, number: int) -> RoundRecord:
    return RoundRecord(
        cycle=cycle, round=number, clients=2, num_examples=10, train_loss=1.5, seconds={"train": 2}
    )


def cycle_record(cycle: int) -> CycleRecord:
    return CycleRecord(
        cycle=cycle,
        labels=10 + cycle,
        labels_per_client=(5, 5 + cycle),
        accuracy=0.25 * (cycle + 1),
        class_accuracy=(0.5, None),
        loss=1.25,
        mean=(0.4, 0.6),
        deviation=(0.1, 0.2),
        low=(True, False),
        tau=12,
        budget=1,
        bought=1,
        ledger=Ledger(allotted=20, spent=11 + cycle, reserved=0, free=9 - cycle),
        seconds={"select": 0.5, "train": 1},
        bytes_down=7,
    )


def write_cycles(recorder: Recorder, num_cycles: int, rounds: int) -> None:
    for cycle in range(num_cycles):
        for number in range(1, rounds + 1):
            recorder.record(round_record(cycle, number))
        recorder.record(cycle_record(cycle))


def keys(metrics: Metrics) -> tuple[list[tuple[int, int]], list[int]]:
    return [(r.cycle, r.round) for r in metrics.rounds], [c.cycle for c in metrics.cycles]


class TestFolderNames:
    def test_automatic_names_are_numbered(self, tmp_path: Path) -> None:
        settings = parse_settings({"output-dir": str(tmp_path), "dataset": "uoft-cs/cifar10"})
        names = [new_run_folder(settings).name for _ in range(3)]
        assert names == [
            "ahfal-cifar10-seed0",
            "ahfal-cifar10-seed0-2",
            "ahfal-cifar10-seed0-3",
        ]

    def test_path_is_absolute_and_parents_are_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        folder = new_run_folder(parse_settings({"output-dir": "a/b", "name": "x"}))
        assert folder == tmp_path / "a" / "b" / "x"
        assert folder.is_dir()

    @pytest.mark.parametrize("dataset", ["/data/my images/", "../../etc", ".", "名前"])
    def test_any_data_set_gives_a_plain_name(self, tmp_path: Path, dataset: str) -> None:
        folder = new_run_folder(
            parse_settings({"output-dir": str(tmp_path), "dataset": dataset, "seed": 3})
        )
        assert folder.parent == tmp_path
        assert folder.name.startswith("ahfal-")
        assert set(folder.name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
        )

    def test_given_name_that_exists_is_refused(self, tmp_path: Path) -> None:
        settings = parse_settings({"output-dir": str(tmp_path), "name": "mine"})
        folder = new_run_folder(settings)
        with pytest.raises(ConfigError, match=r"name='mine'.*resume=") as caught:
            new_run_folder(settings)
        assert str(folder) in str(caught.value)

    @pytest.mark.parametrize("name", [".", ".."])
    def test_names_that_mean_other_folders_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigError, match="name="):
            new_run_folder(parse_settings({"output-dir": str(tmp_path / "runs"), "name": name}))

    def test_unusable_parent_is_a_setting_problem(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        settings = parse_settings({"output-dir": str(tmp_path / "file" / "runs")})
        with pytest.raises(ConfigError, match="output-dir="):
            new_run_folder(settings)

    def test_two_processes_never_share_a_folder(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            made = pool.map(_make_folders, [str(tmp_path)] * 2)
        names = [name for names in made for name in names]
        assert len(names) == len(set(names)) == 50
        assert {path.name for path in tmp_path.iterdir()} == set(names)


def _make_folders(parent: str) -> list[str]:
    settings = parse_settings({"output-dir": parent})
    return [new_run_folder(settings).name for _ in range(25)]


class TestAtomicFiles:
    def test_failed_write_keeps_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "summary.json"
        files.write_json(path, {"a": 1})

        def fail(_: int) -> None:
            raise OSError("no space left")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="no space"):
            files.write_json(path, {"a": 2})
        assert json.loads(path.read_text()) == {"a": 1}
        assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]

    def test_not_a_number_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(tmp_path / "x.json", {"loss": math.nan})
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_readers_see_whole_files_only(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        files.write_json(path, {"value": [0] * 5000})
        writer = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from ahfal_app.storage import files\n"
                "for n in range(100): files.write_json(Path(sys.argv[1]), {'value': [n] * 5000})",
                str(path),
            ]
        )
        reads = 0
        while writer.poll() is None or not reads:
            value = json.loads(path.read_text())["value"]
            assert len(value) == 5000
            assert len(set(value)) == 1
            reads += 1
        assert writer.returncode == 0


class TestMetrics:
    def test_records_come_back_as_written(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path)
        write_cycles(recorder, 2, 3)
        metrics = read_metrics(tmp_path)
        assert metrics.rounds == tuple(round_record(c, r) for c in (0, 1) for r in (1, 2, 3))
        assert metrics.cycles == (cycle_record(0), cycle_record(1))
        assert metrics.seconds == {"train": 14.0, "select": 1.0}
        assert metrics.bytes_down == 14

    def test_lines_are_plain_json_with_the_documented_keys(self, tmp_path: Path) -> None:
        write_cycles(Recorder(tmp_path), 1, 1)
        first, last = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        assert (first["kind"], first["cycle"], first["round"]) == ("round", 0, 1)
        assert first["test_accuracy"] is None
        assert last["kind"] == "cycle"
        assert last["class_accuracy"] == [0.5, None]
        assert last["ledger"] == {"allotted": 20, "spent": 11, "reserved": 0, "free": 9}

    def test_numpy_values_are_taken_and_a_diverged_loss_is_null(self, tmp_path: Path) -> None:
        record = RoundRecord(
            cycle=np.int64(0),
            round=1,
            clients=1,
            num_examples=np.int64(5),
            train_loss=np.float64("nan"),
            test_accuracy=np.float32(0.5),
        )
        Recorder(tmp_path).record(record)
        assert read_metrics(tmp_path).rounds == (record,)
        assert record.train_loss is None

    @given(cut=st.integers(min_value=1))
    def test_torn_last_line_is_left_out(
        self, tmp_path_factory: pytest.TempPathFactory, cut: int
    ) -> None:
        folder = tmp_path_factory.mktemp("run")
        write_cycles(Recorder(folder), 1, 2)
        path = folder / "metrics.jsonl"
        *kept, last = path.read_bytes().splitlines(keepends=True)
        torn = b"".join(kept) + last[: cut % len(last)]
        path.write_bytes(torn)
        assert keys(read_metrics(folder)) == ([(0, 1), (0, 2)], [])
        Recorder(folder).record(cycle_record(0))
        assert keys(read_metrics(folder)) == ([(0, 1), (0, 2)], [0])

    def test_damage_elsewhere_is_named(self, tmp_path: Path) -> None:
        write_cycles(Recorder(tmp_path), 1, 1)
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b'{"kind": "round"\n' + path.read_bytes())
        with pytest.raises(ReportError, match=r"metrics\.jsonl, line 1"):
            read_metrics(tmp_path)

    @given(
        num_cycles=st.integers(1, 3),
        rounds=st.integers(1, 3),
        cycle=st.integers(0, 3),
        number=st.integers(0, 4),
    )
    def test_truncating_keeps_exactly_what_came_before(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        num_cycles: int,
        rounds: int,
        cycle: int,
        number: int,
    ) -> None:
        folder = tmp_path_factory.mktemp("run")
        recorder = Recorder(folder)
        write_cycles(recorder, num_cycles, rounds)
        before = (folder / "metrics.jsonl").read_bytes()
        recorder.truncate_after(cycle, number)
        after = (folder / "metrics.jsonl").read_bytes()
        expected = [
            (c, r)
            for c in range(num_cycles)
            for r in range(1, rounds + 1)
            if c < cycle or (c == cycle and r <= number)
        ]
        assert before.startswith(after)
        assert keys(read_metrics(folder)) == (expected, list(range(min(cycle, num_cycles))))

    def test_resumed_run_ends_with_the_same_bytes(self, tmp_path: Path) -> None:
        whole, resumed = tmp_path / "whole", tmp_path / "resumed"
        for folder in (whole, resumed):
            folder.mkdir()
            write_cycles(Recorder(folder), 2, 2)
        recorder = Recorder(resumed)
        recorder.truncate_after(1, 1)
        recorder.record(round_record(1, 2))
        recorder.record(cycle_record(1))
        assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()

    def test_truncating_an_empty_folder_is_no_error(self, tmp_path: Path) -> None:
        Recorder(tmp_path).truncate_after(0, 0)
        assert keys(read_metrics(tmp_path)) == ([], [])


def class_counts(folder: Path) -> list[list[int]]:
    counts = read_class_counts(folder, 3)
    assert counts is not None
    return [[int(count) for count in counts_C] for counts_C in counts]


class TestSelections:
    def write(self, folder: Path, cycle: int, client: int, classes: list[int]) -> None:
        write_client_selection(
            folder,
            cycle=cycle,
            client=client,
            sample_ids=[100 * client + place for place in range(len(classes))],
            classes=classes,
        )

    def test_merged_by_cycle_and_client(self, tmp_path: Path) -> None:
        for client in (10, 2):
            for cycle in (1, 0):
                self.write(tmp_path, cycle, client, [client % 3, 1])
        assert merge_selections(tmp_path, num_cycles=2) == tmp_path / "selections.parquet"
        table = pq.read_table(tmp_path / "selections.parquet")
        assert {field.name: str(field.type) for field in table.schema} == {
            "cycle": "int32",
            "client": "int32",
            "sample": "int64",
            "class": "int32",
            "pseudo_class": "int32",
            "score": "double",
        }
        assert table["cycle"].to_pylist() == [0, 0, 0, 0, 1, 1, 1, 1]
        assert table["client"].to_pylist() == [2, 2, 10, 10] * 2
        assert table["sample"].to_pylist() == [200, 201, 1000, 1001] * 2
        assert set(table["pseudo_class"].to_pylist()) == {-1}
        assert np.isnan(table["score"].to_numpy()).all()
        assert class_counts(tmp_path) == [[0, 3, 1], [0, 3, 1]]

    def test_interrupted_cycles_are_left_out_and_rewriting_replaces(self, tmp_path: Path) -> None:
        self.write(tmp_path, 0, 0, [0, 0])
        self.write(tmp_path, 0, 0, [1])
        self.write(tmp_path, 1, 0, [2])
        merge_selections(tmp_path, num_cycles=1)
        assert class_counts(tmp_path) == [[0, 1, 0]]

    def test_nothing_written_nothing_merged(self, tmp_path: Path) -> None:
        assert merge_selections(tmp_path, num_cycles=3) is None
        assert read_class_counts(tmp_path, 3) is None

    def test_empty_selection(self, tmp_path: Path) -> None:
        self.write(tmp_path, 0, 0, [])
        merge_selections(tmp_path, num_cycles=1)
        assert class_counts(tmp_path) == []

    def test_damaged_or_foreign_file_is_named(self, tmp_path: Path) -> None:
        self.write(tmp_path, 0, 0, [7])
        path = merge_selections(tmp_path, num_cycles=1)
        assert path is not None
        with pytest.raises(ReportError, match="0 to 2"):
            read_class_counts(tmp_path, 3)
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ReportError, match=r"selections\.parquet"):
            read_class_counts(tmp_path, 8)


class TestSummary:
    def test_numbers_are_those_of_the_records(self, tmp_path: Path) -> None:
        folder = make_fake_run(tmp_path, num_clients=3, samples=200, rounds=2, seed=5)
        summary = json.loads((folder / "summary.json").read_text())
        metrics = read_metrics(folder)
        assert summary["final_accuracy"] == metrics.cycles[-1].accuracy
        assert summary["accuracy_per_cycle"] == [cycle.accuracy for cycle in metrics.cycles]
        assert summary["labels_per_cycle"] == [60, 90, 120, 150, 180, 210]
        assert summary["complete"] is True
        phases = {name: spent for name, spent in summary["seconds"].items() if name != "total"}
        assert phases == metrics.seconds
        assert summary["seconds"]["total"] == pytest.approx(sum(phases.values()))
        assert {key: summary[key] for key in ("name", "strategy", "seed", "num_clients")} == {
            "name": folder.name,
            "strategy": "ahfal",
            "seed": 5,
            "num_clients": 3,
        }
        assert summary["code_hash"] == code_hash()

    def test_partial_run_says_so(self, tmp_path: Path) -> None:
        folder = make_fake_run(tmp_path, num_clients=2, samples=40, rounds=2, cycles_done=1)
        recorder = Recorder(folder)
        recorder.record(RoundRecord(cycle=1, round=1, clients=1, num_examples=4, train_loss=None))
        summary = recorder.finish(stopped="1 of 2 clients answered")
        assert (summary["complete"], summary["stopped"]) == (False, "1 of 2 clients answered")
        text = summary_text(folder)
        assert "partial: 1 of 6 cycles and 1 of 2 rounds of the next" in text
        assert "stopped: 1 of 2 clients answered" in text

    def test_text_names_the_files_by_absolute_path(self, tmp_path: Path) -> None:
        folder = make_fake_run(tmp_path, num_clients=2, samples=40, rounds=1)
        text = summary_text(folder)
        assert f"{folder}/summary.json" in text
        assert "report.html" not in text
        assert "labels: 28 spent, 0 reserved, 0 free of 28 allotted" in text

    def test_no_cycle_yet(self, tmp_path: Path) -> None:
        folder = make_fake_run(tmp_path, num_clients=2, samples=40, rounds=1, cycles_done=0)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["final_accuracy"] is None
        assert "partial: 0 of 6 cycles" in summary_text(folder)


class TestStart:
    def test_settings_come_back(self, tmp_path: Path) -> None:
        settings = parse_settings({"tau": 9.5, "strategy.low-if": "local", "seed": 4})
        environment = describe_environment(
            class_names=["a", "b"], data_fingerprint="f", partition_fingerprint="g"
        )
        Recorder(tmp_path).start(settings, environment, describe_partition(np.array([[3, 4]]), "g"))
        run = read_run(tmp_path)
        assert run.settings == settings
        assert run.class_names == ("a", "b")
        assert run.partition == {"fingerprint": "g", "counts": [[3, 4]]}
        assert run.environment["code"]["hash"] == code_hash()
        assert run.environment["hardware"]["usable_cores"] >= 1
        assert run.environment["versions"]["python"] == sys.version.split()[0]

    def test_settings_of_another_version_are_named(self, tmp_path: Path) -> None:
        Recorder(tmp_path).start(Settings(), {})
        (tmp_path / "config.yaml").write_text("no-such-setting: 1\n")
        with pytest.raises(ReportError, match=r"config\.yaml.*no-such-setting|no-such-setting"):
            read_run(tmp_path)

    @pytest.mark.slow
    def test_neither_torch_nor_flower_is_loaded(self) -> None:
        code = (
            "import sys\n"
            "from ahfal_app.results import environment, progress, report, run_folder\n"
            "environment.describe_environment("
            "class_names=[], data_fingerprint='', partition_fingerprint=None)\n"
            "assert not {'torch', 'flwr', 'matplotlib.pyplot'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (1_234_567, "1.23 MB"),
        (10**9, "1 GB"),
        (2 * 10**12, "2 TB"),
    ],
)
def test_bytes_in_words(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0042, "0.0042 s"),
        (0.999, "1.0 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_percent_in_words() -> None:
    assert [percent(0.12345), percent(1.0, 1), percent(None)] == ["12.35 %", "100.0 %", "n/a"]
