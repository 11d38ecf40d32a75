"""Local folders: what is found in them is used, or named with a reason that is true."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from pyarrow import parquet
from support.image_files import deep_files, encoded, noise, png, shallow_files
from support.site_images import FORMAT

from ahfal_app.config import Settings
from ahfal_app.data import sources
from ahfal_app.data.files import FORMATS, files_below
from ahfal_app.data.images import DataFormat
from ahfal_app.data.layout import image_layout, parquet_layout
from ahfal_app.data.site.loading import SiteFolders, load_site
from ahfal_app.data.sources import ImageDataset, load_dataset
from ahfal_app.errors import DatasetError


class Place:
    """A folder, and the data set in it."""

    def __init__(self, root: Path) -> None:
        self.folder, self.cache = root / "folder", root / "cache"
        self.folder.mkdir()
        self.seed = 0

    def write(self, name: str, content: bytes | None = None) -> None:
        """Write a file, by default an image that no other one equals."""
        self.seed += 1
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(noise(6, 5, 3, seed=self.seed)) if content is None else content)

    def images(self, *folders: str, names: Iterable[object] = range(4)) -> None:
        """Write images into folders."""
        for folder in folders:
            for name in names:
                self.write(f"{folder}/{name}.png")

    def parquet(self, name: str, rows: int = 6, classes: int = 3, **columns: list[Any]) -> None:
        """Write a parquet file of images and labels."""
        self.seed += 1
        images = [
            {"bytes": png(noise(6, 5, 3, seed=1000 * self.seed + row)), "path": None}
            for row in range(rows)
        ]
        labels = [f"class {row % classes}" for row in range(rows)]
        self.table(name, {"image": images, "label": labels, **columns})

    def table(self, name: str, columns: Mapping[str, Any]) -> None:
        """Write a parquet file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(dict(columns)), path)

    def load(self, **settings: Any) -> ImageDataset:
        """Load the folder as a data set."""
        sources._load.cache_clear()
        own = {"dataset": str(self.folder), "data_dir": str(self.cache), **settings}
        return load_dataset(Settings(**own))

    def not_used(self) -> dict[str, str]:
        """Return what the newest entry names as not used."""
        entries = self.cache.glob("decoded/*/not-used.csv")
        newest = max(entries, key=lambda path: path.stat().st_mtime_ns)
        with newest.open(encoding="utf-8-sig", newline="") as file:
            return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def _counts(dataset: ImageDataset) -> dict[str, int]:
    labels_N = np.concatenate([dataset.train.labels_N, dataset.test.labels_N])
    counts = np.bincount(labels_N, minlength=len(dataset.class_names)).tolist()
    return dict(zip(dataset.class_names, counts, strict=True))


# --- folders of images ----------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        "scan_test_1",
        "photo of a train",
        "test",
        "train-00000-of-00001",
        "validation",
        "a[1]",
        "50%",
        "ä#1",
        "'; x",
    ],
)
def test_words_in_the_names_of_images_mean_nothing(place: Place, odd: str) -> None:
    place.images("cat", "dog", names=[*range(5), odd])
    dataset = place.load()
    assert _counts(dataset) == {"cat": 6, "dog": 6}
    assert dataset.not_used == ()


@pytest.mark.parametrize(
    "classes",
    [
        ("normal", "test-negative", "test-positive"),
        ("test_set", "train_set"),
        ("eval", "train ticket"),
        ("Trainer", "latest"),
    ],
)
def test_words_in_the_names_of_classes_mean_nothing(place: Place, classes: tuple[str, ...]) -> None:
    place.images(*classes)
    assert _counts(place.load()) == dict.fromkeys(sorted(classes), 4)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "Test"),
        ("train", "val"),
        ("training", "Validation"),
        ("Train", "VALID"),
    ],
)
def test_splits_are_whole_names_at_the_top_in_any_case(place: Place, train: str, test: str) -> None:
    place.images(f"{train}/a", f"{train}/b")
    place.images(f"{test}/a", f"{test}/b", names=range(2))
    dataset = place.load()
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert dataset.class_names == ("a", "b")
    assert dataset.not_used == ()


def test_a_class_is_the_first_folder(place: Place) -> None:
    place.images("cat/s1", "cat/s2/deep", "dog/s3", "dog")
    assert _counts(place.load()) == {"cat": 8, "dog": 8}
    other = Place(place.cache)
    other.images("train/cat/s1", "train/dog/train", "test/cat/x", "test/dog")
    dataset = other.load()
    assert (_counts(dataset), len(dataset.test)) == ({"cat": 8, "dog": 8}, 8)


def test_a_class_that_is_called_like_a_split_is_refused(place: Place) -> None:
    place.images("bus", "car", "train")
    with pytest.raises(DatasetError, match=r"train and bus, car lie side by side.*one folder `tra"):
        place.load()
    place.folder = place.folder / "all"
    place.images("train/bus", "train/car", "train/train")
    assert _counts(place.load()) == {"bus": 4, "car": 4, "train": 4}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/1.png", "train/2.png", "test/1.png"], "`train` lies in the folder of a class"),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "`test` lies in the folder of a class"),
        (["test/a/1.png", "val/b/1.png"], "no split `train` among test, val"),
        (["1.png", "2.png"], "0 class, at least 2 are needed: images lie in no folder"),
        (["a/1.png", "a/2.png"], "1 class, .*all images lie in a, and classes are the folders"),
        (["x/a/1.png", "x/b/2.png"], r"image\.png; is x the folder to be named\?"),
        (["x/train/1.png", "x/test/2.png"], r"is x the folder to be named\?"),
        (["train/a/1.png", "test/a/2.png", "test/b/1.png"], "1 class, .*all images lie in a"),
        (["train/a/1.png", "train/b/1.png", "extra/a/1.png"], "train and extra lie side by side"),
        (["notes.txt", "a/b.dds"], "nothing to read"),
    ],
)
def test_folders_that_leave_a_choice_are_refused(
    place: Place, names: list[str], message: str
) -> None:
    for name in names:
        place.write(name)
    with pytest.raises(DatasetError, match=message):
        place.load()


def test_what_is_found_and_not_used_is_counted_and_named(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.images("cat", "dog", names=range(6))
    place.write("cover.png")
    place.write("README.md", b"Photographs")
    place.write("cat/scan.dds", b"DDS ")
    place.write("dog/9.png", b"\x89PNG\r\n\x1a\n damaged")
    place.write("dog/8.png", png(noise(64, 64, 3))[:-900])
    place.write("dog/empty.jpf", b"")
    place.write(".DS_Store", b"")
    place.write(".hidden/a.png")
    place.write("cat/._7.png", b"")
    elsewhere = place.cache.parent / "elsewhere"
    elsewhere.mkdir()
    (place.folder / "owl").symlink_to(elsewhere)
    (place.folder / "cat" / "gone.png").symlink_to("nowhere")
    (place.folder / "cat" / "7.png").symlink_to(place.folder / "cover.png")
    os.mkfifo(place.folder / "dog" / "pipe.png")
    monkeypatch.setattr("ahfal_app.data.folders.LARGEST_FILE", 12_000)
    place.write("cat/large.png", png(noise(64, 64, 3)))
    dataset = place.load(image_size=6)
    assert _counts(dataset) == {"cat": 7, "dog": 6}
    not_used = place.not_used()
    reasons = {
        "cover.png": "in no folder of a class",
        "README.md": "no image, by its name",
        "cat/scan.dds": "no image, by its name",
        "dog/9.png": "cannot be decoded",
        "dog/8.png": "cannot be decoded",
        "dog/empty.jpf": "empty",
        "owl": "a link to a folder; such links are not followed",
        "cat/gone.png": "cannot be read: No such file",
        "dog/pipe.png": "no regular file",
        "cat/large.png": "too large: 12420 bytes; at most 12000 are read",
    }
    assert not_used.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in not_used[name], name
    assert sum(line.count for line in dataset.not_used) == len(reasons)
    assert "10 not used: 2 no image, by its name" in caplog.text
    assert "; 2 cannot be decoded (such as dog/8.png); 1 " in caplog.text
    caplog.clear()
    # Each process that goes on without them says so, also where they were decoded long ago.
    assert place.load(image_size=6).not_used == dataset.not_used
    assert "10 not used" in caplog.text


def test_where_nothing_is_left_it_is_said_what_was_found(place: Place, tmp_path: Path) -> None:
    (place.folder / "cat").symlink_to(tmp_path)
    with pytest.raises(
        DatasetError, match=r"nothing to read; .*1 a link to a folder \(such as cat"
    ):
        place.load()
    place.images("dog")
    with pytest.raises(DatasetError, match=r"1 class, .*1 a link to a folder \(such as cat\)"):
        place.load()


def test_what_is_damaged_shows_in_decoding_and_leaves_the_split_as_it_would_be(
    place: Place,
) -> None:
    place.images("a", "b", names=range(10))
    whole = place.load()
    for name in ("a/3x.png", "b/0x.png"):
        # The header is sound; a JPEG is not looked into before it is decoded.
        content = encoded(PillowImage.fromarray(noise(6, 5, 3)), "JPEG", quality=100)
        place.write(name.replace("png", "jpg"), content[:-60])
    again = place.load()
    assert len(place.not_used()) == 2
    np.testing.assert_array_equal(again.train.images_NHWC, whole.train.images_NHWC)
    assert again.fingerprint == whole.fingerprint


def test_a_class_of_which_nothing_can_be_used_is_an_error(place: Place) -> None:
    place.images("a", "b")
    for number in range(3):
        place.write(f"deep/{number}.png", png(noise(6, 5, 3, deepest=4095)))
    with pytest.raises(
        DatasetError, match=r"none of the 3 images of the class 'deep'.*deep/0\.png: 16 bits"
    ):
        place.load()


def test_a_split_that_is_not_needed_is_named(place: Place) -> None:
    for split in ("train", "test", "val"):
        place.images(f"{split}/a", f"{split}/b")
    dataset = place.load()
    assert (len(dataset.train), len(dataset.test)) == (8, 8)
    assert len(place.not_used()) == 8
    assert place.not_used()["val/a/0.png"] == (
        "of the split val, which is not used; testing is done with test"
    )


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (["cat/train", "cat/test", "dog"], "cat/test, cat/train: no splits, since they lie below"),
        (["a_train/x", "a_train/y", "a_test/x", "a_test/y"], "the same folders lie below each of"),
        (["Cat", "cat", "dog"], "differ by case or spaces alone: Cat, cat"),
        (["train/a", "train/b", "test/a", "test/c"], "the split for training lacks: c"),
        (["train/a", "train/b", "test/a"], "the split for testing lacks: b"),
    ],
)
def test_what_may_be_meant_otherwise_is_said(
    place: Place, folders: list[str], note: str, caplog: pytest.LogCaptureFixture
) -> None:
    place.images(*folders)
    place.load()
    assert note in caplog.text


@given(
    st.lists(
        st.lists(
            st.sampled_from(["train", "Test", "val", "a", "b", "test-x", "1.png", "é.png"]),
            min_size=1,
            max_size=4,
        ).map("/".join),
        max_size=12,
        unique=True,
    )
)
def test_every_file_has_one_use_or_one_reason(names: list[str]) -> None:
    for lay_out in (lambda: image_layout(names, "x")[0], lambda: parquet_layout(names, "x")):
        try:
            layout = lay_out()
        except DatasetError:
            continue
        used = [i for positions in layout.splits.values() for i in positions]
        assert sorted([*used, *layout.not_used]) == list(range(len(names)))
        assert all(layout.not_used.values())


def test_links_and_names_that_are_no_text(place: Place) -> None:
    place.images("a")
    latin = os.fsdecode(b"caf\xe9")
    place.images(latin)
    dataset = place.load()
    assert dataset.class_names == ("a", "caf\\xe9")
    place.write(f"{latin}/{latin}.jpg", b"damaged")
    place.load()
    assert place.not_used().keys() == {"caf\\xe9/caf\\xe9.jpg"}


def test_a_folder_that_cannot_be_listed_is_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.images("a", "b", "c")
    scandir = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(DatasetError, match=r"dataset=.*cannot be read: .*Permission denied"):
        place.load()


def test_a_folder_that_changes_while_it_is_read_is_an_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.images("a", "b")
    build = sources.build_folder

    def slowly(*arguments: Any) -> object:
        found = build(*arguments)
        place.write("a/late.png")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(sources, "build_folder", slowly)
        with pytest.raises(DatasetError, match=r"1 files changed .*a/late\.png; start again when"):
            place.load()
    assert _counts(place.load()) == {"a": 5, "b": 4}


def test_columns_of_tables_are_refused_for_images(place: Place) -> None:
    place.images("a", "b")
    assert len(place.load(image_column="image", label_column="label").train) == 6
    with pytest.raises(DatasetError, match="label-column='diagnosis': no such column"):
        place.load(label_column="diagnosis")


# --- what an image must be --------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["tif", "jpg", "png"])
def test_turned_images_keep_their_size(place: Place, orientation: int, kind: str) -> None:
    for name in ("a/0", "a/1", "b/0", "b/1"):
        place.seed += 1
        image = PillowImage.fromarray(1 + noise(6, 10, 3, seed=place.seed) // 2)
        exif = image.getexif()
        exif[0x0112] = orientation
        options: dict[str, Any] = {"exif": exif}
        if kind == "tif":
            options = {"tiffinfo": {0x0112: orientation}}
        name_of = {"tif": "TIFF", "jpg": "JPEG", "png": "PNG"}
        place.write(f"{name}.{kind}", encoded(image, name_of[kind], **options))
    dataset = place.load(test_fraction=0.5)
    assert dataset.image_shape == ((10, 6, 3) if orientation > 4 else (6, 10, 3))
    for images in (dataset.train, dataset.test):
        if kind != "jpg":
            assert (images.images_NHWC > 0).all()  # Nothing of it is the black of padding.


def _site(
    place: Place, shape: tuple[int, int, int]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return pixels by file as a site has them, and why others are set aside."""
    state = place.cache.parent / "state"
    own = DataFormat(FORMAT.class_names, shape, *[(0.5,) * 3] * 2, FORMAT.augmentation)
    site = load_site(SiteFolders(place.folder, state), own, place.cache, "")
    with (state / "set-aside.csv").open(encoding="utf-8-sig", newline="") as file:
        set_aside = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    images_NHWC = site.dataset.train.images_NHWC
    return {name: images_NHWC[identity] for identity, name in site.names.items()}, set_aside


def test_a_site_and_a_data_set_judge_alike(place: Place) -> None:
    """Every file is used with Pillow's own pixels, or set aside for the same reason."""
    deep, shallow = deep_files(), shallow_files()
    files = {f"a/{name}": content for name, (content, _) in deep.items()}
    files |= {f"b/{name}": content for name, content in shallow.items()}
    files |= {f"b/cut-{name}": content[: len(content) // 2] for name, content in shallow.items()}
    files["a/good.png"] = png(noise(6, 5, 3, seed=99))
    for name, content in files.items():
        place.write(name, content)
    pixels, set_aside = _site(place, (6, 6, 3))
    dataset = place.load(image_size=6, test_fraction=0.2)
    found = {
        image.tobytes() for split in (dataset.train, dataset.test) for image in split.images_NHWC
    }
    assert found == {image.tobytes() for image in pixels.values()}
    not_used = place.not_used()
    assert {f"a/{name}" for name in deep} <= not_used.keys()
    # A site sets copies aside, too: two files of other formats may have the same pixels.
    copies = {name for name, reason in set_aside.items() if reason.startswith("the same image")}
    assert set_aside.keys() - copies == not_used.keys()
    assert all(not_used[name].startswith(set_aside[name]) for name in not_used)
    assert {*pixels, *set_aside} == files.keys()


# --- parquet files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("data.parquet", "scan-test-0.parquet"),
        ("a_train.parquet", "a_test.parquet"),
        ("latest.parquet", "validation notes.parquet"),
        ("x/0.parquet", "y/1.parquet"),
        ("a[1].parquet", "b*.parquet"),
        ("cats-00000-of-00001.parquet", "dogs-00000-of-00001.parquet"),
        ("0.PARQUET", "1.parquet"),
    ],
)
def test_all_parquet_files_are_read(place: Place, names: tuple[str, ...]) -> None:
    for name in names:
        place.parquet(name, 9)
    dataset = place.load()
    assert len(dataset.train) + len(dataset.test) == 18
    assert dataset.not_used == ()


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("Train.parquet", "TEST.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train-00000-of-00001-0a1b2c3d4e5f6071.parquet", "validation-00000-of-00001.parquet"),
        ("train-0.parquet", "test_0.parquet"),
        ("Training/x.parquet", "Testing/deeper/x.parquet"),
        ("train/test.parquet", "val/train.parquet"),
    ],
)
def test_splits_of_parquet_files_are_whole_names(place: Place, names: tuple[str, str]) -> None:
    place.parquet(names[0], 9)
    place.parquet(names[1], 3)
    dataset = place.load()
    assert (len(dataset.train), len(dataset.test)) == (9, 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train.parquet", "data.parquet"), "data.parquet beside files that are called like spli"),
        (("test-0.parquet", "data.parquet"), "data.parquet beside files that are called like spli"),
        (("train/0.parquet", "more.parquet"), "more.parquet beside the folders of splits train"),
        (("train/0.parquet", "extra/0.parquet"), "train and extra lie side by side"),
        (("default/train/0.parquet", "default/test/0.parquet"), "default/test, default/train are"),
        (("x/train.parquet", "y/train.parquet"), "splits in several folders, x, y; name one"),
        (("x/train.parquet", "test.parquet"), "several folders, the folder itself, x; name"),
    ],
)
def test_parquet_files_that_leave_a_choice_are_refused(
    place: Place, names: tuple[str, str], message: str
) -> None:
    for name in names:
        place.parquet(name)
    with pytest.raises(DatasetError, match=message):
        place.load()


def test_parquet_files_that_are_not_used_are_named(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for split, rows in (("train", 9), ("test", 6), ("extra", 3)):
        place.parquet(f"{split}-00000-of-00001.parquet", rows)
    place.table("ages.parquet", {"age": [1, 2]})
    place.write("assets/banner.png")
    dataset = place.load()
    assert (len(dataset.train), len(dataset.test)) == (9, 6)
    assert place.not_used() == {
        "ages.parquet": "no column with images; it has age",
        "assets/banner.png": "beside parquet files with images, and in no folders of classes",
        "extra-00000-of-00001.parquet": (
            "of the split extra, which is not used; testing is done with test"
        ),
    }
    assert "3 not used" in caplog.text


def test_a_stray_parquet_file_does_not_replace_images(place: Place) -> None:
    place.images("a", "b")
    place.table("features.parquet", {"x": [0.5]})
    assert _counts(place.load()) == {"a": 4, "b": 4}
    assert "no column with images" in place.not_used()["features.parquet"]
    place.parquet("stray.parquet")
    with pytest.raises(
        DatasetError, match=r"8 image files .*a/0\.png.* and 1 parquet files .*stray\.parquet"
    ):
        place.load()


def test_rows_that_are_damaged_are_named_by_file_and_row(place: Place) -> None:
    place.parquet("x/0.parquet", 4)
    images = [png(noise(6, 5, 3, seed=row)) for row in range(6)]
    images[2] = b"damaged"
    rows = [{"bytes": content, "path": None} for content in images]
    rows[4] = {"bytes": None, "path": None}
    labels = [f"class {row % 3}" for row in range(6)]
    place.table("y/1.parquet", {"image": rows, "label": labels})
    dataset = place.load()
    assert len(dataset.train) + len(dataset.test) == 8
    assert place.not_used() == {
        "y/1.parquet#2": f"no image of the formats that are read: {', '.join(FORMATS)}",
        "y/1.parquet#4": "the image is missing",
    }


def test_a_column_of_bytes_may_hold_images(place: Place) -> None:
    images = [png(noise(6, 5, 3, seed=row)) for row in range(6)]
    place.table("0.parquet", {"scan": images, "label": [0, 1] * 3})
    dataset = place.load(test_fraction=0.5)
    assert dataset.image_shape == (6, 5, 3)
    assert _counts(dataset) == {"0": 3, "1": 3}


# --- saved data sets ----------------------------------------------------------------------


def test_what_lies_beside_a_saved_data_set_is_named(place: Place) -> None:
    def split(rows: int) -> Dataset:
        images = [{"bytes": png(noise(6, 5, 3, seed=r)), "path": None} for r in range(rows)]
        columns = Features({"image": Image(), "label": Value("string")})
        return Dataset.from_dict({"image": images, "label": ["x", "y"] * (rows // 2)}, columns)

    splits = {"Training": split(8), "testing": split(4), "validation": split(2), "odd": split(6)}
    DatasetDict(splits).save_to_disk(str(place.folder))
    place.write("cover.png")
    place.parquet("more.parquet")
    dataset = place.load()
    assert (len(dataset.train), len(dataset.test)) == (8, 4)
    assert place.not_used() == {
        "cover.png": "beside a saved data set",
        "more.parquet": "beside a saved data set",
        "split `validation`, 2 rows": (
            "of the split validation, which is not used; testing is done with testing"
        ),
        "split `odd`, 6 rows": "of the split odd, which is not used; testing is done with testing",
    }


def test_files_are_listed_whole(tmp_path: Path) -> None:
    for name in ("a/b/c.txt", "z.png", "a/x.png", ".h/y.png", "a/.y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "a" / "link").symlink_to(tmp_path / ".h")
    found, problems = files_below(tmp_path, "data", [tmp_path / "z.png"])
    assert [(file.name, file.size) for file in found] == [("a/b/c.txt", 2), ("a/x.png", 2)]
    assert problems.keys() == {"a/link"}
    assert [file.suffix for file in found] == [".txt", ".png"]
