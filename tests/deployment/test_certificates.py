"""Keys and certificates: who may read them, who trusts them, what is never overwritten."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ahfal_app.cli import main
from ahfal_app.deployment.certificates import LOCAL_HOSTS, write_certificates
from ahfal_app.errors import CertificateError


def _handshake(server: Path, ca: Path, host: str) -> None:
    """Shake hands over a socket pair, the client checking the certificate for a host."""
    here, there = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    client = ssl.create_default_context(cafile=ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT

    def serve() -> None:
        with contextlib.suppress(ssl.SSLError, OSError), there:
            context.wrap_socket(there, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with here:
            client.wrap_socket(here, server_hostname=host).close()
    finally:
        thread.join()


@pytest.mark.parametrize("host", [*LOCAL_HOSTS, "fal.example.org", "10.1.2.3", "2001:db8::1"])
def test_a_client_with_the_authority_trusts_the_server_by_each_of_its_names(
    tmp_path: Path, host: str
):
    write_certificates(tmp_path, ["fal.example.org", "10.1.2.3", "2001:db8::1"], ["a"])
    _handshake(tmp_path / "server", tmp_path / "sites/a/ca.crt", host)


@pytest.mark.parametrize("host", ["other.example.org", "10.1.2.4"])
def test_no_client_trusts_the_server_by_another_name(tmp_path: Path, host: str):
    write_certificates(tmp_path, ["fal.example.org", "10.1.2.3"], ["a"])
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        _handshake(tmp_path / "server", tmp_path / "sites/a/ca.crt", host)


def test_a_client_with_another_authority_does_not_trust_the_server(tmp_path: Path):
    write_certificates(tmp_path / "one", [], ["a"])
    write_certificates(tmp_path / "two", [], ["a"])
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(tmp_path / "one/server", tmp_path / "two/sites/a/ca.crt", "localhost")


def test_each_site_has_a_key_pair_of_its_own_and_the_server_only_the_public_one(tmp_path: Path):
    write_certificates(tmp_path, [], ["a", "b"])
    publics = set()
    for site in "ab":
        private = serialization.load_ssh_private_key(
            (tmp_path / f"sites/{site}/supernode.key").read_bytes(), None
        )
        public = serialization.load_ssh_public_key(
            (tmp_path / f"server/sites/{site}.pub").read_bytes()
        )
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.public_key() == public
        publics.add((tmp_path / f"server/sites/{site}.pub").read_bytes())
    assert len(publics) == 2
    private_texts = [path.name for path in tmp_path.glob("server/**/*.key")]
    assert private_texts == ["server.key"]


def test_secrets_differ(tmp_path: Path):
    write_certificates(tmp_path, [], ["a", "b"])
    found = {path.read_bytes() for path in tmp_path.glob("**/superexec.secret")}
    assert [len(secret) for secret in found] == [32, 32, 32]


def test_only_the_owner_may_read(tmp_path: Path):
    written = write_certificates(tmp_path, [], ["a"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    assert set(written) == {path for path in tmp_path.rglob("*") if path.is_file()}


def test_days_of_validity(tmp_path: Path):
    write_certificates(tmp_path, [], [], days=10)
    for name in ("ca.crt", "server.crt"):
        certificate = x509.load_pem_x509_certificate((tmp_path / "server" / name).read_bytes())
        left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
        assert dt.timedelta(days=9, hours=23) < left <= dt.timedelta(days=10)


def test_nothing_is_overwritten_and_nothing_written_beside_what_exists(tmp_path: Path):
    existing = tmp_path / "sites/b/supernode.key"
    existing.parent.mkdir(parents=True)
    existing.write_text("precious")
    with pytest.raises(CertificateError, match=r"sites/b/supernode\.key"):
        write_certificates(tmp_path, [], ["a", "b"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [existing]
    assert existing.read_text() == "precious"


@pytest.mark.parametrize(
    ("hosts", "sites", "days", "message"),
    [
        (["https://x"], [], 1, "host 'https://x': allowed is a DNS name or an IP address"),
        ([""], [], 1, "host ''"),
        ([], ["../x"], 1, r"site '\.\./x': allowed are 1 to 63 small letters"),
        ([], ["A"], 1, "site 'A'"),
        ([], ["a", "a"], 1, "each name may be given once"),
        ([], [], 0, "days 0: allowed is 1 to 3650"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    tmp_path: Path, hosts: list[str], sites: list[str], days: int, message: str
):
    with pytest.raises(CertificateError, match=message):
        write_certificates(tmp_path / "out", hosts, sites, days)
    assert not (tmp_path / "out").exists()


def test_the_command_lists_what_it_wrote_and_refuses_to_do_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["certs", "--out", str(tmp_path), "--host", "10.0.0.1", "--site", "a"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    listed = {Path(line) for line in capsys.readouterr().out.split()}
    assert listed == {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    assert "nothing is overwritten" in capsys.readouterr().err
