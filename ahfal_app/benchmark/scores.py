"""What is computed of submissions: areas, ranks, regret, wins, differences to the reference.

Shapes: M methods, B blocks (data set, split and seed), T budgets of a data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ahfal_app.benchmark.lock import Lock
from ahfal_app.benchmark.protocol import Case, Protocol
from ahfal_app.benchmark.ranks import (
    LEVEL,
    Friedman,
    critical_difference,
    friedman,
    groups,
    ranks,
    signed_rank,
)
from ahfal_app.benchmark.submission import Submission
from ahfal_app.experiments.comparison import Difference, area_under_curve, paired_difference
from ahfal_app.multiple_tests import holm

#: Areas nearer than this are equal: they are sums of shares of some hundred tests.
_EQUAL = 1e-9


@dataclass(frozen=True, eq=False)
class Board:
    """Submissions that all have every run of a protocol."""

    protocol: Protocol
    lock: Lock
    submissions: tuple[Submission, ...]

    @property
    def methods(self) -> list[str]:
        """What the methods are called, in the order of everything here."""
        return [submission.method for submission in self.submissions]

    @cached_property
    def cases(self) -> list[Case]:
        """The blocks, in their order."""
        return self.protocol.cases()

    @property
    def reference(self) -> int | None:
        """Place of the method that the others are compared with, if it is there."""
        wanted = self.protocol.reference
        return self.methods.index(wanted) if wanted in self.methods else None

    @cached_property
    def _computed_MB(self) -> NDArray[np.float64]:
        """Area under each budget curve, with what was rounded on the way to it."""
        return np.array(
            [
                [
                    100 * area_under_curve(run.labels, run.accuracy)
                    for run in (submission.by_case[case] for case in self.cases)
                ]
                for submission in self.submissions
            ]
        )

    @cached_property
    def areas_MB(self) -> NDArray[np.float64]:
        """Area under each budget curve: mean accuracy over the labels, in percent."""
        # What differs by rounding alone is equal, and shares its rank.
        return np.asarray(np.round(self._computed_MB / _EQUAL) * _EQUAL)

    @cached_property
    def ranks_MB(self) -> NDArray[np.float64]:
        """Rank of each method in each block by its area; 1 is the best."""
        return ranks(self.areas_MB)

    @cached_property
    def mean_ranks_M(self) -> NDArray[np.float64]:
        """Mean rank of each method over the blocks."""
        return np.asarray(self.ranks_MB.mean(axis=1))

    @cached_property
    def order(self) -> list[int]:
        """Places of the methods by mean rank, the best first; of equals as they came."""
        return [int(place) for place in np.argsort(self.mean_ranks_M, kind="stable")]

    @cached_property
    def friedman(self) -> Friedman | None:
        """The test of whether methods differ at all."""
        return friedman(self.ranks_MB)

    @cached_property
    def critical_difference(self) -> float | None:
        """What mean ranks must differ by; None for a single method."""
        methods, blocks = self.ranks_MB.shape
        return critical_difference(methods, blocks) if methods > 1 else None

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """Which methods, by their place in `order`, cannot be told apart.

        All of them where Friedman's test shows no difference, whatever their mean ranks are.
        """
        if self.critical_difference is None:
            return []
        if self.friedman is None or self.friedman.p >= LEVEL:
            return [(0, len(self.methods) - 1)]
        ordered = [float(self.mean_ranks_M[place]) for place in self.order]
        return groups(ordered, self.critical_difference)

    @cached_property
    def wins_M(self) -> NDArray[np.int64]:
        """In how many blocks no method has a larger area."""
        return np.asarray((self.areas_MB == self.areas_MB.max(axis=0)).sum(axis=1), np.int64)

    def of_problem(self, problem: str) -> NDArray[np.bool_]:
        """Return which blocks (B) are of a data set."""
        return np.array([case.problem == problem for case in self.cases])

    def mean_areas_M(self, problem: str) -> NDArray[np.float64]:
        """Return the mean area of each method on a data set, in percent."""
        return np.asarray(self.areas_MB[:, self.of_problem(problem)].mean(axis=1))

    def accuracy_MT(self, problem: str, split: str) -> NDArray[np.float64]:
        """Return the mean accuracy over the seeds at each budget, in percent."""
        cases = [case for case in self.cases if (case.problem, case.split) == (problem, split)]
        return np.array(
            [
                100 * np.mean([submission.by_case[case].accuracy for case in cases], axis=0)
                for submission in self.submissions
            ]
        )

    def regret_MT(self, problem: str) -> NDArray[np.float64]:
        """Return by how many points each method is below the best at each budget.

        The best of a split by the mean over its seeds: of single runs it would be the luckiest.
        Mean over the splits.
        """
        found = []
        for split in self.protocol.splits:
            accuracy_MT = self.accuracy_MT(problem, split)
            found.append(accuracy_MT.max(axis=0) - accuracy_MT)
        return np.asarray(np.mean(found, axis=0))

    @cached_property
    def mean_regret_M(self) -> NDArray[np.float64]:
        """Mean regret of each method over budgets, then data sets."""
        per_problem = [self.regret_MT(problem).mean(axis=1) for problem in self.protocol.problems]
        return np.asarray(np.mean(per_problem, axis=0))

    def budgets_T(self, problem: str) -> list[float]:
        """Return the labels at each budget of a data set, in the mean over splits and seeds."""
        labels = [split.labels for split in self.lock.splits if split.problem == problem]
        return [float(value) for value in np.mean(labels, axis=0)]

    @cached_property
    def against_reference_M(self) -> list[float | None]:
        """The p-value of each method's difference to the reference over all blocks.

        Wilcoxon's signed-rank test of the areas, corrected by Holm's method for the methods that
        take part.
        """
        if self.reference is None:
            return [None] * len(self.submissions)
        # Whole numbers, so that differences that are equal are equal here, too.
        differences_MB = self._computed_MB - self._computed_MB[self.reference]
        whole_MB = np.rint(differences_MB / _EQUAL).astype(np.int64)
        found = [
            None if place == self.reference else signed_rank(whole_B.tolist())
            for place, whole_B in enumerate(whole_MB)
        ]
        return holm(found)

    def differences(self, problem: str) -> Iterator[tuple[int, Difference, float | None]]:
        """Yield each method's difference to the reference on a data set, paired by seed.

        The area of a seed is its mean over the splits; the p-value is that of a paired t-test,
        corrected by Holm's method for the methods of the data set.
        """
        if self.reference is None:
            return
        by_method = [self._areas_by_seed(place, problem) for place in range(len(self.submissions))]
        base = by_method[self.reference]
        others = [place for place in self.order if place != self.reference]
        found = [paired_difference(by_method[place], base) for place in others]
        corrected = holm([each.p if each else None for each in found])
        for place, difference, p in zip(others, found, corrected, strict=True):
            if difference is not None:
                yield place, difference, p

    def _areas_by_seed(self, method: int, problem: str) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for case, area in zip(self.cases, self.areas_MB[method], strict=True):
            if case.problem == problem:
                found.setdefault(case.seed, []).append(float(area))
        return {seed: float(np.mean(areas)) for seed, areas in found.items()}

    def codes(self) -> dict[str, list[str]]:
        """Return the methods by AHFAL's version and hash that they were run with."""
        found: dict[str, list[str]] = {}
        for submission in self.submissions:
            code = submission.code
            changed = ", changed" if code.dirty else ""
            found.setdefault(f"{code.version}, {code.hash[:12]}{changed}", []).append(
                submission.method
            )
        return found


def newcomers(board: Board) -> Sequence[int]:
    """Return the places of the methods that are no baselines."""
    return [
        place for place, name in enumerate(board.methods) if name not in board.protocol.baselines
    ]
