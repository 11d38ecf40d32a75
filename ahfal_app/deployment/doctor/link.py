"""The way to the server: encrypted, to the right server, and nothing open that should not be."""

from __future__ import annotations

import datetime as dt
import email.utils
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ahfal_app.deployment.doctor.finding import Finding, failure, good, warning

_TIMEOUT_S = 10
_EXPIRES_SOON = dt.timedelta(days=30)
# Flower's server refuses requests that were signed more than 5 s in its future, or 305 s in its
# past; HTTP tells whole seconds, which makes a site look up to one second ahead.
_MOST_AHEAD_S = 6.0
_MOST_BEHIND_S = 305.0
_CLOCK_TOLERANCE_S = 3.0
_CONTROL = "/v1/control/list-runs"


@dataclass(frozen=True)
class Link:
    """How the site reaches the server.

    Attributes
    ----------
    superlink : str
        host:port.
    root_certificates : Path | None
        The authority that has signed the server's certificate.
    insecure : bool
        Without TLS.
    """

    superlink: str
    root_certificates: Path | None
    insecure: bool


def check_link(link: Link) -> Iterator[Finding]:
    """Connect as the SuperNode will; nothing is changed on the server."""
    host, separator, port = link.superlink.rpartition(":")
    host = host.strip("[]")
    if not (separator and host and port.isdigit() and 0 < int(port) < 65536):
        yield failure("link", f"--superlink {link.superlink!r}: allowed is host:port")
    elif not link.insecure:
        yield from _check_encrypted(link, host, int(port))
    elif is_loopback(host):
        yield warning("link", f"{link.superlink} without TLS: only on this machine, for trials")
        yield from _check_answers(http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S))
    else:
        yield failure(
            "link",
            f"{link.superlink} without TLS: refused, labels and models could be read and changed "
            "on the way; give --root-certificates instead of --insecure",
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its name alone; names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_encrypted(link: Link, host: str, port: int) -> Iterator[Finding]:
    authority = link.root_certificates
    if authority is None:
        yield failure("link", "no certificate authority: give --root-certificates, the file ca.crt")
        return
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        yield failure("link", f"--root-certificates {authority} cannot be used: {error}")
        return
    try:
        expires = _expiry(context, host, port)
    except ssl.SSLError as error:
        yield failure("link", f"{link.superlink}: {_told(error)}; ask for the right ca.crt or name")
        return
    except OSError as error:
        yield failure(
            "link", f"{link.superlink} cannot be reached: {error}; check address and firewall"
        )
        return
    yield _check_expiry(link.superlink, expires)
    yield from _check_answers(
        http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    )


def _expiry(context: ssl.SSLContext, host: str, port: int) -> dt.datetime:
    """Return until when the server's certificate is valid; a handshake checks all the rest."""
    with (
        socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        certificate = encrypted.getpeercert() or {}
    seconds = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _told(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    return f"no TLS there ({error.reason})"


def _check_expiry(superlink: str, expires: dt.datetime) -> Finding:
    text = f"{superlink} with TLS, certificate valid until {expires:%Y-%m-%d}"
    if expires - dt.datetime.now(dt.UTC) < _EXPIRES_SOON:
        return warning("link", f"{text}: have it renewed, sites are refused from then on")
    return good("link", text)


def _check_answers(connection: http.client.HTTPConnection) -> Iterator[Finding]:
    """Ask for what the server should answer, and for what it should not."""
    try:
        answer = _ask(connection, "GET", "/health")
        if answer.status != http.client.OK:
            yield failure(
                "server", f"answers {answer.status} to /health: no SuperLink {_ADDRESS_ADVICE}"
            )
            return
        yield _check_clock(answer.date)
        control = _ask(connection, "POST", _CONTROL)
    except (OSError, http.client.HTTPException) as error:
        yield failure("server", f"no answer: {error or type(error).__name__} {_ADDRESS_ADVICE}")
        return
    finally:
        connection.close()
    if control.status == http.client.FORBIDDEN:
        yield good("server", "answers, and keeps its Control API to itself")
    else:
        yield warning(
            "server",
            "its Control API is open to this site, and to all who reach it: tell the server's "
            "people to put the proxy before it",
        )


_ADDRESS_ADVICE = "behind this address; check --superlink"


@dataclass(frozen=True)
class _Answer:
    status: int
    date: str | None


def _ask(connection: http.client.HTTPConnection, method: str, path: str) -> _Answer:
    connection.request(method, path, body=b"" if method == "POST" else None)
    response = connection.getresponse()
    response.read()
    return _Answer(response.status, response.getheader("Date"))


def _check_clock(date: str | None) -> Finding:
    if date is None:
        return warning("clock", "the server does not say its time; see that both use NTP")
    try:
        server = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return warning("clock", f"the server's time {date!r} cannot be read; see that both use NTP")
    ahead = (dt.datetime.now(dt.UTC) - server).total_seconds()
    if abs(ahead) <= _CLOCK_TOLERANCE_S:
        return good("clock", f"within {_CLOCK_TOLERANCE_S:g} s of the server's")
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if -_MOST_BEHIND_S < ahead < _MOST_AHEAD_S:
        return warning("clock", f"{text}: set both by NTP before they drift further apart")
    return failure("clock", f"{text}: signed requests are refused; set the clock by NTP")
