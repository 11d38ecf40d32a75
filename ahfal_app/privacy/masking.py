"""Keys, masks and encryption of secure aggregation, from the primitives of `cryptography`.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning"
(CCS 2017). Every key is derived for one purpose: run, cycle, session and the clients
concerned go into its derivation, so that nothing fits where it does not belong.

Shape suffix: D entries of the vector that is summed, 2 C + 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from ahfal_app.errors import SecureAggregationFailed

KEY_BYTES = 32
SEED_BYTES = 16
_NONCE_BYTES = 12

#: Bytes that encryption adds: the nonce, and the tag that authenticates.
SEALING_BYTES = _NONCE_BYTES + 16


@dataclass(frozen=True)
class Session:
    """One attempt at a cycle's sum; what every key of it is bound to.

    Attributes
    ----------
    run : str
        The run's identity.
    cycle : int
        The cycle; of what is no sum of histograms, another number (`Topic.place`).
    name : str
        The attempt's own name, drawn by the server.
    about : str
        What to call the sum in messages to people; empty: by its cycle. No key depends on it.
    """

    run: str
    cycle: int
    name: str
    about: str = ""

    @property
    def told(self) -> str:
        """What the sum is called in messages to people."""
        return self.about or f"cycle {self.cycle}"

    def label(self, purpose: str, *details: object) -> bytes:
        """Return what a key of this session is derived with, or a message is bound to."""
        return json.dumps([self.run, self.cycle, self.name, purpose, *details]).encode()


def new_private_key() -> bytes:
    """Return a fresh X25519 private key, 32 bytes of the operating system's randomness."""
    return X25519PrivateKey.generate().private_bytes_raw()


def new_seed() -> bytes:
    """Return a fresh seed, 16 bytes of the operating system's randomness."""
    return os.urandom(SEED_BYTES)


def public_key(private_key: bytes) -> bytes:
    """Return the public key that belongs to a private one."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def self_mask(seed: bytes, session: Session, client: int, size: int) -> NDArray[np.uint64]:
    """Return the mask that a client adds on its own, PRG(b_u), uint64 (D,)."""
    return _keystream(seed, session.label("self-mask", client), size)


def pairwise_mask(
    private_key: bytes,
    public_key_of_peer: bytes,
    session: Session,
    pair: tuple[int, int],
    peers: Iterable[int],
    size: int,
) -> NDArray[np.uint64]:
    """Return what one of a pair adds against the other; the two masks cancel modulo 2^64.

    Parameters
    ----------
    private_key : bytes
        The first one's private mask key.
    public_key_of_peer : bytes
        The other one's public mask key.
    session : Session
        The attempt.
    pair : tuple[int, int]
        Who adds it, and against whom.
    peers : Iterable[int]
        All clients that mask; only those cancel who were told of the same ones.
    size : int
        Entries, D.
    """
    label = session.label("pairwise-mask", *sorted(pair), sorted(peers))
    mask_D = _keystream(_agree(private_key, public_key_of_peer), label, size)
    return mask_D if pair[0] < pair[1] else -mask_D


def encrypt(
    plaintext: bytes,
    private_key: bytes,
    public_key_of_receiver: bytes,
    session: Session,
    sender: int,
    receiver: int,
) -> bytes:
    """Encrypt and authenticate what only `receiver` may read and only `sender` can have sent."""
    label = session.label("shares", sender, receiver)
    key = _derive(_agree(private_key, public_key_of_receiver), label)
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, label)


def decrypt(
    ciphertext: bytes,
    private_key: bytes,
    public_key_of_sender: bytes,
    session: Session,
    sender: int,
    receiver: int,
) -> bytes:
    """Decrypt what `sender` has encrypted for `receiver`.

    Raises
    ------
    SecureAggregationFailed
        It was changed, or is another session's or another client's.
    """
    label = session.label("shares", sender, receiver)
    key = _derive(_agree(private_key, public_key_of_sender), label)
    nonce, sealed = ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:]
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, label)
    except (InvalidTag, ValueError) as error:
        raise SecureAggregationFailed(
            f"the shares of client {sender} for client {receiver} were changed on their way"
        ) from error


def _agree(private_key: bytes, public_key_of_peer: bytes) -> bytes:
    try:
        peer = X25519PublicKey.from_public_bytes(public_key_of_peer)
        return X25519PrivateKey.from_private_bytes(private_key).exchange(peer)
    except ValueError as error:
        raise SecureAggregationFailed(f"a public key cannot be used: {error}") from error


def _derive(secret: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=label).derive(secret)


def _keystream(secret: bytes, label: bytes, size: int) -> NDArray[np.uint64]:
    # Each derived key makes one stream, so the counter and nonce may start at 0.
    cipher = Cipher(ChaCha20(_derive(secret, label), bytes(16)), mode=None)
    return np.frombuffer(cipher.encryptor().update(bytes(8 * size)), dtype="<u8").astype(np.uint64)
