"""FEAL's diversity relaxation: by falling score, but not next to what was taken.

Shape suffixes: N samples by falling score, F width of a feature, R candidates looked at
together, n neighbours, B samples taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahfal_app.query.core.picking import SAME, ranked
from ahfal_app.query.core.points import directions

#: Most candidates whose similarities to all samples are computed together. At first it is as many
#: as are to be taken, and then twice as many each time: few are passed over.
_CANDIDATES = 512


def relaxed_picks(features_NF: Tensor, count: int, threshold: float, neighbours: int) -> Tensor:
    """Return the samples that are taken, walking down the scores, until there are enough.

    A sample's neighbours are the `neighbours` most similar others, of those whose cosine
    similarity exceeds the threshold; among equals the lowest positions. A sample is taken if
    none of its neighbours has been taken, or if it has fewer than `neighbours`.

    Memory is linear in N, and time is linear in N for each sample that is looked at.

    Parameters
    ----------
    features_NF : Tensor
        Rows by falling score; a row of zeros is similar to nothing. Shape (N, F).
    count : int
        Most samples to take.
    threshold : float
        Cosine similarity, at least 0, above which samples are neighbours.
    neighbours : int
        Most neighbours of a sample.

    Returns
    -------
    Tensor
        Increasing positions, at most `count`. Shape (B,).
    """
    directions_NF = directions(features_NF)
    taken: set[int] = set()
    start, size = 0, min(max(1, count), _CANDIDATES)
    while start < len(directions_NF):
        rows = slice(start, min(start + size, len(directions_NF)))
        for position, near in enumerate(_near(directions_NF, rows, threshold, neighbours), start):
            if len(near) < neighbours or taken.isdisjoint(near):
                taken.add(position)
            if len(taken) == count:
                return torch.tensor(sorted(taken), device=features_NF.device)
        start, size = rows.stop, min(2 * size, _CANDIDATES)
    return torch.tensor(sorted(taken), device=features_NF.device)


def _near(directions_NF: Tensor, rows: slice, threshold: float, neighbours: int) -> list[list[int]]:
    """Return the neighbours of each candidate among all samples."""
    similar_RN = directions_NF[rows] @ directions_NF.T
    each_R = torch.arange(len(similar_RN), device=similar_RN.device)
    similar_RN[each_R, each_R + rows.start] = -torch.inf
    highest = similar_RN.topk(min(neighbours + 1, similar_RN.shape[1]), dim=1)
    nearest_Rn, values_Rn = highest.indices[:, :neighbours], highest.values[:, :neighbours]
    if highest.values.shape[1] > neighbours:
        last_R, next_R = highest.values[:, neighbours - 1], highest.values[:, neighbours]
        tied_R = (last_R - next_R <= SAME * last_R.abs()) & (last_R > threshold)
        # Which of several equals `topk` returns is not said, nor what rounding makes of them.
        for row in tied_R.nonzero()[:, 0].tolist():
            nearest_Rn[row] = ranked(similar_RN[row])[:neighbours]
    counts_R = (values_Rn > threshold + SAME).sum(dim=1)
    pairs = zip(nearest_Rn.tolist(), counts_R.tolist(), strict=True)
    return [near[:number] for near, number in pairs]
