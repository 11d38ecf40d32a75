"""Submissions are data of another party: what is not as the protocol says is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.benchmarks import digest, made_up, submission

from ahfal_app.benchmark import submission as submissions_module
from ahfal_app.benchmark.lock import protocol_hash
from ahfal_app.benchmark.submission import lines_of, read_submissions, same_names
from ahfal_app.errors import BenchmarkError

PROTOCOL, LOCK = made_up({"a": [10, 20]}, ["random"])
HASH = protocol_hash(PROTOCOL, LOCK)
GOOD = submission(PROTOCOL, LOCK, "mine", {case: [0.5, 0.75] for case in PROTOCOL.cases()})


def read(path: Path) -> Any:
    return read_submissions(path, PROTOCOL, LOCK, HASH)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    other = GOOD.model_copy(update={"method": "another"})
    path.write_bytes(lines_of([GOOD, other]))
    assert read(path) == [GOOD, other]
    assert same_names([GOOD, other]) == []
    assert "'mine': 2 submissions" in same_names([GOOD, other, GOOD])[0]
    wide = GOOD.model_copy(update={"method": "\uff2dine"})
    assert "2 submissions are called so" in same_names([GOOD, wide])[0]


def _run(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(line: dict[str, Any]) -> None:
        line["runs"][0][key] = value

    return change


def _of(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(line: dict[str, Any]) -> None:
        line[key] = value

    return change


def _protocol(line: dict[str, Any]) -> None:
    line["protocol"]["hash"] = "1" * 64


def _less(line: dict[str, Any]) -> None:
    del line["runs"][1]


def _twice(line: dict[str, Any]) -> None:
    line["runs"].append(line["runs"][0])


#: What is changed of a good line, and what is said about it.
REFUSALS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another protocol": (_protocol, "made under the protocol 1111111111111111…"),
    "a run less": (_less, "1 runs are missing, such as a, one, seed 1"),
    "a run twice": (_twice, "a, one, seed 0: 2 runs; allowed is one"),
    "another seed": (_run("seed", 7), "a run of 'a, one, seed 7'"),
    "other data": (_run("data", "2" * 64), "data with the fingerprint 2222222222222222…"),
    "another split": (
        _run("partition", "3" * 64),
        "a split with the fingerprint 3333333333333333…",
    ),
    "more labels": (_run("labels", [10, 25]), "labels [10, 25]; the budgets prescribe [10, 20]"),
    "fewer accuracies": (_run("accuracy", [0.5]), "1 accuracies; allowed are 2"),
    "more than all": (_run("accuracy", [0.5, 1.01]), "runs.0.accuracy.1: Input should be less"),
    "NaN": (_run("accuracy", [0.5, float("nan")]), "runs.0.accuracy.1: Input should be"),
    "infinity": (_run("seconds", float("inf")), "runs.0.seconds: Input should be"),
    "text for a number": (_run("accuracy", [0.5, "0.7"]), "runs.0.accuracy.1: Input should be a"),
    "no share of the tests": (_run("accuracy", [0.5, 0.755]), "0.755: allowed is a share of 100"),
    "an unknown field": (_of("note", "<b>"), "note: Extra inputs are not permitted"),
    "a hidden field": (_of("\u001b[31m", 1), "\\x1b[31m: Extra inputs are not permitted"),
    "no name": (_of("method", ""), "method: String should have at least 1"),
    "an escape in a name": (_of("method", "a\u001b[2Jb"), "U+001B"),
    "a turned name": (_of("method", "a\u202eb"), "U+202E"),
    "a long name": (_of("method", "a" * 81), "method: String should have at most 80"),
    "a name of nothing": (_of("method", "\u3164"), "U+3164"),
    "a name with a selector": (_of("method", "random\ufe0f"), "U+FE0F"),
    "a name of two scripts": (_of("method", "r\u0430ndom"), "a word of Cyrillic and Latin letters"),
    "a baseline's name in capitals": (_of("method", "Random"), "called as a baseline"),
    "a turned setting": (_of("settings", {"strategy.x": "\u202egnp"}), "U+202E"),
    "a long setting": (_of("settings", {"strategy.x": "a" * 201}), "at most 200 characters"),
    "a setting that is no number": (
        _of("settings", {"strategy.x": float("nan")}),
        "allowed are numbers of at most 1e+18",
    ),
    "an infinite setting": (_of("settings", {"strategy.x": float("inf")}), "numbers of at most"),
    "a long whole number": (_of("settings", {"strategy.x": 10**4000}), "line 1"),
    "more cores than there are": (
        _of("machines", [{"system": "a", "processor": "b", "cores": 10**7, "gpus": []}]),
        "cores: Input should be less",
    ),
    "a setting that measures": (_of("settings", {"rounds": 50}), "rounds: would change what"),
    "a baseline's name": (_of("method", "random"), "called as a baseline, and another strategy"),
    "another format": (_of("format", 2), "format: Input should be 1"),
    "a code that is none": (_of("code", {"version": "1"}), "code.hash: Field required"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    change, reason = REFUSALS[case]
    line = json.loads(lines_of([GOOD]))
    change(line)
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(BenchmarkError) as refused:
        read(path)
    assert reason in str(refused.value)
    assert f"{path}, line 1" in str(refused.value)
    assert str(refused.value).isprintable() or "\x1b" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", '{"runs": ' + "[" * 5000, '"a"\n'])
def test_what_is_no_submission(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=r"bad\.jsonl"):
        read(path)


def test_a_flood_of_problems_is_cut_short_and_a_large_file_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n" * 1000)
    with pytest.raises(BenchmarkError) as refused:
        read(path)
    assert len(refused.value.problems) == 13
    assert "more problems" in refused.value.problems[-1]
    # A million lines, and a line with thousands of problems.
    path.write_text("\n" * 2**20)
    with pytest.raises(BenchmarkError) as refused:
        read(path)
    assert len(refused.value.problems) == 13
    line = json.loads(lines_of([GOOD]))
    line["runs"] = [{**line["runs"][0], "accuracy": ["x"] * 9000}] * 50
    path.write_text(json.dumps(line))
    with pytest.raises(BenchmarkError) as refused:
        read(path)
    assert "runs.0.accuracy.0" in refused.value.problems[0]
    assert len(refused.value.problems) <= 4
    path.write_text("{}\n" * 1000)
    monkeypatch.setattr(submissions_module, "LARGEST_FILE", 10)
    with pytest.raises(BenchmarkError, match="3,000 bytes; allowed are 10"):
        read(path)
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read(tmp_path / "none.jsonl")


def test_all_bad_lines_are_told_at_once(tmp_path: Path) -> None:
    line = json.loads(lines_of([GOOD]))
    line["runs"][0]["data"] = digest("b")
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(line) + "\n" + lines_of([GOOD]).decode() + "{}\n")
    with pytest.raises(BenchmarkError) as refused:
        read(path)
    assert any("line 1, 'mine'" in each for each in refused.value.problems)
    assert any("line 3: " in each for each in refused.value.problems)
    assert not any("line 2" in each for each in refused.value.problems)
