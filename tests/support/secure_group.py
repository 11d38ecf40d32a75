"""Clients and a server of secure aggregation without Flower, with whatever is to go wrong."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.class_statistics import class_proportions
from ahfal_app.config import share_of
from ahfal_app.privacy.masking import Session
from ahfal_app.privacy.participant import Participant
from ahfal_app.privacy.quantisation import quantise
from ahfal_app.privacy.sessions import Advertisement, PublicKeys, Unmasking
from ahfal_app.privacy.store import PrivacyStore
from ahfal_app.privacy.unmasking import unmasked_sum


class Group:
    """Clients of a run, each with a store, and what the server has of a session.

    With `folder`, each step opens the stores anew, as new processes do.
    """

    def __init__(
        self,
        counts_KC: NDArray[np.int64],
        folder: Path | None = None,
        threshold: float = 0.65,
    ) -> None:
        self.counts_KC = counts_KC
        self.num_clients = len(counts_KC)
        self.threshold = share_of(threshold, self.num_clients)
        self._folder = folder
        self._stores: dict[int, PrivacyStore] = {}
        self.begin()

    def begin(self, name: str = "") -> None:
        """Begin a new session."""
        self.session = Session("run", 0, name or secrets.token_hex(4))
        self.advertised: dict[int, Advertisement] = {}
        self.shared: dict[int, dict[int, bytes]] = {}
        self.masked: dict[int, NDArray[np.uint64]] = {}
        self.answers: dict[int, Unmasking] = {}

    def vector(self, client: int) -> NDArray[np.uint64]:
        return quantise(class_proportions(self.counts_KC[client]))

    def store(self, client: int) -> PrivacyStore:
        if self._folder is not None:
            if client in self._stores:
                self._stores.pop(client).close()
            self._stores[client] = PrivacyStore(self._folder / f"{client}.sqlite")
        elif client not in self._stores:
            self._stores[client] = PrivacyStore(Path(":memory:"))
        return self._stores[client]

    def close(self) -> None:
        while self._stores:
            self._stores.popitem()[1].close()

    def client(self, client: int) -> Participant:
        return Participant(
            self.store(client), self.session, client, self.num_clients, self.threshold
        )

    @property
    def roster(self) -> dict[int, PublicKeys]:
        return {client: advertised.keys for client, advertised in self.advertised.items()}

    def ciphertexts_for(self, client: int, peers: Iterable[int] | None = None) -> dict[int, bytes]:
        chosen = self.shared if peers is None else peers
        return {peer: self.shared[peer][client] for peer in chosen if peer != client}

    def advertise(self, clients: Iterable[int]) -> None:
        self.advertised = {c: self.client(c).advertise(self.vector(c)) for c in clients}

    def share(self, clients: Iterable[int]) -> None:
        self.shared = {c: self.client(c).share_keys(self.roster) for c in clients}

    def mask(self, clients: Iterable[int]) -> None:
        self.masked = {c: self.client(c).mask(self.ciphertexts_for(c)) for c in clients}

    def unmask(self, clients: Iterable[int]) -> None:
        self.answers = {c: self.client(c).unmask(self.masked) for c in clients}

    def total(self) -> NDArray[np.uint64]:
        return unmasked_sum(
            self.session, self.roster, self.shared, self.masked, self.answers, self.threshold
        )

    def run(self, *steps: Collection[int]) -> NDArray[np.uint64]:
        """Run all four steps, each with these clients, and return the sum."""
        for step, clients in zip(
            (self.advertise, self.share, self.mask, self.unmask), steps, strict=True
        ):
            step(clients)
        return self.total()

    def expected(self, clients: Iterable[int]) -> NDArray[np.uint64]:
        """Return the sum of plain vectors."""
        vectors = [self.vector(client) for client in clients]
        total: NDArray[np.uint64] = np.stack(vectors).sum(axis=0, dtype=np.uint64)
        return total
