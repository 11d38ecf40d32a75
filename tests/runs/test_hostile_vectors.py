"""Servers and sites that mean harm, where the data are vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from flwr.app import MetricRecord
from pyarrow import parquet
from support.attacks import IMAGES, Target, VectorTarget

from ahfal_app.config import LONGEST_VECTOR
from ahfal_app.data.moments import UNITS
from ahfal_app.messages.answers import moments_from_metrics

KINDS = (
    "query.join",
    "query.moments",
    "query.begin",
    "train",
    "query.histogram",
    "query.select",
    "query.collect",
)
TYPICAL = {"initial-strategy": "typicality"}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[VectorTarget]:
    target = VectorTarget(tmp_path)
    yield target
    assert not target.leaks()


def _format(**changes: Any) -> str:
    return json.dumps(json.loads(VectorTarget.data_format.to_json()) | changes)


def test_an_honest_server_is_answered_and_hears_no_name(target: VectorTarget):
    before = target.everything_outside()
    for kind in KINDS:
        reply = target.send(kind, TYPICAL)
        assert not reply.has_error(), reply.error.reason
    assert target.everything_outside() == before
    (ledger,) = target.ledgers().values()
    assert (ledger.spent, ledger.reserved) == (0.3 * IMAGES, 0)


def test_sums_are_told_once_whatever_they_are_asked_by(target: VectorTarget):
    """By one narrow scale after another a server would learn how many vectors lie where."""
    told = [
        target.send("query.moments", order={"data": data}).content["metrics"]["sums"]
        for data in (_format(), _format(std_C=[1e-6] * 64), _format(mean_C=[9.0] * 64))
    ]
    assert told[0] == told[1] == told[2]
    assert told[0][0] == IMAGES
    assert any(told[0][1:])


def test_sums_are_told_in_secret_alone_where_the_run_says_so(target: VectorTarget):
    secret = {"privacy": "secure-aggregation"}
    assert not target.send("query.join", secret).has_error()
    target.refused("query.moments", "privacy", secret)
    target.refused("query.moments", "privacy")


def test_a_site_with_images_has_no_sums(tmp_path: Path):
    target = Target(tmp_path)
    target.refused("query.moments", "message")


@pytest.mark.parametrize(
    "changes",
    [
        {"image_shape": [1, 2, 64]},
        {"image_shape": [1, 1, 0], "mean_C": [], "std_C": []},
        {"image_shape": [1, 1, LONGEST_VECTOR + 1]},
        {"image_shape": [1, 1, 10**9]},
        {"mean_C": [0.0] * 63},
        {"std_C": [0.0] * 64},
        {"std_C": [-1.0] * 64},
        {"std_C": [1.0] * 65},
        {"augmentation": {"padding": 0, "flip": True}},
        {"augmentation": {"padding": 1, "flip": False}},
        {"vectors": 1},
        {"vectors": "yes"},
        # The channels of no image.
        {"vectors": False},
    ],
)
def test_formats_that_no_vectors_have(target: VectorTarget, changes: dict[str, object]):
    target.refused("query.moments", "message", order={"data": _format(**changes)})


WITHOUT: dict[str, object] = {
    "dataset": "none",
    "evaluate": "sites",
    "classes": ",".join("0123456789"),
    "vector-length": 64,
}


def test_without_a_reference_sums_are_told_once_too(target: VectorTarget):
    nothing = _format(mean_C=[], std_C=[])
    told = [
        target.send("query.moments", WITHOUT, order={"data": data}).content["metrics"]["sums"]
        for data in (nothing, _format(), nothing)
    ]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 1 + 7 * 64


@pytest.mark.parametrize("measured", [True, False])
def test_a_site_with_numbers_that_cannot_be_summed_does_not_join(
    target: VectorTarget, measured: bool, caplog: pytest.LogCaptureFixture
):
    (file,) = (target.site / "images").glob("*.parquet")
    table = parquet.read_table(file)
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    vectors[7, 3] = -2e12
    parquet.write_table(table.set_column(0, "vector", pa.array(list(vectors))), file)
    data = _format() if measured else _format(mean_C=[], std_C=[])
    target.refused("query.join", "images", WITHOUT, order={"data": data})
    assert "a vector has the number ±2e+12; allowed with dataset='none' is up to" in caplog.text


@pytest.mark.parametrize("kind", ["train", "query.select", "evaluate"])
def test_nothing_is_computed_before_it_is_said_how_data_are_standardised(
    target: VectorTarget, kind: str
):
    nothing = {"data": _format(mean_C=[], std_C=[])}
    assert not target.send("query.join", WITHOUT, order=nothing).has_error()
    target.refused(kind, "message", WITHOUT, order=nothing)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {"mean_C": [], "std_C": []}),
        (WITHOUT, {"mean_C": []}),
        (WITHOUT, {"std_C": []}),
        (WITHOUT | {"vector-length": 63}, {}),
        (WITHOUT | {"vector-length": 0, "image-size": 1}, {}),
    ],
)
def test_formats_that_do_not_fit_a_server_without_data(
    target: VectorTarget, settings: dict[str, object], changes: dict[str, object]
):
    target.refused("query.join", "message", settings, order={"data": _format(**changes)})


def test_images_of_other_channels_than_a_server_without_data_says(tmp_path: Path):
    target = Target(tmp_path)
    without = {**WITHOUT, "vector-length": 0, "image-size": 8, "image-channels": 1}
    assert not target.send("query.join", without).has_error()
    target.refused("query.join", "message", {**without, "image-channels": 3})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_of_a_format_that_are_none(target: VectorTarget, number: str):
    spoilt = _format().replace("[5.0", f"[{number}", 1)
    target.refused("query.moments", "message", order={"data": spoilt})


def test_a_site_with_images_is_told_that_the_run_wants_vectors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    target = Target(tmp_path)
    target.refused("query.join", "images", order={"data": _format()})
    assert "there is no parquet file with vectors in it" in caplog.text


def test_vectors_of_another_length_than_the_servers_are_refused(target: VectorTarget):
    shorter = _format(image_shape=[1, 1, 63], mean_C=[0.0] * 63, std_C=[1.0] * 63)
    target.refused("query.join", "images", order={"data": shorter})


@pytest.mark.parametrize(
    "sums",
    [
        [3, UNITS, UNITS],
        [3, UNITS, UNITS, UNITS, UNITS, 0],
        [3.0, 0.0, 0.0, 0.0, 0.0],
        [2**62, 0, 0, 0, 0],
        7,
    ],
)
def test_sums_that_no_site_sends(sums: Any):
    with pytest.raises(ValueError, match="sums="):
        moments_from_metrics(MetricRecord({"sums": sums}), 5)
    assert np.array_equal(moments_from_metrics(MetricRecord({"sums": [3, 1, 2, 4, 5]}), 5)[:1], [3])
