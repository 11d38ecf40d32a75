"""Logits of a model that has come apart, as something that can be computed with.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Beyond it a difference of logits is no difference any more.
_MOST = 1e9


def finite_logits(logits_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits that can be computed with; where one is no number, all classes are as likely.

    A model that has come apart is a bad one, and its figures are to say so. Shape (N, C).
    """
    is_number_N1 = ~np.isnan(logits_NC).any(axis=1, keepdims=True)
    return np.where(is_number_N1, np.clip(logits_NC, -_MOST, _MOST), 0.0)
