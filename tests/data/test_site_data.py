from __future__ import annotations

import csv
import errno
import io
import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock
from PIL import Image
from pyarrow import parquet
from support.image_files import noise, png
from support.site_images import FORMAT, digits, long_since, write_images, write_labels

from ahfal_app.data.cache import Description
from ahfal_app.data.images import DataFormat
from ahfal_app.data.site.decoding import decode_site
from ahfal_app.data.site.loading import SiteData, SiteFolders, load_site
from ahfal_app.data.site.settling import SETTLE_S
from ahfal_app.errors import DatasetError, LabelFileError, StoreError
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore, request_id


class Place:
    """A site in a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.data, self.state, self.cache = root / "data", root / "state", root / "cache"
        self.data.mkdir()
        self.truth: Path | None = None
        self.format = FORMAT

    def load(self) -> SiteData:
        folders = SiteFolders(self.data, self.state, self.truth)
        return load_site(folders, self.format, self.cache, "")

    def set_aside(self) -> dict[str, str]:
        with (self.state / "set-aside.csv").open(encoding="utf-8-sig", newline="") as file:
            return {row["file"]: row["reason"] for row in csv.DictReader(file)}

    def write(self, name: str, content: bytes) -> None:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        long_since(path)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _gray(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("L", size, value)


def test_images_in_nested_folders_by_sorted_path(place: Place):
    write_images(place.data, range(12))
    site = place.load()
    names = sorted(path.relative_to(place.data).as_posix() for path in place.data.rglob("*.png"))
    assert [site.names[i] for i in site.ids_N.tolist()] == names
    pixels_NHW, _ = digits()
    rows = [int(Path(name).stem) for name in names]
    np.testing.assert_array_equal(site.dataset.train.images_NHWC[..., 0], pixels_NHW[rows])
    assert site.content(3) == (place.data / names[3]).read_bytes()
    assert (site.dataset.train.labels_N == -1).all()
    assert site.dataset.format == FORMAT
    assert len(site.dataset.test) == 0
    assert place.set_aside() == {}


def test_ids_stay_when_files_come_and_go(place: Place):
    write_images(place.data, range(3, 9))
    before = place.load()
    write_images(place.data, range(0, 3))
    gone = before.names[4]
    (place.data / gone).unlink()
    after = place.load()
    assert after.ids_N.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert {i: after.names[i] for i in (0, 1, 2, 3, 5)} == {
        i: before.names[i] for i in (0, 1, 2, 3, 5)
    }
    assert "gone" in place.set_aside()[gone]
    np.testing.assert_array_equal(
        after.dataset.train.images_NHWC[[0, 1, 2, 3, 5]],
        before.dataset.train.images_NHWC[[0, 1, 2, 3, 5]],
    )
    write_images(place.data, [int(Path(gone).stem)])
    assert place.load().names[4] == gone
    assert place.set_aside() == {}


def _decoded(place: Place) -> list[str]:
    folder = place.cache / "decoded"
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_of_an_image_that_is_gone_no_decoded_copy_is_left(place: Place, tmp_path: Path):
    """Whatever run it was decoded for; what other sites have stays."""
    (tmp_path / "another").mkdir()
    another = Place(tmp_path / "another")
    another.cache = place.cache
    for of_site in (place, another):
        write_images(of_site.data, range(4))
    another.load()
    other_entry = _decoded(another)
    small = place.load()
    place.format = DataFormat(**{**vars(FORMAT), "image_shape": (16, 16, 1)})
    place.load()
    assert len(_decoded(place)) == 3
    # What a process that was killed has left of it is another copy.
    (mine, *_) = set(_decoded(place)) - set(other_entry)
    (place.cache / "decoded" / f".{mine}.0123.part").mkdir()
    (place.data / small.names[2]).unlink()
    after = place.load()
    assert 2 not in after.names
    assert len(_decoded(place)) == 2
    assert set(other_entry) < set(_decoded(place))
    # Who has it open goes on.
    assert small.dataset.train.images_NHWC[2].any()
    assert not after.dataset.train.images_NHWC[2].any()


def test_nor_where_no_image_is_left_at_all(place: Place):
    write_images(place.data, range(2))
    place.load()
    for path in place.data.rglob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match="there is no image in it"):
        place.load()
    assert _decoded(place) == []


def test_what_another_process_is_decoding_is_left_to_it(place: Place):
    write_images(place.data, range(2))
    place.load()
    (name,) = _decoded(place)
    write_images(place.data, range(3))
    with FileLock(place.cache / "decoded" / f"{name}.lock"):
        place.load()
        assert name in _decoded(place)
    place.load()
    assert name not in _decoded(place)


def _shades(site: SiteData) -> dict[str, int]:
    """Return the value of each image, all of whose pixels are equal, by name."""
    images_NHW = site.dataset.train.images_NHWC[..., 0]
    assert (images_NHW == images_NHW[:, :1, :1]).all()
    return {name: int(images_NHW[identity, 0, 0]) for identity, name in site.names.items()}


def test_a_file_that_changes_before_anybody_was_asked_is_used_as_it_is_now(place: Place):
    place.write("a.png", _encoded(_gray(1)))
    place.write("b.png", _encoded(_gray(2)))
    ids = {name: i for i, name in place.load().names.items()}
    for value in (3, 4):
        place.write("b.png", _encoded(_gray(value, (9, 9))))
        for _ in range(2):
            site = place.load()
            assert _shades(site) == {"a.png": 1, "b.png": value}
            assert {name: i for i, name in site.names.items()} == ids
            assert site.content(ids["b.png"]) == (place.data / "b.png").read_bytes()
    assert place.set_aside() == {}


def _ask(place: Place, run: str, site: SiteData, samples: tuple[int, ...]) -> LabelStore:
    """Ask for labels as a client of this run does."""
    path = place.state / run / "0" / "labels.sqlite"
    store = LabelStore.open_file(path, site.ids_N, 10, grows=True)
    store.allot(len(samples))
    store.reserve(LabelRequest(request_id(run, 0, 1), 1, "random", samples))
    return store


@pytest.mark.parametrize("answer", ["none", "label", "skip", "given"])
def test_a_file_that_changes_after_somebody_was_asked_is_set_aside(place: Place, answer: str):
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        place.write(name, _encoded(_gray(number)))
    store = _ask(place, "earlier-run", place.load(), () if answer == "given" else (1,))
    if answer == "given":
        store.give({1: 3}, "somebody")
    elif answer != "none":
        label = 3 if answer == "label" else None
        store.commit([LabelReceipt(request_id("earlier-run", 0, 1), 1, label, "me")])
    store.close()
    place.write("b.png", _encoded(_gray(30, (9, 9))))
    place.write("c.png", _encoded(_gray(40, (9, 9))))
    for _ in range(2):
        assert _shades(place.load()) == {"a.png": 0, "c.png": 40}
        assert "not what it was when a label was asked" in place.set_aside()["b.png"]
    place.write("b.png", _encoded(_gray(1)))
    assert _shades(place.load()) == {"a.png": 0, "b.png": 1, "c.png": 40}


def test_a_file_that_changes_after_its_label_was_written_down_is_set_aside(place: Place):
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        place.write(name, _encoded(_gray(number)))
    write_labels(place.data / "labels.csv", {"b.png": "one", "c.png": ""})
    place.load()
    place.write("b.png", _encoded(_gray(30, (9, 9))))
    place.write("c.png", _encoded(_gray(40, (9, 9))))
    site = place.load()
    assert _shades(site) == {"a.png": 0, "c.png": 40}
    assert site.given == {}
    set_aside = place.set_aside()
    assert "not what it was when a label was asked or given" in set_aside["b.png"]
    assert "set aside: b.png, not what it was" in set_aside["labels.csv, line 2"]


def test_where_nobody_knows_what_was_asked_a_file_that_changes_is_set_aside(place: Place):
    place.write("a.png", _encoded(_gray(1)))
    place.write("b.png", _encoded(_gray(2)))
    _ask(place, "run", place.load(), ()).close()
    store = place.state / "run" / "0" / "labels.sqlite"
    store.write_bytes(b"not a database" * 100)
    place.write("b.png", _encoded(_gray(3, (9, 9))))
    assert place.load().ids_N.tolist() == [0]
    assert "not what it was" in place.set_aside()["b.png"]


def test_a_file_that_changes_with_its_old_size_and_time_is_seen(place: Place):
    first, second = (encoded_bmp(value) for value in (1, 2))
    assert len(first) == len(second)
    place.write("a.bmp", first)
    place.write("b.bmp", encoded_bmp(7))
    site = place.load()
    place.write("a.bmp", second)
    with pytest.raises(DatasetError, match=r"a\.bmp: changed since it was looked at"):
        site.content(0)
    assert _shades(place.load()) == {"a.bmp": 2, "b.bmp": 7}


def encoded_bmp(value: int) -> bytes:
    """Return an image of equal pixels whose file has the same size for all values."""
    return _encoded(_gray(value), "BMP")


class Copying:
    """A file that goes on being written whenever somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Callable[[], None]] = []
        self.waits = 0
        monkeypatch.setattr("ahfal_app.data.site.settling.time.sleep", self._wait)

    def _wait(self, seconds: float) -> None:
        assert seconds == SETTLE_S
        self.waits += 1
        if self.steps:
            self.steps.pop(0)()


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Copying:
    return Copying(monkeypatch)


@pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0, 1e6])
def test_a_file_that_is_still_being_copied_is_used_when_it_has_settled(
    place: Place, copying: Copying, ahead_s: float
):
    """It has its full size from the start, and its time may be that of another clock."""
    place.write("a.bmp", encoded_bmp(1))
    content = encoded_bmp(200)
    now = time.time() + ahead_s

    def write(rows: int, seconds: float) -> None:
        whole = content[: len(content) - 8 * rows] + bytes(8 * rows)
        (place.data / "b.bmp").write_bytes(whole)
        os.utime(place.data / "b.bmp", (now + seconds, now + seconds))

    write(5, 0)
    copying.steps = [lambda: write(3, 2), lambda: write(0, 4), lambda: None]
    for _ in range(2):
        assert _shades(place.load()) == {"a.bmp": 1}
        assert place.set_aside() == {
            "b.bmp": "still being copied; looked at again with the next message"
        }
    assert _shades(place.load()) == {"a.bmp": 1, "b.bmp": 200}
    assert place.set_aside() == {}
    # What has settled once is not waited for again, though its time is not long past.
    assert copying.waits == 3
    place.load()
    assert copying.waits == 3


def test_a_copy_that_pauses_is_used_as_it_is_when_it_goes_on(place: Place, copying: Copying):
    (place.data / "a.bmp").write_bytes(encoded_bmp(200)[:-24] + bytes(24))
    place.write("b.bmp", encoded_bmp(7))
    assert len(place.load().ids_N) == 2
    (place.data / "a.bmp").write_bytes(encoded_bmp(200))
    assert _shades(place.load()) == {"a.bmp": 200, "b.bmp": 7}
    assert place.set_aside() == {}


def test_a_file_that_vanishes_while_it_is_waited_for_is_no_trouble(place: Place, copying: Copying):
    place.write("a.png", _encoded(_gray(1)))
    (place.data / "b.png").write_bytes(_encoded(_gray(2)))
    copying.steps = [(place.data / "b.png").unlink]
    assert _shades(place.load()) == {"a.png": 1}
    assert place.load().ids_N.tolist() == [0]
    assert place.set_aside() == {}


def test_where_everything_is_still_being_copied_the_site_says_so(place: Place, copying: Copying):
    (place.data / "a.png").write_bytes(b"half")
    copying.steps = [lambda: place.write("a.png", _encoded(_gray(1)))]
    with pytest.raises(DatasetError, match="none of 1 images can be used"):
        place.load()
    assert place.set_aside()["a.png"].startswith("still being copied")
    assert _shades(place.load()) == {"a.png": 1}


def test_labels_that_are_still_being_copied_are_left_for_the_next_time(
    place: Place, copying: Copying, tmp_path: Path
):
    for number in range(3):
        place.write(f"{number}.png", _encoded(_gray(number)))
    labels = place.data / "labels.csv"
    labels.write_text("file,label\n0.png,on")
    copying.steps = [lambda: write_labels(labels, {"0.png": "one", "1.png": "two"})]
    assert place.load().given == {}
    assert place.set_aside()["labels.csv"].startswith("still being copied")
    assert place.load().given == {"labels.csv": {0: 1, 1: 2}}
    place.truth = tmp_path / "truth.csv"
    place.truth.write_text("file,label\n")
    copying.steps = [lambda: write_labels(tmp_path / "truth.csv", {"0.png": "one"})]
    with pytest.raises(LabelFileError, match=r"truth\.csv: still being copied"):
        place.load()
    assert place.load().dataset.train.labels_N.tolist() == [1, -1, -1]


def test_a_damaged_file_that_is_replaced_is_used(place: Place):
    place.write("a.png", _encoded(_gray(1)))
    place.write("b.png", b"")
    assert place.load().ids_N.tolist() == [0]
    place.write("b.png", _encoded(_gray(2)))
    assert place.load().ids_N.tolist() == [0, 1]


def _bomb() -> bytes:
    """Return a PNG of 40,000 x 40,000 pixels in some 2 MB less than nothing: only its header."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


_NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))

_UNUSABLE = {
    "empty.png": (b"", "empty"),
    "text.jpg": (b"this is no image", "no image of the formats"),
    "truncated.jpg": (_encoded(_NOISE, "JPEG")[:-900], "truncated"),
    "truncated.png": (_encoded(_NOISE)[:-2000], "cannot be decoded"),
    "bomb.png": (_bomb(), "cannot be decoded"),
    "large.png": (_encoded(Image.new("1", (9_500, 9_500))), "9500x9500 pixels; at most"),
    "deep.png": (_encoded(Image.new("I;16", (8, 8))), "mode I;16; convert it to 8 bits"),
    "float.tiff": (_encoded(Image.new("F", (8, 8)), "TIFF"), "mode F"),
    "pages.tiff": (
        _encoded(_gray(1), "TIFF", save_all=True, append_images=[_gray(2)]),
        "2 images in one file",
    ),
    "moving.gif": (
        _encoded(_gray(1), "GIF", save_all=True, append_images=[_gray(99)]),
        "2 images in one file",
    ),
    "deep-colour.png": (png(noise(8, 8, 3, deepest=4095)), "16 bits for each channel"),
    "shot.dds": (b"DDS ", "no image, by its name, of a format that is read: PNG, JPEG"),
    "shot.png": (b"DDS " + bytes(200), "no image of the formats"),
    "moving.apng": (
        _encoded(_gray(1), "PNG", save_all=True, append_images=[_gray(99)]),
        "2 images in one file",
    ),
    "plain.jpf": (b"", "empty"),
    "plain.j2c": (b"\xff\x4f\xff\x51", "cannot be decoded: JPEG2000"),
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0", "no image, by its name"),
    "program.png": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        "no image of the formats",
    ),
    "notes.txt": (b"call back on Monday", "no image, by its name"),
    "table.parquet": (b"PAR1 nonsense", ""),
    "zz-again.png": (_encoded(_gray(7)), "the same image as good.png"),
}


def test_what_cannot_be_used_is_reported_by_name_and_the_rest_is_used(place: Place, caplog):
    place.write("good.png", _encoded(_gray(7)))
    place.write(".hidden/a.png", b"")
    place.write(".DS_Store", b"")
    for name, (content, _) in _UNUSABLE.items():
        place.write(name, content)
    (place.data / "broken-link.png").symlink_to("nowhere.png")
    os.mkfifo(place.data / "pipe.png")
    (place.data / "more").symlink_to(place.data.parent)
    site = place.load()
    assert [site.names[i] for i in site.ids_N.tolist()] == ["good.png"]
    set_aside = place.set_aside()
    assert set_aside.keys() == {*_UNUSABLE, "broken-link.png", "pipe.png", "more"}
    assert "a link to a folder" in set_aside["more"]
    for name, (_, reason) in _UNUSABLE.items():
        assert reason in set_aside[name], name
    assert "no regular file" in set_aside["pipe.png"]
    assert "1 images can be used, 24 set aside" in caplog.text
    caplog.clear()
    place.load()
    assert caplog.text == ""


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_what_could_not_be_read_for_a_while_is_used_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    for number in range(3):
        place.write(f"{number}.png", _encoded(_gray(number)))
    place.write("3.png", b"damaged")
    builds = []
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name == "1.png":
            raise error
        return read_bytes(path)

    def build(*arguments: object) -> Description:
        builds.append(arguments)
        return decode_site(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ahfal_app.data.site.entries.decode_site", build)
    with monkeypatch.context() as away:
        away.setattr(Path, "read_bytes", read)
        for _ in range(2):
            assert place.load().ids_N.tolist() == [0, 2]
        assert "cannot be read" in place.set_aside()["1.png"]
    assert len(builds) == 1
    for _ in range(2):
        site = place.load()
        assert site.ids_N.tolist() == [0, 1, 2]
    assert (site.dataset.train.images_NHWC[1] == 1).all()
    assert place.set_aside().keys() == {"3.png"}
    assert len(builds) == 2


def test_a_parquet_file_that_was_away_is_used_again(place: Place, monkeypatch: pytest.MonkeyPatch):
    column = pa.array([_encoded(_gray(value)) for value in range(5)])
    parquet.write_table(pa.table({"image": column}), place.data / "scans.parquet")
    long_since(place.data / "scans.parquet")
    place.write("a.png", _encoded(_gray(9)))

    def away(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(parquet.ParquetFile, "iter_batches", away)
        assert len(place.load().ids_N) == 1
        assert "Stale file handle" in place.set_aside()["scans.parquet#4"]
    assert len(place.load().ids_N) == 6
    assert place.set_aside() == {}


def test_what_a_spreadsheet_did_to_the_report_does_not_matter(place: Place):
    place.write("a.png", _encoded(_gray(1)))
    place.write("b.png", b"")
    place.load()
    for content in ("file;reason\nb.png;leer ü\n".encode("latin-1"), b"\xff\xfe\x00", b'"'):
        (place.state / "set-aside.csv").write_bytes(content)
        assert place.load().ids_N.tolist() == [0]
        assert place.set_aside() == {"b.png": "empty"}


def test_a_file_too_large_to_be_read_is_set_aside(place: Place, monkeypatch: pytest.MonkeyPatch):
    place.write("a.png", _encoded(_gray(1)))
    place.write("b.png", _encoded(_NOISE))
    monkeypatch.setattr("ahfal_app.data.site.files.LARGEST_FILE", 1000)
    assert place.load().ids_N.tolist() == [0]
    assert "at most 1000 are read" in place.set_aside()["b.png"]


def test_modes_are_converted(place: Place):
    place.format = DataFormat(FORMAT.class_names, (2, 2, 3), *[(0.0,) * 3] * 2, FORMAT.augmentation)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 250, 130, 10])
    for name, image, kind in [
        ("cmyk.tiff", Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"),
        ("gray.png", _gray(77, (2, 2)), "PNG"),
        ("palette.png", palette, "PNG"),
        ("rgba.png", Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "PNG"),
        ("two.png", Image.new("1", (2, 2), 1), "PNG"),
    ]:
        place.write(name, _encoded(image, kind))
    palette.info["transparency"] = bytes([0, 128])
    place.write("transparent.png", _encoded(palette, transparency=bytes([0, 128])))
    site = place.load()
    found = {
        name: site.dataset.train.images_NHWC[i, 0, 0].tolist() for i, name in site.names.items()
    }
    assert found == {
        "cmyk.tiff": [255, 0, 0],
        "gray.png": [77, 77, 77],
        "palette.png": [250, 130, 10],
        "rgba.png": [10, 20, 30],
        "transparent.png": [250, 130, 10],
        "two.png": [255, 255, 255],
    }
    assert place.set_aside() == {}


def test_another_size_is_scaled_whole_and_centred_on_black(place: Place):
    place.write("wide.png", _encoded(_gray(200, (32, 16))))
    place.write("tiny.png", _encoded(_gray(100, (2, 2))))
    turned = _gray(50, (4, 8))
    exif = turned.getexif()
    exif[0x0112] = 6
    place.write("turned.jpg", _encoded(turned, "JPEG", exif=exif, quality=100))
    site = place.load()
    by_name = {name: site.dataset.train.images_NHWC[i, ..., 0] for i, name in site.names.items()}
    wide = np.zeros((8, 8), np.uint8)
    wide[2:6] = 200
    np.testing.assert_array_equal(by_name["wide.png"], wide)
    assert (by_name["tiny.png"] == 100).all()
    assert (by_name["turned.jpg"][:2] == 0).all()
    assert (by_name["turned.jpg"][2:6] == 50).all()


def test_no_damage_to_a_file_stops_the_site(place: Place):
    draw = random.Random(0)
    sources = [
        _encoded(_NOISE, kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000")
    ]
    place.write("good.png", _encoded(_gray(7)))
    for number in range(140):
        content = bytearray(sources[number % len(sources)])
        for _ in range(draw.randrange(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        place.write(f"{number}.png", bytes(content[: draw.randrange(1, len(content) + 1)]))
    site = place.load()
    assert "good.png" in site.names.values()
    assert len(site.ids_N) + len(place.set_aside()) == 141


def test_a_site_without_a_usable_image_is_refused(place: Place):
    with pytest.raises(DatasetError, match=r"there is no image in it$"):
        place.load()
    place.write("a.dcm", b"")
    (place.data / "scans").symlink_to(place.data.parent)
    with pytest.raises(
        DatasetError, match=r"by its name, of .* \(such as a.dcm\); 1 a link to a f"
    ):
        place.load()
    (place.data / "a.dcm").unlink()
    (place.data / "scans").unlink()
    place.write("a.png", b"")
    with pytest.raises(DatasetError, match=r"none of 1 images can be used; .*set-aside\.csv"):
        place.load()
    assert place.set_aside() == {"a.png": "empty"}
    place.data = place.data / "missing"
    with pytest.raises(DatasetError, match=r"data=.*no such folder"):
        place.load()


def test_rows_of_parquet_files_are_images(place: Place):
    encoded = [_encoded(_gray(value)) for value in range(150)]
    encoded[3] = b"damaged"
    column = pa.array([{"bytes": content, "path": None} for content in encoded])
    table = pa.table({"image": column, "age": list(range(150))})
    parquet.write_table(table, place.data / "scans.parquet", row_group_size=40)
    parquet.write_table(pa.table({"age": [1]}), place.data / "ages.parquet")
    for name in ("scans", "ages"):
        long_since(place.data / f"{name}.parquet")
    site = place.load()
    set_aside = place.set_aside()
    assert set_aside.keys() == {"scans.parquet#3", "ages.parquet"}
    assert "set image-column" in set_aside["ages.parquet"]
    assert len(site.ids_N) == 149
    for identity, name in site.names.items():
        row = int(name.removeprefix("scans.parquet#"))
        assert (site.dataset.train.images_NHWC[identity] == row).all()
    first = next(i for i, name in site.names.items() if name == "scans.parquet#97")
    assert site.content(first) == encoded[97]


def test_labels_that_are_there_already(place: Place):
    truth = write_images(place.data, range(6))
    names = list(truth)
    place.write("copy.png", (place.data / names[4]).read_bytes())
    given = {names[0]: truth[names[0]].upper(), names[2]: "", "copy.png": truth[names[4]]}
    write_labels(place.data / "labels.csv", given | {"typo.png": "one"})
    site = place.load()
    ids = {name: i for i, name in site.names.items()}
    # The duplicate with the first path is used; a label of either is a label of both.
    (kept,) = [i for name, i in ids.items() if name in ("copy.png", names[4])]
    classes = FORMAT.class_names
    assert site.given == {
        "labels.csv": {
            ids[names[0]]: classes.index(truth[names[0]]),
            kept: classes.index(truth[names[4]]),
        }
    }
    assert "no sample 'typo.png'" in place.set_aside()["labels.csv, line 5"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("a.png,thre", "did you mean 'three'"), ("a.png,1", "no class '1'"), ("a.png", None)],
)
def test_labels_that_cannot_be_used_are_refused_by_line(place: Place, line: str, message):
    place.write("a.png", _encoded(_gray(1)))
    place.write("labels.csv", f"file,label\n{line}\n".encode())
    if message is None:
        assert place.load().given == {}
        return
    with pytest.raises(LabelFileError, match=f"(?s)labels.csv: 1 lines.*line 2: .*{message}"):
        place.load()


def test_lines_about_images_that_are_set_aside_are_told_from_names_that_are_wrong(place: Place):
    place.write("a.png", _encoded(_gray(1)))
    place.write("b.png", b"")
    place.write("c.png", png(noise(8, 8, 3, deepest=4095)))
    place.write("d.txt", b"")
    place.write("e.png", _encoded(_gray(5)))
    place.load()
    (place.data / "e.png").unlink()
    names = ("a.png", "b.png", "c.png", "d.txt", "e.png", "f.png")
    write_labels(place.data / "labels.csv", dict.fromkeys(names, "one") | {"b.png": "skip"})
    assert place.load().given == {"labels.csv": {0: 1}}
    set_aside = place.set_aside()
    about = "about an image that is set aside: "
    assert set_aside["labels.csv, line 3"] == f"{about}b.png, empty"
    assert set_aside["labels.csv, line 4"].startswith(f"{about}c.png, 16 bits for each channel")
    assert set_aside["labels.csv, line 5"].startswith(f"{about}d.txt, no image, by its name")
    assert set_aside["labels.csv, line 6"].startswith(f"{about}e.png, gone")
    assert "no sample 'f.png' here" in set_aside["labels.csv, line 7"]
    write_labels(place.data / "labels.csv", {"b.png": "thre"})
    with pytest.raises(LabelFileError, match=r"line 2: no class 'thre'"):
        place.load()


def test_folders_that_are_called_like_classes_label_nothing_and_that_is_said(place: Place):
    for number, name in enumerate(("One/a.png", "2024/two/b.png", "three/c.png", "ward/d.png")):
        place.write(name, _encoded(_gray(number)))
    write_labels(place.data / "labels.csv", {"three/c.png": "three"})
    site = place.load()
    assert len(site.ids_N) == 4
    assert [len(labels) for labels in site.given.values()] == [1]
    reason = "called like a class, which labels nothing: labels are given in labels.csv"
    assert place.set_aside() == {"One/": reason, "2024/two/": reason}


def test_an_image_that_nobody_could_label_is_not_used(place: Place):
    place.write("a.png", _encoded(_gray(1)))
    place.write("b.png", _encoded(_gray(2)))
    write_labels(place.data / "labels.csv", {"a.png": "one", "b.png": "Skip"})
    site = place.load()
    assert site.ids_N.tolist() == [0]
    assert site.given == {"labels.csv": {0: 1}}
    assert place.set_aside() == {"b.png": "skip, says labels.csv"}


def test_the_truth_for_a_rehearsal(place: Place, tmp_path: Path):
    truth = write_images(place.data, range(5))
    names = list(truth)
    place.truth = tmp_path / "truth.csv"
    write_labels(place.truth, {name: truth[name] for name in names[1:]} | {"other.png": "one"})
    site = place.load()
    labels = dict(zip(site.names.values(), site.dataset.train.labels_N.tolist(), strict=True))
    assert labels == {names[0]: -1} | {
        name: FORMAT.class_names.index(truth[name]) for name in names[1:]
    }
    assert place.set_aside() == {}
    place.truth = tmp_path / "missing.csv"
    with pytest.raises(LabelFileError, match="cannot be read"):
        place.load()


def test_a_damaged_table_of_images_is_a_named_error(place: Place):
    place.write("a.png", _encoded(_gray(1)))
    place.state.mkdir()
    (place.state / "images.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"images\.sqlite"):
        place.load()
