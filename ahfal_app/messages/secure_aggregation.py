"""How the four steps of secure aggregation travel: one record in each message.

What comes from the other side is checked for its form here; `ValueError` says what is wrong.

Shape suffix: D entries of the vector that is summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import ConfigRecord, ConfigRecordValues, RecordDict
from numpy.typing import NDArray

from ahfal_app.messages.fields import LARGEST_COUNT, count, number, shown, text
from ahfal_app.privacy.masking import KEY_BYTES, SEED_BYTES
from ahfal_app.privacy.sessions import (
    MOST_STEPS,
    SEALED_SHARES_BYTES,
    Advertisement,
    PublicKeys,
    Topic,
    Unmasking,
)

ADVERTISE_KEYS = "query.advertise_keys"
SHARE_KEYS = "query.share_keys"
MASK = "query.mask"
UNMASK = "query.unmask"

#: Key of the record in a message.
RECORD_KEY = "secure-aggregation"

_SESSION = "session"
_TOPIC = "topic"
_STEP = "step"
_LONGEST_NAME = 64


def record_of(content: RecordDict) -> ConfigRecord:
    """Return the record of a message.

    Raises
    ------
    ValueError
        There is none.
    """
    if RECORD_KEY not in content.config_records:
        raise ValueError(f"message without {RECORD_KEY!r}")
    return content.config_records[RECORD_KEY]


def session_name(record: ConfigRecord) -> str:
    """Return the name of the session that a request belongs to."""
    return text(record, _SESSION, "[0-9A-Za-z-]+", _LONGEST_NAME)


def about(record: ConfigRecord, topic: Topic, step: int = 0) -> ConfigRecord:
    """Return a request that says what its session's sum is of, and of which step if any."""
    record[_TOPIC] = topic.value
    if step:
        record[_STEP] = step
    return record


def step_of(record: ConfigRecord) -> int:
    """Return the step of a coordination that a request belongs to; 0 without one."""
    step = count(record, _STEP) if _STEP in record else 0
    if step >= MOST_STEPS:
        raise ValueError(f"{_STEP}={step}: allowed is less than {MOST_STEPS}")
    return step


def topic_of(record: ConfigRecord) -> Topic:
    """Return what the sum is of that a request belongs to."""
    value = record.get(_TOPIC, Topic.HISTOGRAM.value)
    if value not in list(Topic):
        raise ValueError(f"{_TOPIC}={shown(value)}: allowed is {' | '.join(Topic)}")
    return Topic(value)


# --- what the server sends -------------------------------------------------------------------


def advertise_request(session: str) -> ConfigRecord:
    """Return the request for fresh keys."""
    return ConfigRecord({_SESSION: session})


def share_request(session: str, roster: Mapping[int, PublicKeys]) -> ConfigRecord:
    """Return the request to share secrets among the clients with these keys."""
    return ConfigRecord(
        {
            _SESSION: session,
            "clients": list(roster),
            "cipher-keys": [keys.cipher for keys in roster.values()],
            "mask-keys": [keys.mask for keys in roster.values()],
        }
    )


def mask_request(session: str, ciphertexts: Mapping[int, bytes]) -> ConfigRecord:
    """Return the request for the masked vector, with what the peers have encrypted."""
    return ConfigRecord({_SESSION: session, **_packed("peers", "ciphertexts", ciphertexts)})


def unmask_request(session: str, survivors: Iterable[int]) -> ConfigRecord:
    """Return the request for the shares that unmask the survivors' sum."""
    return ConfigRecord({_SESSION: session, "survivors": list(survivors)})


def roster_from(record: ConfigRecord) -> dict[int, PublicKeys]:
    """Return the public keys of a request to share secrets."""
    cipher = _unpacked(record, "clients", "cipher-keys", KEY_BYTES)
    mask = _unpacked(record, "clients", "mask-keys", KEY_BYTES)
    return {client: PublicKeys(cipher[client], mask[client]) for client in cipher}


def ciphertexts_from(record: ConfigRecord) -> dict[int, bytes]:
    """Return the ciphertexts of a request to mask, or of an answer to a request to share."""
    return _unpacked(record, "peers", "ciphertexts", SEALED_SHARES_BYTES)


def survivors_from(record: ConfigRecord) -> list[int]:
    """Return the survivors of a request to unmask."""
    return _clients(record, "survivors")


# --- what clients answer ---------------------------------------------------------------------


def advertisement_to(advertisement: Advertisement) -> ConfigRecord:
    """Return a client's keys as they travel."""
    record = ConfigRecord(
        {
            "cipher-key": advertisement.keys.cipher,
            "mask-key": advertisement.keys.mask,
            "has-labels": advertisement.has_labels,
            "epsilon-spent": advertisement.epsilon_spent,
        }
    )
    if advertisement.bound_to:
        record["bound-to"] = list(advertisement.bound_to)
    return record


def advertisement_from(record: ConfigRecord) -> Advertisement:
    """Return a client's keys."""
    has_labels = record.get("has-labels")
    if not isinstance(has_labels, bool):
        raise ValueError(f"has-labels={shown(has_labels)}: allowed is true or false")
    keys = PublicKeys(
        _bytes(record.get("cipher-key"), "cipher-key", KEY_BYTES),
        _bytes(record.get("mask-key"), "mask-key", KEY_BYTES),
    )
    spent = number(record, "epsilon-spent")
    return Advertisement(keys, has_labels, tuple(_clients(record, "bound-to")), spent)


def ciphertexts_to(ciphertexts: Mapping[int, bytes]) -> ConfigRecord:
    """Return a client's shares, encrypted for each peer, as they travel."""
    return ConfigRecord(_packed("peers", "ciphertexts", ciphertexts))


def vector_to(masked_D: NDArray[np.uint64]) -> ConfigRecord:
    """Return a masked vector as it travels."""
    return ConfigRecord({"masked": masked_D.astype("<u8").tobytes()})


def vector_from(record: ConfigRecord, size: int) -> NDArray[np.uint64]:
    """Return a masked vector, uint64 (D,)."""
    content = _bytes(record.get("masked"), "masked", 8 * size)
    return np.frombuffer(content, dtype="<u8").astype(np.uint64)


def unmasking_to(unmasking: Unmasking) -> ConfigRecord:
    """Return the shares that unmask, as they travel."""
    return ConfigRecord(
        {
            **_packed("survivors", "seed-shares", unmasking.seeds),
            **_packed("dropped", "key-shares", unmasking.mask_keys),
        }
    )


def unmasking_from(
    record: ConfigRecord, survivors: Iterable[int], dropped: Iterable[int]
) -> Unmasking:
    """Return the shares that unmask the survivors' sum."""
    unmasking = Unmasking(
        _unpacked(record, "survivors", "seed-shares", SEED_BYTES),
        _unpacked(record, "dropped", "key-shares", KEY_BYTES),
    )
    if set(unmasking.seeds) != set(survivors) or set(unmasking.mask_keys) != set(dropped):
        raise ValueError("its shares are of other clients than were asked for")
    return unmasking


# --- both ------------------------------------------------------------------------------------


def _packed(
    clients: str, values: str, by_client: Mapping[int, bytes]
) -> dict[str, ConfigRecordValues]:
    # Flower cannot count the bytes of an empty list, so an absent one stands for it.
    return {clients: list(by_client), values: list(by_client.values())} if by_client else {}


def _unpacked(record: ConfigRecord, clients: str, values: str, size: int) -> dict[int, bytes]:
    names, content = _clients(record, clients), record.get(values, [])
    if not isinstance(content, list) or len(content) != len(names):
        raise ValueError(f"{values}: allowed is a list as long as {clients}")
    return {name: _bytes(value, values, size) for name, value in zip(names, content, strict=True)}


def _clients(record: ConfigRecord, key: str) -> list[int]:
    names = record.get(key, [])
    if not isinstance(names, list) or not all(
        type(name) is int and 0 <= name <= LARGEST_COUNT for name in names
    ):
        raise ValueError(f"{key}={shown(names)}: allowed is a list of clients")
    if len(set(names)) != len(names):
        raise ValueError(f"{key}={shown(names)}: a client is there twice")
    return [int(name) for name in names]


def _bytes(value: object, key: str, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise ValueError(f"{key}: allowed are {size} bytes")
    return value
