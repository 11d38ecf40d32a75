"""Whether one of Flower's servers answers: exit code 0 if so.

Runs in Flower's own images, so it needs nothing that is not there::

    python healthcheck.py https://localhost:8000/health ca.crt
    python healthcheck.py grpc://127.0.0.1:9095
"""

import ssl
import sys
import urllib.request

_TIMEOUT_S = 4


def _http(url: str, authority: str | None) -> None:
    context = ssl.create_default_context(cafile=authority) if authority else None
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S, context=context):  # noqa: S310
        pass


def _grpc(address: str) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S
        )
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise SystemExit(1)


if __name__ == "__main__":
    address = sys.argv[1]
    if address.startswith("grpc://"):
        _grpc(address.removeprefix("grpc://"))
    else:
        _http(address, sys.argv[2] if len(sys.argv) > 2 else None)
