"""The ledger of labels: how many may be bought, and what has become of them."""

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
