from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from ahfal_app.config import parse_settings
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.images import DataFormat
from ahfal_app.data.shown import drawn, picture
from ahfal_app.data.site.loading import SiteData, SiteFolders, load_site
from ahfal_app.data.sources import load_dataset
from ahfal_app.data.vectors import vectors_of
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.server.preflight import check_data
from ahfal_app.training.resources import Resources

_KINDS = [
    pa.list_(pa.float32()),
    pa.large_list(pa.float64()),
    pa.list_(pa.float32(), 3),
    pa.list_(pa.float16()),
]


def _write(path: Path, rows: list, labels: list, kind: pa.DataType | None = None, **more) -> Path:
    kind = kind or pa.list_(pa.float64())
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"embedding": pa.array(rows, kind), "label": labels, **more}
    parquet.write_table(pa.table(table), path, row_group_size=3)
    return path


def _load(path: Path, cache: Path, **settings: object):
    values = {"dataset": str(path), "data-dir": str(cache), "test-fraction": 0.25, **settings}
    return load_dataset(parse_settings(values))


def _rows(count: int) -> list[list[float]]:
    return [[float(i), 2.0 * i, -1.0] for i in range(count)]


@pytest.mark.parametrize("kind", _KINDS, ids=str)
def test_a_file_of_vectors_is_a_data_set(tmp_path: Path, kind: pa.DataType):
    rows, labels = _rows(8), ["b", "a"] * 4
    loaded = _load(_write(tmp_path / "data.parquet", rows, labels, kind), tmp_path / "cache")
    assert (loaded.image_shape, loaded.class_names) == ((1, 1, 3), ("a", "b"))
    assert loaded.holds_vectors
    assert (len(loaded.train), len(loaded.test)) == (6, 2)
    both = [*zip(loaded.train.images_NHWC, loaded.train.labels_N, strict=True)]
    both += zip(loaded.test.images_NHWC, loaded.test.labels_N, strict=True)
    found = sorted((vector.ravel().tolist(), ("a", "b")[label]) for vector, label in both)
    assert found == sorted(zip(rows, labels, strict=True))
    train_ND = loaded.train.images_NHWC[:, 0, 0]
    assert loaded.mean_C == pytest.approx(train_ND.mean(axis=0), rel=1e-5)
    # The last number is the same everywhere, and divided by 1.
    assert loaded.std_C == pytest.approx([*train_ND.std(axis=0)[:2], 1.0], rel=1e-5)


def test_a_folder_may_have_splits_and_settings_name_the_columns(tmp_path: Path):
    more = {"other": pa.array([[1.0]] * 4), "words": list("wxyz")}
    _write(tmp_path / "d/train.parquet", _rows(4), [0, 1, 0, 1], **more)
    _write(tmp_path / "d/test.parquet", _rows(4)[:2], [1, 0], other=[[1.0]] * 2, words=["u", "v"])
    with pytest.raises(DatasetError, match="vector-column: columns embedding, other all fit"):
        _load(tmp_path / "d", tmp_path / "cache")
    columns = {"vector-column": "embedding", "shown-column": "words"}
    loaded = _load(tmp_path / "d", tmp_path / "cache", **columns, standardise="none")
    assert loaded.train.images_NHWC[:, 0, 0].tolist() == _rows(4)
    assert loaded.test.labels_N.tolist() == [1, 0]
    assert (loaded.mean_C, loaded.std_C) == ((0.0,) * 3, (1.0,) * 3)
    assert loaded.test.shown is not None
    assert [loaded.test.shown[row] for row in range(2)] == [b"u", b"v"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1.0, 2.0], r"data\.parquet#4: a vector of 2 numbers; 3 are needed \(1 of 8 rows"),
        ([1.0, float("nan"), 0.0], r"data\.parquet#4: a number of the vector is missing, NaN"),
        ([1.0, None, 0.0], r"data\.parquet#4: a number of the vector is missing"),
        ([1e39, 0.0, 0.0], r"data\.parquet#4: .* beyond the range of float32"),
        (None, r"data\.parquet#4: the vector is missing"),
    ],
)
def test_a_vector_that_cannot_be_used_is_named_by_its_row(tmp_path: Path, row: object, reason: str):
    rows = [*_rows(4), row, *_rows(3)]
    path = _write(tmp_path / "data.parquet", rows, [0, 1] * 4)
    with pytest.raises(DatasetError, match=reason):
        _load(path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"augment": "crop"}, "augment='crop': allowed for vectors is auto | none"),
        ({"image-size": 32}, "image-size=32: allowed for vectors is 0"),
        ({"vector-column": "embeding"}, "no such column; there are embedding, label; did you mean"),
        ({"vector-column": "label"}, "vector-column='label': holds int64; allowed are lists of"),
        ({"shown-column": "label"}, "shown-column='label': holds int64; allowed is text or images"),
        ({"label-column": "embedding"}, "label-column='embedding': holds List"),
    ],
)
def test_settings_that_do_not_fit_vectors_are_refused(
    tmp_path: Path, settings: dict[str, object], reason: str
):
    path = _write(tmp_path / "data.parquet", _rows(8), [0, 1] * 4)
    with pytest.raises(DatasetError) as caught:
        _load(path, tmp_path / "cache", **settings)
    assert reason in str(caught.value)


def test_truth_values_are_labels(tmp_path: Path):
    path = _write(tmp_path / "data.parquet", _rows(8), [True, False] * 4)
    loaded = _load(path, tmp_path / "cache", **{"test-fraction": 0.25})
    assert loaded.class_names == ("False", "True")
    both = np.concatenate([loaded.train.labels_N, loaded.test.labels_N])
    assert np.bincount(both).tolist() == [4, 4]


def test_a_table_without_lists_is_told_what_vectors_are(tmp_path: Path):
    columns = {f"f{i}": pa.array([0.5] * 8) for i in range(3)}
    parquet.write_table(pa.table({**columns, "label": [0, 1] * 4}), tmp_path / "data.parquet")
    with pytest.raises(DatasetError, match="all numbers of a sample in one column; there are f0"):
        _load(tmp_path / "data.parquet", tmp_path / "cache")


def test_classes_that_only_one_split_has_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _write(tmp_path / "d/train.parquet", _rows(6), ["a", "b", "e"] * 2)
    _write(tmp_path / "d/test.parquet", _rows(8), ["a", "b", "c", "d"] * 2)
    loaded = _load(tmp_path / "d", tmp_path / "cache")
    notes = ("classes that the split for training lacks: c, d",)
    assert loaded.notes == (*notes, "classes that the split for testing lacks: e")
    assert notes[0] in caplog.text


def test_a_data_set_is_named_once(tmp_path: Path):
    path = _write(tmp_path / "data.parquet", [[1.0, float("nan")], [1.0, 2.0]], [0, 1])
    settings = parse_settings({"dataset": str(path), "data-dir": str(tmp_path / "cache")})
    with pytest.raises(ConfigError) as refused:
        check_data(settings)
    assert str(refused.value).count("dataset=") == 1


def test_what_lies_beside_tables_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for split in ("train", "test", "validation"):
        _write(tmp_path / f"d/{split}.parquet", _rows(6), ["a", "b"] * 3)
    (tmp_path / "d/x.csv").write_text("1,2\n")
    loaded = _load(tmp_path / "d", tmp_path / "cache")
    assert [(line.count, line.such_as) for line in loaded.not_used] == [
        (1, "validation.parquet"),
        (1, "x.csv"),
    ]
    assert "2 not used" in caplog.text
    (written,) = (tmp_path / "cache").rglob("not-used.csv")
    assert 'x.csv,"no parquet file' in written.read_text()


def test_labels_that_are_all_different_are_named(tmp_path: Path):
    path = _write(tmp_path / "data.parquet", _rows(8), list(range(8)))
    with pytest.raises(DatasetError, match=r"label-column.*8 classes of 8 samples"):
        _load(path, tmp_path / "cache")


def test_a_network_for_images_is_refused_and_a_linear_one_is_the_default(tmp_path: Path):
    path = _write(tmp_path / "data.parquet", _rows(8), [0, 1] * 4)
    values = {"dataset": str(path), "data-dir": str(tmp_path / "cache")}
    assert Resources(parse_settings(values)).model_name == "linear"
    with pytest.raises(ConfigError, match=r"model='resnet8': .*allowed is auto \| linear \| mlp"):
        Resources(parse_settings(values | {"model": "resnet8"}))


@given(
    lengths=st.lists(st.integers(0, 5) | st.none(), min_size=1, max_size=20),
    chunks=st.integers(1, 4),
)
def test_vectors_are_those_of_a_loop_over_the_rows(lengths: list[int | None], chunks: int):
    rows = [None if n is None else [float(i + j) for j in range(n)] for i, n in enumerate(lengths)]
    parts = [rows[part::chunks] for part in range(chunks)]
    kind = pa.list_(pa.float64())
    found = vectors_of(pa.chunked_array([pa.array(part, kind) for part in parts]), 3)
    for row, expected in enumerate(row for part in parts for row in part):
        fits = expected is not None and len(expected) == 3
        assert (row in found.problems) == (not fits)
        assert found.values_ND[row].tolist() == (expected if fits else [0.0] * 3)


# --- at a site -----------------------------------------------------------------------------------

_FORMAT = DataFormat(("a", "b"), (1, 1, 3), (0.0,) * 3, (1.0,) * 3, Augmentation(0, False), True)


def _site(tmp_path: Path) -> SiteData:
    folders = SiteFolders(tmp_path / "data", tmp_path / "state")
    return load_site(folders, _FORMAT, tmp_path / "cache", "")


def test_a_sites_rows_are_its_samples_and_bad_ones_are_set_aside(tmp_path: Path):
    rows = [*_rows(5), [1.0], None, [float("inf"), 0.0, 0.0], *_rows(1)]
    text = [f"case {i}" for i in range(9)]
    _write(tmp_path / "data/cases.parquet", rows, ["x"] * 9, text=text)
    (tmp_path / "data/photo.png").write_bytes(b"")
    site = _site(tmp_path)
    # Equal rows may be two cases: the last one is used although it is like the first.
    assert site.ids_N.tolist() == [0, 1, 2, 3, 4, 8]
    assert [site.names[i] for i in (0, 8)] == ["cases.parquet#0", "cases.parquet#8"]
    assert site.dataset.train.images_NHWC[site.ids_N][:, 0, 0].tolist() == [*_rows(5), _rows(1)[0]]
    assert site.content(3) == b"case 3"
    told = (tmp_path / "state/set-aside.csv").read_text()
    assert "cases.parquet#5,a vector of 1 numbers; 3 are needed" in told
    assert "cases.parquet#6,no vector; 3 are needed" in told
    assert 'cases.parquet#7,"number 0 of the vector is missing, NaN or infinite"' in told
    assert "photo.png" in told


def test_a_row_that_changed_after_it_was_looked_at_is_shown_to_nobody(tmp_path: Path):
    _write(tmp_path / "data/cases.parquet", _rows(4), ["x"] * 4, text=list("abcd"))
    site = _site(tmp_path)
    _write(tmp_path / "data/cases.parquet", _rows(4), ["x"] * 4, text=list("abxd"))
    assert site.content(1) == b"b"
    with pytest.raises(DatasetError, match=r"cases\.parquet#2: changed since"):
        site.content(2)


# --- what people see -----------------------------------------------------------------------------


def test_text_is_drawn_and_an_image_is_shown_as_it_is():
    content = io.BytesIO()
    Image.new("RGB", (3, 2)).save(content, format="JPEG")
    assert picture(content.getvalue(), "name") == content.getvalue()
    for text in (b"It hurts.\nSince Monday.", "Больно".encode(), b""):
        with Image.open(io.BytesIO(picture(text, "row 7"))) as image:
            assert image.format == "PNG"
            assert np.asarray(image).min() < 128  # There is ink.
    assert drawn("one") != drawn("two")
    with Image.open(io.BytesIO(drawn("line\n" * 5000))) as long:
        assert long.size[1] < 4096
