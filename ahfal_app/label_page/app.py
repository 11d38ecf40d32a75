"""The labelling page's server side: what is next, an answer, one taken back or changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ahfal_app.errors import OracleError
from ahfal_app.label_page.answers import ANSWER, CORRECTION, DECISION, Place
from ahfal_app.label_page.correction import NotCorrectable, correct
from ahfal_app.label_page.desk import (
    AlreadyAnswered,
    Answer,
    Collected,
    Desk,
    Handed,
    Item,
    NotOpen,
    Own,
    Sheet,
    Withdrawn,
)
from ahfal_app.label_page.page import page_in
from ahfal_app.label_page.script import SCRIPT
from ahfal_app.label_page.shortcuts import shortcuts
from ahfal_app.label_page.style import STYLE
from ahfal_app.label_page.texts import AUTO, TEXTS, language_for
from ahfal_app.web.guard import Guard

_JSON = "application/json"

#: More of their own answers nobody goes through.
_MOST_OWN = 1000

#: What a refusal is called, and its status.
_REFUSALS: dict[type[Exception], tuple[str, HTTPStatus]] = {
    AlreadyAnswered: ("error_answered", HTTPStatus.CONFLICT),
    Collected: ("error_collected", HTTPStatus.CONFLICT),
    NotCorrectable: ("error_correction", HTTPStatus.CONFLICT),
    NotOpen: ("error_not_open", HTTPStatus.CONFLICT),
    Withdrawn: ("error_withdrawn", HTTPStatus.GONE),
}


@dataclass(frozen=True)
class PageOptions:
    """How a page is shown, and what may be done there.

    Attributes
    ----------
    show_guess : bool
        Whether people see what the model takes an image for.
    hide_names : bool
        Whether images are called by their number, and not by their file.
    language : str
        A key of `TEXTS`, or `AUTO` for what the browser asks for.
    adjudicator : bool
        Whether disagreements are settled here.
    store : Path | None
        The client's label store, where collected answers are corrected; None: they are not.
    """

    show_guess: bool = False
    hide_names: bool = False
    language: str = AUTO
    adjudicator: bool = False
    store: Path | None = None


class Seated(BaseModel):
    """Which page asks, for which images, and what is on its screen: `<request>/<sample>`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seat: str = Field("", max_length=64)
    settle: bool = False
    shown: str = ""

    @property
    def place(self) -> Place | None:
        """What is on its screen."""
        request, _, sample = self.shown.rpartition("/")
        return (request, int(sample)) if sample.isdecimal() else None


class Given(Seated):
    """An answer as the page sends it: a class index, or null for a skipped image."""

    request: str
    sample: int
    label: int | None
    unsure: bool = False
    comment: str = Field("", max_length=500)


_Sent = TypeVar("_Sent", bound=BaseModel)


class _Refused(Exception):
    """A request that gets no more than a reason."""

    def __init__(self, status: HTTPStatus, code: str, reason: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.reason = status, code, reason


class Page:
    """Answers the page's requests.

    Parameters
    ----------
    desk : Desk
        Where requests and answers lie.
    annotator : str
        Who labels in this page.
    options : PageOptions
        How it is shown, and what may be done.
    """

    def __init__(self, desk: Desk, annotator: str, options: PageOptions) -> None:
        self._desk = desk
        self._annotator = annotator
        self._options = options
        self._seats: set[str] = set()

    def html(self, request: Request) -> Response:
        """Send the page, in a language that its reader understands."""
        return HTMLResponse(page_in(self._language(request)), headers={"Vary": "Accept-Language"})

    def state(self, request: Request) -> Response:
        """Hand images to a page, and tell how far the work is, and whether undo is possible."""
        asked = request.query_params
        seated = Seated(
            seat=asked.get("seat", "")[:64],
            settle=asked.get("settle") == "true",
            shown=asked.get("shown", ""),
        )
        return JSONResponse(self._state(seated))

    def image(self, request: Request) -> Response:
        """Send an image."""
        identity, file = request.path_params["request"], request.path_params["file"]
        sheet = next((s for s in self._desk.sheets() if s.request == identity), None)
        item = next((i for i in sheet.items if i.file == file), None) if sheet else None
        if sheet is None or item is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "error_image")
        return Response(self._desk.image(sheet, item), media_type=item.media_type)

    async def answer(self, request: Request) -> Response:
        """Keep an answer; it is on the disk when the page hears of it."""
        given = await self._sent(request, Given)
        if given.settle and not self._options.adjudicator:
            raise _Refused(HTTPStatus.FORBIDDEN, "error_role")
        self._desk.answer(self._answer(given, DECISION if given.settle else ANSWER))
        return JSONResponse(self._state(given))

    async def change(self, request: Request) -> Response:
        """Put an answer in the place of an own one: at the desk, or as a correction."""
        given = await self._sent(request, Given)
        answer = self._answer(given, ANSWER)
        try:
            self._desk.change(answer)
        except Collected:
            readers = self._desk.sheet(answer.request).readers
            if self._options.store is None or readers > 1:
                raise
            correct(self._options.store, answer)
            self._desk.note_correction(answer)
        return JSONResponse(self._state(given))

    async def undo(self, request: Request) -> Response:
        """Take back the newest answer and show its image again."""
        seated = await self._sent(request, Seated)
        undone = self._desk.undo(self._annotator, seated.seat)
        if undone is None:
            raise _Refused(HTTPStatus.CONFLICT, "error_collected")
        shown = f"{undone.request}/{undone.sample}"
        settle = undone.kind == DECISION
        return JSONResponse(self._state(Seated(seat=seated.seat, settle=settle, shown=shown)))

    def own(self, request: Request) -> Response:
        """Tell what this person has answered, the newest first."""
        answers = self._desk.own(self._annotator)[:_MOST_OWN]
        return JSONResponse({"answers": [self._own(own) for own in answers]})

    async def release(self, request: Request) -> Response:
        """Let others have what a page holds that is closed."""
        seated = await self._sent(request, Seated)
        self._desk.release(self._annotator, seated.seat)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    def leave(self) -> None:
        """Let others have what all pages hold that were served here."""
        for seat in self._seats:
            self._desk.release(self._annotator, seat)

    def refusal(self, request: Request, error: Exception) -> Response:
        """Tell why something was not done, in the page's language."""
        texts = TEXTS[self._language(request)]
        if isinstance(error, _Refused):
            code, status, reason = error.code, error.status, error.reason
        elif (known := _REFUSALS.get(type(error))) is not None:
            (code, status), reason = known, ""
        else:
            code, status, reason = "", HTTPStatus.INTERNAL_SERVER_ERROR, str(error)
        return JSONResponse({"error": reason or texts[code], "code": code or "error"}, status)

    # --- inside -------------------------------------------------------------------------

    def _language(self, request: Request) -> str:
        return language_for(self._options.language, request.headers.get("accept-language", ""))

    async def _sent(self, request: Request, kind: type[_Sent]) -> _Sent:
        if request.headers.get("content-type") != _JSON:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "error_type")
        try:
            sent = kind.model_validate_json(await request.body())
        except ValidationError as error:
            raise _Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "error", str(error)) from error
        if isinstance(sent, Given) and not self._is_here(sent.request):
            raise _Refused(HTTPStatus.NOT_FOUND, "error_request")
        return sent

    def _is_here(self, request: str) -> bool:
        return any(sheet.request == request for sheet in self._desk.sheets())

    def _answer(self, given: Given, kind: str) -> Answer:
        return Answer(
            given.request,
            given.sample,
            given.label,
            self._annotator,
            given.unsure,
            given.comment.strip(),
            kind,
        )

    def _state(self, seated: Seated) -> Mapping[str, object]:
        settle = seated.settle and self._options.adjudicator
        self._seats.add(seated.seat)
        hand = self._desk.take(self._annotator, seated.seat, seated.place, settle)
        told = [self._handed(handed) for handed in hand.images]
        return {
            "annotator": self._annotator,
            "total": hand.total,
            "answered": hand.answered,
            "elsewhere": hand.elsewhere,
            "disagreements": hand.disagreements,
            "settles": self._options.adjudicator,
            "undo": self._desk.undoable(self._annotator) is not None,
            "next": told[0] if told else None,
            # Fetched ahead, so that nobody waits for it.
            "ahead": told[1:],
        }

    def _handed(self, handed: Handed) -> dict[str, object]:
        return {
            **self._told(handed.sheet, handed.item),
            "readings": [
                {
                    "annotator": answer.annotator,
                    "label": answer.label,
                    "unsure": answer.unsure,
                    "comment": answer.comment,
                }
                for answer in handed.readings
            ],
        }

    def _own(self, own: Own) -> dict[str, object]:
        kept = own.kept
        if not kept.collected or kept.answer.label is None:
            change = "yes" if own.sheet.readers == 1 or not kept.collected else "no"
        else:
            correctable = self._options.store is not None and own.sheet.readers == 1
            change = "correct" if correctable else "no"
        return {
            **self._told(own.sheet, own.item),
            "label": kept.answer.label,
            "unsure": kept.answer.unsure,
            "comment": kept.answer.comment,
            "given": kept.given,
            "corrected": kept.answer.kind == CORRECTION,
            "change": change,
        }

    def _told(self, sheet: Sheet, item: Item) -> dict[str, object]:
        keys = shortcuts(len(sheet.classes))
        name = None if self._options.hide_names else PurePosixPath(item.original).name
        return {
            "request": sheet.request,
            "cycle": sheet.cycle,
            "sample": item.sample,
            "number": int(PurePosixPath(item.file).stem),
            "image": f"/images/{sheet.request}/{item.file}",
            "name": name,
            "link": item.link,
            "classes": [
                {"name": name, "key": key} for name, key in zip(sheet.classes, keys, strict=True)
            ],
            "guess": item.guess if self._options.show_guess else None,
        }


def make_app(
    desk: Desk,
    annotator: str,
    token: str,
    port: int,
    show_guess: bool = False,
    *,
    hide_names: bool = False,
    language: str = AUTO,
    adjudicator: bool = False,
    store: Path | None = None,
) -> Starlette:
    """Return the web application of the page; `PageOptions` has what can be chosen.

    When it is shut down, others can have the images that its pages hold.

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
    """
    page = Page(desk, annotator, PageOptions(show_guess, hide_names, language, adjudicator, store))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        page.leave()

    return Starlette(
        routes=[
            Route("/", page.html),
            Route("/page.js", lambda request: Response(SCRIPT, media_type="text/javascript")),
            Route("/page.css", lambda request: Response(STYLE, media_type="text/css")),
            Route("/favicon.ico", lambda request: Response(status_code=HTTPStatus.NO_CONTENT)),
            Route("/state", page.state),
            Route("/own", page.own),
            Route("/images/{request}/{file}", page.image),
            Route("/answers", page.answer, methods=["POST"]),
            Route("/changes", page.change, methods=["POST"]),
            Route("/undo", page.undo, methods=["POST"]),
            Route("/release", page.release, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, token=token, port=port, command="ahfal label")],
        exception_handlers={OracleError: page.refusal, _Refused: page.refusal},
        lifespan=lifespan,
    )
