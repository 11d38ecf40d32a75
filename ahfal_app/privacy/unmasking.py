"""The server's side of secure aggregation: from masked vectors and shares to their sum.

Bonawitz et al. (CCS 2017), round 3 of the protocol.

Shape suffix: D entries of the vector that is summed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from ahfal_app.errors import SecureAggregationFailed
from ahfal_app.privacy import masking, shamir
from ahfal_app.privacy.masking import Session
from ahfal_app.privacy.sessions import PublicKeys, Unmasking


def unmasked_sum(
    session: Session,
    roster: Mapping[int, PublicKeys],
    peers: Collection[int],
    masked: Mapping[int, NDArray[np.uint64]],
    answers: Mapping[int, Unmasking],
    threshold: int,
) -> NDArray[np.uint64]:
    """Return the sum of the survivors' vectors modulo 2^64, uint64 (D,).

    Parameters
    ----------
    session : Session
        The session.
    roster : Mapping[int, PublicKeys]
        All clients that advertised keys and were told to share them.
    peers : Collection[int]
        Those of them that did, and against which the others masked.
    masked : Mapping[int, NDArray[np.uint64]]
        The survivors' masked vectors.
    answers : Mapping[int, Unmasking]
        The survivors' shares.
    threshold : int
        Number of shares that give a secret back; more would only take longer.

    Raises
    ------
    SecureAggregationFailed
        Shares of a client's mask key do not give back that key.
    """
    places = {client: place for place, client in enumerate(sorted(roster))}
    helpers = sorted(answers)[:threshold]
    sum_D: NDArray[np.uint64] = np.stack(list(masked.values())).sum(axis=0, dtype=np.uint64)
    size = len(sum_D)
    for client in masked:
        shares = {places[helper]: answers[helper].seeds[client] for helper in helpers}
        sum_D -= masking.self_mask(shamir.combine(shares), session, client, size)
    for client in sorted(set(peers) - set(masked)):
        shares = {places[helper]: answers[helper].mask_keys[client] for helper in helpers}
        mask_key = shamir.combine(shares)
        if masking.public_key(mask_key) != roster[client].mask:
            raise SecureAggregationFailed(
                f"the shares of client {client}'s key, which dropped out, do not fit together"
            )
        # Its masks are still in the survivors' vectors: its own, with which they cancel, go in.
        for survivor in masked:
            sum_D += masking.pairwise_mask(
                mask_key, roster[survivor].mask, session, (client, survivor), peers, size
            )
    return sum_D
