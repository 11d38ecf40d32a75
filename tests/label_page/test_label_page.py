"""`ahfal label`: the desk, the page over HTTP, and the page as a person uses it."""

from __future__ import annotations

import io
import multiprocessing
import re
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from support.label_pages import HOST, PORT, TOKEN, Visitor, site
from support.labelling import CLASSES, encoded, request
from typer.testing import CliRunner

from ahfal_app.cli import app as command_line
from ahfal_app.cli import main
from ahfal_app.data.encoded import use_image
from ahfal_app.data.pixels import pixels
from ahfal_app.errors import ConfigError, OracleError, StoreError
from ahfal_app.label_page.app import make_app
from ahfal_app.label_page.desk import AlreadyAnswered, Answer, Desk
from ahfal_app.label_page.images import for_browser
from ahfal_app.label_page.open_requests import desk_folder
from ahfal_app.label_page.shortcuts import shortcuts
from ahfal_app.labels.store import LabelReceipt, LabelStore
from ahfal_app.oracle import EncodedImage, Oracle, make_oracle


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "oracle")


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    return make_oracle("page", site(tmp_path / "oracle"))


def say(desk: Desk, sample: int, label: int | None, who: str = "anna", cycle: int = 1) -> None:
    desk.answer(Answer(f"request{cycle}", sample, label, who))


# --- the desk and the oracle ----------------------------------------------------------------


def test_answers_come_back_in_the_order_in_which_they_were_given(oracle: Oracle, desk: Desk):
    oracle.submit(request(7, 3, 9))
    assert oracle.collect("request1") == []
    say(desk, 9, 2)
    say(desk, 7, None)
    expected = [LabelReceipt("request1", 9, 2, "anna"), LabelReceipt("request1", 7, None, "anna")]
    assert oracle.collect("request1") == expected
    assert oracle.collect("request1") == expected
    say(desk, 3, 0)
    assert oracle.collect("request1") == [*expected, LabelReceipt("request1", 3, 0, "anna")]
    assert oracle.collect("another") == []


def test_a_request_is_laid_down_once(oracle: Oracle, desk: Desk, tmp_path: Path):
    oracle.submit(request(7, 3))
    say(desk, 7, 1)
    before = desk.sheet("request1")

    def never(sample: int) -> EncodedImage:
        raise AssertionError("the images are there already")

    make_oracle("page", site(tmp_path / "oracle", image=never)).submit(request(7, 3))
    assert desk.sheet("request1") == before
    assert len(oracle.collect("request1")) == 1
    assert [item.guess for item in before.items] == [2, 2]
    assert [desk.image(before, item) for item in before.items] == [
        encoded(sample).content for sample in (7, 3)
    ]


def test_what_a_killed_submission_left_is_no_request(oracle: Oracle, desk: Desk, tmp_path: Path):
    part = tmp_path / "oracle/requests/.request1.abc.part"
    (part / "images").mkdir(parents=True)
    (part / "request.json").write_text("{}")
    assert desk.sheets() == ()
    oracle.submit(request(7))
    assert [sheet.request for sheet in desk.sheets()] == ["request1"]


def test_the_slower_of_two_processes_changes_nothing(oracle: Oracle, desk: Desk):
    oracle.submit(request(7, 3))
    sheet = desk.sheet("request1")
    desk.add(sheet.model_copy(update={"items": ()}), [])
    assert desk.sheet("request1") == sheet


def test_undo_ends_with_the_collection(oracle: Oracle, desk: Desk):
    oracle.submit(request(7, 3, 9))
    say(desk, 7, 0)
    say(desk, 3, 1)
    say(desk, 9, 2, who="ben")
    assert desk.undo("anna") == Answer("request1", 3, 1, "anna")
    assert desk.undo("carl") is None
    assert desk.undoable("anna") == Answer("request1", 7, 0, "anna")
    oracle.collect("request1")
    assert desk.undo("anna") is None
    assert {receipt.sample for receipt in oracle.collect("request1")} == {7, 9}


def test_people_who_disagree_are_both_kept(oracle: Oracle, desk: Desk):
    oracle.submit(request(7))
    say(desk, 7, 0)
    say(desk, 7, 2, who="ben")
    say(desk, 7, 0)
    assert [(r.label, r.annotator) for r in oracle.collect("request1")] == [(0, "anna"), (2, "ben")]
    with pytest.raises(AlreadyAnswered, match="sample 7"):
        say(desk, 7, 1)


@pytest.mark.parametrize(("sample", "label"), [(8, 0), (7, 3), (7, -1)])
def test_what_was_not_asked_for_is_refused(oracle: Oracle, desk: Desk, sample: int, label: int):
    oracle.submit(request(7))
    with pytest.raises(OracleError, match=f"sample {sample}|label={label}"):
        say(desk, sample, label)
    assert oracle.collect("request1") == []


def _answer_then_hang(folder: Path) -> None:
    say(Desk(folder), 7, 1)
    signal.raise_signal(signal.SIGKILL)


@pytest.mark.slow
def test_an_acknowledged_answer_survives_a_kill(oracle: Oracle, tmp_path: Path):
    oracle.submit(request(7))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_answer_then_hang, args=(tmp_path / "oracle",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert oracle.collect("request1") == [LabelReceipt("request1", 7, 1, "anna")]


def test_images_that_browsers_do_not_show_become_png():
    shown, media_type = for_browser(encoded(1, "TIFF").content, "a.tiff")
    assert media_type == "image/png"
    wanted = np.asarray(Image.open(io.BytesIO(encoded(1).content)))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), wanted)
    jpeg = encoded(1, "JPEG").content
    assert for_browser(jpeg, "a.jpg") == (jpeg, "image/jpeg")
    with pytest.raises(OracleError, match=r"image notes\.txt"):
        for_browser(b"no image", "notes.txt")


_XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def _turned(kind: str) -> bytes:
    """Return a file of an image, 8 pixels of red over 8 of blue, that lies as it is kept."""
    lying_HWC = np.zeros((8, 16, 3), np.uint8)
    lying_HWC[:, :8, 0] = lying_HWC[:, 8:, 2] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    options: dict[str, Any] = {"exif": exif.tobytes()}
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [Image.fromarray(lying_HWC)]}
    elif kind == "TIFF":
        options = {"tiffinfo": {0x0112: 6}}
    elif kind == "JPEG, XMP":
        options = {"xmp": _XMP.encode()}
    content = io.BytesIO()
    Image.fromarray(lying_HWC).save(content, kind.split(",")[0], **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "JPEG, XMP", "MPO", "PNG", "WEBP", "TIFF"])
def test_people_see_images_upright_as_models_do(kind: str):
    lying = _turned(kind)
    shown, media_type = for_browser(lying, "photo")
    # Browsers turn these as their EXIF says, and a photograph is small as it is.
    is_jpeg = kind in ("JPEG", "MPO")
    assert media_type == ("image/jpeg" if is_jpeg else "image/png")
    assert (shown == lying) == is_jpeg
    seen = Image.open(io.BytesIO(shown))
    if is_jpeg:
        ImageOps.exif_transpose(seen, in_place=True)
    modelled_HWC = use_image(lying, lambda image: pixels(image, (16, 8, 3)))
    assert np.array_equal(np.asarray(seen.convert("RGB")), modelled_HWC)
    channels_HW = modelled_HWC.argmax(axis=-1)
    assert np.unique(channels_HW[:8]) == 0
    assert np.unique(channels_HW[8:]) == 2


def test_the_page_needs_a_folder():
    with pytest.raises(ConfigError, match="oracle-dir"):
        make_oracle("page", site(None))


def test_a_key_for_each_class_and_none_twice():
    keys = shortcuts(40)
    assert keys[:11] == [*"1234567890", "a"]
    named = [key for key in keys if key]
    assert len(set(named)) == len(named) == 35
    assert "s" not in named


# --- over HTTP ------------------------------------------------------------------------------


@pytest.fixture
def visit(oracle: Oracle, desk: Desk) -> Visitor:
    oracle.submit(request(7, 3, 9))
    return Visitor(make_app(desk, "anna", TOKEN, PORT, show_guess=False))


def test_a_whole_request_over_http(visit: Visitor, oracle: Oracle):
    state = visit("/state").json()
    assert (state["answered"], state["total"], state["undo"]) == (0, 3, False)
    assert state["next"]["sample"] == 7
    assert [(c["name"], c["key"]) for c in state["next"]["classes"]] == list(
        zip(CLASSES, "123", strict=True)
    )
    image = visit(state["next"]["image"])
    assert (image.content, image.headers["content-type"]) == (encoded(7).content, "image/png")
    for sample, label in ((7, 2), (3, None)):
        state = visit("/answers", {"request": "request1", "sample": sample, "label": label}).json()
    assert (state["answered"], state["undo"], state["next"]["sample"]) == (2, True, 9)
    state = visit("/undo", {}).json()
    assert (state["answered"], state["next"]["sample"]) == (1, 3)
    assert oracle.collect("request1") == [LabelReceipt("request1", 7, 2, "anna")]
    refused = visit("/undo", {})
    assert refused.status_code == 409
    assert "collected" in refused.json()["error"]


def test_a_guess_is_seen_only_where_it_is_asked_for(visit: Visitor, desk: Desk):
    assert visit("/state").json()["next"]["guess"] is None
    open_page = Visitor(make_app(desk, "anna", TOKEN, PORT, show_guess=True))
    assert open_page("/state").json()["next"]["guess"] == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"request": "request1", "sample": 8, "label": 0}, 500),
        ({"request": "request1", "sample": 7, "label": 3}, 500),
        ({"request": "request1", "sample": 7, "label": True}, 422),
        ({"request": "request1", "sample": 7}, 422),
        ({"request": "../..", "sample": 7, "label": 0}, 404),
        ([], 422),
    ],
)
def test_bad_answers_are_refused(visit: Visitor, oracle: Oracle, body: Any, status: int):
    answer = visit("/answers", body)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert oracle.collect("request1") == []


@pytest.mark.parametrize("path", ["/images/request1/request.json", "/images/%2e%2e/0001.png", "/x"])
def test_nothing_but_images_is_sent(visit: Visitor, path: str):
    assert visit(path).status_code == 404


PATHS = ("/", "/state", "/page.js", "/images/request1/0001.png", "/favicon.ico")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cookie", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()])
def test_nothing_without_the_token(visit: Visitor, path: str, cookie: str | None):
    answer = visit(path, cookie=None, **({"Cookie": f"ahfal-{PORT}={cookie}"} if cookie else {}))
    assert answer.status_code == 403
    assert "ward" not in answer.text


def test_the_token_is_exchanged_for_a_cookie(visit: Visitor):
    answer = visit(f"/?token={TOKEN}", cookie=None)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"ahfal-{PORT}={TOKEN};")
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert visit("/?token=wrong", cookie=None).status_code == 403
    assert visit(f"/state?token={TOKEN}", cookie=None).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80"]
)
def test_names_that_point_here_are_refused(visit: Visitor, host: str):
    for path in (*PATHS, f"/?token={TOKEN}"):
        assert visit(path, Host=host).status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:80"])
def test_other_sites_cannot_answer(visit: Visitor, oracle: Oracle, origin: str):
    body = {"request": "request1", "sample": 7, "label": 0}
    assert visit("/answers", body, Origin=origin).status_code == 403
    assert visit("/answers", body, **{"Content-Type": "text/plain"}).status_code == 415
    assert visit("/undo", {}, **{"Content-Type": "text/plain"}).status_code == 415
    assert oracle.collect("request1") == []
    assert visit("/answers", body, Origin=f"http://{HOST}").status_code == 200


@pytest.mark.parametrize("cookie", [TOKEN, None])
def test_every_answer_has_the_headers(visit: Visitor, cookie: str | None):
    for path in (*PATHS, "/nowhere"):
        headers = visit(path, cookie=cookie).headers
        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def state_dir(tmp_path: Path, oracle: Oracle) -> Path:
    store = LabelStore.open_file(tmp_path / "labels.sqlite", np.arange(10), len(CLASSES))
    store.allot(6)
    for made in (request(7, 3, 9), request(1, 2, cycle=2)):
        store.reserve(made)
        oracle.submit(made)
    store.commit([LabelReceipt("request1", 7, 1, "anna")])
    store.close()
    return tmp_path


def test_what_is_open_is_listed(state_dir: Path, desk: Desk):
    say(desk, 1, 1, cycle=2)
    shown = CliRunner().invoke(
        command_line, ["label", str(state_dir), "--list"], terminal_width=200
    )
    assert shown.exit_code == 0
    rows = [
        re.findall(r"\w[\w:-]*", line) for line in shown.output.splitlines() if "entropy" in line
    ]
    assert [(row[0], row[1], row[-4:]) for row in rows] == [
        ("request1", "1", ["3", "2", "0", "0"]),
        ("request2", "2", ["2", "1", "0", "1"]),
    ]


def test_a_folder_without_labels_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["label", str(tmp_path), "--list"])
    assert ended.value.code == 1
    assert "0 label stores in this folder" in "".join(capsys.readouterr())


def test_a_sites_own_folder_leads_to_the_desk_below_it(tmp_path: Path):
    """A client's state lies two folders below what --node-config names."""
    client = tmp_path / "state" / "run" / "0"
    LabelStore.open_file(client / "labels.sqlite", np.arange(10), len(CLASSES)).close()
    assert desk_folder(tmp_path / "state") == client / "oracle"
    assert desk_folder(client) == client / "oracle"


def test_the_oracles_folder_is_the_desk_itself(tmp_path: Path, oracle: Oracle):
    oracle.submit(request(7))
    assert desk_folder(tmp_path / "oracle") == tmp_path / "oracle"


def test_two_stores_or_none_are_refused_by_name(tmp_path: Path):
    with pytest.raises(StoreError, match="0 label stores"):
        desk_folder(tmp_path)
    for run in ("first", "second"):
        LabelStore.open_file(tmp_path / run / "labels.sqlite", np.arange(10), len(CLASSES)).close()
    with pytest.raises(StoreError, match=r"2 label stores.*first.*second"):
        desk_folder(tmp_path)


def test_a_taken_port_is_named(state_dir: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["label", str(state_dir), "--port", str(port)])
    assert ended.value.code == 1
    assert f"port={port}" in "".join(capsys.readouterr())
