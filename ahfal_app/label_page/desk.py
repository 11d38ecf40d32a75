"""What lies on a site's desk: requests as folders with images, and the answers so far.

    <folder>/requests/<request id>/request.json
    <folder>/requests/<request id>/images/0001.png …
    <folder>/answers.sqlite

A request's folder is complete or not there. An answer is durable before it is acknowledged.
Until the client has collected it, whoever gave it may take it back or change it. An image is
handed to one person at a time, or to as many as are to read it: whoever holds it lets it go by an
answer, by closing the page, or by not being heard of for a while.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from ahfal_app.errors import OracleError
from ahfal_app.label_page.answers import (
    CORRECTION,
    DECISION,
    Answer,
    Answers,
    Kept,
    Place,
    Seat,
    opened,
)
from ahfal_app.label_page.sheets import REQUESTS, Item, Sheet, Sheets
from ahfal_app.labels.readings import decide, disagree
from ahfal_app.labels.store import LabelReceipt

__all__ = ["REQUESTS", "Answer", "Desk", "Hand", "Item", "Sheet"]

#: For how long an image stays with a page that is not heard of.
LEASE_S = 600.0

#: After how long without a sign the same person, in another page, need not wait for that.
SILENT_S = 30.0

#: How many images a page holds: the one on the screen, and what is fetched ahead.
_AT_ONCE = 3

_ANSWERS = "answers.sqlite"


class AlreadyAnswered(OracleError):
    """The same person has said something else of this image, and not taken it back."""


class Withdrawn(OracleError):
    """The site no longer has this image."""


class NotOpen(OracleError):
    """There is nothing to settle, or whoever wants to has read the image."""


class Collected(OracleError):
    """The client has this answer: it is no longer changed at the desk."""


@dataclass(frozen=True)
class Handed:
    """An image that a page may show, and what others say of it where it is to be settled."""

    sheet: Sheet
    item: Item
    readings: tuple[Answer, ...] = ()

    @property
    def place(self) -> Place:
        """What it is to the desk."""
        return self.sheet.request, self.item.sample


@dataclass(frozen=True)
class Hand:
    """What a page is handed, and how far the work is.

    Attributes
    ----------
    images : tuple[Handed, ...]
        The one to show first, then those to fetch ahead.
    total, answered : int
        Number of images on the desk, and of those that this person need not look at any more.
    elsewhere : int
        How many of the others are with other people.
    disagreements : int
        Number of images that readers disagree on.
    """

    images: tuple[Handed, ...]
    total: int
    answered: int
    elsewhere: int
    disagreements: int


@dataclass(frozen=True)
class _Table:
    """An image with all that stands of what was said of it, and those who hold it."""

    handed: Handed
    said: Sequence[Kept]
    holders: Sequence[Seat]

    def is_to_read(self, annotator: str) -> bool:
        """Return whether it needs another reading, and this person's would be one."""
        sheet = self.handed.sheet
        return (
            len(self.said) < sheet.readers
            and not self._has_read(annotator)
            and not _is_decided(sheet, self.said)
        )

    def is_to_settle(self, annotator: str) -> bool:
        """Return whether readers disagree, and this person is none of them."""
        return self.is_open_question and not self._has_read(annotator)

    @property
    def is_open_question(self) -> bool:
        """Whether readers disagree."""
        return _disagree(self.handed.sheet, self.said)

    def is_held(self, me: Seat) -> bool:
        """Return whether this page holds it."""
        return any(holder[:2] == me[:2] for holder in self.holders)

    def is_free(self, me: Seat, settle: bool) -> bool:
        """Return whether this page may hold it: it does, or fewer hold it than are wanted."""
        if self.is_held(me):
            return True
        own = [holder for holder in self.holders if holder.annotator == me.annotator]
        if any(me.renewed - holder.renewed < SILENT_S for holder in own):
            return False
        wanted = 1 if settle else self.handed.sheet.readers - len(self.said)
        return len(self.holders) - len(own) < wanted

    def _has_read(self, annotator: str) -> bool:
        return any(kept.answer.annotator == annotator for kept in self.said)


@dataclass(frozen=True)
class Own:
    """One of a person's own answers: the newest about an image."""

    sheet: Sheet
    item: Item
    kept: Kept


class Desk:
    """The requests and answers of one site; any number of processes may have it open.

    Parameters
    ----------
    folder : Path
        Where they are; made when first written to.
    clock : Callable[[], float]
        Tells the time, in seconds since 1970.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._sheets = Sheets(folder)

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder

    # --- requests -----------------------------------------------------------------------

    def add(self, sheet: Sheet, images: Iterable[tuple[str, bytes]]) -> None:
        """Write a request's folder, with its images by file name; one that is there stays."""
        self._sheets.add(sheet, images)

    def withdraw(self, samples: Collection[int]) -> None:
        """Forget images that the site no longer has: nobody sees them, and their copies go."""
        self._sheets.withdraw(samples)

    def has(self, request: str) -> bool:
        """Return whether a request lies here."""
        return self._sheets.has(request)

    def sheet(self, request: str) -> Sheet:
        """Return a request; there must be one of this id."""
        return self._sheets.sheet(request)

    def sheets(self) -> tuple[Sheet, ...]:
        """Return all requests, by cycle."""
        return self._sheets.all()

    def image(self, sheet: Sheet, item: Item) -> bytes:
        """Return the image of an item of a request."""
        return self._sheets.image(sheet, item)

    # --- who looks at what --------------------------------------------------------------

    def take(
        self, annotator: str, seat: str = "", shown: Place | None = None, settle: bool = False
    ) -> Hand:
        """Hand images to a page, and keep them from others for a while.

        Parameters
        ----------
        annotator : str
            Who looks at them.
        seat : str
            The page: a person may have several open, which are handed different images.
        shown : Place | None
            What is on the screen there; it stays first, if it is still to be answered.
        settle : bool
            Hand out what readers disagree on, and not what is to be read.
        """
        now = self._clock()
        places = [Handed(sheet, item) for sheet in self.sheets() for item in sheet.items]
        me = Seat(annotator, seat, now)
        with self._answers() as answers:
            said = answers.standing()
            seats = answers.seats(now - LEASE_S, now + LEASE_S)
            held = answers.holders()
            tables = [_Table(p, said.get(p.place, ()), held.get(p.place, ())) for p in places]
            wanted = [t for t in tables if (t.is_to_settle if settle else t.is_to_read)(annotator)]
            free = [table for table in wanted if table.is_free(me, settle)]
            # What is on the screen stays there, and what is held already is kept.
            free.sort(key=lambda table: (table.handed.place != shown, not table.is_held(me)))
            hand = [table.handed for table in free[: _share(len(wanted), seats, me)]]
            answers.hold(me, [handed.place for handed in hand])
        if settle:
            hand = [replace(h, readings=tuple(k.answer for k in said[h.place])) for h in hand]
        return Hand(
            tuple(hand),
            total=len(tables),
            answered=sum(not table.is_to_read(annotator) for table in tables),
            elsewhere=len(wanted) - len(free),
            disagreements=sum(table.is_open_question for table in tables),
        )

    def release(self, annotator: str, seat: str) -> None:
        """Let others have what a page holds, since it is closed."""
        with self._answers() as answers:
            answers.release(annotator, seat)

    # --- answers ------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Keep an answer; it is durable when this returns. A repeated one changes nothing.

        Raises
        ------
        AlreadyAnswered
            The same annotator has said something else of it.
        Withdrawn
            The site no longer has the image.
        NotOpen
            It settles a disagreement that is none, or one that its own reading is a part of.
        OracleError
            The request has no such image or class.
        """
        sheet = self._checked(answer)
        with self._answers() as answers:
            said = answers.standing(answer.request).get(answer.place, [])
            own = [kept for kept in said if kept.answer.annotator == answer.annotator]
            if own and (own[0].answer, own[0].answer.kind) != (answer, answer.kind):
                raise AlreadyAnswered(
                    f"sample {answer.sample}: you have answered it; undo that first"
                )
            if answer.kind == DECISION and not own and not _disagree(sheet, said):
                raise NotOpen(f"sample {answer.sample}: readers do not disagree on it")
            answers.add(answer)

    def change(self, answer: Answer) -> None:
        """Put an answer in the place of what the same person has said of the image.

        Raises
        ------
        Collected
            The client has that already.
        Withdrawn
            The site no longer has the image.
        OracleError
            There is no such answer, image or class.
        """
        sheet = self._checked(answer)
        with self._answers() as answers:
            said = answers.standing(answer.request).get(answer.place, [])
            own = next((k for k in said if k.answer.annotator == answer.annotator), None)
            if own is None:
                raise OracleError(f"sample {answer.sample}: you have not answered it")
            # A class may still come for what nobody could tell.
            late = own.answer.label is None and answer.label is not None and sheet.readers == 1
            if own.collected and not late:
                raise Collected(f"sample {answer.sample}: your answer is collected already")
            answers.take_back(own.number, changed=True)
            answers.add(replace(answer, kind=own.answer.kind))

    def note_correction(self, answer: Answer) -> None:
        """Remember that a person has corrected an answer of theirs that was collected."""
        with self._answers() as answers:
            answers.add(replace(answer, kind=CORRECTION), collected=True)

    def undoable(self, annotator: str) -> Answer | None:
        """Return an annotator's newest answer if it can still be taken back, else None."""
        with self._answers() as answers:
            newest = self._undoable(answers, annotator)
        return newest.answer if newest is not None else None

    def undo(self, annotator: str, seat: str = "") -> Answer | None:
        """Take back an annotator's newest answer and return it; None where it is collected."""
        with self._answers() as answers:
            newest = self._undoable(answers, annotator)
            if newest is None:
                return None
            answers.take_back(newest.number)
            answers.hold(Seat(annotator, seat, self._clock()), [newest.answer.place])
        return newest.answer

    def own(self, annotator: str) -> tuple[Own, ...]:
        """Return a person's answers to images that are still here, the newest first."""
        with self._answers() as answers:
            kept = answers.kept(annotator=annotator)
        newest = {k.answer.place: k for k in kept if k.taken_back is None}
        found = []
        items = {(s.request, item.sample): (s, item) for s in self.sheets() for item in s.items}
        for place, said in newest.items():
            if place in items:
                found.append(Own(*items[place], said))
        return tuple(sorted(found, key=lambda own: -own.kept.number))

    def answered(self) -> set[tuple[str, int]]:
        """Return what somebody has answered: request ids and samples."""
        with self._answers() as answers:
            return set(answers.standing())

    def waiting(self) -> dict[str, int]:
        """Return how many images of each request are decided, and nobody has collected that."""
        return self._count(
            lambda sheet, said: not all(k.collected for k in said) and _is_decided(sheet, said)
        )

    def disputed(self) -> dict[str, int]:
        """Return how many images of each request readers disagree on."""
        return self._count(_disagree)

    def collect(self, request: str) -> list[LabelReceipt]:
        """Return what is decided of a request, oldest first; from now on none is taken back.

        Where several people read each image, that is what those say who have read one on which
        they agree as far as the rule asks, or on which their disagreement is settled.
        """
        if not self.has(request):
            return []
        sheet = self.sheet(request)
        with self._answers() as answers:
            said = answers.standing(request)
            decided = {place for place, kept in said.items() if _is_decided(sheet, kept)}
            found = [
                kept
                for kept in answers.kept(request)
                if kept.answer.place in decided
                and kept.answer.kind != CORRECTION
                and (kept.taken_back is None or kept.changed)
            ]
            answers.collect([kept.number for kept in found])
        return [_receipt(kept) for kept in found]

    # --- inside -------------------------------------------------------------------------

    def _count(self, counts: Callable[[Sheet, Sequence[Kept]], bool]) -> dict[str, int]:
        """Return how many images of each request this is true of; nothing is written."""
        if not (self._folder / _ANSWERS).is_file():
            return {}
        with self._answers() as answers:
            said = answers.standing()
        return dict(
            Counter(
                sheet.request
                for sheet in self.sheets()
                for item in sheet.items
                if counts(sheet, said.get((sheet.request, item.sample), ()))
            )
        )

    def _answers(self) -> AbstractContextManager[Answers]:
        return opened(self._folder / _ANSWERS)

    def _checked(self, answer: Answer) -> Sheet:
        sheet = self.sheet(answer.request)
        if answer.sample in sheet.withdrawn:
            raise Withdrawn(f"sample {answer.sample}: the site no longer has this image")
        if sheet.item(answer.sample) is None:
            raise OracleError(f"sample {answer.sample}: request {sheet.request} does not have it")
        if answer.label is not None and not 0 <= answer.label < len(sheet.classes):
            raise OracleError(
                f"label={answer.label}: allowed is 0 to {len(sheet.classes) - 1}, or none to skip"
            )
        return sheet

    def _undoable(self, answers: Answers, annotator: str) -> Kept | None:
        kept = answers.kept(annotator=annotator)
        standing = [k for k in kept if k.taken_back is None and k.answer.kind != CORRECTION]
        newest = standing[-1] if standing else None
        if newest is None or newest.collected or not self.has(newest.answer.request):
            return None
        here = self.sheet(newest.answer.request).item(newest.answer.sample)
        return newest if here is not None else None


def _share(wanted: int, seats: Sequence[Seat], me: Seat) -> int:
    """Return how many images a page may hold, so that the last ones are left to other pages."""
    present = {seat[:2] for seat in (*seats, me)}
    return max(1, min(_AT_ONCE, wanted // len(present)))


def _is_decided(sheet: Sheet, said: Sequence[Kept]) -> bool:
    readings = [kept.answer.reading for kept in said]
    return decide(readings, sheet.readers, sheet.rule) is not None


def _disagree(sheet: Sheet, said: Sequence[Kept]) -> bool:
    readings = [kept.answer.reading for kept in said]
    return disagree(readings, sheet.readers, sheet.rule)


def _receipt(kept: Kept) -> LabelReceipt:
    answer = kept.answer
    return LabelReceipt(
        answer.request,
        answer.sample,
        answer.label,
        answer.annotator,
        given=kept.given,
        taken_back=kept.taken_back,
        decides=answer.kind == DECISION,
        unsure=answer.unsure,
        comment=answer.comment,
    )
