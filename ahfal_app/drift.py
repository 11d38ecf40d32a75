"""Whether two windows of cycles have the same class mix: tests of counts, and when there is none.

Counts must be of independent random draws. Labels that a query strategy has chosen are not: a
strategy that moves on to other classes would look like drift. They must be counts, too: none that
have noise or are weighted by age.

Shapes: C classes, P relabellings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: How counts are tested.
Method = Literal["chi-square", "permutation"]

#: What p-values, corrected for their number, are compared with.
LEVEL = 0.05

#: Relabellings of a permutation test.
RELABELLINGS = 999

#: Of a window's audit labels at least this share must be there.
LEAST_ANSWERED = 0.8

#: Fewest samples that have arrived in a window whose predicted classes are told: of a single one
#: they would be its class under any model.
LEAST_ARRIVALS = 10

# Cochran's rule: no expected count below the one, and this share of them not below the other.
_LEAST, _USUAL, _USUAL_SHARE = 1.0, 5.0, 0.8

# What is equal on paper counts as equal.
_ROUNDING = 1e-9


class Refusal(StrEnum):
    """Why two windows are not tested."""

    NO_LABELS = "no-labels"
    UNANSWERED = "unanswered"
    ONE_CLASS = "one-class"
    TOO_FEW = "too-few"
    NO_ARRIVALS = "no-arrivals"
    FEW_ARRIVALS = "few-arrivals"

    @property
    def words(self) -> str:
        """What people are told."""
        return _WORDS[self]


_WORDS = {
    Refusal.NO_LABELS: "a window has no audit label",
    Refusal.UNANSWERED: f"of a window's audit labels less than {LEAST_ANSWERED:.0%} are there",
    Refusal.ONE_CLASS: "all audit labels are of one class",
    Refusal.TOO_FEW: "too few audit labels for a chi-square test, whichever classes are merged",
    Refusal.NO_ARRIVALS: "nothing has arrived in a window, or nothing of it is there any more",
    Refusal.FEW_ARRIVALS: f"fewer than {LEAST_ARRIVALS} samples have arrived in a window",
}


@dataclass(frozen=True)
class DriftTest:
    """A test of the hypothesis that two windows have the same class mix.

    Attributes
    ----------
    statistic : float
        Pearson's X².
    log_ratio : float
        The log-likelihood ratio G of the same counts.
    df : int
        Degrees of freedom, the number of classes less one; rare classes may have been merged.
    p : float
        Of the chi-square distribution, or of relabellings.
    """

    statistic: float
    log_ratio: float
    df: int
    p: float


@dataclass(frozen=True)
class Shift:
    """How far two windows' mixes of predicted classes lie apart; an indicator, and no test.

    Attributes
    ----------
    divergence : float
        The Kullback-Leibler divergence of the recent window from the reference, in nats, with half
        a count added to each class.
    variation : float
        The total variation between them, from 0 to 1.
    """

    divergence: float
    variation: float


#: What comes of comparing two windows.
Found = DriftTest | Shift | Refusal


def is_tested(cycle: int, window: int) -> bool:
    """Tell whether two windows end with a cycle, from 0.

    They do at the cycles 2m - 1, 3m - 1 and so on of windows of m cycles, so that no cycle is in
    the recent window of two tests.
    """
    return cycle + 1 >= 2 * window and (cycle + 1) % window == 0


def drift_test(
    reference_C: ArrayLike,
    recent_C: ArrayLike,
    method: Method,
    generator: Callable[[], np.random.Generator],
) -> DriftTest | Refusal:
    """Test whether two windows have the same class mix, or say why that cannot be judged.

    With `chi-square` rare classes are merged until Cochran's rule holds.

    Parameters
    ----------
    reference_C, recent_C : array_like
        Counts of the windows' labels. Shape (C,).
    method : Method
        Where p comes from.
    generator : Callable[[], np.random.Generator]
        Makes what draws the relabellings.
    """
    x_C, y_C = _occurring(reference_C, recent_C)
    if not x_C.sum() or not y_C.sum():
        return Refusal.NO_LABELS
    if len(x_C) < 2:
        return Refusal.ONE_CLASS
    if method == "permutation":
        return permutation(x_C, y_C, generator())
    merged = merged_counts(x_C, y_C)
    return Refusal.TOO_FEW if merged is None else chi_square(*merged)


def predicted_shift(reference_C: ArrayLike, recent_C: ArrayLike) -> Shift | Refusal:
    """Compare the classes that one model predicts of what arrived in two windows.

    Parameters
    ----------
    reference_C, recent_C : array_like
        Counts. Shape (C,).
    """
    x_C, y_C = np.asarray(reference_C, np.int64), np.asarray(recent_C, np.int64)
    if not x_C.any() or not y_C.any():
        return Refusal.NO_ARRIVALS
    if min(x_C.sum(), y_C.sum()) < LEAST_ARRIVALS:
        return Refusal.FEW_ARRIVALS
    variation = 0.5 * float(np.abs(x_C / x_C.sum() - y_C / y_C.sum()).sum())
    return Shift(smoothed_divergence(y_C, x_C), variation)


def smoothed_divergence(counts_C: NDArray[np.int64], other_C: NDArray[np.int64]) -> float:
    """Return the Kullback-Leibler divergence of two class mixes, half a count added to each.

    Parameters
    ----------
    counts_C, other_C : NDArray[np.int64]
        Counts. Shape (C,).
    """
    p_C, q_C = ((each + 0.5) / (each.sum() + len(each) / 2) for each in (counts_C, other_C))
    return max(0.0, float((p_C * np.log(p_C / q_C)).sum()))


def chi_square(reference_C: ArrayLike, recent_C: ArrayLike) -> DriftTest:
    """Return Pearson's test of homogeneity over the classes that occur, without correction.

    X² = Σ (√(m₂/m₁) x - √(m₁/m₂) y)² / (x + y) for counts x and y with the sums m₁ and m₂. With one
    class it is 0 with 0 degrees of freedom, and p is 1.

    Parameters
    ----------
    reference_C, recent_C : array_like
        Counts, each with a label. Shape (C,).

    Raises
    ------
    ValueError
        One of them is all zero.
    """
    # All of SciPy's statistics takes longer to import than many a command takes.
    from scipy.stats import chi2_contingency

    table_2C = np.array(_occurring(reference_C, recent_C))
    if not table_2C.sum(axis=1).all():
        raise ValueError("counts of a window are all 0: allowed are some with a label")
    found = chi2_contingency(table_2C, correction=False)
    ratio = chi2_contingency(table_2C, correction=False, lambda_="log-likelihood").statistic
    # Of equal mixes rounding may make G a little less than nothing.
    return DriftTest(
        float(found.statistic), max(0.0, float(ratio)), int(found.dof), float(found.pvalue)
    )


def permutation(
    reference_C: ArrayLike, recent_C: ArrayLike, generator: np.random.Generator
) -> DriftTest:
    """Return the same test with p by relabelling the pooled labels: (1 + #{X²* ≥ X²}) / (1 + P).

    Counts may be as small as they like. A relabelled window is a draw without replacement from the
    pooled counts.

    Parameters
    ----------
    reference_C, recent_C : array_like
        Counts, each with a label. Shape (C,).
    generator : np.random.Generator
        Draws the relabellings.
    """
    found = chi_square(reference_C, recent_C)
    x_C, y_C = _occurring(reference_C, recent_C)
    pooled_C, size = (x_C + y_C).astype(np.int64), int(x_C.sum())
    drawn_PC = generator.multivariate_hypergeometric(pooled_C, size, RELABELLINGS)
    expected_C = pooled_C * (size / pooled_C.sum())
    # Both windows are off by the same number, so that one of them says all.
    weights_C = 1 / expected_C + 1 / (pooled_C - expected_C)
    statistic_P = (drawn_PC - expected_C) ** 2 @ weights_C
    as_far = np.count_nonzero(statistic_P >= found.statistic * (1 - _ROUNDING) - _ROUNDING)
    p = (1 + int(as_far)) / (1 + RELABELLINGS)
    return DriftTest(found.statistic, found.log_ratio, found.df, p)


def is_large_enough(reference_C: ArrayLike, recent_C: ArrayLike) -> bool:
    """Tell whether X² may be compared with the chi-square distribution, by Cochran's rule.

    All expected counts are at least 1, and 80 % of them at least 5.

    Parameters
    ----------
    reference_C, recent_C : array_like
        Counts, each with a label. Shape (C,).
    """
    expected_2C = expected_counts(reference_C, recent_C)
    is_usual = (expected_2C >= _USUAL).mean() >= _USUAL_SHARE
    return bool(expected_2C.min() >= _LEAST and is_usual)


def expected_counts(reference_C: ArrayLike, recent_C: ArrayLike) -> NDArray[np.float64]:
    """Return what the counts of the classes that occur would be by the margins. Shape (2, C)."""
    table_2C = np.array(_occurring(reference_C, recent_C))
    margins_2C = np.outer(table_2C.sum(axis=1), table_2C.sum(axis=0))
    expected_2C: NDArray[np.float64] = margins_2C / table_2C.sum()
    return expected_2C


def merged_counts(
    reference_C: ArrayLike, recent_C: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Merge the rarest classes into one until Cochran's rule holds; None where it never does.

    At least two classes are left. Of equally rare ones the last is merged first.

    Parameters
    ----------
    reference_C, recent_C : array_like
        Counts, each with a label. Shape (C,).
    """
    x_C, y_C = _occurring(reference_C, recent_C)
    rarest_first = np.lexsort((-np.arange(len(x_C)), x_C + y_C))
    x_C, y_C = x_C[rarest_first], y_C[rarest_first]
    for joined in range(1, len(x_C)):
        x_D, y_D = (np.append(z_C[:joined].sum(), z_C[joined:]) for z_C in (x_C, y_C))
        if is_large_enough(x_D, y_D):
            return x_D, y_D
    return None


def pooled_p(tests: Iterable[DriftTest]) -> float | None:
    """Return p of the hypothesis that nothing drifts at any client: Σ X² with Σ df.

    None without a test. It is of the chi-square distribution, and not for tests by relabelling.
    """
    found = list(tests)
    if not found:
        return None
    return chi_square_p(sum(t.statistic for t in found), sum(t.df for t in found))


def chi_square_p(statistic: float, df: int) -> float:
    """Return how likely the chi-square distribution is to reach a statistic; 1 without freedom."""
    from scipy.stats import chi2

    return float(chi2.sf(statistic, df)) if df else 1.0


def _occurring(
    reference_C: ArrayLike, recent_C: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the counts of classes that occur in one of them."""
    x_C, y_C = np.asarray(reference_C, np.float64), np.asarray(recent_C, np.float64)
    occurs_C = x_C + y_C > 0
    return x_C[occurs_C], y_C[occurs_C]
