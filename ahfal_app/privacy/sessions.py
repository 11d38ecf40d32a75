"""What clients tell of their class counts, and keep to themselves while they are summed.

Shape suffix: C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ahfal_app.privacy.masking import KEY_BYTES, SEALING_BYTES, SEED_BYTES

#: One client's shares for another, encrypted: of a key, of a seed, and whether it has labels.
SEALED_SHARES_BYTES = KEY_BYTES + SEED_BYTES + 1 + SEALING_BYTES

#: More steps than any coordination of a cycle has, and more than a cycle's rounds; what a server
#: says of rounds has no part in where anything is kept.
MOST_STEPS = 10**6


class Topic(StrEnum):
    """What a secure sum is of."""

    HISTOGRAM = "histogram"
    MOMENTS = "moments"
    EVALUATION = "evaluation"
    STOP_SET = "stop-set"
    COORDINATION = "coordination"
    DRIFT = "drift"
    BUDGET = "budget"

    @property
    def has_steps(self) -> bool:
        """Whether it is of a step of an exchange, and not of a round."""
        return self in (Topic.COORDINATION, Topic.BUDGET)

    def place(self, cycle: int, round_: int) -> int:
        """Return the number under which a client keeps what concerns one sum of a run.

        Histograms have their cycle's, from 0 on; all others have negative ones.

        Parameters
        ----------
        cycle, round_ : int
            The cycle and its round, which may be 0, that the sum belongs to; of a coordination its
            step.
        """
        if self is Topic.HISTOGRAM:
            return cycle
        topics = list(Topic)
        return -topics.index(self) - len(topics) * (cycle * (MOST_STEPS + 1) + round_)


@dataclass(frozen=True, eq=False)
class HistogramAnswer:
    """A client's class counts, as it tells them.

    Attributes
    ----------
    counts_C : NDArray[np.int64]
        Exact, or with noise and then perhaps negative.
    has_labels : bool
        Whether they count; False where the labelled set is empty and that is no secret.
    epsilon_spent : float
        What all releases of this client have cost so far; 0 without noise.
    weighted_C : NDArray[np.float64] | None
        The counts in which older labels count less; None where nothing is forgotten.
    effective : float
        How many equally weighted labels they are worth; 0 where that is not told.
    """

    counts_C: NDArray[np.int64]
    has_labels: bool
    epsilon_spent: float
    weighted_C: NDArray[np.float64] | None = None
    effective: float = 0.0

    @property
    def used_C(self) -> NDArray[np.int64] | NDArray[np.float64]:
        """The counts that statistics are made of."""
        return self.counts_C if self.weighted_C is None else self.weighted_C


@dataclass(frozen=True)
class PublicKeys:
    """A client's public keys: one for the encryption of shares, one for pairwise masks."""

    cipher: bytes
    mask: bytes


@dataclass(frozen=True)
class Advertisement:
    """What a client tells in the first step.

    Attributes
    ----------
    keys : PublicKeys
        Fresh ones.
    has_labels : bool
        Whether its part in the sum is more than zeros.
    bound_to : tuple[int, ...]
        The only clients over which it will still unmask this cycle; empty: any.
    epsilon_spent : float
        What all its releases have cost so far; 0 without noise.
    """

    keys: PublicKeys
    has_labels: bool
    bound_to: tuple[int, ...]
    epsilon_spent: float


@dataclass(frozen=True)
class Unmasking:
    """The shares that a client gives in the last step, by the client whose secret it is.

    Attributes
    ----------
    seeds : dict[int, bytes]
        Of the own masks of those whose vectors are summed.
    mask_keys : dict[int, bytes]
        Of the private mask keys of those that dropped out after they had shared them.
    """

    seeds: dict[int, bytes]
    mask_keys: dict[int, bytes]


class _Kept(BaseModel):
    """A record that is kept as JSON."""

    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")


class Shares(_Kept):
    """One client's shares of another one's secrets, and whether that one has labels."""

    mask_key: bytes
    seed: bytes
    has_labels: bool

    def to_bytes(self) -> bytes:
        """Return them as they are encrypted."""
        return self.mask_key + self.seed + bytes([self.has_labels])

    @classmethod
    def from_bytes(cls, content: bytes) -> Shares:
        """Return what was decrypted."""
        end = KEY_BYTES + SEED_BYTES
        return cls(
            mask_key=content[:KEY_BYTES],
            seed=content[KEY_BYTES:end],
            has_labels=content[end:] == b"\x01",
        )


class Secrets(_Kept):
    """What a client keeps of a session between its steps; empty is what has not come yet.

    Attributes
    ----------
    session : str
        The session's name.
    has_labels : bool
        Whether the client's own part in the sum is more than zeros.
    cipher_key, mask_key, seed : bytes
        Private keys, and the seed of its own mask.
    roster : dict[int, tuple[bytes, bytes]]
        Public keys for encryption and for masks, by client.
    sent, delivered : dict[int, bytes]
        Ciphertexts for the others, and from them.
    shares : dict[int, Shares]
        Shares of each peer's secrets, the client's own among them.
    masked : bytes
        The masked vector.
    survivors : tuple[int, ...]
        Clients over which it has helped to unmask.
    seeds_given, mask_keys_given : dict[int, bytes]
        What it has told for that.
    """

    session: str
    has_labels: bool
    cipher_key: bytes = b""
    mask_key: bytes = b""
    seed: bytes = b""
    roster: dict[int, tuple[bytes, bytes]] = {}
    sent: dict[int, bytes] = {}
    delivered: dict[int, bytes] = {}
    shares: dict[int, Shares] = {}
    masked: bytes = b""
    survivors: tuple[int, ...] = ()
    seeds_given: dict[int, bytes] = {}
    mask_keys_given: dict[int, bytes] = {}
