"""The service: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from support.saved_models import KINDS, digits
from support.simulation import SharedRuns

from ahfal_app.errors import PageError
from ahfal_app.inference import load_model, service
from ahfal_app.inference.predicting import Predictor
from ahfal_app.web.serving import loopback_socket

TOKEN = {"Authorization": "Bearer secret"}
BASE = "http://127.0.0.1:8000"


class Requests:
    """Asks an application without a network between."""

    def __init__(self, app: Any, base: str = BASE) -> None:
        self._app, self._base = app, base

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self._asked("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self._asked("POST", path, **more)

    def _asked(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url=self._base) as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())


async def in_pieces(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.fixture
def predictor(shared_runs: SharedRuns) -> Predictor:
    return Predictor(load_model(shared_runs(KINDS["network"]).folder), torch.device("cpu"))


@pytest.fixture
def client(predictor: Predictor) -> Requests:
    return Requests(service.make_service(predictor, "secret", 8000))


def encoded(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_an_image_gets_the_models_probabilities(client: Requests, predictor: Predictor) -> None:
    image = digits(1)[0]
    answer = client.post("/predict", content=encoded(image[:, :, 0]), headers=TOKEN)
    assert answer.status_code == 200
    expected = predictor.probabilities(image[None])[0]
    found = answer.json()
    assert found["class"] == str(expected.argmax())
    assert list(found["probabilities"]) == [str(c) for c in np.argsort(-expected, kind="stable")]
    for name, share in found["probabilities"].items():
        assert share == pytest.approx(float(expected[int(name)]), abs=1e-7)


def test_it_says_what_it_is(client: Requests) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    about = client.get("/model", headers=TOKEN).json()
    assert about["classes"] == list("0123456789")
    assert about["input"] == "uint8 (B, 8, 8, 1), pixels from 0 to 255"
    described = client.get("/openapi.json", headers=TOKEN).json()
    assert described["openapi"] == "3.1.0"
    assert set(described["paths"]) == {"/predict", "/model", "/health"}
    assert (
        "application/octet-stream"
        in described["paths"]["/predict"]["post"]["requestBody"]["content"]
    )


@pytest.mark.parametrize("path", ["/predict", "/model", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer other"}, {"Authorization": "Bearer é"}]
)
def test_without_the_token_there_is_nothing(
    client: Requests, path: str, header: dict[str, str]
) -> None:
    sent = {key: value.encode("latin-1") for key, value in header.items()}
    for answer in (client.get(path, headers=sent), client.post(path, headers=sent)):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "0" not in answer.json()["error"]


def test_another_name_of_this_machine_is_refused(predictor: Predictor) -> None:
    app = service.make_service(predictor, "secret", 8000)
    elsewhere = Requests(app, "http://evil.example:8000")
    for path in ("/health", "/model"):
        assert elsewhere.get(path, headers=TOKEN).status_code == 421


def test_what_is_no_image_is_refused_with_the_reason(client: Requests) -> None:
    for body in (b"", b"no image", encoded(digits(1)[0][:, :, 0])[:40]):
        answer = client.post("/predict", content=body, headers=TOKEN)
        assert answer.status_code == 415
        assert answer.json()["error"]
    assert client.get("/predict", headers=TOKEN).status_code == 405
    assert client.get("/nowhere", headers=TOKEN).status_code == 404


def test_too_much_is_refused_before_it_is_read(
    client: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LARGEST_BODY", 100)
    assert client.post("/predict", content=b"x" * 101, headers=TOKEN).status_code == 413
    # In pieces, whose sum nobody has told.
    pieces = [b"x" * 60, b"x" * 60]
    assert client.post("/predict", content=in_pieces(pieces), headers=TOKEN).status_code == 413


def test_more_requests_than_it_has_room_for_are_told_to_come_later(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_REQUESTS", 1)
    at_it, go_on = threading.Event(), threading.Event()
    original = predictor.probabilities

    def slow(samples: np.ndarray) -> np.ndarray:
        at_it.set()
        assert go_on.wait(60)
        return original(samples)

    monkeypatch.setattr(predictor, "probabilities", slow)
    app = service.make_service(predictor, "secret", 8000)
    body, codes = encoded(digits(1)[0][:, :, 0]), []

    def first() -> None:
        answer = Requests(app).post("/predict", content=body, headers=TOKEN)
        codes.append(answer.status_code)

    thread = threading.Thread(target=first)
    thread.start()
    assert at_it.wait(60)
    second = Requests(app).post("/predict", content=body, headers=TOKEN)
    assert second.status_code == 503
    go_on.set()
    thread.join()
    assert codes == [200]
    assert Requests(app).post("/predict", content=body, headers=TOKEN).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"[1, 2]", b"[[1, 2, 3]]", b'["a", "b", "c"]', b"[1, NaN, 2]", b"{}", b"[1, 1e99, 2]"],
)
def test_vectors_of_another_kind_are_refused(body: bytes) -> None:
    with pytest.raises(service._Refused, match="a JSON list of 3 finite numbers is needed"):
        service._vector(body, 3)
    assert service._vector(json.dumps([1, 2.5, 3]).encode(), 3).tolist() == [1, 2.5, 3]


def test_a_port_that_is_taken_is_told(predictor: Predictor) -> None:
    with loopback_socket(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PageError, match=f"port={port}: allowed is a free port"):
            service.serve(predictor, port, lambda address, token: None)
