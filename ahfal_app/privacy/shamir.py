"""Secrets split into shares, any `threshold` of which give them back (Shamir 1979).

pycryptodome's `Shamir` takes secrets of 16 bytes, so longer ones are split block by block.
"""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

_BLOCK = 16


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Return `count` shares of a secret, each as long as the secret.

    Parameters
    ----------
    secret : bytes
        A multiple of 16 bytes.
    threshold : int
        Shares that give the secret back; fewer tell nothing about it.
    count : int
        Number of shares.
    """
    blocks = [
        Shamir.split(threshold, count, secret[start : start + _BLOCK], False)
        for start in range(0, len(secret), _BLOCK)
    ]
    return [b"".join(block[place][1] for block in blocks) for place in range(count)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret.

    Parameters
    ----------
    shares : Mapping[int, bytes]
        At least `threshold` shares, by their place in what `split` returned.
    """
    length = len(next(iter(shares.values())))
    return b"".join(
        Shamir.combine(
            [(place + 1, share[start : start + _BLOCK]) for place, share in shares.items()], False
        )
        for start in range(0, length, _BLOCK)
    )
