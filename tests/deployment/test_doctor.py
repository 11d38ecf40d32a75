"""What `ahfal doctor` finds, on a machine that is well and on each kind of one that is not."""

from __future__ import annotations

import datetime as dt
import email.utils
import http.server
import os
import shutil
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from packaging.requirements import Requirement
from pyarrow import parquet
from support.attacks import Target
from support.site_images import CLASSES, write_images, write_labels
from typer.testing import CliRunner

from ahfal_app.cli import app
from ahfal_app.deployment.certificates import write_certificates
from ahfal_app.deployment.doctor import Finding, Site, Verdict, examine
from ahfal_app.deployment.doctor.key import check_key
from ahfal_app.deployment.doctor.link import Link, check_link, is_loopback
from ahfal_app.deployment.doctor.machine import unmet
from ahfal_app.deployment.doctor.policy import check_policy
from ahfal_app.deployment.doctor.state import check_state
from ahfal_app.errors import OracleError
from ahfal_app.oracle.label_studio.connection import Connection


@contextmanager
def _server(certificates: Path | None, ahead_s: float = 0.0, control: int = 403) -> Iterator[str]:
    """Answer as the proxy does, with a clock that is ahead of this machine's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200 if self.path == "/health" else 404)

        def do_POST(self) -> None:
            self._answer(control)

        def date_time_string(self, timestamp: float | None = None) -> str:
            now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=ahead_s)
            return email.utils.format_datetime(now, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Handshakes that fail are what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificates:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = certificates / "server"
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    write_certificates(tmp_path / "certificates", [], ["site-1"])
    return tmp_path / "certificates"


@pytest.fixture
def site(tmp_path: Path, data_dir: Path, certificates: Path) -> Site:
    """A site that is ready but for its server's address."""
    own = f'partition-id=0 num-partitions=2 data-dir="{data_dir}" state-dir="{tmp_path}/state"'
    folder = certificates / "sites" / "site-1"
    return Site(own, "", folder / "ca.crt", folder / "supernode.key")


def _of(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def _failures(site: Site) -> dict[str, str]:
    return {f.check: f.text for f in examine(site) if f.verdict is Verdict.FAILURE}


def test_a_site_that_is_ready(site: Site, certificates: Path):
    with _server(certificates) as address:
        findings = list(examine(replace(site, superlink=address)))
    assert {f.verdict for f in findings if f.check != "disk"} == {Verdict.GOOD}, findings
    assert [f.check for f in findings] == [
        *("versions", "device", "data", "labels", "policy", "state", "disk", "processes", "key"),
        *("link", "clock", "server"),
    ]


@pytest.mark.slow
def test_the_command_says_it_in_lines_and_in_its_exit_code(site: Site, certificates: Path):
    def run(address: str, node_config: str) -> tuple[int, list[str]]:
        options = ["--superlink", address, "--node-config", node_config]
        options += ["--root-certificates", str(site.root_certificates)]
        result = CliRunner().invoke(
            app, ["doctor", *options, "--private-key", str(site.private_key)]
        )
        return result.exit_code, result.output.splitlines()

    with _server(certificates) as address:
        code, lines = run(address, site.node_config)
        assert (code, len(lines)) == (0, 12)
        code, lines = run(address, site.node_config.replace("state-dir", "state"))
    assert code == 1
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED  state       state-dir is not in --node-config: name a folder for the labels"
    ]


@pytest.mark.parametrize(
    ("node_config", "told"),
    [
        ("num-partitions=2", "partition-id=None"),
        ("partition-id=-1", "partition-id=-1"),
        ('partition-id="a"', "partition-id='a'"),
        ("partition-id=true", "partition-id=True"),
        ("partition-id=2 num-partitions=2", "num-partitions=2"),
        ("partition-id=a", "cannot be read"),
        ("partition-id=0 partition-id=1", "cannot be read"),
    ],
)
def test_a_place_that_is_none(node_config: str, told: str):
    assert told in _failures(Site(node_config, "127.0.0.1:1"))["node-config"]


def test_what_flower_would_ignore_is_told():
    found = _failures(Site('partition-id=0 "state-dir" = /srv', "127.0.0.1:1"))
    assert found["node-config"] == "'\"state-dir\" = /srv' is no key=value: Flower would ignore it"


def test_data_that_cannot_be_read(tmp_path: Path, site: Site):
    (tmp_path / "empty").mkdir()
    own = f'{site.node_config} dataset="{tmp_path / "empty"}"'
    assert "empty" in _failures(replace(site, node_config=own))["data"]


@pytest.fixture
def own_images(tmp_path: Path, site: Site) -> Site:
    """A site with images of its own, one of which is damaged, and with some labels."""
    truth = write_images(tmp_path / "images", range(20))
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    write_labels(tmp_path / "images" / "labels.csv", dict(list(truth.items())[:12]))
    own = f'{site.node_config} data="{tmp_path / "images"}"'
    return replace(site, node_config=own, classes=",".join(CLASSES))


def test_a_site_with_images_of_its_own(
    own_images: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    findings = list(examine(own_images))
    assert _of(findings, "data").text.endswith("images: 20 images can be used")
    aside = _of(findings, "set aside")
    assert aside.verdict is Verdict.WARNING
    assert "broken.png" in aside.text
    # The first twelve digits are zero to nine, zero, one.
    twice, once = ("zero 2", "one 2"), [f"{name} 1" for name in CLASSES[2:]]
    assert _of(findings, "labels") == Finding("labels", Verdict.GOOD, ", ".join((*twice, *once)))
    assert _of(findings, "oracle").text == "files, unless the run says another"
    assert caplog.text == ""
    # Ids are given by the first run, not by a look.
    assert not list((tmp_path / "state").rglob("images.sqlite"))


def test_a_folder_to_test_with(own_images: Site, tmp_path: Path):
    folder = tmp_path / "tests"
    write_labels(folder / "labels.csv", write_images(folder, range(40, 44)))
    (folder / "broken.png").write_bytes(b"no image")
    own = replace(own_images, node_config=f'{own_images.node_config} validation="{folder}"')
    found = [finding for finding in examine(own) if finding.check == "validation"]
    assert [finding.verdict for finding in found] == [Verdict.GOOD, *[Verdict.WARNING] * 2]
    assert found[0].text == (
        f"{folder}: 4 images can be tested with: zero 0, one 1, two 0, three 0, four 1, five 0, "
        "six 0, seven 1, eight 1, nine 0"
    )
    assert found[1].text.startswith("none of zero, two, three, five, six, nine, so that")
    assert "broken.png" in found[2].text
    write_labels(folder / "labels.csv", {"ward-1/0040.png": "ten"})
    assert "line 2: no class 'ten'" in _failures(own)["validation"]


def test_classes_that_nobody_has_said_are_those_of_the_labels(own_images: Site):
    found = _of(list(examine(replace(own_images, classes=""))), "labels")
    assert found.verdict is Verdict.WARNING
    assert found.text.startswith("eight 1, five 1, four 1, nine 1, one 2, seven 1,")


def test_labels_that_are_no_classes(own_images: Site):
    found = _failures(replace(own_images, classes="zero,one"))
    assert "line 4: no class 'two'" in found["labels"]


@pytest.mark.parametrize(
    ("more", "check", "told"),
    [
        ('oracle="simulated"', "node-config", "truth in --node-config"),
        ('oracle="files" truth="/nowhere.csv"', "labels", "/nowhere.csv: cannot be read"),
        ('oracle="label-studio"', "oracle", "oracle-url=''"),
        ('oracle="nobody"', "oracle", "oracle='nobody'"),
        ('oracle="files" oracle-dir="/proc/asked"', "oracle", "/proc/asked cannot be written"),
        ('oracle="page" oracle-dir="/proc/asked"', "oracle", "/proc/asked cannot be written"),
    ],
)
def test_what_a_site_says_wrongly(own_images: Site, more: str, check: str, told: str):
    own = replace(own_images, node_config=f"{own_images.node_config} {more}")
    assert told in _failures(own)[check]


def test_a_folder_for_people_is_looked_at_and_left_empty(own_images: Site, tmp_path: Path):
    more = f'oracle="files" oracle-dir="{tmp_path / "asked"}"'
    own = replace(own_images, node_config=f"{own_images.node_config} {more}")
    assert _of(list(examine(own)), "oracle") == Finding("oracle", Verdict.GOOD, "files")
    assert list((tmp_path / "asked").iterdir()) == []


def test_label_studio_is_called(own_images: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without its SDK, the call ends where the connection would begin."""
    calls: list[str] = []

    def check(connection: Connection) -> None:
        calls.append(connection.url)
        if len(calls) > 1:
            raise OracleError(f"Label Studio at {connection.url}: cannot be reached")

    monkeypatch.setattr(Connection, "__init__", lambda self, url, token: setattr(self, "url", url))
    monkeypatch.setattr(Connection, "check", check)
    token = tmp_path / "token"
    token.write_text("secret")
    more = f'oracle="label-studio" oracle-url="http://studio:8080" oracle-token-file="{token}"'
    own = replace(own_images, node_config=f"{own_images.node_config} {more}")
    found = _of(list(examine(own)), "oracle")
    assert found.verdict is Verdict.WARNING
    assert (
        "oracle-url='http://studio:8080': images and the token go there without TLS" in found.text
    )
    found = _of(list(examine(own)), "oracle")
    assert found == Finding(
        "oracle", Verdict.FAILURE, "Label Studio at http://studio:8080: cannot be reached"
    )


def test_a_folder_without_images(own_images: Site, tmp_path: Path):
    shutil.rmtree(tmp_path / "images")
    assert "no such folder" in _failures(own_images)["data"]
    (tmp_path / "images").mkdir()
    assert "there is no image in it" in _failures(own_images)["data"]


def test_a_site_with_vectors(tmp_path: Path, site: Site):
    folder = tmp_path / "cases"
    folder.mkdir()
    vectors = [[float(row), 1.0, 2.0] for row in range(9)] + [[1.0, 2.0]]
    table = pa.table({"vector": vectors, "note": [f"case {row}" for row in range(10)]})
    parquet.write_table(table, folder / "cases.parquet")
    write_labels(folder / "labels.csv", {"cases.parquet#0": "ill", "cases.parquet#3": "well"})
    more = f'{site.node_config} data="{folder}"'
    findings = list(examine(replace(site, node_config=more, classes="ill,well")))
    assert _of(findings, "data").text.endswith("cases: 9 vectors of 3 numbers can be used")
    assert "a vector of 2 numbers; 3 are needed" in _of(findings, "set aside").text
    assert _of(findings, "labels") == Finding("labels", Verdict.GOOD, "ill 1, well 1")
    assert _of(findings, "shown").verdict is Verdict.WARNING
    shown = replace(site, node_config=f'{more} shown-column="note"', classes="ill,well")
    assert _of(list(examine(shown)), "shown").verdict is Verdict.GOOD
    wrong = replace(site, node_config=f'{more} vector-column="vektor"')
    assert "did you mean 'vector'" in _failures(wrong)["data"]


def test_a_device_that_is_not_there(site: Site):
    own = f'{site.node_config} device="abacus"'
    assert "abacus" in _failures(replace(site, node_config=own))["device"]


def test_a_state_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (finding,) = check_state({"state-dir": str(tmp_path / "file" / "below")})
    assert finding.verdict is Verdict.FAILURE
    assert "cannot be written" in finding.text


def test_the_state_folder_is_left_as_it_was(tmp_path: Path):
    assert all(finding.verdict is not Verdict.FAILURE for finding in _state(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_damaged_label_store_is_named(tmp_path: Path):
    sound, damaged = (tmp_path / name / "0" / "labels.sqlite" for name in ("sound", "damaged"))
    for path in (sound, damaged):
        path.parent.mkdir(parents=True)
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("CREATE TABLE labels (sample INTEGER PRIMARY KEY, text TEXT)")
            connection.executemany(
                "INSERT INTO labels VALUES (?, ?)", [(i, "x" * 100) for i in range(1000)]
            )
        connection.close()
    before = sound.read_bytes()
    assert _of(_state(tmp_path), "store").text == "2 label stores are sound"
    content = bytearray(damaged.read_bytes())
    content[8192:40960] = bytes(32768)
    damaged.write_bytes(content)
    found = _of(_state(tmp_path), "store")
    assert found.verdict is Verdict.FAILURE
    assert str(damaged) in found.text
    assert sound.read_bytes() == before


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert _of(_state(tmp_path), "disk").verdict is Verdict.WARNING


def _state(folder: Path) -> list[Finding]:
    return list(check_state({"state-dir": str(folder)}))


def test_a_key_that_others_can_read(certificates: Path):
    path = certificates / "sites" / "site-1" / "supernode.key"
    assert check_key(path).verdict is Verdict.GOOD
    path.chmod(0o640)
    assert "chmod 600" in check_key(path).text


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (lambda folder: None, "no key"),
        (lambda folder: folder / "missing", "cannot be read"),
        (lambda folder: folder / "sites" / "site-1" / "supernode.key.pub", "cannot be read"),
        (lambda folder: folder / "server" / "server.key", "cannot be read"),
    ],
)
def test_a_file_that_is_no_key(certificates: Path, path: Callable[[Path], Path | None], told: str):
    found = check_key(path(certificates))
    assert found.verdict is Verdict.FAILURE
    assert told in found.text


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("0.0.0.0", False),
    ],
)
def test_what_is_this_machine(host: str, expected: bool):
    assert is_loopback(host) is expected


def test_an_insecure_link_is_refused_outside_of_this_machine():
    """And nothing is sent: the address is one that nobody has."""
    (finding,) = check_link(Link("192.0.2.1:8443", None, insecure=True))
    assert finding.verdict is Verdict.FAILURE
    assert "refused" in finding.text


def test_an_insecure_link_within_this_machine_is_a_warning():
    with _server(None) as address:
        findings = list(check_link(Link(address, None, insecure=True)))
    assert _of(findings, "link").verdict is Verdict.WARNING
    assert _of(findings, "server").verdict is Verdict.GOOD


@pytest.mark.parametrize("address", ["", "host", "host:", ":8443", "host:0", "host:99999", "h:x"])
def test_an_address_that_is_none(address: str):
    (finding,) = check_link(Link(address, None, insecure=False))
    assert "allowed is host:port" in finding.text


def test_a_server_of_another_authority(tmp_path: Path, site: Site, certificates: Path):
    write_certificates(tmp_path / "other", [], [])
    with _server(tmp_path / "other") as address:
        (finding,) = check_link(Link(address, site.root_certificates, insecure=False))
    assert finding.verdict is Verdict.FAILURE
    assert "its certificate is not accepted" in finding.text


def test_a_server_without_tls(site: Site):
    with _server(None) as address:
        (finding,) = check_link(Link(address, site.root_certificates, insecure=False))
    assert finding.verdict is Verdict.FAILURE


def test_a_server_that_is_not_there(site: Site, certificates: Path):
    with _server(certificates) as address:
        pass
    (finding,) = check_link(Link(address, site.root_certificates, insecure=False))
    assert "cannot be reached" in finding.text


@pytest.mark.parametrize("file", [None, Path("/missing/ca.crt")])
def test_an_authority_that_is_not_there(file: Path | None):
    (finding,) = check_link(Link("127.0.0.1:1", file, insecure=False))
    assert finding.verdict is Verdict.FAILURE
    assert "--root-certificates" in finding.text


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path):
    write_certificates(tmp_path, [], [], days=20)
    with _server(tmp_path) as address:
        findings = list(check_link(Link(address, tmp_path / "server" / "ca.crt", insecure=False)))
    assert _of(findings, "link").verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("server_ahead_s", "verdict"),
    [
        (0, Verdict.GOOD),
        (100, Verdict.WARNING),
        (400, Verdict.FAILURE),
        (-30, Verdict.FAILURE),
    ],
)
def test_clocks_that_differ(server_ahead_s: float, verdict: Verdict):
    """The server takes signatures of its past 305 seconds, and of its next 5."""
    with _server(None, server_ahead_s) as address:
        findings = list(check_link(Link(address, None, insecure=True)))
    assert _of(findings, "clock").verdict is verdict


@pytest.mark.parametrize("status", [200, 400, 404, 422])
def test_a_server_whose_control_api_is_open(status: int):
    with _server(None, control=status) as address:
        findings = list(check_link(Link(address, None, insecure=True)))
    assert _of(findings, "server").verdict is Verdict.WARNING


def test_versions():
    assert unmet(Requirement("numpy>=1")) is None
    assert "needed is numpy<1" in str(unmet(Requirement("numpy<1")))
    assert "not installed" in str(unmet(Requirement("no-such-package>=1")))


# --- the site's policy, and who can read its state ---------------------------------------------


def _policy(tmp_path: Path, **own: object) -> list[Finding]:
    node = {"partition-id": 0, "state-dir": str(tmp_path / "state")}
    return list(check_policy({**node, **own}))


def test_a_policy_is_told_rule_by_rule(tmp_path: Path):
    found = _policy(
        tmp_path,
        **{
            "policy-privacy": "local-dp",
            "policy-labels-per-run": 500,
            "policy-strategies": "ahfal, random",
            "policy-disk-gib": 50,
        },
    )
    (finding,) = found
    assert finding.verdict is Verdict.GOOD
    assert finding.text.split(", ") == [
        *("privacy: local-dp", "epsilon: not limited", "total-epsilon: not limited"),
        "cycles: not limited",
        *("labels-per-cycle: not limited", "labels-per-run: 500", "total-labels: not limited"),
        "image-size: not limited",
        *("strategies: ahfal|random", "reveals: nothing", "oracles: not limited"),
        "models: not limited",
        *("local-epochs: not limited", "fewest-tested: not limited", "disk-gib: 50.0"),
    ]


def test_a_site_with_images_is_warned_of_what_is_open(tmp_path: Path):
    (finding,) = _policy(tmp_path, data="/srv/images")
    assert finding.verdict is Verdict.WARNING
    assert "set policy-labels-per-run, policy-disk-gib: else the server alone says" in finding.text
    (finding,) = _policy(
        tmp_path, data="/srv/images", **{"policy-labels-per-run": 5, "policy-disk-gib": 1.5}
    )
    assert finding.verdict is Verdict.GOOD


def test_a_policy_that_would_protect_nothing_cannot_join(tmp_path: Path):
    found = _policy(tmp_path, **{"policy-label-per-run": 5, "policy-privacy": "yes"})
    assert {f.verdict for f in found} == {Verdict.FAILURE}
    told = " ".join(finding.text for finding in found)
    assert "did you mean 'policy-labels-per-run'" in told
    assert "policy-privacy='yes'" in told


def test_keys_that_mean_nothing_are_told(tmp_path: Path):
    found = _policy(tmp_path, **{"state": "/srv", "colour": "red", "oracle-url": "http://a"})
    told = [f.text for f in found if f.check == "node-config"]
    assert len(told) == 2
    assert "state: AHFAL knows no such key; did you mean 'state-dir'" in told[0]
    assert told[1].startswith("colour: ")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"keep-model": "no"}, "keep-model='no': allowed in --node-config is true or false"),
        ({"keep-personal": 1}, "keep-personal=1: allowed in --node-config is true or false"),
        ({"keep-model": False, "keep-personal": True}, "allowed with keep-model=True"),
        ({"keep-model": True, "keep-personal": True}, None),
        ({"keep-model": False}, None),
    ],
)
def test_what_a_site_says_of_models_is_told(
    tmp_path: Path, said: dict[str, object], told: str | None
):
    found = [f for f in _policy(tmp_path, **said) if f.check == "node-config"]
    assert [f.verdict for f in found] == [Verdict.FAILURE] * (told is not None)
    assert told is None or told in found[0].text


def test_what_is_used_up_of_totals_is_told(tmp_path: Path):
    target = Target(tmp_path)
    assert not target.send("query.join").has_error()
    own = {"state-dir": str(target.state), "policy-disk-gib": 1, "policy-labels-per-run": 9}
    _, finding = _policy(tmp_path, **own, **{"policy-total-labels": 20})
    assert (finding.verdict, finding.text) == (
        Verdict.GOOD,
        "12 labels of 20 are spent by all runs together",
    )
    _, finding = _policy(tmp_path, **own, **{"policy-total-labels": 12})
    assert finding.verdict is Verdict.WARNING
    assert "no run can have more" in finding.text


def test_a_state_that_others_can_read_cannot_join(tmp_path: Path):
    folder = tmp_path / "state"
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "labels.sqlite").touch()
    folder.chmod(0o750)
    (finding,) = (
        f for f in check_state({"state-dir": str(folder)}) if f.verdict is Verdict.FAILURE
    )
    assert finding.text == (
        f"{folder} and 2 more: others have rights to it; run chmod -R go= {folder}"
    )
    for path in (folder, folder / "run", folder / "run" / "labels.sqlite"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert not [f for f in check_state({"state-dir": str(folder)}) if f.verdict is Verdict.FAILURE]


def test_a_state_that_doctor_makes_is_closed(tmp_path: Path):
    before = os.umask(0o022)
    try:
        findings = list(check_state({"state-dir": str(tmp_path / "a" / "state")}))
    finally:
        os.umask(before)
    assert {f.verdict for f in findings} == {Verdict.GOOD}
    assert (tmp_path / "a" / "state").stat().st_mode & 0o777 == 0o700
