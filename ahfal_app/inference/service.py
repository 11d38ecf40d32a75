"""A model as a service on this machine: images in, probabilities out, over HTTP.

It listens on the loopback interface alone, and everything but the health check wants the token that
was told when it began. Whoever wants it elsewhere puts a proxy with TLS in front of it.
"""

from __future__ import annotations

import functools
import json
import secrets
import threading
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ahfal_app.code_version import __version__
from ahfal_app.data.encoded import UnusableImage, use_image, without_warnings
from ahfal_app.data.pixels import pixels
from ahfal_app.inference.predicting import Predictor
from ahfal_app.web.serving import HOST, loopback_socket

#: Bytes of one request's body.
LARGEST_BODY = 32 << 20

#: Requests that are answered or wait at the same time; more are told to come later.
MOST_REQUESTS = 16


class _Refused(Exception):
    """A request that gets an error with a text."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _Token:
    """Lets requests through that have the token and name this machine.

    A page that is open in a browser can send requests here, also by a name of its own that it
    lets point to this machine; it has neither.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._header = f"Bearer {token}".encode()
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        if request.headers.get("host") not in self._hosts:
            return _error(HTTPStatus.MISDIRECTED_REQUEST, "unknown host")
        if request.url.path == "/health":
            return None
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if secrets.compare_digest(given, self._header):
            return None
        told = _error(HTTPStatus.UNAUTHORIZED, "Authorization: Bearer with the token is needed")
        told.headers["WWW-Authenticate"] = "Bearer"
        return told


def make_service(predictor: Predictor, token: str, port: int) -> ASGIApp:
    """Return the service of a model as an application.

    Parameters
    ----------
    predictor : Predictor
        The model on its device.
    token : str
        What requests carry as `Authorization: Bearer`.
    port : int
        Where it listens.
    """
    computing = threading.Lock()
    waiting = threading.BoundedSemaphore(MOST_REQUESTS)

    def answered(body: bytes) -> dict[str, object]:
        sample = _sample(predictor, body)
        with computing:
            shares_C = predictor.probabilities(sample[None])[0]
        order_C = np.argsort(-shares_C, kind="stable")
        classes = predictor.model.classes
        return {
            "class": classes[order_C[0]],
            "probabilities": {classes[c]: float(shares_C[c]) for c in order_C},
        }

    async def predict(request: Request) -> Response:
        if not waiting.acquire(blocking=False):
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_REQUESTS} requests are waiting")
        try:
            body = await _body(request)
            return JSONResponse(await run_in_threadpool(answered, body))
        except _Refused as refused:
            return _error(refused.status, refused.text)
        except ClientDisconnect:
            return _error(HTTPStatus.BAD_REQUEST, "the connection was closed")
        finally:
            waiting.release()

    async def about(request: Request) -> Response:
        return JSONResponse(_about(predictor))

    async def openapi(request: Request) -> Response:
        return JSONResponse(_openapi(predictor))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/health", health),
        Route("/model", about),
        Route("/openapi.json", openapi),
        Route("/predict", predict, methods=["POST"]),
    ]
    return _Token(Starlette(routes=routes), token, port)


def serve(predictor: Predictor, port: int, tell: Callable[[str, str], None]) -> None:
    """Serve a model until it is interrupted.

    Parameters
    ----------
    predictor : Predictor
        The model on its device.
    port : int
        Port to listen on; 0: any that is free.
    tell : Callable[[str, str], None]
        Is told address and token before the first request.

    Raises
    ------
    PageError
        The port is taken.
    """
    with closing(loopback_socket(port)) as listener:
        listening = listener.getsockname()[1]
        token = secrets.token_urlsafe(32)
        app = make_service(predictor, token, listening)
        settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        tell(f"http://{HOST}:{listening}", token)
        uvicorn.Server(settings).run(sockets=[listener])


async def _body(request: Request) -> bytes:
    told = request.headers.get("content-length", "0")
    if told.isdigit() and int(told) > LARGEST_BODY:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST_BODY} bytes")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


def _sample(predictor: Predictor, body: bytes) -> NDArray[np.uint8] | NDArray[np.float32]:
    model = predictor.model
    if model.use.vectors:
        return _vector(body, model.sample_shape[0])
    try:
        with without_warnings():
            return use_image(body, functools.partial(pixels, shape=model.use.shape))
    except UnusableImage as problem:
        raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, problem.reason) from problem


def _vector(body: bytes, numbers: int) -> NDArray[np.float32]:
    wanted = f"a JSON list of {numbers} finite numbers is needed"
    try:
        with np.errstate(over="ignore"):  # Becomes infinite, which is refused.
            found = np.asarray(json.loads(body), np.float32)
    except (ValueError, TypeError, RecursionError) as error:
        raise _Refused(HTTPStatus.UNPROCESSABLE_ENTITY, wanted) from error
    if found.shape != (numbers,) or not np.isfinite(found).all():
        raise _Refused(HTTPStatus.UNPROCESSABLE_ENTITY, wanted)
    return found


def _about(predictor: Predictor) -> dict[str, object]:
    use = predictor.model.use
    return {
        "classes": list(predictor.model.classes),
        "network": use.network,
        "backbone": use.backbone.name if use.backbone else None,
        "input": predictor.model.input_text,
        "labels": use.labels,
        "accuracy": use.accuracy,
        "privacy": use.privacy,
    }


def _openapi(predictor: Predictor) -> dict[str, object]:
    """Return the description of the service by OpenAPI 3.1."""
    vectors = predictor.model.use.vectors
    numbers = {"type": "array", "items": {"type": "number"}}
    body = (
        {"application/json": {"schema": numbers}}
        if vectors
        else {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    )
    answer = {
        "type": "object",
        "required": ["class", "probabilities"],
        "properties": {
            "class": {"type": "string", "enum": list(predictor.model.classes)},
            "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        },
    }
    errors = {
        str(int(status)): {"description": status.phrase}
        for status in (
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNPROCESSABLE_ENTITY if vectors else HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            HTTPStatus.SERVICE_UNAVAILABLE,
        )
    }
    found = {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "A model of AHFAL", "version": __version__},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
        "paths": {
            "/predict": {
                "post": {
                    "summary": "The classes of one vector"
                    if vectors
                    else "The classes of one image",
                    "requestBody": {"required": True, "content": body},
                    "responses": {**found, **errors},
                }
            },
            "/model": {
                "get": {"summary": "What the model is", "responses": {"200": {"description": "OK"}}}
            },
            "/health": {
                "get": {
                    "summary": "Whether it answers",
                    "security": [],
                    "responses": {"200": {"description": "OK"}},
                }
            },
        },
    }


def _error(status: HTTPStatus, text: str) -> Response:
    return JSONResponse({"error": text}, status)
