"""How far people agree who have read the same images: Cohen's and Fleiss' κ.

Each image is read by people who do not see what the others say. "Nobody can tell" is one more
category. What an adjudicator says is no reading, and not counted.

Shapes: N images, C categories.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from ahfal_app.labels.readings import Reading

_SKIPPED = -1


@dataclass(frozen=True)
class PairAgreement:
    """How far two people agree.

    Attributes
    ----------
    first, second : str
        Who they are.
    images : int
        How many images both have read.
    agreed : int
        On how many of them they say the same.
    kappa : float | None
        Cohen's κ; None where both say the same of all images, so that chance explains it, too.
    """

    first: str
    second: str
    images: int
    agreed: int
    kappa: float | None


@dataclass(frozen=True)
class Agreement:
    """How far all readers of a store agree.

    Attributes
    ----------
    images : int
        How many images at least two people have read.
    unanimous : int
        Of how many of them all say the same.
    settled : int
        How many of them somebody else has settled.
    pairs : tuple[PairAgreement, ...]
        Each two people who have read the same images.
    readers : int
        Number of readings of each image that Fleiss' κ is of: what most images have; 0 of none.
    read : int
        Number of images with as many readings.
    fleiss : float | None
        Fleiss' κ over them; None where there are none, or chance explains all.
    """

    images: int
    unanimous: int
    settled: int
    pairs: tuple[PairAgreement, ...]
    readers: int
    read: int
    fleiss: float | None


def agreement(readings: Mapping[int, Sequence[Reading]]) -> Agreement:
    """Return how far people agree on what several of them have read.

    Parameters
    ----------
    readings : Mapping[int, Sequence[Reading]]
        What people say, by sample: one reading of each person, and decisions.
    """
    answers = {
        sample: {r.annotator: _SKIPPED if r.label is None else r.label for r in of_one}
        for sample, every in readings.items()
        for of_one in [[r for r in every if not r.decides]]
    }
    said = {sample: of_one for sample, of_one in answers.items() if len(of_one) > 1}
    settled = sum(any(r.decides for r in readings[sample]) for sample in said)
    sizes = Counter(map(len, said.values()))
    # Of equally many images, those that more people have read.
    readers = max(sizes, key=lambda size: (sizes[size], size), default=0)
    of_as_many = [list(of_one.values()) for of_one in said.values() if len(of_one) == readers]
    return Agreement(
        images=len(said),
        unanimous=sum(len(set(of_one.values())) == 1 for of_one in said.values()),
        settled=settled,
        pairs=tuple(_pairs(said)),
        readers=readers,
        read=len(of_as_many),
        fleiss=fleiss_kappa(_counts(of_as_many)) if of_as_many else None,
    )


def fleiss_kappa(counts_NC: NDArray[np.int64]) -> float | None:
    """Return Fleiss' κ, or None where all readings are of one category.

    Parameters
    ----------
    counts_NC : NDArray[np.int64]
        How many readers put each image into each category. Shape (N, C); all rows have the same
        sum, which is at least 2.

    Raises
    ------
    ValueError
        There is no image, or the rows have other sums.
    """
    totals_N = counts_NC.sum(axis=1)
    if not len(totals_N) or totals_N[0] < 2 or (totals_N != totals_N[0]).any():
        raise ValueError("Fleiss' κ is of images that equally many people have read, two or more")
    readers = totals_N[0]
    same_N = (counts_NC * (counts_NC - 1)).sum(axis=1) / (readers * (readers - 1))
    shares_C = counts_NC.sum(axis=0) / totals_N.sum()
    by_chance = float((shares_C**2).sum())
    if by_chance == 1.0:
        return None
    return (float(same_N.mean()) - by_chance) / (1 - by_chance)


def _counts(answers: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return how often each category was named of each image. Shape (N, C)."""
    labels_NR = np.array(answers, dtype=np.int64)
    categories_C = np.unique(labels_NR)
    counts_NC: NDArray[np.int64] = (labels_NR[:, :, None] == categories_C).sum(axis=1)
    return counts_NC


def _pairs(said: Mapping[int, Mapping[str, int]]) -> list[PairAgreement]:
    people = sorted({person for answers in said.values() for person in answers})
    pairs = []
    for first, second in itertools.combinations(people, 2):
        both = [(a[first], a[second]) for a in said.values() if first in a and second in a]
        if not both:
            continue
        labels_N2 = np.array(both, dtype=np.int64)
        agreed = int((labels_N2[:, 0] == labels_N2[:, 1]).sum())
        # Where there is but one category, there is nothing to agree on.
        is_trivial = len(np.unique(labels_N2)) == 1
        kappa = None if is_trivial else float(cohen_kappa_score(*labels_N2.T))
        pairs.append(PairAgreement(first, second, len(both), agreed, kappa))
    return pairs
