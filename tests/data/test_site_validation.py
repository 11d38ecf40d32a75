"""A site's folder of images for testing: which labels they have, and what is set aside."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from support.image_files import encoded, noise
from support.site_images import CLASSES, FORMAT, digits, long_since, write_images, write_labels

from ahfal_app.client.node_config import site_folders
from ahfal_app.config import parse_settings
from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.images import DataFormat
from ahfal_app.data.site.loading import SiteData, SiteFolders, load_site
from ahfal_app.data.site.validation import Validation, load_validation
from ahfal_app.errors import ConfigError, DatasetError, LabelFileError, PolicyRefused

_VECTORS = DataFormat(("a", "b"), (1, 1, 2), (0.0,) * 2, (1.0,) * 2, NO_AUGMENTATION, vectors=True)


class Ward:
    """A site with six images to train on, and an empty folder to test with."""

    def __init__(self, root: Path) -> None:
        self.data, self.tests, self.state = root / "data", root / "tests", root / "state"
        self.cache = root / "cache"
        self.folders = SiteFolders(self.data, self.state, validation=self.tests)
        self.format = FORMAT
        self.tests.mkdir()
        write_images(self.data, range(6))

    @property
    def site(self) -> SiteData:
        return load_site(self.folders, self.format, self.cache, "")

    def load(self, room: int | None = None) -> Validation:
        return load_validation(self.folders, self.format, self.cache, "", self.site, room)

    def write(self, name: str, content: bytes) -> Path:
        path = self.tests / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        long_since(path)
        return path

    def set_aside(self) -> dict[str, str]:
        path = self.state / "validation-set-aside.csv"
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def ward(tmp_path: Path) -> Ward:
    return Ward(tmp_path)


def _digit(row: int) -> bytes:
    return encoded(Image.fromarray(digits()[0][row]))


def test_labels_are_those_of_the_file(ward: Ward):
    truth = write_images(ward.tests, range(20, 26))
    write_labels(ward.tests / "labels.csv", truth)
    found = ward.load()
    rows = [int(Path(name).stem) for name in sorted(truth)]
    np.testing.assert_array_equal(found.images.images_NHWC[..., 0], digits()[0][rows])
    assert found.images.labels_N.tolist() == digits()[1][rows].tolist()
    assert ward.set_aside() == {}
    # Nothing of it is the site's for training.
    assert len(ward.site.ids_N) == 6


def test_without_a_file_the_first_folders_are_the_classes(ward: Ward):
    ward.write("Zero/2020/a.png", _digit(20))
    ward.write(" three/b.png", _digit(23))
    ward.write("four/c.png", _digit(24))
    found = ward.load()
    assert found.images.labels_N.tolist() == [3, 0, 4]
    again = ward.load()
    assert again.fingerprint == found.fingerprint
    ward.write("nine/d.png", _digit(29))
    assert ward.load().fingerprint != found.fingerprint


def test_a_folder_that_is_called_like_no_class_is_refused(ward: Ward):
    ward.write("zero/a.png", _digit(20))
    ward.write("seven_/b.png", _digit(27))
    with pytest.raises(DatasetError, match="folder 'seven_': no class 'seven_'; did you mean 'sev"):
        ward.load()


def test_what_cannot_be_tested_with_is_set_aside_with_its_reason(
    ward: Ward, caplog: pytest.LogCaptureFixture
):
    ward.write("zero/good.png", _digit(20))
    ward.write("zero/damaged.png", _digit(21)[:40])
    ward.write("zero/deep.png", encoded(Image.fromarray(noise(8, 8, deepest=4000))))
    ward.write("zero/notes.txt", b"ask Anna")
    ward.write("one/good.png", _digit(31))
    ward.write("one/zz-copy.png", _digit(31))
    ward.write("two/both.png", _digit(32))
    ward.write("three/both.png", _digit(32))
    ward.write("loose.png", _digit(33))
    known = next(path for path in ward.data.rglob("*.png"))
    ward.write("four/trained-on.png", known.read_bytes())
    with caplog.at_level(logging.WARNING):
        found = ward.load()
    assert found.images.labels_N.tolist() == [1, 0]
    np.testing.assert_array_equal(found.images.images_NHWC[..., 0], digits()[0][[31, 20]])
    reasons = ward.set_aside()
    assert set(reasons) == {
        "zero/damaged.png",
        "zero/deep.png",
        "zero/notes.txt",
        "one/zz-copy.png",
        "two/both.png",
        "three/both.png",
        "loose.png",
        "four/trained-on.png",
    }
    assert "16 bits" in reasons["zero/deep.png"]
    assert reasons["one/zz-copy.png"] == "the same image as one/good.png"
    assert reasons["two/both.png"] == reasons["three/both.png"] == "two labels that differ"
    assert reasons["loose.png"].startswith("in no folder of a class")
    assert reasons["four/trained-on.png"] == "in data as well, where it may be trained on"
    assert "2 images for validation can be used, 8 set aside" in caplog.text
    assert "1 in data as well, where it may be trained on" in caplog.text
    caplog.clear()
    ward.load()
    assert caplog.text == ""


def test_lines_of_the_file_that_are_of_no_use(ward: Ward):
    names = [f"{row}.png" for row in (20, 21, 22, 23)]
    for name in names:
        ward.write(name, _digit(int(Path(name).stem)))
    lines = ["20.png,zero,anna", "20.png,zero,bert", "21.png,one,anna", "21.png,two,bert"]
    lines += ["22.png,skip,anna", "gone.png,zero,anna"]
    ward.write("labels.csv", "\n".join(["file,label,annotator", *lines, ""]).encode())
    assert ward.load().images.labels_N.tolist() == [0]
    reasons = ward.set_aside()
    assert reasons.pop("labels.csv, line 7")
    assert reasons == {
        "21.png": "two labels that differ",
        "22.png": "skip, says labels.csv",
        "23.png": "no label in labels.csv",
    }
    ward.write("labels.csv", b"file,label\n20.png,zeroo\n")
    with pytest.raises(LabelFileError, match="line 2: no class 'zeroo'; did you mean 'zero'"):
        ward.load()


def test_a_folder_of_which_nothing_can_be_used_is_refused_with_reasons(ward: Ward):
    with pytest.raises(DatasetError, match="none of 0 images can be used"):
        ward.load()
    ward.write("a.png", _digit(20))
    with pytest.raises(DatasetError, match="none of 1 images can be used: 1 in no folder"):
        ward.load()
    (ward.tests / "a.png").unlink()
    ward.tests.rmdir()
    with pytest.raises(DatasetError, match=r"validation='.*tests': no such folder"):
        ward.load()


def test_it_takes_no_more_disk_than_there_is_room_for(ward: Ward):
    ward.write("zero/a.png", _digit(20))
    ward.site  # noqa: B018 (decodes what is not to be counted here)
    with pytest.raises(PolicyRefused, match="64 bytes of decoded images; there is room for 63"):
        ward.load(room=63)
    assert len(ward.load(room=64).images) == 1


def test_of_an_image_that_is_gone_no_decoded_copy_is_left(ward: Ward):
    ward.write("zero/a.png", _digit(20))
    ward.write("one/b.png", _digit(21))
    name = ward.load().cache_name
    (ward.tests / "one/b.png").unlink()
    assert len(ward.load().images) == 1
    entries = [path for path in (ward.cache / "decoded").glob(f"{name}-*") if path.is_dir()]
    assert len(entries) == 1


def test_vectors_that_are_in_data_too_are_found_by_their_numbers(ward: Ward):
    def write(folder: Path, rows: list[list[float]], name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table({"vector": rows}), folder / name)
        long_since(folder / name)

    for path in ward.data.rglob("*.png"):
        path.unlink()
    ward.format = _VECTORS
    write(ward.data, [[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]], "cases.parquet")
    write(ward.tests, [[1.0, 9.0], [3.0, 4.0], [1.0, 9.0], [float("nan"), 0.0]], "tests.parquet")
    labels = ["a", "b", "b", "a"]
    write_labels(
        ward.tests / "labels.csv", {f"tests.parquet#{i}": each for i, each in enumerate(labels)}
    )
    found = ward.load()
    # Equal rows may be two cases, as in `data`.
    assert found.images.images_NHWC[:, 0, 0].tolist() == [[1.0, 9.0], [1.0, 9.0]]
    assert found.images.labels_N.tolist() == [0, 1]
    assert ward.set_aside()["tests.parquet#1"] == "in data as well, where it may be trained on"
    assert "tests.parquet#3" in ward.set_aside()


@pytest.mark.parametrize("place", ["data", "data/tests", "."])
def test_a_folder_that_shares_images_with_data_is_refused(tmp_path: Path, place: str):
    node = {
        "data": str(tmp_path / "data"),
        "state-dir": str(tmp_path / "state"),
        "validation": str(tmp_path / place),
    }
    settings = parse_settings({"partition": "sites", "oracle": "files"})
    with pytest.raises(ConfigError, match=r"validation='.*': allowed in --node-config is a folder"):
        site_folders(settings, node)


def test_a_node_without_data_of_its_own_tests_with_nothing_of_its_own(tmp_path: Path):
    with pytest.raises(ConfigError, match="partition='dirichlet-balanced': allowed is 'sites'"):
        site_folders(parse_settings({}), {"validation": str(tmp_path)})


def test_classes_are_matched_as_people_write_them(ward: Ward):
    assert CLASSES[0] == "zero"
    ward.write("ZERO/a.png", _digit(20))
    assert ward.load().images.labels_N.tolist() == [0]
