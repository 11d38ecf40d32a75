"""A server that sends a site a model, and says of it what it likes: refused, nothing written."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from support.attacks import CLASSES, SETTINGS, Target, model_arrays

from ahfal_app.code_version import __version__
from ahfal_app.config import parse_settings
from ahfal_app.inference import load_model

METADATA: dict[str, Any] = {
    "backbone": "",
    "classes": list(CLASSES),
    "use": {
        "network": "small-cnn",
        "parameters": {},
        "tune": "head",
        "backbone": None,
        "vectors": False,
        "shape": [8, 8, 1],
        "mean": [0.3],
        "deviation": [0.38],
        "labels": 40,
        "accuracy": 0.5,
        "privacy": "none",
        "code": __version__,
        "cycle": 1,
        "round": 2,
        "chosen_by": "",
        "personal": False,
    },
}

Spoil = Callable[[RecordDict], None]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path)
    yield target
    assert not target.leaks()


def saying(metadata: object, arrays: ArrayRecord | None = None) -> Spoil:
    """Return what makes a message one with a model."""

    def spoil(content: RecordDict) -> None:
        content["arrays"] = model_arrays() if arrays is None else arrays
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        content["model"] = ConfigRecord({"metadata": text})

    return spoil


def refused(target: Target, spoil: Spoil, code: str = "message") -> None:
    target.refused("query.model", code, spoil=spoil)
    assert not (target.state / "model").exists() or not list((target.state / "model").iterdir())


def changed(**said: object) -> dict[str, Any]:
    content = copy.deepcopy(METADATA)
    content["use"] |= said
    return content


def test_an_honest_server_s_model_is_kept(target: Target) -> None:
    reply = target.send("query.model", spoil=saying(METADATA))
    assert not reply.has_error(), reply.error.reason
    assert dict(reply.content.metric_records["metrics"]) == {"kept": 1}
    model = load_model(target.state / "model" / "model.safetensors")
    assert (model.classes, model.use.labels, model.use.accuracy) == (CLASSES, 40, 0.5)


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "{",
        "null",
        "[]",
        "[" * 100_000,
        '{"use": ' + "9" * 10_000 + "}",
        {},
        {**METADATA, "more": 1},
        {**METADATA, "classes": ["a", "b"]},
        {**METADATA, "classes": "0123456789"},
        {**METADATA, "backbone": "ab" * 32},
        {**METADATA, "backbone": None},
        {**METADATA, "use": None},
        {**METADATA, "use": {}},
        {**METADATA, "use": [METADATA["use"]]},
        changed(network="resnet8"),
        changed(network="../../etc"),
        changed(parameters={"head-kernel": 9}),
        changed(tune="all"),
        changed(backbone={"name": "timm/x", "weights": "/etc/shadow", "size": 0, "crop": False}),
        changed(vectors=True),
        changed(shape=[64, 64, 1]),
        changed(shape=[10**9, 10**9, 1]),
        changed(mean=[0.4]),
        changed(mean=[0.3] * 3, deviation=[0.3] * 3),
        changed(deviation=[0.0]),
        changed(mean=[float("nan")]),
        changed(labels=-1),
        changed(labels=10**30),
        changed(labels=True),
        changed(accuracy=1.5),
        changed(accuracy="0.5"),
        changed(privacy="local-dp"),
        changed(code="9.9"),
        changed(cycle=-1),
        changed(cycle=99),
        changed(cycle=None),
        changed(round=0),
        changed(round=3),
        changed(chosen_by="<script>"),
        changed(chosen_by="x" * 10**5),
        changed(personal=True),
        changed(unknown=1),
        "x" * (3 << 20),
    ],
)
def test_what_no_server_says_of_its_model(target: Target, metadata: object) -> None:
    refused(target, saying(metadata))


@pytest.mark.parametrize("value", [7, [1, 2], b"{}", True])
def test_metadata_that_are_no_text(target: Target, value: object) -> None:
    def spoil(content: RecordDict) -> None:
        saying(METADATA)(content)
        content["model"] = ConfigRecord({"metadata": value})  # type: ignore[dict-item]

    refused(target, spoil)


@pytest.mark.parametrize("record", ["arrays", "model", "config"])
def test_records_that_are_missing_or_of_another_kind(target: Target, record: str) -> None:
    def without(content: RecordDict) -> None:
        saying(METADATA)(content)
        del content[record]

    def other(content: RecordDict) -> None:
        saying(METADATA)(content)
        content[record] = MetricRecord()

    refused(target, without)
    refused(target, other)


def huge() -> Array:
    """Return an array that says to be of 10 GB, and has no bytes of it."""
    head = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (50_000, 50_000)}
    np.lib.format.write_array_header_1_0(head, shape)
    return Array("float32", (50_000, 50_000), "numpy.ndarray", head.getvalue())


def test_arrays_of_another_model(target: Target) -> None:
    first, *_ = model_arrays()

    def spoilt(change: Callable[[ArrayRecord], None]) -> Spoil:
        arrays = model_arrays()
        change(arrays)
        return saying(METADATA, arrays)

    def put(array: Array) -> Callable[[ArrayRecord], None]:
        return lambda arrays: arrays.__setitem__(first, array)

    for array in (
        huge(),
        Array(np.zeros((4, 4), np.float32)),
        Array(model_arrays()[first].numpy().astype(np.float64)),
        Array(model_arrays()[first].numpy() * np.nan),
    ):
        refused(target, spoilt(put(array)))
    refused(target, spoilt(lambda arrays: arrays.__delitem__(first)))
    refused(target, spoilt(lambda arrays: arrays.__setitem__("more", Array(np.zeros(3)))))


def test_a_disk_that_may_not_be_filled(tmp_path: Path) -> None:
    target = Target(tmp_path, **{"policy-disk-gib": 1.5e-4})
    assert not target.send("query.join").has_error()
    size = sum(len(array.data) for array in model_arrays().values())
    assert size > 0.3 * 1.5e-4 * 2**30, "the model is to be too much for what is left"
    refused(target, saying(METADATA), "policy")
    assert not target.leaks()


def test_a_site_that_keeps_no_model_reads_none(tmp_path: Path) -> None:
    target = Target(tmp_path, **{"keep-model": False})
    for spoil in (saying(METADATA), saying("nonsense", ArrayRecord())):
        reply = target.send("query.model", spoil=spoil)
        assert dict(reply.content.metric_records["metrics"]) == {"kept": 0}
    assert not (target.state / "model").exists()


def test_a_model_comes_to_sites_alone(target: Target) -> None:
    assert parse_settings(SETTINGS).has_sites
    target.node |= {"dataset": "digits"}
    del target.node["data"]
    reason = target.refused("query.model", "message", {"partition": "iid"}, spoil=saying(METADATA))
    assert reason.startswith("[message] ")


@pytest.mark.parametrize(
    "said", [{"keep-model": "false"}, {"keep-personal": True, "keep-model": False}]
)
def test_what_a_site_says_of_models_is_read_before_a_run(
    tmp_path: Path, said: dict[str, object]
) -> None:
    target = Target(tmp_path, **said)
    assert "keep-" in target.refused("query.join", "settings")
