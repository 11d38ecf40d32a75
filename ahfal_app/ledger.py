"""What is counted: the ledger of labels, and how many samples have come and gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Ledger:
    """Labels in integers, of one client or of all: `allotted = spent + reserved + free`.

    Attributes
    ----------
    allotted : int
        Labels that may be bought in all.
    spent : int
        Those that were bought.
    reserved : int
        Those that are asked for and not answered.
    free : int
        What is left.

    Raises
    ------
    ValueError
        A number is below 0, or they do not add up.
    """

    allotted: int
    spent: int
    reserved: int
    free: int

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0:
            raise ValueError(f"{self}: allowed are counts")
        if self.allotted != self.spent + self.reserved + self.free:
            raise ValueError(f"{self}: allotted must be spent + reserved + free")

    @classmethod
    def total(cls, ledgers: Iterable[Ledger]) -> Ledger:
        """Return the ledger of several clients together."""
        nothing = (0, 0, 0, 0)
        return cls(*map(sum, zip(nothing, *map(astuple, ledgers), strict=True)))


@dataclass(frozen=True)
class AuditFigures:
    """How right a model was of what was drawn at random to be labelled, of one client or of all.

    Attributes
    ----------
    asked : int
        Samples that were drawn, and that the model was asked about before anybody labelled them.
    labelled : int
        Those of them whose labels are there.
    right : int
        Those whose label the model had said.

    Raises
    ------
    ValueError
        A number is below 0, or more are right than labelled, or labelled than asked for.
    """

    asked: int
    labelled: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.labelled <= self.asked:
            raise ValueError(f"{self}: allowed is 0 <= right <= labelled <= asked")

    @classmethod
    def total(cls, figures: Iterable[AuditFigures]) -> AuditFigures:
        """Return the figures of several clients or cycles together."""
        return cls(*map(sum, zip((0, 0, 0), *map(astuple, figures), strict=True)))


@dataclass(frozen=True)
class ArrivalFigures:
    """How many samples have come and gone, of one client or of all.

    Attributes
    ----------
    arrived, new : int
        Samples that have come so far, and that came for the newest purchase.
    open : int
        Those that may still be asked for.
    expired : int
        Those that nobody was asked for in time.
    skipped : int
        Those that nobody could label.

    Raises
    ------
    ValueError
        A number is below 0, or more are open or gone than have come.
    """

    arrived: int
    new: int
    open: int
    expired: int
    skipped: int

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0:
            raise ValueError(f"{self}: allowed are counts")
        if self.open + self.expired + self.skipped > self.arrived or self.new > self.arrived:
            raise ValueError(f"{self}: allowed are no more than have arrived")

    @classmethod
    def total(cls, figures: Iterable[ArrivalFigures]) -> ArrivalFigures:
        """Return the figures of several clients together."""
        nothing = (0, 0, 0, 0, 0)
        return cls(*map(sum, zip(nothing, *map(astuple, figures), strict=True)))
