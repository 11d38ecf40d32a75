"""What a query strategy may tell a server about a client's samples, by name.

A strategy that chooses at the client alone tells nothing. One that needs the federation declares
what it tells of a single client, and a site allows it or not, by these names.
"""

from __future__ import annotations

from enum import StrEnum

#: Of so many samples the mean of their embeddings is none of a single one.
FEWEST_MEANT = 5


class Reveal(StrEnum):
    """Something about a single client's samples that a server gets to know."""

    CENTROIDS = "centroids"
    EMBEDDINGS = "embeddings"
    SUMS = "sums"
    DISTANCES = "distances"
    RADIUS = "radius"
    OBSERVATIONS = "observations"
    BUDGET = "budget"
    OTHER = "other"


#: What each means, for people who decide whether a site tells it.
MEANINGS: dict[Reveal, str] = {
    Reveal.CENTROIDS: "means of embeddings of several samples, and of how many",
    Reveal.EMBEDDINGS: "embeddings of single samples, or means of so few that they come close",
    Reveal.SUMS: "sums over this client's samples alone, since the run masks none: of embeddings, "
    "counts and gains, also where they are of one sample",
    Reveal.DISTANCES: "distances of the nearest samples to points that the server names",
    Reveal.RADIUS: "a radius that is estimated from the client's embeddings, one number",
    Reveal.OBSERVATIONS: "predicted class probabilities of single samples, and which were chosen",
    Reveal.BUDGET: "one or two numbers that its labels are decided by: its part of the classes "
    "that all clients lack, or how many of its samples score above a threshold",
    Reveal.OTHER: "what another package's strategy says it tells",
}


def of_means(fewest: int) -> frozenset[Reveal]:
    """Return what is told by means of embeddings of so many samples or more."""
    means = frozenset({Reveal.CENTROIDS})
    return means if fewest >= FEWEST_MEANT else means | {Reveal.EMBEDDINGS}
