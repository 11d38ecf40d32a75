"""A protocol is fixed: what would change it is refused by name, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.benchmarks import made_up

from ahfal_app.benchmark.lock import (
    Lock,
    check_lock,
    labels_of,
    lock_file,
    make_lock,
    protocol_hash,
    read_lock,
)
from ahfal_app.benchmark.protocol import (
    Method,
    Protocol,
    baseline,
    method_and_places,
    read_protocol,
    settings_of,
)
from ahfal_app.cli import main
from ahfal_app.config import Settings
from ahfal_app.errors import BenchmarkError, ConfigError
from ahfal_app.plugins import STRATEGIES

CONF = Path(__file__).parents[2] / "conf" / "benchmark"

SMALL: dict[str, Any] = {
    "title": "Small",
    "version": 1,
    "settings": {"rounds": 1, "local-epochs": 1, "device": "cpu", "num-clients": 3},
    "problems": {
        "digits": {"dataset": "digits", "model": "mlp", "max-train-samples": 200},
        "cancer": {"dataset": "breast-cancer", "cycles": 2},
    },
    "splits": {"mild": {"alpha": 1.0}},
    "seeds": [0, 1],
    "reference": "random",
    "baselines": ["random", "entropy"],
    "places": ["dataset"],
    "free": ["tau"],
}


@pytest.fixture(name="small")
def _small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def places(protocol: Protocol, data_dir: Path) -> dict[str, dict[str, Any]]:
    return {problem: {"data-dir": str(data_dir)} for problem in protocol.problems}


def test_a_method_s_own_affairs_and_places_are_sorted_out() -> None:
    protocol = Protocol.model_validate(SMALL)
    values = {
        "strategy": "badge",
        "strategy.model": "local",
        "tau": 5.0,
        "data-dir": "d",
        "cancer.dataset": "/x/patients.parquet",
    }
    method, where = method_and_places(protocol, values)
    assert method == Method(
        "badge strategy.model=local tau=5.0", "badge", {"strategy.model": "local", "tau": 5.0}
    )
    assert where == {
        "digits": {"data-dir": "d"},
        "cancer": {"data-dir": "d", "dataset": "/x/patients.parquet"},
    }
    named, _ = method_and_places(protocol, {"strategy": "badge"}, "mine")
    assert named == Method("mine", "badge", {})
    assert method_and_places(protocol, {})[0] is None
    long = {"strategy": "badge", **{f"strategy.parameter-{i}": "a" * 20 for i in range(3)}}
    method, _ = method_and_places(protocol, long)
    assert method is not None
    assert method.name == "badge, 3 settings of its own"


@pytest.mark.parametrize("name", ["x" * 81, " mine", "mine\tagain", "m\u0456ne", "\u200b"])
def test_a_name_that_no_submission_may_have_is_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(ConfigError, match="--name="):
        method_and_places(Protocol.model_validate(SMALL), {"strategy": "badge"}, name)


@pytest.mark.parametrize("value", ["x" * 201, "a\u200bb", float("inf")])
def test_a_value_that_no_submission_may_have_is_refused_before_anything_runs(value: object) -> None:
    values = {"strategy": "badge", "strategy.model": value}
    with pytest.raises(ConfigError, match=r"strategy\.model=.*allowed "):
        method_and_places(Protocol.model_validate(SMALL), values, "mine")


def test_splits_with_other_numbers_of_budgets_are_no_protocol(data_dir: Path) -> None:
    splits = {"short": {"cycles": 2}, "long": {"cycles": 3}}
    problems = {"digits": SMALL["problems"]["digits"]}
    protocol = Protocol.model_validate({**SMALL, "splits": splits, "problems": problems})
    with pytest.raises(ConfigError, match="digits, long, seed 0: 3 budgets; allowed are 2"):
        make_lock(protocol, places(protocol, data_dir))


@pytest.mark.parametrize(
    "values",
    [
        {"rounds": 50},
        {"strategy": "badge", "alpha": 100.0},
        {"seed": 7},
        {"digits.rounds": 3},
        {"dataset": "mnist"},
        {"tau": 5.0},
    ],
)
def test_what_would_change_what_is_measured_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as refused:
        method_and_places(Protocol.model_validate(SMALL), values)
    key = next(key for key in values if key != "strategy")
    assert key in str(refused.value)
    assert "allowed " in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("seeds", [0, 0], "each value once"),
        ("baselines", ["entropy"], "reference='random'"),
        ("places", ["rounds"], "'rounds'"),
        ("free", ["rounds"], "'rounds'"),
        ("free", ["taw"], "'taw'"),
        ("settings", {"seed": 1}, "'seed'"),
        ("settings", {"strategy": "badge"}, "'strategy'"),
        ("version", "1", "valid integer"),
        ("problems", {}, "at least 1"),
        ("problems", {"A B": {}}, "pattern"),
        ("more", 1, "Extra inputs"),
    ],
)
def test_a_protocol_that_is_none(key: str, value: object, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**SMALL, key: value}))
    with pytest.raises(ConfigError, match=r"bad\.yaml") as refused:
        read_protocol(path)
    assert reason in str(refused.value)


def test_the_lock_says_what_is_there_and_refuses_what_differs(small: Path, data_dir: Path) -> None:
    protocol = read_protocol(small)
    lock = make_lock(protocol, places(protocol, data_dir))
    assert [split.case for split in lock.splits] == protocol.cases()
    assert [len(lock.problems[name].data) for name in protocol.problems] == [64, 64]
    assert lock.problems["cancer"].test == 114
    lock_file(small).write_text(lock.model_dump_json())
    assert read_lock(small, protocol) == lock
    check_lock(protocol, lock, places(protocol, data_dir))

    data = lock.problems["cancer"].model_copy(update={"data": "0" * 64, "test": 5})
    first = lock.splits[0].model_copy(update={"partition": "1" * 64, "labels": (1, 2)})
    settings = {**lock.problems["digits"].settings, "rounds": 9, "gone": True}
    digits = lock.problems["digits"].model_copy(update={"settings": settings})
    other = Lock(
        versions={"numpy": "1.0"},
        problems={"digits": digits, "cancer": data},
        splits=(first, *lock.splits[1:]),
    )
    with pytest.raises(BenchmarkError) as refused:
        check_lock(protocol, other, places(protocol, data_dir))
    text = str(refused.value)
    for part in (
        "cancer: the data set has the fingerprint",
        "allowed is 0000000000000000…",
        "cancer: 114 samples to test with; allowed is 5",
        "digits: rounds=1; allowed is 9",
        "digits: gone=None; allowed is True",
        "cancer, mild, seed 0: the split has the fingerprint",
        "labels [",
        "allowed is [1, 2]",
        "fixed with numpy 1.0",
    ):
        assert part in text
    assert "seed 1" not in text


def test_the_hash_is_of_what_is_measured_alone(small: Path) -> None:
    protocol, lock = made_up({"a": [1, 2]}, ["random", "entropy"])
    digest = protocol_hash(protocol, lock)
    same = {"title": "Another", "baselines": ["random", "mine"], "cached": "x.jsonl"}
    assert protocol_hash(protocol.model_copy(update=same), lock) == digest
    assert protocol_hash(protocol, lock.model_copy(update={"versions": {}})) == digest
    for change in ({"version": 2}, {"settings": {"rounds": 3}}, {"free": []}):
        assert protocol_hash(protocol.model_copy(update=change), lock) != digest
    first = lock.splits[0].model_copy(update={"labels": (1, 3)})
    changed = lock.model_copy(update={"splits": (first, *lock.splits[1:])})
    assert protocol_hash(protocol, changed) != digest


def test_a_lock_that_is_missing_or_of_another_protocol(small: Path) -> None:
    protocol = read_protocol(small)
    with pytest.raises(BenchmarkError, match=r"missing; `ahfal benchmark .* --lock` writes it"):
        read_lock(small, protocol)
    _, other = made_up({"digits": [1]}, ["random"])
    lock_file(small).write_text(other.model_dump_json())
    with pytest.raises(BenchmarkError, match="are not those of"):
        read_lock(small, protocol)
    lock_file(small).write_text('{"format": 2}')
    with pytest.raises(BenchmarkError, match="format"):
        read_lock(small, protocol)


def test_labels_by_hand() -> None:
    """Clients of 30 and 50: a tenth, then 5 % a cycle, rounded up; or so many of all together."""
    shares = Settings.model_validate({"target-fraction": 0.2})
    assert labels_of(shares, [30, 50]) == (3 + 5, 5 + 8, 6 + 10)
    numbers = {"initial-labels": 4, "query-labels": 3, "target-labels": 9}
    assert labels_of(Settings.model_validate(numbers), [30, 8]) == (8, 14, 17)
    together = Settings.model_validate({**numbers, "budget": "global"})
    assert labels_of(together, [30, 8]) == (4, 7, 9)


@pytest.mark.parametrize("name", ["quick", "full"])
def test_what_is_kept_in_the_tree_is_sound(name: str) -> None:
    """The whole check of the quick one's data and splits is a test of its own."""
    file = CONF / f"{name}.yaml"
    protocol = read_protocol(file)
    lock = read_lock(file, protocol)
    assert set(protocol.baselines) <= set(STRATEGIES.own_names())
    for case in protocol.cases()[:: len(protocol.seeds)]:
        if "backbone" not in protocol.problems[case.problem]:
            settings = settings_of(protocol, case, baseline(protocol.reference), {})
            assert len(lock.by_case[case].labels) == settings.num_cycles
    partitions = {split.partition for split in lock.splits if split.problem == "digits"}
    assert len(partitions) == len(protocol.splits) * len(protocol.seeds)


@pytest.mark.slow
def test_the_quick_one_s_data_and_splits_are_those_that_were_fixed(data_dir: Path) -> None:
    protocol = read_protocol(CONF / "quick.yaml")
    check_lock(protocol, read_lock(CONF / "quick.yaml", protocol), places(protocol, data_dir))


def test_the_command_line_refuses_and_locks(
    small: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", str(small), "rounds=3", "--out", "x"])
    assert ended.value.code == 1
    assert "rounds=3: would change what is measured" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["benchmark", str(small), f"data-dir={data_dir}", "--lock"])
    assert read_lock(small, read_protocol(small)).problems.keys() == {"digits", "cancer"}
