"""The labelling page's server side: what is next, an answer, one taken back."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ahfal_app.errors import OracleError
from ahfal_app.label_page.desk import AlreadyAnswered, Answer, Desk, Item, Sheet
from ahfal_app.label_page.guard import Guard
from ahfal_app.label_page.page import PAGE, SCRIPT, STYLE
from ahfal_app.label_page.shortcuts import shortcuts

_JSON = "application/json"


class Given(BaseModel):
    """An answer as the page sends it: a class index, or null for a skipped image."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request: str
    sample: int
    label: int | None


class Page:
    """Answers the page's requests.

    Parameters
    ----------
    desk : Desk
        Where requests and answers lie.
    annotator : str
        Who labels in this page.
    show_guess : bool
        Whether people see what the model takes an image for.
    """

    def __init__(self, desk: Desk, annotator: str, show_guess: bool) -> None:
        self._desk = desk
        self._annotator = annotator
        self._show_guess = show_guess

    def state(self, request: Request) -> Response:
        """Tell which image is next, how many there are, and whether undo is possible."""
        return JSONResponse(self._state())

    def image(self, request: Request) -> Response:
        """Send an image."""
        identity, file = request.path_params["request"], request.path_params["file"]
        sheet = next((s for s in self._desk.sheets() if s.request == identity), None)
        item = next((i for i in sheet.items if i.file == file), None) if sheet else None
        if sheet is None or item is None:
            return _refused(HTTPStatus.NOT_FOUND, "no such image")
        return Response(self._desk.image(sheet, item), media_type=item.media_type)

    async def answer(self, request: Request) -> Response:
        """Keep an answer; it is on the disk when the page hears of it."""
        if request.headers.get("content-type") != _JSON:
            return _refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"not {_JSON}")
        try:
            given = Given.model_validate_json(await request.body())
        except ValidationError as error:
            return _refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        if all(sheet.request != given.request for sheet in self._desk.sheets()):
            return _refused(HTTPStatus.NOT_FOUND, "no such request")
        answer = Answer(given.request, given.sample, given.label, self._annotator)
        try:
            self._desk.answer(answer)
        except AlreadyAnswered as error:
            return _refused(HTTPStatus.CONFLICT, str(error))
        return JSONResponse(self._state())

    def undo(self, request: Request) -> Response:
        """Take back the newest answer and show its image again."""
        if request.headers.get("content-type") != _JSON:
            return _refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"not {_JSON}")
        if self._desk.undo(self._annotator) is None:
            return _refused(HTTPStatus.CONFLICT, "the model's site has collected it already")
        return JSONResponse(self._state())

    def _state(self) -> dict[str, object]:
        answered = self._desk.answered()
        sheets = self._desk.sheets()
        places = [(sheet, item) for sheet in sheets for item in sheet.items]
        left = [
            (sheet, item) for sheet, item in places if (sheet.request, item.sample) not in answered
        ]
        undoable = self._desk.undoable(self._annotator)
        return {
            "annotator": self._annotator,
            "total": len(places),
            "answered": len(places) - len(left),
            "undo": undoable is not None,
            "next": self._told(*left[0]) if left else None,
            # Fetched ahead, so that nobody waits for it.
            "after": _address(*left[1]) if len(left) > 1 else None,
        }

    def _told(self, sheet: Sheet, item: Item) -> dict[str, object]:
        keys = shortcuts(len(sheet.classes))
        return {
            "request": sheet.request,
            "cycle": sheet.cycle,
            "sample": item.sample,
            "image": _address(sheet, item),
            "name": PurePosixPath(item.original).name,
            "classes": [
                {"name": name, "key": key} for name, key in zip(sheet.classes, keys, strict=True)
            ],
            "guess": item.guess if self._show_guess else None,
        }


def _address(sheet: Sheet, item: Item) -> str:
    return f"/images/{sheet.request}/{item.file}"


def _refused(status: HTTPStatus, reason: str) -> Response:
    return JSONResponse({"error": reason}, status)


def _failed(request: Request, error: Exception) -> Response:
    return _refused(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))


def make_app(desk: Desk, annotator: str, token: str, port: int, show_guess: bool) -> Starlette:
    """Return the web application of the page.

    Parameters
    ----------
    desk : Desk
        Where requests and answers lie.
    annotator : str
        Who labels in this page.
    token : str
        What must be shown to see anything.
    port : int
        The port that it is served on.
    show_guess : bool
        Whether people see what the model takes an image for.
    """
    page = Page(desk, annotator, show_guess)
    return Starlette(
        routes=[
            Route("/", lambda request: HTMLResponse(PAGE)),
            Route("/page.js", lambda request: Response(SCRIPT, media_type="text/javascript")),
            Route("/page.css", lambda request: Response(STYLE, media_type="text/css")),
            Route("/favicon.ico", lambda request: Response(status_code=HTTPStatus.NO_CONTENT)),
            Route("/state", page.state),
            Route("/images/{request}/{file}", page.image),
            Route("/answers", page.answer, methods=["POST"]),
            Route("/undo", page.undo, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers={OracleError: _failed},
    )
