"""What a run has cost, by its ledger and its rounds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from ahfal_app.config import exact_fraction
from ahfal_app.results.reading import Run


@dataclass(frozen=True)
class Cost:
    """What was paid, and will have to be.

    Attributes
    ----------
    currency : str
        Of all amounts.
    labels, rounds : float
        Of the labels that were bought, and of the rounds that were run.
    reserved : float
        Of the labels that are asked for and not answered; not in the total.
    """

    currency: str
    labels: float
    rounds: float
    reserved: float

    @property
    def total(self) -> float:
        """What was paid."""
        return float(exact_fraction(self.labels) + exact_fraction(self.rounds))

    def to_summary(self) -> dict[str, Any]:
        """Return it as `summary.json` has it."""
        return {**asdict(self), "total": self.total}


def cost_of(run: Run) -> Cost | None:
    """Return what a run has cost so far; None where nothing has a price, or nothing is recorded."""
    settings, cycles = run.settings, run.metrics.cycles
    if not cycles or not (settings.label_cost or settings.round_cost):
        return None
    ledger = cycles[-1].ledger
    rounds = len(run.metrics.rounds)
    return Cost(
        settings.currency,
        amount(ledger.spent, settings.label_cost),
        amount(rounds, settings.round_cost),
        amount(ledger.reserved, settings.label_cost),
    )


def amount(count: float, price: float) -> float:
    """Return a number of things times the price that a person has written, exactly."""
    return float(Fraction(count) * exact_fraction(price))


def money(value: float, currency: str) -> str:
    """Return an amount as a person reads it: whole, or with two digits."""
    text = f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"
    return f"{text} {currency}"
