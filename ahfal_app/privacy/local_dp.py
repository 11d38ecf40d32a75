"""Local differential privacy of class counts, by OpenDP's integer Laplace mechanism.

The noise comes from the operating system's generator, by way of OpenDP, and never from the
experiment's seed: whoever knows the seed could take it off again.

Shape suffix: C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahfal_app.class_statistics import class_proportions

if TYPE_CHECKING:
    from opendp.mod import Measurement


@dataclass(frozen=True)
class LaplaceMechanism:
    """Adds k to each count with a probability in proportion to exp(-|k| / scale).

    Integer noise, as counts are integers: the low bits of floating-point noise would give
    away what it hides (Mironov, "On significance of the least significant bits for
    differential privacy", 2012).

    Attributes
    ----------
    scale : float
        Scale of the noise, in samples.
    sensitivity : int
        L1 distance of the class counts of neighbouring labelled sets.
    """

    scale: float
    sensitivity: int

    @classmethod
    def calibrated(cls, sensitivity: int, epsilon: Fraction) -> LaplaceMechanism:
        """Return the mechanism that costs at most `epsilon`, by OpenDP's own account.

        Parameters
        ----------
        sensitivity : int
            L1 distance of the class counts of neighbouring labelled sets, at least 1.
        epsilon : Fraction
            What one release may cost, above 0.
        """
        mechanism = cls(float(sensitivity / epsilon), sensitivity)
        # A scale rounded to a float may be too small in its last digit.
        while mechanism.epsilon() > epsilon:
            mechanism = cls(math.nextafter(mechanism.scale, math.inf), sensitivity)
        return mechanism

    def epsilon(self) -> Fraction:
        """Return what one release costs: OpenDP's privacy map at the sensitivity."""
        epsilon: float = self._measurement().map(self.sensitivity)  # type: ignore[no-untyped-call]
        return Fraction(epsilon)

    def release(self, counts_C: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return counts with fresh noise, int64 (C,); they may be negative."""
        return np.array(self._measurement()(counts_C.tolist()), dtype=np.int64)

    def _measurement(self) -> Measurement:
        # Imported here, since it takes a third of a second, and most runs need none of it.
        from opendp.domains import atom_domain, vector_domain
        from opendp.measurements import make_laplace
        from opendp.metrics import l1_distance
        from opendp.mod import enable_features

        enable_features("contrib")
        domain = vector_domain(atom_domain(T="i64"))
        return make_laplace(domain, l1_distance(T="i64"), scale=self.scale)


def proportions_of_noisy(counts_C: ArrayLike) -> NDArray[np.float64]:
    """Return class proportions along the last axis: clipped at 0, then normalised.

    Uniform where no count is above 0. This uses the noisy counts alone, and so costs nothing.
    """
    clipped = np.maximum(np.asarray(counts_C, dtype=np.float64), 0.0)
    clipped[clipped.sum(axis=-1) == 0] = 1.0
    return class_proportions(clipped)
