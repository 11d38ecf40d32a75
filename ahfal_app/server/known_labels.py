"""What the server has last heard of the clients' labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ahfal_app.ledger import ArrivalFigures, Ledger
from ahfal_app.messages.answers import QueryAnswer
from ahfal_app.server.membership import Member
from ahfal_app.server.plausibility import LabelBounds


class KnownLabels:
    """The clients' labels as the server knows them, by client.

    Parameters
    ----------
    bought : Mapping[int, int]
        The newest cycle that each client of an interrupted run had bought labels for.

    Attributes
    ----------
    labelled : dict[int, int]
        How many each has to be trained on.
    held_out : dict[int, int]
        How many each holds out for testing.
    bought : dict[int, int]
        The newest cycle that each is known to have bought labels for.
    most : LabelBounds
        The most that each may have.
    arrivals : dict[int, ArrivalFigures]
        How many samples of each have come and gone, where that is told.
    """

    def __init__(self, bought: Mapping[int, int]) -> None:
        self.labelled: dict[int, int] = {}
        self.held_out: dict[int, int] = {}
        self.bought = dict(bought)
        self.most = LabelBounds()
        self._ledgers: dict[int, Ledger] = {}
        self.arrivals: dict[int, ArrivalFigures] = {}

    @property
    def ledger(self) -> Ledger:
        """All clients' ledgers together."""
        return Ledger.total(self._ledgers.values())

    @property
    def used(self) -> dict[int, int]:
        """How many labels each client has asked for, answered or not."""
        return {c: ledger.spent + ledger.reserved for c, ledger in self._ledgers.items()}

    def joined(self, members: Iterable[Member]) -> None:
        """Take over what clients tell as they join."""
        for member in members:
            self.bought[member.client] = member.last_cycle
            self._told(member.client, member.labelled, member.held_out, member.ledger)
            if member.arrivals is not None:
                self.arrivals[member.client] = member.arrivals

    def told(self, answers: Mapping[int, QueryAnswer]) -> None:
        """Take over how a purchase stands."""
        for client, answer in answers.items():
            self._told(client, answer.labelled, answer.held_out, answer.ledger)
            if answer.arrivals is not None:
                self.arrivals[client] = answer.arrivals

    def purchased(
        self,
        answers: Mapping[int, QueryAnswer],
        failures: Iterable[int],
        cycle: int,
        due: Mapping[int, int],
    ) -> None:
        """Take over what a purchase for a cycle came to, and what may have come of it unheard.

        Parameters
        ----------
        answers : Mapping[int, QueryAnswer]
            How it stands, by client.
        failures : Iterable[int]
            Clients that failed at one of its steps.
        cycle : int
            The cycle that labels were bought for.
        due : Mapping[int, int]
            Labels that were due by then, by client.
        """
        self.told(answers)
        self.bought |= dict.fromkeys(answers, cycle)
        for client in set(failures) & due.keys() - answers.keys():
            self.most.unheard(client, due[client])

    def standing(self) -> dict[int, QueryAnswer]:
        """Return how the purchase stands that was made as the clients joined."""
        return {
            client: QueryAnswer(
                0,
                self.labelled[client],
                ledger.reserved,
                ledger,
                held_out=self.held_out[client],
            )
            for client, ledger in self._ledgers.items()
        }

    def _told(self, client: int, labelled: int, held_out: int, ledger: Ledger) -> None:
        self.labelled[client] = labelled
        self.held_out[client] = held_out
        self._ledgers[client] = ledger
        self.most.told(client, labelled + held_out, ledger)
