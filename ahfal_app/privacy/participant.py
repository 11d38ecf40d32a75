"""A client's side of secure aggregation: four steps, each of which may be repeated.

Bonawitz et al. (CCS 2017), for a server that follows the protocol. What a client refuses, so
that a server that asks again learns nothing more:

- another roster, other peers or other shares than a step was first done with;
- to unmask over fewer clients than the threshold, or over fewer than three with labels;
- to unmask a cycle over a second set of clients, in this session or in any later one. As more
  than half of the run's clients must help to unmask, only one sum of a cycle ever becomes
  known;
- to give, for the same peer, both what undoes its own mask and what undoes its pairwise ones.

Secrets lie in the client's database from the first step to the last, and no longer.

Shape suffix: D entries of the vector that is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ahfal_app.config import FEWEST_SUMMED
from ahfal_app.errors import PrivacyRefused
from ahfal_app.privacy import masking, shamir
from ahfal_app.privacy.masking import Session
from ahfal_app.privacy.sessions import Advertisement, PublicKeys, Secrets, Shares, Unmasking
from ahfal_app.privacy.store import PrivacyStore


class Participant:
    """One client in one session.

    Parameters
    ----------
    store : PrivacyStore
        Where the client's secrets are kept.
    session : Session
        The attempt at a cycle's sum.
    client : int
        The client's partition.
    num_clients : int
        Clients of the run.
    threshold : int
        Clients that must help to unmask: more than half of the run's.

    Raises
    ------
    PrivacyRefused
        The threshold is too low or too high.
    """

    def __init__(
        self,
        store: PrivacyStore,
        session: Session,
        client: int,
        num_clients: int,
        threshold: int,
    ) -> None:
        if not num_clients < 2 * threshold <= 2 * num_clients:
            raise PrivacyRefused(
                f"threshold={threshold}: allowed is more than half of {num_clients} clients"
            )
        self._store = store
        self._session = session
        self._client = client
        self._num_clients = num_clients
        self._threshold = threshold

    def advertise(self, vector_D: NDArray[np.uint64]) -> Advertisement:
        """Make fresh keys for a new session, and fix what goes into the cycle's sum.

        Parameters
        ----------
        vector_D : NDArray[np.uint64]
            This client's part; that of a cycle's first session stays.
        """
        cycle = self._session.cycle
        with self._store.change():
            secrets = self._load()
            if secrets is None:
                self._store.keep_input(cycle, vector_D)
                secrets = Secrets(
                    session=self._session.name,
                    has_labels=bool(self._store.input(cycle)[0]),
                    cipher_key=masking.new_private_key(),
                    mask_key=masking.new_private_key(),
                    seed=masking.new_seed(),
                )
                self._save(secrets)
            self._require(bool(secrets.cipher_key), "asked for the keys of a session that is over")
            return Advertisement(
                _public_keys(secrets),
                secrets.has_labels,
                self._store.survivors(cycle),
                float(self._store.spent()),
            )

    def share_keys(self, roster: Mapping[int, PublicKeys]) -> dict[int, bytes]:
        """Split the secrets among the clients of the roster; return a ciphertext for each other.

        Raises
        ------
        PrivacyRefused
            The roster is too short, not well formed, or another one than before.
        SecureAggregationFailed
            A public key cannot be used.
        """
        told = {client: (keys.cipher, keys.mask) for client, keys in sorted(roster.items())}
        with self._step(lambda secrets: bool(secrets.cipher_key)) as secrets:
            if not secrets.roster:
                self._check_roster(secrets, told)
                secrets.roster = told
                self._split(secrets)
            self._require(secrets.roster == told, "asked to share its keys among others, too")
            return secrets.sent

    def mask(self, ciphertexts: Mapping[int, bytes]) -> NDArray[np.uint64]:
        """Take in the peers' shares and return the masked vector, uint64 (D,).

        Parameters
        ----------
        ciphertexts : Mapping[int, bytes]
            What the peers that shared their keys have encrypted for this client.

        Raises
        ------
        PrivacyRefused
            The peers are too few, unknown, or others than before.
        SecureAggregationFailed
            A ciphertext was changed.
        """
        with self._step(lambda secrets: bool(secrets.sent)) as secrets:
            if not secrets.masked:
                self._receive(secrets, ciphertexts)
                self._check_group(secrets, secrets.shares, within=secrets.roster)
                secrets.masked = self._masked(secrets).tobytes()
            same = secrets.delivered == dict(ciphertexts)
            self._require(same, "asked to mask its histogram against others, too")
            return np.frombuffer(secrets.masked, dtype=np.uint64)

    def unmask(self, survivors: Iterable[int]) -> Unmasking:
        """Return the shares that unmask the sum over the survivors, and forget all secrets.

        Parameters
        ----------
        survivors : Iterable[int]
            Clients whose masked vectors are summed.

        Raises
        ------
        PrivacyRefused
            They are too few, unknown, or others than before.
        """
        chosen = tuple(sorted(set(survivors)))
        cycle = self._session.cycle
        with self._step(lambda secrets: bool(secrets.masked or secrets.survivors)) as secrets:
            if not secrets.survivors:
                self._check_group(secrets, chosen, within=secrets.shares)
                before = self._store.survivors(cycle)
                self._require(
                    before in ((), chosen),
                    f"asked to unmask over the clients {chosen} after {before}",
                )
                self._store.keep_survivors(cycle, chosen)
                _give(secrets, chosen)
            same = secrets.survivors == chosen
            self._require(
                same, f"asked to unmask over the clients {chosen} after {secrets.survivors}"
            )
            return Unmasking(secrets.seeds_given, secrets.mask_keys_given)

    # --- inside -------------------------------------------------------------------------

    @contextmanager
    def _step(self, is_ready: Callable[[Secrets], bool]) -> Iterator[Secrets]:
        """Give a step its secrets, and keep what it makes of them, as one durable change."""
        with self._store.change():
            secrets = self._load()
            if secrets is None or not is_ready(secrets):
                raise PrivacyRefused(
                    f"{self._session.told}: this is not the next step of the session"
                )
            yield secrets
            self._save(secrets)

    def _load(self) -> Secrets | None:
        content = self._store.session(self._session.cycle)
        secrets = None if content is None else Secrets.model_validate_json(content)
        return secrets if secrets and secrets.session == self._session.name else None

    def _save(self, secrets: Secrets) -> None:
        self._store.save_session(self._session.cycle, secrets.model_dump_json())

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise PrivacyRefused(f"{self._session.told}: {what}")

    def _check_roster(self, secrets: Secrets, roster: dict[int, tuple[bytes, bytes]]) -> None:
        own = _public_keys(secrets)
        all_keys = [key for keys in roster.values() for key in keys]
        self._require(roster.get(self._client) == (own.cipher, own.mask), "its keys were changed")
        self._require(len(set(all_keys)) == len(all_keys), "a public key is there twice")
        self._require(set(roster) <= set(range(self._num_clients)), "unknown clients in the roster")
        self._check_number(len(roster))

    def _check_number(self, number: int) -> None:
        fewest = max(self._threshold, FEWEST_SUMMED)
        self._require(number >= fewest, f"{number} clients are left; {fewest} are needed")

    def _check_group(self, secrets: Secrets, group: Iterable[int], within: Iterable[int]) -> None:
        members = set(group)
        self._require(self._client in members <= set(within), "clients that are not part of it")
        self._check_number(len(members))
        with_labels = sum(secrets.shares[member].has_labels for member in members)
        self._require(
            with_labels >= FEWEST_SUMMED,
            f"{with_labels} clients with labels are left; {FEWEST_SUMMED} are needed",
        )

    def _split(self, secrets: Secrets) -> None:
        members = sorted(secrets.roster)
        mask_keys = shamir.split(secrets.mask_key, self._threshold, len(members))
        seeds = shamir.split(secrets.seed, self._threshold, len(members))
        for member, mask_key, seed in zip(members, mask_keys, seeds, strict=True):
            shares = Shares(mask_key=mask_key, seed=seed, has_labels=secrets.has_labels)
            if member == self._client:
                secrets.shares[member] = shares
                continue
            secrets.sent[member] = masking.encrypt(
                shares.to_bytes(),
                secrets.cipher_key,
                secrets.roster[member][0],
                self._session,
                self._client,
                member,
            )

    def _receive(self, secrets: Secrets, ciphertexts: Mapping[int, bytes]) -> None:
        expected = set(secrets.roster) - {self._client}
        self._require(set(ciphertexts) <= expected, "shares of clients that are not part of it")
        for peer, ciphertext in ciphertexts.items():
            plaintext = masking.decrypt(
                ciphertext,
                secrets.cipher_key,
                secrets.roster[peer][0],
                self._session,
                peer,
                self._client,
            )
            secrets.shares[peer] = Shares.from_bytes(plaintext)
        secrets.delivered = dict(ciphertexts)

    def _masked(self, secrets: Secrets) -> NDArray[np.uint64]:
        """Return x_u + PRG(b_u) + Σ ±PRG(s_uv) modulo 2^64 (section 4 of the paper)."""
        cycle = self._session.cycle
        vector_D = self._store.input(cycle)
        size = len(vector_D)
        masked_D = vector_D + masking.self_mask(secrets.seed, self._session, self._client, size)
        for peer in secrets.shares:
            if peer != self._client:
                masked_D += masking.pairwise_mask(
                    secrets.mask_key,
                    secrets.roster[peer][1],
                    self._session,
                    (self._client, peer),
                    secrets.shares,
                    size,
                )
        return masked_D


def _public_keys(secrets: Secrets) -> PublicKeys:
    return PublicKeys(masking.public_key(secrets.cipher_key), masking.public_key(secrets.mask_key))


def _give(secrets: Secrets, survivors: tuple[int, ...]) -> None:
    """Turn the secrets into what is told of them; for each peer one share or the other."""
    secrets.survivors = survivors
    for peer, shares in secrets.shares.items():
        if peer in survivors:
            secrets.seeds_given[peer] = shares.seed
        else:
            secrets.mask_keys_given[peer] = shares.mask_key
    secrets.cipher_key = secrets.mask_key = secrets.seed = secrets.masked = b""
    secrets.roster, secrets.sent, secrets.delivered, secrets.shares = {}, {}, {}, {}
