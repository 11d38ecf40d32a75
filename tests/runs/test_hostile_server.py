"""A server that sends a site whatever it likes: refused by code, nothing done, no name told."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from support.attacks import CLASSES, FOLDER, IMAGES, PATIENT, RUN, SETTINGS, Target, model_arrays
from support.site_images import write_images

from ahfal_app import errors
from ahfal_app.client import outgoing
from ahfal_app.client.client import Client
from ahfal_app.client_app import app as client_app
from ahfal_app.labels.store import STORE_FILE

OTHER_RUN = "fedcba9876543210"
KINDS = (
    "query.join",
    "query.begin",
    "train",
    "query.predictions",
    "query.histogram",
    "query.select",
    "query.collect",
)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path)
    yield target
    assert not target.leaks()


def _joined(target: Target, **settings: object) -> None:
    assert not target.send("query.join", settings).has_error()


# --- what an honest server gets ----------------------------------------------------------------


def test_an_honest_server_is_answered_and_hears_no_name(target: Target):
    for kind in KINDS:
        reply = target.send(kind)
        assert not reply.has_error(), reply.error.reason
    (ledger,) = target.ledgers().values()
    assert (ledger.spent, ledger.reserved) == (0.3 * IMAGES, 0)


# --- where things are written ------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        "../../escaped",
        "../../../site/images",
        "/tmp/escaped",
        "..",
        ".",
        "",
        "a/b",
        "0123456789abcde",
        "0123456789abcdef0",
        "0123456789ABCDEF",
        "0123456789abcde\n",
        "0123456789abcde/",
        "0123456789abcde\0",
        "０１２３４５６７８９abcdef",
        "x" * 10**6,
        7,
        ["0123456789abcdef"],
        b"0123456789abcdef",
    ],
)
@pytest.mark.parametrize("kind", ["query.join", "query.collect"])
def test_a_run_that_is_no_name_of_a_folder(target: Target, kind: str, run: object):
    target.refused(kind, "message", order={"run": run})


@pytest.mark.parametrize("field", ["run-folder", "data-dir", "output-dir", "resume"])
def test_no_folder_that_a_server_names_is_written(target: Target, field: str):
    """Each exists at the site, and a simulated client would write there."""
    named = target.site / "images"
    before = target.everything_outside()
    for kind in KINDS:
        if field == "run-folder":
            reply = target.send(kind, order={"run-folder": str(named)})
        else:
            reply = target.send(kind, {field: str(named)})
        assert not reply.has_error(), reply.error.reason
    assert target.everything_outside() == before
    assert sorted(path.name for path in target.state.iterdir() if path.is_dir()) == [RUN]


@pytest.mark.parametrize("folder", ["site", "site/images", ".", "nowhere"])
def test_a_node_without_a_state_folder_writes_into_no_folder_but_the_runs_own(
    tmp_path: Path, folder: str
):
    """Somebody forgot `state-dir`; the server names a folder that is there."""
    target = Target(tmp_path)
    for key in ("data", "state-dir", "truth"):
        del target.node[key]
    before = target.everything_outside()
    for kind in KINDS:
        with pytest.raises(errors.ConfigError, match="state-dir"):
            target.send(kind, {"partition": "iid"}, order={"run-folder": str(tmp_path / folder)})
    assert target.everything_outside() == before


@pytest.mark.parametrize("name", ["images", "~", ".", "/"])
def test_a_folder_of_the_site_is_no_data_set_of_the_servers(tmp_path: Path, name: str):
    target = Target(tmp_path)
    for key in ("data", "truth"):
        del target.node[key]
    named = str(target.site / name) if name == "images" else name
    for kind in KINDS:
        target.refused(kind, "message", {"partition": "iid", "dataset": named})
    assert not target.leaks()


def test_what_a_site_keeps_is_for_its_owner_alone(target: Target):
    """Started by hand, in a shell that lets everybody read, over a folder that was left open."""
    before = os.umask(0o022)
    try:
        (target.state / "old").mkdir(parents=True)
        (target.state / "old" / "labels.csv").write_text("of an earlier version")
        for kind in KINDS:
            assert not target.send(kind).has_error()
        (target.site / "afterwards").touch()
    finally:
        os.umask(before)
    for path in (target.state, *target.state.rglob("*"), target.site / "decoded"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    # The process goes on with what its shell had set.
    assert stat.S_IMODE((target.site / "afterwards").stat().st_mode) == 0o644


def test_what_people_are_to_read_is_as_the_folder_for_them_says(tmp_path: Path):
    target = Target(tmp_path, **{"oracle": "files", "oracle-dir": str(tmp_path / "to-label")})
    before = os.umask(0o022)
    try:
        assert not target.send("query.join").has_error()
    finally:
        os.umask(before)
    (request,) = (tmp_path / "to-label").glob("cycle-*/request.csv")
    assert stat.S_IMODE(request.stat().st_mode) == 0o644
    assert stat.S_IMODE(target.state.stat().st_mode) == 0o700
    inside = Target(tmp_path / "2", oracle="files")
    inside.node["oracle-dir"] = str(inside.state / "to-label")
    assert not inside.send("query.join").has_error()
    (request,) = inside.state.glob("to-label/cycle-*/request.csv")
    assert stat.S_IMODE(request.stat().st_mode) == 0o600


# --- what is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cycle", -1),
        ("cycle", 10**9),
        ("cycle", 2**70),
        ("cycle", 0.0),
        ("cycle", True),
        ("cycle", "0"),
        ("cycle", [0]),
        ("server-round", -1),
        ("server-round", 0),
        ("server-round", 3),
        ("server-round", 2**62),
        ("proximal-mu", float("nan")),
        ("proximal-mu", float("inf")),
        ("proximal-mu", -1.0),
        ("code", 1),
        ("code", "x" * 10**6),
        ("run-folder", ""),
        ("run-folder", "/" * 10**6),
        ("settings", ""),
        ("settings", "{"),
        ("settings", "null"),
        ("settings", "[1]"),
        ("settings", "[" * 10_000),
        ("settings", '{"seed": ' + "9" * 70_000 + "}"),
        ("settings", b"{}"),
        ("data", "null"),
        ("data", "{}"),
        ("data", "[" * 100_000),
        ("data", 5),
    ],
)
def test_fields_that_no_server_sends(target: Target, field: str, value: object):
    target.refused("train", "message", order={field: value})


@pytest.mark.parametrize("field", ["settings", "run", "run-folder", "code", "cycle", "data"])
def test_fields_that_are_missing(target: Target, field: str):
    def without(content: RecordDict) -> None:
        del content["config"][field]

    target.refused("query.join", "settings" if field == "data" else "message", None, without)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("record", ["config", "arrays", "statistics", "purchases"])
def test_records_that_are_missing_or_of_another_kind(target: Target, kind: str, record: str):
    _joined(target)

    def without(content: RecordDict) -> None:
        del content[record]

    def other(content: RecordDict) -> None:
        content[record] = ConfigRecord() if record != "config" else MetricRecord()

    needed = {"config"}
    needed |= {"arrays"} if kind in ("train", "query.select", "query.predictions") else set()
    needed |= {"statistics", "purchases"} if kind == "query.select" else set()
    if record in needed:
        target.refused(kind, "message", None, without)
        target.refused(kind, "message", None, other)


def _format(**changes: object) -> str:
    return json.dumps(
        {
            "class_names": [str(number) for number in range(10)],
            "image_shape": [8, 8, 1],
            "mean_C": [0.3],
            "std_C": [0.3],
            "augmentation": {"padding": 0, "flip": False},
            **changes,
        }
    )


@pytest.mark.parametrize(
    "changes",
    [
        # 3 TB for each image; 3 GB for all of them; nothing at all.
        {"image_shape": [1_000_000, 1_000_000, 3], "mean_C": [0.1] * 3, "std_C": [0.1] * 3},
        {"image_shape": [4097, 4097, 1]},
        {"image_shape": [0, 8, 1]},
        {"image_shape": [-8, -8, 1]},
        {"image_shape": [8, 8, 4]},
        {"image_shape": [8, 8]},
        {"image_shape": [8.5, 8, 1]},
        {"image_shape": "881"},
        {"mean_C": [0.1, 0.2]},
        {"mean_C": []},
        {"mean_C": ["0.1"]},
        {"std_C": [0.0]},
        {"std_C": [-1.0]},
        {"class_names": []},
        {"class_names": ["one"]},
        {"class_names": ["a", "a"]},
        {"class_names": ["a", ""]},
        {"class_names": ["a", "b" * 201]},
        {"class_names": ["a", "b\n\n=HYPERLINK(1)"]},
        {"class_names": ["a", "\x1b[2J"]},
        {"class_names": ["a", "\u202egnp.exe"]},
        {"class_names": ["a", 7]},
        {"class_names": "ab"},
        {"augmentation": {"padding": 10**9, "flip": False}},
        {"augmentation": {"padding": 9, "flip": False}},
        {"augmentation": {"padding": -1, "flip": False}},
        {"augmentation": {"padding": 0, "flip": "no"}},
        {"augmentation": {}},
        {"more": 1},
    ],
)
def test_formats_that_no_data_has(target: Target, changes: dict[str, object]):
    target.refused("query.join", "message", order={"data": _format(**changes)})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_of_a_format_that_are_none(target: Target, number: str):
    spoilt = _format().replace("[0.3]", f"[{number}]", 1)
    target.refused("query.join", "message", order={"data": spoilt})


def test_a_format_is_the_one_that_the_settings_mean(target: Target):
    order = {"data": _format(image_shape=[8, 8, 1])}
    target.refused("query.join", "message", {"image-size": 16}, order=order)
    target.refused("query.join", "message", {"classes": ",".join("9876543210")}, order=order)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"image-size": 100_000}, "image-size"),
        ({"initial-fraction": 5.0}, "initial-fraction"),
        ({"rounds": -1}, "rounds"),
        ({"epsilon": 1.0}, ""),
        ({"privacy": "no"}, "privacy"),
        ({"client-state": "memory"}, "client-state"),
        ({"partition": "iid"}, "partition"),
        ({"local-epochs": "many"}, "local-epochs"),
        ({"oracle": "../../site/state"}, "oracle"),
    ],
)
def test_settings_that_cannot_be(target: Target, settings: dict[str, object], key: str):
    assert key in target.refused("query.join", "settings", settings)


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _arrays(name: str, array: Array) -> Any:
    def spoil(content: RecordDict) -> None:
        record = dict(content.array_records["arrays"])
        record[name] = array
        content["arrays"] = ArrayRecord(record)

    return spoil


@pytest.mark.parametrize("kind", ["train", "query.select", "query.predictions"])
@pytest.mark.parametrize(
    ("name", "array"),
    [
        # 37 GiB that are not there.
        ("head.bias", Array("float32", (10,), "numpy.ndarray", _npy("10000, 1000000"))),
        ("head.bias", Array("float32", (10**10,), "numpy.ndarray", _npy("10000000000,"))),
        ("head.bias", Array("float32", (10,), "numpy.ndarray", b"PK\x03\x04" + bytes(200))),
        ("head.bias", Array("float32", (10,), "pickle", b"\x80\x04.")),
        ("head.bias", Array(np.full(10, np.nan, np.float32))),
        ("head.bias", Array(np.zeros(10, np.float64))),
        ("head.bias", Array(np.zeros((10, 1), np.float32))),
        ("../../escaped", Array(np.zeros(10, np.float32))),
    ],
)
def test_arrays_that_are_no_model(target: Target, kind: str, name: str, array: Array):
    _joined(target)
    target.refused(kind, "message", None, _arrays(name, array))


@pytest.mark.parametrize(
    "values",
    [
        {"mean": [0.1] * 9},
        {"mean": [0.1] * 10**6},
        {"mean": [float("nan")] * 10},
        {"mean": [1.5] + [0.0] * 9},
        {"mean": 0.1},
        {"deviation": [-0.1] * 10},
        {"deviation": [float("inf")] * 10},
        {"low": [2] * 10},
        {"low": []},
        {"target": [0.0] * 10},
        {"target": [float("inf")] * 10},
        {"target": [1.0]},
    ],
)
def test_statistics_that_cannot_be(target: Target, values: dict[str, Any]):
    _joined(target)

    def spoil(content: RecordDict) -> None:
        for key, value in values.items():
            content.metric_records["statistics"][key] = value

    target.refused("query.select", "message", None, spoil)


@pytest.mark.parametrize("number", [-1, 0.5, [1]])
@pytest.mark.parametrize("kind", ["query.join", "query.select"])
def test_purchases_that_cannot_be(target: Target, kind: str, number: Any):
    _joined(target)

    def spoil(content: RecordDict) -> None:
        content["purchases"] = MetricRecord({"purchases": number})

    target.refused(kind, "message", None, spoil)


def test_a_server_that_says_nothing_of_purchases_buys_none_on_joining(target: Target):
    def without(content: RecordDict) -> None:
        del content["purchases"]

    assert not target.send("query.join", None, without).has_error()
    (ledger,) = target.ledgers().values()
    assert (ledger.allotted, ledger.spent) == (0, 0)


def test_more_purchases_than_the_site_has_buy_nothing(target: Target):
    _joined(target)

    def spoil(content: RecordDict) -> None:
        content["purchases"] = MetricRecord({"purchases": 2})

    target.refused("query.select", "label-store", None, spoil)


def test_every_kind_of_message_is_guarded(target: Target):
    """Those that are added later, too: nothing that is said is taken for granted."""
    registered = {kind.removesuffix(".default") for kind in client_app._registered_funcs}
    assert registered >= set(KINDS)
    for kind in registered:
        for content in (RecordDict(), RecordDict({"config": ConfigRecord({"run": "../a"})})):
            reply = target.deliver(kind, content)
            assert reply.has_error()
            assert str(reply.error.reason).startswith("[message] ")


# --- a site's own policy -----------------------------------------------------------------------

NOISY = {"privacy": "local-dp", "privacy.epsilon": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "settings", "rules"),
    [
        ({"privacy": "local-dp"}, {}, ["privacy"]),
        ({"privacy": "local-dp"}, {"privacy": "secure-aggregation"}, ["privacy"]),
        ({"privacy": "secure-aggregation"}, NOISY, ["privacy"]),
        ({"privacy": "local-dp+secure-aggregation"}, NOISY, ["privacy"]),
        ({"privacy": "local-dp", "epsilon": 0.5}, NOISY, ["epsilon"]),
        ({"privacy": "local-dp", "total-epsilon": 0.9}, NOISY, ["total-epsilon"]),
        ({"cycles": 2}, {}, ["cycles"]),
        ({"labels-per-run": 23}, {}, ["labels-per-run"]),
        ({"labels-per-run": 59}, {"target-fraction": 1.0}, ["labels-per-run"]),
        ({"labels-per-cycle": 11}, {}, ["labels-per-cycle"]),
        ({"labels-per-cycle": 12}, {"query-fraction": 0.3}, []),
        (
            {"labels-per-cycle": 17},
            {"query-fraction": 0.3, "target-fraction": 0.5},
            ["labels-per-cycle"],
        ),
        ({"total-labels": 23}, {}, ["total-labels"]),
        ({"image-size": 7}, {}, ["image-size"]),
        ({"image-size": 31}, {"image-size": 32}, ["image-size"]),
        ({"strategies": "random, margin"}, {}, ["strategies"]),
        ({"oracles": "files,page"}, {}, ["oracles"]),
        ({"models": "resnet8"}, {}, ["models"]),
        ({"local-epochs": 5}, {"local-epochs": 1_000_000}, ["local-epochs"]),
        ({"image-size": 7, "strategies": "random"}, {}, ["image-size", "strategies"]),
    ],
)
def test_what_a_policy_does_not_allow_is_refused_before_anything_is_computed(
    tmp_path: Path,
    policy: dict[str, object],
    settings: dict[str, object],
    rules: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    target = Target(tmp_path, **{f"policy-{key}": value for key, value in policy.items()})
    done: list[str] = []
    for name in (*KINDS, "query.drift", "query.split", "query.advertise_histogram"):
        method = name.removeprefix("query.")
        monkeypatch.setattr(Client, method, lambda *_, name=name, **__: done.append(name))
    data = _format(image_shape=[32, 32, 1]) if settings.get("image-size") == 32 else None
    order = {"data": data} if data else {}
    if not rules:
        monkeypatch.undo()
        assert not target.send("query.join", settings, order=order).has_error()
        return
    for kind in (*KINDS, "query.drift", "query.split", "query.advertise_keys"):
        reason = target.refused(kind, "policy", settings, _secure, order)
        told = re.search(r": ([a-z, -]+);", reason)
        assert told
        assert sorted(told[1].split(", ")) == sorted(f"policy-{rule}" for rule in rules)
    assert not done
    assert not target.leaks()


def _secure(content: RecordDict) -> None:
    content["secure-aggregation"] = ConfigRecord({"session": "a"})


def test_what_a_policy_just_allows(tmp_path: Path):
    target = Target(
        tmp_path,
        **{
            "policy-privacy": "local-dp",
            "policy-epsilon": 1.0,
            "policy-total-epsilon": 1,
            "policy-cycles": 3,
            "policy-labels-per-run": 24,
            "policy-labels-per-cycle": 12,
            "policy-total-labels": 24,
            "policy-image-size": 8,
            "policy-strategies": "random,entropy",
            "policy-oracles": "simulated",
            "policy-models": "small-cnn",
            "policy-local-epochs": 1,
            "policy-disk-gib": 0.05,
        },
    )
    for cycle in (0, 1):
        for kind in KINDS:
            reply = target.send(kind, NOISY, order={"cycle": cycle})
            # Predictions have no noise, so that a run with noise cannot have them.
            assert reply.has_error() == (kind == "query.predictions"), kind
    (ledger,) = target.ledgers().values()
    assert ledger.spent == 24
    assert not target.leaks()


def test_run_after_run_does_not_buy_more_than_all_of_them_may(tmp_path: Path):
    """Each run has a budget of its own, and a server can begin as many as it likes."""
    target = Target(tmp_path, **{"policy-total-labels": 40})
    for kind in ("query.join", "train", "query.select"):
        assert not target.send(kind).has_error()
    reason = target.refused("query.join", "policy", order={"run": OTHER_RUN})
    assert "policy-total-labels" in reason
    smaller = {"target-fraction": 0.2}
    assert not target.send("query.join", smaller, order={"run": OTHER_RUN}).has_error()
    assert sum(ledger.spent for ledger in target.ledgers().values()) == 18 + 12


def test_run_after_run_does_not_spend_more_epsilon_than_all_of_them_may(tmp_path: Path):
    target = Target(tmp_path, **{"policy-privacy": "local-dp", "policy-total-epsilon": 1.5})
    for kind in ("query.join", "query.histogram"):
        assert not target.send(kind, NOISY).has_error()
    # One of two releases is made: 0.5 of 1.
    target.refused(
        "query.join", "policy", NOISY | {"privacy.epsilon": 1.01}, order={"run": OTHER_RUN}
    )
    assert not target.send("query.join", NOISY, order={"run": OTHER_RUN}).has_error()
    assert not target.send("query.histogram", NOISY, order={"run": OTHER_RUN}).has_error()
    assert not target.send("query.histogram", NOISY, order={"cycle": 1}).has_error()
    target.refused("query.histogram", "policy", NOISY, order={"run": "0" * 16})


def test_settings_that_change_on_the_way_do_not_buy_more(tmp_path: Path):
    """A server that asks for little at first; and a budget that has piled up is bought in parts."""
    target = Target(tmp_path, **{"policy-labels-per-cycle": 12, "policy-labels-per-run": 30})
    _joined(target)
    target.refused("query.select", "policy", {"query-fraction": 0.8, "target-fraction": 1.0})
    missed = {"query-fraction": 0.1, "target-fraction": 0.5}
    assert not target.send("query.select", missed, order={"cycle": 2}).has_error()
    (ledger,) = target.ledgers().values()
    assert (ledger.allotted, ledger.spent) == (30, 24)
    assert not target.send("query.select", missed, order={"cycle": 3}).has_error()
    (ledger,) = target.ledgers().values()
    assert ledger.spent == 30


def test_terms_of_privacy_do_not_change(target: Target):
    _joined(target, **NOISY)
    target.refused("query.histogram", "privacy", {"privacy": "none"})
    target.refused("query.histogram", "privacy", NOISY | {"privacy.epsilon": 100.0})
    target.refused("query.histogram", "privacy", NOISY | {"privacy.adjacency": "add-remove"})
    target.refused("query.histogram", "privacy", NOISY | {"target-fraction": 0.3})


@pytest.mark.slow
def test_disk_is_not_filled(tmp_path: Path):
    """Neither by larger and larger images, each decoded anew, nor by what training keeps."""
    target = Target(tmp_path, **{"policy-disk-gib": 2 / 1024})
    _joined(target)
    large = _format(image_shape=[256, 256, 1])
    assert "policy-disk-gib" in target.refused("query.join", "policy", order={"data": large})
    for side in range(9, 200):
        reply = target.send("query.join", order={"data": _format(image_shape=[side, side, 1])})
        if reply.has_error():
            break
    assert reply.has_error()
    assert "policy-disk-gib" in str(reply.error.reason)
    used = sum(
        path.stat().st_size
        for folder in (target.state, target.site / "decoded")
        for path in folder.rglob("*")
        if path.is_file()
    )
    assert used < 2**21
    # Labels that people have given are still taken in.
    assert not target.send("query.collect").has_error()
    assert not target.leaks()


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"policy-labels": 5}, "policy-labels: unknown rule; did you mean 'policy-"),
        ({"policy-": 5}, "policy-: unknown rule"),
        ({"policy-privacy": "some"}, "policy-privacy='some': allowed is: least protection"),
        ({"policy-labels-per-run": 0}, "policy-labels-per-run=0: allowed is"),
        ({"policy-labels-per-run": 1.5}, "policy-labels-per-run=1.5"),
        ({"policy-labels-per-run": True}, "policy-labels-per-run=True"),
        ({"policy-labels-per-run": "5"}, "policy-labels-per-run='5'"),
        ({"policy-image-size": -1}, "policy-image-size=-1"),
        ({"policy-disk-gib": 0}, "policy-disk-gib=0"),
        ({"policy-epsilon": 1.0}, "policy-epsilon=1.0: allowed only with policy-privacy"),
        (
            {"policy-epsilon": 1.0, "policy-privacy": "secure-aggregation"},
            "policy-epsilon=1.0: allowed only with policy-privacy",
        ),
        ({"policy-strategies": "entropi"}, "'entropi' is not known; .*did you mean 'entropy'"),
        ({"policy-strategies": "entropy,"}, "policy-strategies='entropy,'"),
        ({"policy-oracles": "phone"}, "'phone' is not known"),
        ({"policy-models": "resnet9"}, "did you mean 'resnet8'"),
    ],
)
def test_a_policy_that_would_protect_nothing_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: dict[str, object], told: str
):
    target = Target(tmp_path, **policy)
    target.refused("query.join", "settings")
    assert re.search(told, caplog.text)


# --- secure aggregation ------------------------------------------------------------------------

SECURE = {"privacy": "secure-aggregation"}


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("query.advertise_keys", {}),
        ("query.advertise_keys", {"session": ""}),
        ("query.advertise_keys", {"session": 5}),
        ("query.advertise_keys", {"session": "../../escaped"}),
        ("query.advertise_keys", {"session": "a" * 10**6}),
        ("query.share_keys", {"session": "a", "clients": [0, 1]}),
        ("query.share_keys", {"session": "a", "clients": [0, 0, 1]}),
        ("query.share_keys", {"session": "a", "clients": ["0"]}),
        ("query.share_keys", {"session": "a", "clients": [-1]}),
        ("query.share_keys", {"session": "a", "clients": [2**62]}),
        (
            "query.share_keys",
            {"session": "a", "clients": [0], "cipher-keys": [b"x"], "mask-keys": [bytes(32)]},
        ),
        ("query.mask", {"session": "a", "peers": [1], "ciphertexts": [bytes(76)]}),
        ("query.mask", {"session": "a", "peers": [1], "ciphertexts": [bytes(10**7)]}),
        ("query.mask", {"session": "a", "peers": [1], "ciphertexts": ["text"]}),
        ("query.unmask", {"session": "a", "survivors": [1.5]}),
        ("query.unmask", {"session": "a", "survivors": "012"}),
    ],
)
def test_requests_of_secure_aggregation_that_cannot_be(
    target: Target, kind: str, record: dict[str, Any]
):
    _joined(target, **SECURE)

    def spoil(content: RecordDict) -> None:
        content["secure-aggregation"] = ConfigRecord(record)

    target.refused(kind, "message", SECURE, spoil)


def test_a_step_that_is_not_the_next_one_is_refused(target: Target):
    _joined(target, **SECURE)

    def unmask(content: RecordDict) -> None:
        content["secure-aggregation"] = ConfigRecord({"session": "a", "survivors": [0, 1, 2]})

    target.refused("query.unmask", "privacy", SECURE, unmask)
    target.refused("query.histogram", "privacy", SECURE)


# --- what leaves a site when something fails there ---------------------------------------------


def _raising(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(f"/srv/{PATIENT}.png"), "unforeseen"),
        (KeyError(f"{PATIENT}.png"), "unforeseen"),
        (ValueError(f"{PATIENT}.png"), "unforeseen"),
        (UnicodeDecodeError("utf-8", f"{PATIENT}".encode(), 0, 1, "no"), "unforeseen"),
        (AssertionError(f"{PATIENT}.png"), "unforeseen"),
        (sqlite3.OperationalError(f"{PATIENT}"), "unforeseen"),
        (FileNotFoundError(2, "No such file", f"/srv/{PATIENT}.png"), "files"),
        (PermissionError(13, "Permission denied", f"/srv/{PATIENT}.png"), "files"),
        (OSError(28, "No space left on device", f"/srv/{PATIENT}.png"), "disk"),
        (MemoryError(PATIENT), "memory"),
        (errors.DatasetError(f"{PATIENT}.png: gone"), "images"),
        (errors.LabelFileError(f"labels.csv: line 4: {PATIENT}.png"), "label-file"),
        (errors.StoreError(f"sample 4 is the file {PATIENT}.png"), "label-store"),
        (errors.StoreError(f"label store {PATIENT}: its disk is full"), "disk"),
        (errors.LabelConflict(f"{PATIENT}.png"), "label-store"),
        (errors.OracleError(f"{PATIENT}.png"), "oracle"),
        (errors.ConfigError([f"data='/srv/{PATIENT}': no such folder"]), "settings"),
        (errors.ConfigError([f"{PATIENT.lower()}='a': no such key"]), "settings"),
        (errors.InvalidSelection(PATIENT), "strategy"),
        (errors.UnknownComponent(PATIENT), "component"),
        (errors.DeviceMemoryExhausted(PATIENT), "memory"),
    ],
)
def test_whatever_fails_at_a_site_is_told_as_a_code_and_a_fixed_text(
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
):
    for kind in KINDS:
        monkeypatch.setattr(Client, kind.removeprefix("query."), _raising(error))
        reason = target.refused(kind, code)
        keys = ": data" if "data=" in str(error) else ""
        assert reason == f"[{code}] {outgoing.TEXTS[code]}{keys}; the site's log says more"
    # The site's people find all of it.
    assert str(error) in caplog.text


def test_errors_that_come_of_each_other_are_told_as_the_first(target: Target, monkeypatch):
    def fail(*_: object) -> None:
        try:
            raise OSError(28, "No space left on device", f"/srv/{PATIENT}.png")
        except OSError as error:
            raise errors.DatasetError(f"{PATIENT}.png") from error

    monkeypatch.setattr(Client, "train", lambda *_, **__: fail())
    target.refused("train", "disk")


@pytest.mark.slow
def test_a_site_whose_files_are_damaged_names_none(target: Target, caplog):
    """What really happens to folders: labels with a mistake, images that go, stores that break."""
    _joined(target)
    labels = target.site / "images" / "labels.csv"
    labels.write_text(f"file,label\nstation-7/{PATIENT}-1920.png,melanom\n")
    _forget_site()
    reply = target.send("query.select")
    assert str(reply.error.reason).startswith("[label-file]")
    assert "melanom" not in str(reply.error.reason)
    labels.unlink()
    (store,) = target.state.rglob(STORE_FILE)
    whole = store.read_bytes()
    store.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    reply = target.send("query.select")
    assert str(reply.error.reason).startswith("[label-store]")
    store.write_bytes(whole)
    for path in (target.site / "images").rglob("*.png"):
        path.write_bytes(b"damaged")
    _forget_site()
    reply = target.send("query.select")
    assert str(reply.error.reason).startswith("[images]")
    assert f"station-7/{PATIENT}-1920.png" in (target.state / "set-aside.csv").read_text()
    assert "melanom" in caplog.text


def _forget_site() -> None:
    """As in deployment, where each message has a process of its own."""
    from ahfal_app.training import resources

    resources._sites.clear()


def test_every_code_is_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \|$", page, re.MULTILINE)
    assert {code: text for code, text in rows if code in outgoing.TEXTS} == outgoing.TEXTS


def test_every_error_of_ours_has_a_code_of_its_own_or_none_that_a_site_can_meet():
    """A new error must be told, or said to be one of the server's or of people's commands."""
    elsewhere = {
        *("AhfalError", "NoLabelledClients", "CheckpointError", "ResumeError", "SweepError"),
        *("QuorumNotReached", "NonFiniteModel", "CodeMismatch", "EngineError"),
        *("CertificateError", "ReportError", "InvalidMetric", "EvaluationFailed", "PageError"),
        "BenchmarkError",
    }
    ours = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.AhfalError)
    }
    unforeseen = {
        name for name, kind in ours.items() if outgoing.code_of(kind.__new__(kind)) == "unforeseen"
    }
    assert unforeseen <= elsewhere, unforeseen - elsewhere


def test_the_settings_of_an_attack_are_those_of_a_run():
    """Or each refusal above might be one of these settings."""
    assert model_arrays().keys()
    assert set(SETTINGS) >= {"partition", "model", "strategy"}


# --- windows of cycles that are compared -------------------------------------------------------


def test_windows_are_compared_under_the_terms_of_joining_alone(target: Target):
    terms = {"drift-test": "predicted", "drift-window": 1}
    _joined(target)
    target.refused("query.drift", "message", order={"cycle": 1})
    target.refused("query.drift", "privacy", terms, order={"cycle": 1})


@pytest.mark.parametrize("test", ["predicted", "permutation"])
def test_a_comparison_of_windows_tells_a_few_numbers(target: Target, test: str):
    share = 0.0 if test == "predicted" else 0.5
    terms = {"drift-test": test, "drift-window": 1, "audit-share": share}
    _joined(target, **terms)
    assert not target.send("query.select", terms).has_error()

    def with_model(content: RecordDict) -> None:
        content["arrays"] = target.arrays()

    spoil = with_model if test == "predicted" else None
    target.refused("query.drift", "message", terms, spoil, {"cycle": 0})
    if spoil is not None:
        target.refused("query.drift", "message", terms, None, {"cycle": 1})
    reply = target.send("query.drift", terms, spoil, {"cycle": 1})
    assert not reply.has_error()
    assert set(reply.content) == {"metrics"}
    (told,) = reply.content.metric_records.values()
    assert set(told) <= {"refusal", "statistic", "log_ratio", "df", "p"}
    # Nothing has come since the first cycle, so that there is nothing to predict.
    assert (told["refusal"] > 0) == (test == "predicted")


def test_predictions_of_two_windows_are_told_as_two_numbers(target: Target) -> None:
    terms = {"drift-test": "predicted", "drift-window": 1}
    _joined(target, **terms)
    images = target.site / "images"
    new = write_images(images / FOLDER, range(IMAGES, IMAGES + 15), CLASSES)
    with (target.site / "truth.csv").open("a") as truth:
        truth.writelines(f"{FOLDER}/{name},{label}\n" for name, label in new.items())
    _forget_site()
    assert not target.send("query.select", terms).has_error()

    def with_model(content: RecordDict) -> None:
        content["arrays"] = target.arrays()

    reply = target.send("query.drift", terms, with_model, {"cycle": 1})
    assert not reply.has_error()
    assert set(reply.content) == {"metrics"}
    told = reply.content.metric_records["metrics"]
    assert set(told) == {"refusal", "divergence", "variation"}
    assert told["refusal"] == 0
    assert all(type(value) in (int, float) for value in told.values())
