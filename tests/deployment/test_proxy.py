"""The proxy before the SuperLink: what of Flower's interfaces can be reached from outside."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from support.deployment import NGINX, Deployment, deployment

from ahfal_app.deployment.certificates import write_certificates

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NGINX, reason="nginx is not installed"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("server")
    write_certificates(folder / "certificates", [], [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AHFAL_TEST", str(folder))
        with deployment(folder, folder / "certificates") as running:
            running.start_server()
            yield running


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/docs",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1//control/list-runs",
        "/V1/control/list-runs",
    ],
)
def test_the_proxy_lets_nothing_but_the_fleet_api_through(server: Deployment, path: str):
    assert _status(server, server.proxy, path) == 403


def test_a_path_that_only_looks_like_the_fleet_api_reaches_no_other(server: Deployment):
    """The SuperLink gets the path that the proxy compared, without dots and escapes."""
    path = "/v1/control/list-runs/../../fleet/list-runs"
    assert _status(server, server.proxy, path) == 404


def test_the_control_api_needs_the_proxy_in_front(server: Deployment):
    """Without a proxy it answers whoever asks: what the other tests here rest on."""
    assert _status(server, server.superlink, "/v1/control/list-runs") == 200


def test_flwr_gets_nowhere_through_the_proxy(server: Deployment):
    printed = server.flwr("list", "deployment", address=server.door)
    assert "403" in printed or "denied" in printed.lower() or "forbidden" in printed.lower(), (
        printed
    )


def _status(running: Deployment, port: int, path: str) -> int:
    context = ssl.create_default_context(cafile=str(running.certificates / "server" / "ca.crt"))
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}{path}",
        data=b"",
        method="POST",
        headers={"Content-Type": "application/protobuf"},
    )
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)
