"""Who may see a page: people on this machine who were given its address, and no web page.

Medical images may be behind it, and any page that is open in the same browser can send requests
to addresses of the same machine. So the name in the address must be this machine's (else
another site's name could be made to point here), requests must not come from other sites, and
a cookie must say that the address with the token was opened.
"""

from __future__ import annotations

import secrets
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

#: The part of the address that carries the token, once: a name, and no secret.
TOKEN = "token"  # noqa: S105 (a name)


class Guard:
    """Lets requests through that show the token, and adds headers to all answers.

    Parameters
    ----------
    app : ASGIApp
        What is guarded.
    token : str
        What the address carries the first time, and the cookie from then on.
    port : int
        The port that the page is served on.
    command : str
        What has printed the address, for those who come without its token.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, command: str) -> None:
        self._app = app
        self._token = token
        self._command = command
        # Cookies are told apart by host alone, and there may be a page for each of several sites.
        self._cookie = f"ahfal-{port}"
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # No web sockets here; the server closes them.

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        """Return what is said in place of the page, or None."""
        if request.headers.get("host") not in self._hosts:
            return PlainTextResponse("unknown host", HTTPStatus.MISDIRECTED_REQUEST)
        origin = request.headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in self._hosts:
            return PlainTextResponse("unknown origin", HTTPStatus.FORBIDDEN)
        if self._same(request.cookies.get(self._cookie)):
            return None
        if request.url.path == "/" and self._same(request.query_params.get(TOKEN)):
            answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return answer
        text = f"Open the address that `{self._command}` has printed, with its token."
        return PlainTextResponse(text, HTTPStatus.FORBIDDEN)

    def _same(self, token: str | None) -> bool:
        return token is not None and secrets.compare_digest(token.encode(), self._token.encode())
