"""Data sets from every source, their columns, labels, pixels and refusals."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage

from ahfal_app.config import Settings
from ahfal_app.data import builders, catalog, sources
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.known.core.base import Arrays
from ahfal_app.data.preparation import channel_moments, hold_out
from ahfal_app.data.sources import ImageDataset, load_dataset
from ahfal_app.errors import DatasetError

Load = Callable[..., ImageDataset]
CLASSES = ["ant", "bee", "cat"]
NONE = Augmentation(padding=0, flip=False)


@pytest.fixture(autouse=True)
def _fresh_process() -> None:
    sources._load.cache_clear()


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_with(dataset: object, **settings: Any) -> ImageDataset:
        sources._load.cache_clear()
        return load_dataset(
            Settings(dataset=str(dataset), data_dir=str(tmp_path / "cache"), **settings)
        )

    return load_with


def pixels(count: int, seed: int = 0, shape: tuple[int, ...] = (6, 5, 3)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def encode(image: PillowImage.Image, kind: str = "png") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def table(
    images: Iterable[object],
    labels: Iterable[object],
    label_type: object = None,
    names: tuple[str, str] = ("img", "label"),
) -> Dataset:
    """Make a data set of PIL images, arrays or encoded images."""
    encoded = [
        {"bytes": encode(PillowImage.fromarray(image)), "path": None}
        if isinstance(image, np.ndarray)
        else image
        for image in images
    ]
    features = Features({names[0]: Image(), names[1]: label_type or ClassLabel(names=CLASSES)})
    return Dataset.from_dict({names[0]: encoded, names[1]: list(labels)}, features=features)


def saved(folder: Path, dataset: Dataset | DatasetDict) -> Path:
    dataset.save_to_disk(str(folder))
    return folder


def alternating(count: int, classes: int = 3) -> list[int]:
    return [row % classes for row in range(count)]


# --- digits -----------------------------------------------------------------------


def test_digits_are_scaled_stratified_and_the_same_for_all_seeds(load: Load) -> None:
    from sklearn.datasets import load_digits

    digits = load("digits")
    assert (digits.name, digits.image_shape, digits.num_classes) == ("digits", (8, 8, 1), 10)
    assert digits.class_names == tuple("0123456789")
    assert digits.augmentation == NONE
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    raw = load_digits()
    both = np.concatenate([digits.train.images_NHWC, digits.test.images_NHWC])
    assert both.max() == 255
    assert (
        np.sort(both.sum(axis=(1, 2, 3), dtype=int)).tolist()
        == np.sort(np.round(raw.images * 255 / 16).sum(axis=(1, 2)).astype(int)).tolist()
    )
    shares = np.bincount(digits.test.labels_N) / np.bincount(raw.target)
    np.testing.assert_allclose(shares, 0.2, atol=0.005)
    assert load("digits", seed=7).fingerprint == digits.fingerprint
    assert len(load("digits", test_fraction=0.5).test) == 898


def test_breast_cancer_are_the_vectors_that_scikit_learn_has(load: Load) -> None:
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    found = load("breast-cancer", test_fraction=0.4)
    assert found.holds_vectors
    assert found.class_names == ("malignant", "benign")
    assert (found.image_shape, len(found.train), len(found.test)) == ((1, 1, 30), 341, 228)
    vectors = np.concatenate([found.train.images_NHWC, found.test.images_NHWC])[:, 0, 0]
    assert np.array_equal(np.sort(vectors, axis=0), np.sort(raw.data.astype(np.float32), axis=0))
    whole_D = found.train.images_NHWC.reshape(341, 30).mean(axis=0, dtype=np.float64)
    assert found.mean_C == pytest.approx(whole_D, rel=1e-5)
    with pytest.raises(DatasetError, match="image-size=16: allowed for vectors is 0"):
        load("breast-cancer", image_size=16)


@pytest.mark.parametrize(
    ("vectors_N11D", "reason"),
    [
        (np.ones((4, 1, 1, 2), np.float64), "float64"),
        (np.ones((4, 2, 1, 2), np.float32), r"float32 \(4, 2, 1, 2\)"),
        (np.ones((4, 1, 1, 0), np.float32), r"\(4, 1, 1, 0\)"),
        (np.full((4, 1, 1, 2), np.nan, np.float32), "not finite"),
    ],
)
def test_vectors_of_a_package_that_are_none(
    vectors_N11D: NDArray[Any], reason: str, tmp_path: Path
) -> None:
    labels_N = np.array([0, 1, 0, 1])
    options = builders.Options("", "", 0.5)
    with pytest.raises(DatasetError, match=reason):
        builders.build_arrays(Arrays(vectors_N11D, labels_N, ("a", "b")), "x", options, tmp_path)


def test_splits_of_a_package_are_of_one_kind(tmp_path: Path) -> None:
    labels_N = np.array([0, 1])
    images, vectors = np.ones((2, 1, 1, 3), np.uint8), np.ones((2, 1, 1, 3), np.float32)
    mixed = Arrays(vectors, labels_N, ("a", "b"), images, labels_N)
    with pytest.raises(DatasetError, match="another type than those for training: uint8"):
        builders.build_arrays(mixed, "x", builders.Options("", "", 0.5), tmp_path)


def test_pixels_scaled_with_mean_and_std_are_standardised(load: Load) -> None:
    digits = load("digits")
    scaled = digits.train.images_NHWC / 255
    assert digits.mean_C == pytest.approx((scaled.mean(),))
    assert digits.std_C == pytest.approx((scaled.std(),))


# --- the formats of a local folder --------------------------------------------------


def check_toy(dataset: ImageDataset, train: NDArray[np.uint8], test: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(dataset.train.images_NHWC, train)
    np.testing.assert_array_equal(dataset.test.images_NHWC, test)
    assert dataset.train.labels_N.tolist() == alternating(len(train))
    assert dataset.train.images_NHWC.dtype == np.uint8
    assert dataset.train.labels_N.dtype == np.int64
    assert not dataset.train.images_NHWC.flags.writeable
    assert not dataset.train.labels_N.flags.writeable
    assert dataset.class_names == tuple(CLASSES)
    assert dataset.augmentation == Augmentation(padding=1, flip=True)
    assert dataset.mean_C == pytest.approx((train / 255).mean(axis=(0, 1, 2)).tolist())


def test_a_saved_dictionary_of_splits(load: Load, tmp_path: Path) -> None:
    train, test = pixels(400), pixels(5, 1)
    splits = {"train": table(train, alternating(400)), "test": table(test, alternating(5))}
    dataset = load(saved(tmp_path / "toy", DatasetDict(splits)))
    check_toy(dataset, train, test)
    assert dataset.name == "toy"


def test_parquet_files(load: Load, tmp_path: Path) -> None:
    train, test = pixels(40), pixels(5, 1)
    folder = tmp_path / "parquet"
    folder.mkdir()
    table(train, alternating(40)).to_parquet(folder / "train.parquet")
    table(test, alternating(5)).to_parquet(folder / "test.parquet")
    (folder / "README.md").write_text("A toy.\n")
    check_toy(load(folder), train, test)


def test_parquet_files_written_without_datasets(load: Load, tmp_path: Path) -> None:
    train = pixels(12)
    images = [{"bytes": encode(PillowImage.fromarray(image)), "path": None} for image in train]
    folder = tmp_path / "plain"
    folder.mkdir()
    plain = pa.table({"photo": images, "target": alternating(12)})
    pq.write_table(plain, folder / "data.parquet")
    dataset = load(folder, test_fraction=0.25)
    assert dataset.class_names == ("0", "1", "2")
    assert (len(dataset.train), len(dataset.test)) == (9, 3)
    assert {image.tobytes() for image in train} == {
        image.tobytes() for images in (dataset.train, dataset.test) for image in images.images_NHWC
    }


@pytest.mark.parametrize("split", [True, False])
def test_an_image_folder(load: Load, tmp_path: Path, split: bool) -> None:
    folder = tmp_path / "images"
    stored: dict[bytes, int] = {}
    for part, count in (("train", 12), ("test", 6)):
        for row, image in enumerate(pixels(count, len(part))):
            parent = folder / part / CLASSES[row % 3] if split else folder / CLASSES[row % 3]
            parent.mkdir(parents=True, exist_ok=True)
            PillowImage.fromarray(image).save(parent / f"{part}{row}.png")
            stored[image.tobytes()] = row % 3
    dataset = load(folder, test_fraction=1 / 3)
    assert dataset.class_names == tuple(CLASSES)
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    assert np.bincount(dataset.test.labels_N).tolist() == [2, 2, 2]
    for images in (dataset.train, dataset.test):
        for image, label in zip(images.images_NHWC, images.labels_N, strict=True):
            assert stored[image.tobytes()] == label


def test_a_saved_split_without_test_holds_out_the_same_share_for_all_seeds(
    load: Load, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "toy", table(pixels(30), alternating(30)))
    dataset = load(folder, seed=1)
    assert np.bincount(dataset.test.labels_N).tolist() == [2, 2, 2]
    assert np.bincount(dataset.train.labels_N).tolist() == [8, 8, 8]
    assert load(folder, seed=2).fingerprint == dataset.fingerprint
    assert len(load(folder, test_fraction=0.5).test) == 15


def test_validation_serves_where_there_is_no_test_split(load: Load, tmp_path: Path) -> None:
    splits = {name: table(pixels(6), alternating(6)) for name in ("train", "validation", "extra")}
    assert len(load(saved(tmp_path / "toy", DatasetDict(splits))).test) == 6


# --- columns and labels ---------------------------------------------------------------


def test_text_labels_are_numbered_in_sorted_order(load: Load, tmp_path: Path) -> None:
    labels = ["owl", "ape", "ape", "owl", "eel", "eel"]
    splits = {part: table(pixels(6), labels, Value("string")) for part in ("train", "test")}
    dataset = load(saved(tmp_path / "toy", DatasetDict(splits)))
    assert dataset.class_names == ("ape", "eel", "owl")
    assert dataset.train.labels_N.tolist() == [2, 0, 0, 2, 1, 1]


def test_numbers_with_gaps_are_numbered_over_all_splits(load: Load, tmp_path: Path) -> None:
    splits = {
        "train": table(pixels(4), [10, 7, 10, 7], Value("int32")),
        "test": table(pixels(2), [3, 10], Value("int32")),
    }
    dataset = load(saved(tmp_path / "toy", DatasetDict(splits)))
    assert dataset.class_names == ("3", "7", "10")
    assert dataset.train.labels_N.tolist() == [2, 1, 2, 1]
    assert dataset.test.labels_N.tolist() == [0, 2]


def test_columns_can_be_named_and_fine_labels_are_preferred(load: Load, tmp_path: Path) -> None:
    coarse = ClassLabel(names=["insect", "mammal"])
    dataset = table(pixels(10), alternating(10), names=("img", "fine_label"))
    dataset = dataset.add_column("coarse_label", alternating(10, 2), feature=coarse)
    masks = table(pixels(10, 1), alternating(10), names=("mask", "label"))
    dataset = datasets.concatenate_datasets([dataset, masks.select_columns(["mask"])], axis=1)
    folder = saved(tmp_path / "toy", dataset)
    with pytest.raises(DatasetError, match="image-column: columns img, mask all fit"):
        load(folder)
    assert load(folder, image_column="img").class_names == tuple(CLASSES)
    named = load(folder, image_column="mask", label_column="coarse_label")
    assert named.class_names == ("insect", "mammal")
    first = load(folder, image_column="img", label_column="coarse_label")
    assert named.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_column": "image"}, "image-column='image': no such column; there are img, label"),
        ({"label_column": "lable"}, "label-column='lable'.*did you mean 'label'"),
        ({"image_column": "label"}, "image-column='label': holds ClassLabel"),
        ({"label_column": "img"}, "label-column='img': holds Image"),
    ],
)
def test_wrong_columns_are_refused(
    load: Load, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    folder = saved(tmp_path / "toy", table(pixels(6), alternating(6)))
    with pytest.raises(DatasetError, match=message):
        load(folder, **settings)


def bad_labels() -> list[tuple[DatasetDict | Dataset, str]]:
    good = table(pixels(6), alternating(6))
    other = table(pixels(6), alternating(6), ClassLabel(names=["x", "y", "z"]))
    return [
        (table(pixels(3), [0, None, 1]), "1 of 3 labels of split `train` are missing"),
        (table(pixels(3), [-1, 0, -1]), "2 of 3 labels of split `train` are -1"),
        (table(pixels(3), [5, 5, 5], Value("int64")), "1 class in the training split"),
        (table(pixels(3), [1, 1, 1]), "1 class in the training split"),
        (
            good.remove_columns("label"),
            "label-column: no column of text, .* is called.*img",
        ),
        (
            good.remove_columns("img"),
            "image-column: no column of images, and none of .*label",
        ),
        (
            table(pixels(3), [0.5, 1.0, 0.5], Value("float32")),
            "label-column: no column of text",
        ),
        (DatasetDict(train=good, test=other), "differ between the splits"),
        (DatasetDict(train=good, test=good.remove_columns("label")), "`test` has no column 'lab"),
        (DatasetDict(left=good, right=good), "no split `train` among left, right"),
        (table(pixels(2), [0, 1]), "test-fraction=0.2: split `test` is empty"),
    ]


@pytest.mark.parametrize("case", range(11))
def test_unusable_labels_and_splits_are_refused(load: Load, tmp_path: Path, case: int) -> None:
    dataset, message = bad_labels()[case]
    with pytest.raises(DatasetError, match=message):
        load(saved(tmp_path / "toy", dataset))


@pytest.mark.parametrize("empty", ["train", "test"])
def test_an_empty_split_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    full = table(pixels(6), alternating(6))
    splits = {part: full.select([]) if part == empty else full for part in ("train", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: DatasetDict(splits))
    with pytest.raises(DatasetError, match=f"dataset='some/thing': split `{empty}` is empty"):
        load("some/thing")


def test_empty_and_damaged_files_are_refused(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"label": pa.array([], pa.int64())}), path)
    with pytest.raises(DatasetError, match=r"train\.parquet is empty; a split must have rows"):
        load(tmp_path)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DatasetError, match="the folder cannot be read: ArrowInvalid"):
        load(tmp_path)


# --- images -----------------------------------------------------------------------------


def of_mode(mode: str) -> dict[str, object]:
    kind = "tiff" if mode in ("CMYK", "F") else "png"
    image = PillowImage.fromarray(pixels(1)[0]).convert("L" if mode == "I;16" else mode)
    return {"bytes": encode(image.convert(mode), kind), "path": None}


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (["L"], 1),
        (["1"], 1),
        (["LA", "L"], 1),
        (["P"], 3),
        (["RGBA"], 3),
        (["CMYK"], 3),
        (["L", "RGB"], 3),
    ],
)
def test_modes_become_one_or_three_channels(
    load: Load, tmp_path: Path, modes: list[str], channels: int
) -> None:
    images = [of_mode(modes[row % len(modes)]) for row in range(6)]
    dataset = load(saved(tmp_path / "toy", table(images, alternating(6))), test_fraction=0.5)
    assert dataset.image_shape == (6, 5, channels)
    assert len(dataset.mean_C) == len(dataset.std_C) == channels
    if modes == ["1"]:
        assert np.unique(dataset.train.images_NHWC).tolist() == [0, 255]


def test_images_of_16_bits_are_refused(load: Load, tmp_path: Path) -> None:
    folder = saved(tmp_path / "toy", table([of_mode("I;16")] * 6, alternating(6)))
    with pytest.raises(DatasetError, match=r"row 0: .*16 bits for each.*; convert it to 8 bits"):
        load(folder)


def test_different_sizes_are_refused(load: Load, tmp_path: Path) -> None:
    images = [*pixels(6), *pixels(3, shape=(7, 5, 3))]
    folder = saved(tmp_path / "toy", table(images, alternating(9)))
    with pytest.raises(DatasetError, match=r"6x5 \(6 images\), 7x5 \(3 images\).*set image-size"):
        load(folder)
    dataset = load(folder, image_size=4, test_fraction=0.3)
    assert dataset.image_shape == (4, 4, 3)


def test_classes_can_be_more_and_in_another_order(load: Load, tmp_path: Path) -> None:
    folder = saved(tmp_path / "toy", table(pixels(8), alternating(8)))
    own = load(folder, test_fraction=0.25)
    wanted = ("cat", "extra", *reversed(own.class_names[:-1]))
    assert own.class_names == tuple(CLASSES)
    other = load(folder, test_fraction=0.25, classes=" , ".join(wanted))
    assert other.class_names == wanted
    assert [wanted[i] for i in other.train.labels_N] == [CLASSES[i] for i in own.train.labels_N]
    assert other.fingerprint != own.fingerprint
    with pytest.raises(
        DatasetError, match=r"classes: ant, bee; .* ant, bee, cat, and 'cat' is none"
    ):
        load(folder, test_fraction=0.25, classes="ant,bee")


def test_without_a_test_split_all_is_for_testing_where_sites_have_the_rest(
    load: Load, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "toy", table(pixels(8), alternating(8)))
    dataset = load(folder, partition="sites")
    assert len(dataset.test) == 8
    assert len(load(folder, test_fraction=0.25).test) == 2


def test_turned_photos_are_set_upright(load: Load, tmp_path: Path) -> None:
    image = PillowImage.fromarray(pixels(1)[0])
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    content = io.BytesIO()
    image.save(content, "png", exif=exif)
    turned = {"bytes": content.getvalue(), "path": None}
    dataset = load(saved(tmp_path / "toy", table([turned] * 6, alternating(6))), test_fraction=0.5)
    np.testing.assert_array_equal(dataset.train.images_NHWC[0], np.rot90(pixels(1)[0], -1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "split `train`, row 4: the image is missing"),
        ({"bytes": b"no image", "path": None}, "row 4: the image cannot be read"),
        ({"bytes": encode(PillowImage.fromarray(pixels(1)[0]))[:-40], "path": None}, "row 4"),
    ],
)
def test_damaged_images_are_named(load: Load, tmp_path: Path, image: object, message: str) -> None:
    images = [*pixels(4), image, pixels(1)[0]]
    test = table(pixels(3), alternating(3))
    splits = DatasetDict(train=table(images, alternating(6)), test=test)
    with pytest.raises(DatasetError, match=message):
        load(saved(tmp_path / "toy", splits))


def test_a_file_that_a_row_points_to_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"damaged")
    for path, reason in ((tmp_path / "a.png", "no image of the formats"), ("/no/b.png", "No such")):
        rows = [{"bytes": None, "path": str(path)}, *pixels(5)]
        columns = Features({"img": {"bytes": Value("binary"), "path": Value("string")}})
        encoded = [
            {"bytes": encode(PillowImage.fromarray(row)), "path": None}
            if isinstance(row, np.ndarray)
            else row
            for row in rows
        ]
        splits = {}
        for split in ("train", "test"):
            own = Dataset.from_dict({"img": encoded}, features=columns)
            names = ClassLabel(names=CLASSES)
            splits[split] = own.add_column("label", alternating(6), feature=names)
        folder = saved(tmp_path / reason.split()[0], DatasetDict(splits))
        with pytest.raises(DatasetError, match=rf"`train`, row 0 \({path}\): .*{reason}"):
            load(folder)


def test_a_constant_channel_can_be_divided_by() -> None:
    images = np.zeros((3, 2, 2, 2), np.uint8)
    images[0, 0, 0, 1] = 255
    mean, std = channel_moments(images)
    assert mean == pytest.approx((0, 1 / 12))
    assert std == pytest.approx((1, np.sqrt(1 / 12 - 1 / 144)))


# --- finding, caching, recognising --------------------------------------------------------


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_missing_folder_is_refused_without_asking_anyone(load: Load, name: str) -> None:
    with pytest.raises(DatasetError, match=r"no such folder \(tried /.*existing folder"):
        load(name)


def test_a_file_and_an_empty_folder_are_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"data\.parquet cannot be read: "):
        load(tmp_path / "data.parquet")
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(DatasetError, match="a file and not a folder"):
        load(tmp_path / "data.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="nothing to read; a local folder may hold"):
        load(tmp_path / "empty")


def test_an_unreachable_name_says_what_was_tried(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DatasetError,
        match=r"'ufldl-stanford/svhn' with configuration 'cropped_digits' cannot be loaded; "
        r"a local folder may hold .*ConnectionError: no network",
    ):
        load("svhn")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", ("uoft-cs/cifar10", None)),
        ("uoft-cs/cifar10", ("uoft-cs/cifar10", None)),
        ("svhn", ("ufldl-stanford/svhn", "cropped_digits")),
        ("someone/else", ("someone/else", None)),
    ],
)
def test_a_name_on_the_hub_is_loaded_once(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[str, str | None]
) -> None:
    asked = []

    def answer(path: str, configuration: str | None) -> DatasetDict:
        asked.append((path, configuration))
        part = table(pixels(6), alternating(6))
        return DatasetDict(train=part, test=part)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    first = load(name)
    assert load(name).fingerprint == first.fingerprint
    assert asked == [expected]
    assert first.name == expected[0].split("/")[1]


def test_a_folder_is_decoded_again_only_when_it_changes(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "toy", table(pixels(10), alternating(10)))
    first = load(folder)
    with monkeypatch.context() as patch:
        patch.delattr(builders, "_build")
        assert load(folder).fingerprint == first.fingerprint
        assert load(folder, augment="crop").fingerprint == first.fingerprint
    saved(folder, table(pixels(20, 1), alternating(20)))
    changed = load(folder)
    assert len(changed.train) == 16
    assert changed.fingerprint != first.fingerprint


def test_the_fingerprint_covers_pixels_labels_and_names(load: Load, tmp_path: Path) -> None:
    images, labels = pixels(6), alternating(6)
    other_images = images.copy()
    other_images[3, 2, 1, 0] ^= 1
    variants = [
        table(images, labels),
        table(other_images, labels),
        table(images, labels[::-1]),
        table(images, labels, ClassLabel(names=["ant", "bee", "dog"])),
    ]
    fixed = table(pixels(3, 9), alternating(3), variants[0].features["label"])
    fingerprints = [
        load(
            saved(
                tmp_path / str(number),
                DatasetDict(train=train, test=fixed.cast_column("label", train.features["label"])),
            )
        ).fingerprint
        for number, train in enumerate([*variants, variants[0]])
    ]
    assert len(set(fingerprints)) == 4
    assert fingerprints[0] == fingerprints[4]


@pytest.mark.parametrize(
    ("shape", "classes", "mean", "name"),
    [
        ((32, 32, 3), 10, (0.491, 0.482, 0.446), "cifar10"),
        ((32, 32, 3), 100, (0.507, 0.487, 0.441), "cifar100"),
        ((32, 32, 3), 10, (0.438, 0.444, 0.473), "svhn"),
        ((28, 28, 1), 10, (0.1306,), "mnist"),
        ((28, 28, 1), 10, (0.286,), None),
        ((8, 8, 1), 10, (0.1307,), None),
        ((32, 32, 3), 10, (0.5, 0.5, 0.5), None),
    ],
)
def test_known_data_sets_are_recognised_by_content(
    shape: tuple[int, int, int], classes: int, mean: tuple[float, ...], name: str | None
) -> None:
    known = catalog.recognise(shape, classes, mean)
    assert (known.name if known else None) == name


def test_a_recognised_folder_gets_the_usual_normalisation(load: Load, tmp_path: Path) -> None:
    images = np.full((20, 28, 28), 33, np.uint8)
    labels = alternating(20, 10)
    ten = ClassLabel(names=list("0123456789"))
    folder = saved(tmp_path / "my-digits", table(images, labels, ten))
    dataset = load(folder, test_fraction=0.5)
    assert (dataset.name, dataset.mean_C, dataset.std_C) == ("mnist", (0.1307,), (0.3081,))
    assert dataset.augmentation == Augmentation(padding=2, flip=False)


@pytest.mark.parametrize(
    ("augment", "mnist", "unknown"),
    [
        ("auto", Augmentation(2, False), Augmentation(12, True)),
        ("none", Augmentation(0, False), Augmentation(0, False)),
        ("crop", Augmentation(2, False), Augmentation(12, False)),
        ("crop-flip", Augmentation(2, True), Augmentation(12, True)),
    ],
)
def test_augment_overrides_what_is_usual(
    augment: str, mnist: Augmentation, unknown: Augmentation
) -> None:
    known = catalog.recognise((28, 28, 1), 10, (0.13,))
    usual = catalog.usual_augmentation((96, 128, 3))
    assert catalog.resolve_augmentation(augment, known) == mnist
    assert catalog.resolve_augmentation(augment, None, usual) == unknown


@pytest.mark.parametrize(
    ("shape", "usual"),
    [
        ((32, 32, 3), Augmentation(4, True)),
        ((28, 28, 1), Augmentation(4, False)),
        ((224, 160, 3), Augmentation(20, True)),
        ((64, 64, 1), Augmentation(8, False)),
        ((3, 40, 3), Augmentation(1, True)),
    ],
)
def test_photographs_are_moved_by_an_eighth_and_mirrored_in_colour(
    shape: tuple[int, int, int], usual: Augmentation
) -> None:
    assert catalog.usual_augmentation(shape) == usual


def test_digits_of_any_size_are_not_augmented(load: Load) -> None:
    assert load("digits", image_size=16).augmentation == NONE
    assert load("digits", augment="crop").augmentation == Augmentation(padding=4, flip=False)


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.99),
)
def test_held_out_rows_are_stratified(counts: list[int], fraction: float) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    train, test = hold_out(labels, fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    taken = np.bincount(labels[test], minlength=len(counts))
    assert (np.abs(taken - np.array(counts) * fraction) <= 1).all()
    kept = np.bincount(labels[train], minlength=len(counts))
    assert (kept[np.array(counts) > 0] > 0).all()
