"""Which of a client's labels are held out for testing, drawn once and for good.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def draw_held_out(
    classes_N: NDArray[np.int64],
    before_C: NDArray[np.int64],
    held_out_C: NDArray[np.int64],
    fraction: Fraction,
    generator: np.random.Generator,
) -> NDArray[np.bool_]:
    """Draw which of the newly labelled samples are held out, a share of each class.

    What was drawn before stays. Of all labels a share as near to the fraction as can be is held
    out, of each class by rounding down and then the largest remainders; each class keeps at least
    one label to train on.

    Parameters
    ----------
    classes_N : NDArray[np.int64]
        Classes of the new samples.
    before_C, held_out_C : NDArray[np.int64]
        Labels of each class that were drawn before, and those of them that are held out.
    fraction : Fraction
        The share, above 0 and below 1.
    generator : np.random.Generator
        Decides among samples of a class, and between equal remainders.

    Returns
    -------
    NDArray[np.bool_]
        Whether each of them is held out. Shape (N,).
    """
    num_classes = len(before_C)
    new_C = np.bincount(classes_N, minlength=num_classes)
    total_C = before_C + new_C
    # Whole numbers: a float's 0.2 * 5 may fall short of 1.
    share_C = total_C * fraction.numerator
    room_C = np.minimum(new_C, total_C - held_out_C - 1).clip(0)
    wanted_C = np.clip(share_C // fraction.denominator - held_out_C, 0, room_C)
    in_all = int(total_C.sum()) * fraction.numerator * 2 + fraction.denominator
    missing = in_all // (2 * fraction.denominator) - int((held_out_C + wanted_C).sum())
    remainder_C = share_C - (held_out_C + wanted_C) * fraction.denominator
    order_C = np.lexsort((generator.permutation(num_classes), -remainder_C))
    may_C = (wanted_C < room_C) & (remainder_C > 0)
    more = [c for c in order_C if may_C[c]][: max(0, missing)]
    wanted_C[more] += 1
    held_out_N = np.zeros(len(classes_N), bool)
    places_N = generator.permutation(len(classes_N))
    for label in np.flatnonzero(wanted_C):
        of_class = places_N[classes_N[places_N] == label]
        held_out_N[of_class[: wanted_C[label]]] = True
    return held_out_N
