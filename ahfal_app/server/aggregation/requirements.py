"""How many clients an aggregation needs in a round; below that it promises nothing.

Asked before a run, when the clients have joined, and of every round's usable answers.
"""

from __future__ import annotations

from ahfal_app.config import Settings, share_of

#: Clients needed for each malicious one, besides 3: Blanchard, El Mhamdi, Guerraoui and
#: Stainer, NeurIPS 2017 (Krum); El Mhamdi, Guerraoui and Rouault, ICML 2018 (Bulyan).
_CLIENTS_PER_MALICIOUS = {"krum": 2, "multikrum": 2, "bulyan": 4}


def clients_in_a_round(settings: Settings) -> int:
    """Return how many of `num-clients` clients, which must be known, train in a round."""
    return share_of(settings.client_fraction, settings.num_clients)


def shortage(settings: Settings, clients: int) -> str | None:
    """Return why so many clients are too few for the aggregation as it is set, or None.

    Parameters
    ----------
    settings : Settings
        The aggregation and its parameters.
    clients : int
        Clients that train, or have trained, in a round.
    """
    if settings.aggregation == "fedtrimmedavg":
        return _untrimmed(settings.trimmed_share, clients)
    factor = _CLIENTS_PER_MALICIOUS.get(settings.aggregation)
    if factor is None:
        return None
    malicious = settings.malicious_clients
    needed = factor * malicious + 3
    if clients < needed:
        return (
            f"malicious-clients={malicious}: aggregation={settings.aggregation!r} needs at least "
            f"{factor}·{malicious} + 3 = {needed} clients in a round, there are {clients}"
        )
    averaged = settings.multikrum_clients
    if settings.aggregation == "multikrum" and averaged > clients - malicious:
        return (
            f"multikrum-clients={averaged}: allowed is at most {clients - malicious} with "
            f"malicious-clients={malicious} and {clients} clients in a round"
        )
    return None


def _untrimmed(share: float, clients: int) -> str | None:
    # The product and the rounding are Flower's, so that both agree on every float.
    if int(share * clients) >= 1:
        return None
    return (
        f"trimmed-share={share!r}: aggregation='fedtrimmedavg' must trim at least 1 client at "
        f"each end; this share of {clients} clients in a round is less"
    )
