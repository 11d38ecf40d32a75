"""D² sampling: the seeding of k-means++ as a way of choosing points.

Shape suffix: N points.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.query.core.points import Points


def d_squared_sampling(
    points: Points, first: int, count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return points drawn with probability proportional to D², one after the other.

    D² is a point's squared distance to the nearest point drawn so far (Arthur and
    Vassilvitskii, k-means++, SODA 2007).

    The distribution is exact, but needs no pass over all points for each draw. D² only ever
    falls, so a draw by an earlier D² that is accepted with probability D² now / D² then is a
    draw by D² now. A pass brings all D² up to date when a draw is rejected; the draw after a
    pass is accepted always. Rejection or not, each draw has the right distribution.

    Parameters
    ----------
    points : Points
        All may be drawn.
    first : int
        Position of the point to begin with.
    count : int
        Number of points, 1 to len(points).
    generator : np.random.Generator
        What the draws come from.

    Returns
    -------
    NDArray[np.int64]
        Distinct positions in the order drawn. Where no point is left that differs from those
        drawn, the rest is drawn uniformly.
    """
    nearest_N = torch.full_like(points.squared_norms_N, torch.inf)
    chosen, new = [first], [first]
    while len(chosen) < count:
        centres = torch.tensor(new, device=nearest_N.device)
        points.lower(nearest_N, centres)
        nearest_N[centres] = 0.0
        cumulative_N = nearest_N.cumsum(dim=0)
        if cumulative_N[-1] == 0.0:
            left = np.setdiff1d(np.arange(len(points)), chosen)
            chosen += generator.choice(left, count - len(chosen), replace=False).tolist()
            break
        new = _draws_of_a_pass(points, nearest_N, cumulative_N, count - len(chosen), generator)
        chosen += new
    return np.array(chosen, dtype=np.int64)


def _draws_of_a_pass(
    points: Points,
    nearest_N: Tensor,
    cumulative_N: Tensor,
    count: int,
    generator: np.random.Generator,
) -> list[int]:
    """Return draws up to the first that is rejected, at least one."""
    drawn: list[int] = []
    while len(drawn) < count:
        position = _by_weight(cumulative_N, generator.random())
        if drawn:
            centres = torch.tensor(drawn, device=nearest_N.device)
            now = points.squared_distances(centres.new_tensor([position]), centres).min()
            if position in drawn or generator.random() * nearest_N[position] >= now:
                break
        drawn.append(position)
    return drawn


def _by_weight(cumulative_N: Tensor, uniform: float) -> int:
    """Return the position whose share of the whole weight a number in [0, 1) falls into."""
    position = torch.searchsorted(cumulative_N, cumulative_N[-1] * uniform, right=True)
    # Rounding up to the whole weight would lead past the last point that has any.
    last = torch.searchsorted(cumulative_N, cumulative_N[-1])
    return int(torch.minimum(position, last))
