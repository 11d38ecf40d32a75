"""Certificates and keys for a deployment on Flower's own engine.

One folder for each machine, with what that machine needs and nothing else:

```
server/       ca.crt  server.crt  server.key  superexec.secret  sites/<site>.pub
sites/<site>/ ca.crt  supernode.key  supernode.key.pub  superexec.secret
```

The key of the certificate authority is not kept: who has it could pose as the server, and
a renewal writes a new authority.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as encoding
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ahfal_app.errors import CertificateError

#: Names by which processes of the server's own machine reach the SuperLink.
LOCAL_HOSTS = ("localhost", "superlink", "127.0.0.1")

_SITE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_SECRET_BYTES = 32
# A certificate must be valid on machines whose clocks are a little behind.
_CLOCK_TOLERANCE = dt.timedelta(hours=1)


@dataclass(frozen=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def write_certificates(
    folder: Path, hosts: Sequence[str], sites: Sequence[str], days: int = 365
) -> list[Path]:
    """Write an authority, the server's certificate, and a key pair for each site.

    Parameters
    ----------
    folder : Path
        Where the folders `server` and `sites` are made.
    hosts : Sequence[str]
        DNS names and IP addresses by which sites reach the server; `LOCAL_HOSTS` are added.
    sites : Sequence[str]
        Names of the sites: small letters, digits and hyphens.
    days : int
        How long the certificates are valid.

    Returns
    -------
    list[Path]
        The files written, all readable by their owner alone.

    Raises
    ------
    CertificateError
        A name or the number of days cannot be used, or a file exists already; nothing is
        written then. Or the folder cannot be written.
    """
    _check(hosts, sites, days)
    contents = _contents([*LOCAL_HOSTS, *hosts], sites, dt.timedelta(days=days))
    paths = {folder / name: content for name, content in contents.items()}
    existing = sorted(str(path) for path in paths if path.exists())
    if existing:
        raise CertificateError(f"nothing is overwritten, and these exist: {', '.join(existing)}")
    try:
        for path, content in paths.items():
            _write_private(path, content)
    except OSError as error:
        raise CertificateError(f"{folder}: cannot be written ({error.strerror})") from error
    return list(paths)


def _check(hosts: Sequence[str], sites: Sequence[str], days: int) -> None:
    for host in hosts:
        if not (_is_address(host) or _HOST.fullmatch(host)):
            raise CertificateError(f"host {host!r}: allowed is a DNS name or an IP address")
    for site in sites:
        if not _SITE.fullmatch(site):
            raise CertificateError(
                f"site {site!r}: allowed are 1 to 63 small letters, digits and inner hyphens"
            )
    if len(set(sites)) != len(sites):
        raise CertificateError(f"sites {list(sites)}: each name may be given once")
    if not 1 <= days <= 3650:
        raise CertificateError(f"days {days}: allowed is 1 to 3650")


def _contents(
    hosts: Sequence[str], sites: Sequence[str], validity: dt.timedelta
) -> Mapping[str, bytes]:
    authority = _new_authority(validity)
    server_key = ec.generate_private_key(ec.SECP256R1())
    ca = authority.certificate.public_bytes(encoding.Encoding.PEM)
    contents = {
        "server/ca.crt": ca,
        "server/server.crt": _server_certificate(authority, server_key, hosts, validity),
        "server/server.key": _private_bytes(server_key, encoding.PrivateFormat.PKCS8),
        "server/superexec.secret": secrets.token_bytes(_SECRET_BYTES),
    }
    for site in sites:
        # Flower reads OpenSSH's format.
        key = ec.generate_private_key(ec.SECP384R1())
        public = key.public_key().public_bytes(
            encoding.Encoding.OpenSSH, encoding.PublicFormat.OpenSSH
        )
        contents |= {
            f"server/sites/{site}.pub": public + b"\n",
            f"sites/{site}/ca.crt": ca,
            f"sites/{site}/supernode.key": _private_bytes(key, encoding.PrivateFormat.OpenSSH),
            f"sites/{site}/supernode.key.pub": public + b"\n",
            f"sites/{site}/superexec.secret": secrets.token_bytes(_SECRET_BYTES),
        }
    return contents


def _new_authority(validity: dt.timedelta) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("AHFAL certificate authority")
    certificate = (
        _builder(name, name, key.public_key(), validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Authority(key, certificate)


def _server_certificate(
    authority: _Authority,
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    validity: dt.timedelta,
) -> bytes:
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
    issuer = authority.certificate.subject
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(_name("AHFAL server"), issuer, key.public_key(), validity)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(encoding.Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    validity: dt.timedelta,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(now + validity)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    if _is_address(host):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _private_bytes(key: ec.EllipticCurvePrivateKey, form: encoding.PrivateFormat) -> bytes:
    return key.private_bytes(encoding.Encoding.PEM, form, encoding.NoEncryption())


def _write_private(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # With O_EXCL a file that has come since the check is not overwritten, either.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
