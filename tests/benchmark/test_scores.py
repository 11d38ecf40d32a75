"""What a leaderboard computes, by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from support.benchmarks import made_up, submission

from ahfal_app.benchmark.protocol import Case
from ahfal_app.benchmark.ranks import signed_rank
from ahfal_app.benchmark.scores import Board, newcomers
from ahfal_app.benchmark.submission import RunLine


@pytest.fixture(name="board", scope="module")
def _board() -> Board:
    """Two data sets with one split and two seeds: four blocks, three methods."""
    protocol, lock = made_up({"a": [10, 20, 40], "b": [5, 10]}, ["random", "entropy"])
    accuracies = {
        "random": ([0.50, 0.60, 0.70], [0.50, 0.50, 0.50], [0.80, 0.80], [0.70, 0.90]),
        "entropy": ([0.50, 0.70, 0.90], [0.50, 0.60, 0.80], [0.80, 0.90], [0.70, 0.80]),
        "mine": ([0.60, 0.60, 0.60], [0.70, 0.70, 0.70], [0.80, 0.80], [0.70, 0.70]),
    }
    found = []
    for method, curves in accuracies.items():
        found.append(
            submission(protocol, lock, method, dict(zip(protocol.cases(), curves, strict=True)))
        )
    return Board(protocol, lock, tuple(found))


def test_areas_ranks_and_wins(board: Board) -> None:
    """Of the first block: random (10·55 + 20·65)/30, entropy (10·60 + 20·80)/30, mine 60."""
    assert board.cases == [
        Case("a", "one", 0),
        Case("a", "one", 1),
        Case("b", "one", 0),
        Case("b", "one", 1),
    ]
    expected = [
        [1850 / 30, 50.0, 80.0, 80.0],
        [2200 / 30, (550 + 1400) / 30, 85.0, 75.0],
        [60.0, 70.0, 80.0, 70.0],
    ]
    assert board.areas_MB == pytest.approx(np.array(expected))
    assert board.ranks_MB.tolist() == [[2, 3, 2.5, 1], [1, 2, 1, 2], [3, 1, 2.5, 3]]
    assert board.mean_ranks_M.tolist() == [8.5 / 4, 1.5, 9.5 / 4]
    assert board.order == [1, 0, 2]
    assert board.wins_M.tolist() == [1, 2, 1]
    assert board.mean_areas_M("b").tolist() == pytest.approx([80.0, 80.0, 75.0])
    assert newcomers(board) == [2]


def test_regret_is_to_the_best_mean_at_each_budget(board: Board) -> None:
    """On a: means 50 55 60, 50 65 85, 65 65 65; the best are 65, 65 and 85."""
    assert board.budgets_T("a") == [10, 20, 40]
    expected = [[15, 10, 25], [15, 0, 0], [0, 0, 20]]
    assert board.regret_MT("a") == pytest.approx(np.array(expected, float))
    # On b: means 75 85, 75 85, 75 75.
    assert board.regret_MT("b") == pytest.approx(np.array([[0, 0], [0, 0], [0, 10.0]]))
    on_a, on_b = np.array([50, 15, 20]) / 3, np.array([0, 0, 5])
    assert board.mean_regret_M == pytest.approx((on_a + on_b) / 2)


def test_differences_to_the_reference_are_paired_by_seed(board: Board) -> None:
    """Entropy less random on a: 350/30 and 15; t = mean/(half their distance), one degree."""
    found = {board.methods[place]: (d, p) for place, d, p in board.differences("a")}
    assert found.keys() == {"entropy", "mine"}
    difference, p = found["entropy"]
    first, second = 350 / 30, 15.0
    assert difference.mean == pytest.approx((first + second) / 2)
    assert difference.count == 2
    t = (first + second) / (second - first)
    raw = 1 - 2 / np.pi * np.arctan(t)
    assert difference.p == pytest.approx(raw)
    # The smaller of two p-values is doubled by Holm's method.
    mine = found["mine"][0]
    assert mine.p is not None
    assert raw < mine.p
    assert p == pytest.approx(2 * raw)


def test_pairs_over_all_blocks_are_corrected(board: Board) -> None:
    assert board.reference == 0
    random, entropy, mine = board.against_reference_M
    assert random is None
    # Four blocks hold too little for any p below 1/8.
    assert entropy is not None
    assert mine is not None
    assert min(entropy, mine) >= 0.125


def test_differences_of_equal_size_share_their_rank() -> None:
    """Beside fractions: sums of shares differ in their last digits where they are equal."""
    protocol, lock = made_up({"a": [10, 20, 40], "b": [5, 10]}, ["random", "mine"], seeds=range(4))
    generator = np.random.default_rng(0)
    for _ in range(40):
        curves = [
            {
                case: (generator.integers(0, 20, len(split.labels)) / 100).tolist()
                for case, split in lock.by_case.items()
            }
            for _ in range(2)
        ]
        board = Board(
            protocol,
            lock,
            tuple(
                submission(protocol, lock, method, of)
                for method, of in zip(("random", "mine"), curves, strict=True)
            ),
        )
        assert board.against_reference_M[1] == signed_rank(_whole_differences(board))


def _whole_differences(board: Board) -> list[float]:
    """Return the differences of the areas of two methods, block by block, as whole numbers."""

    def area(run: RunLine) -> int:
        hundredths = [round(100 * value) for value in run.accuracy]
        pairs = pairwise(zip(run.labels, hundredths, strict=True))
        whole = sum((right[0] - left[0]) * (left[1] + right[1]) for left, right in pairs)
        return 30 * whole // (run.labels[-1] - run.labels[0])

    first, second = (submission.by_case for submission in board.submissions)
    return [float(area(second[case]) - area(first[case])) for case in board.cases]


def test_all_are_one_group_where_friedman_shows_no_difference() -> None:
    """Six methods, seven blocks: mean ranks further apart than the critical difference."""
    protocol, lock = made_up({"a": [10, 20]}, ["m0"], seeds=range(7))
    generator = np.random.default_rng(0)
    for _ in range(2000):
        ranks = np.array([generator.permutation(6) for _ in range(7)])
        board = Board(
            protocol,
            lock,
            tuple(
                submission(
                    protocol,
                    lock,
                    f"m{m}",
                    {c: [r / 100] * 2 for c, r in zip(protocol.cases(), ranks[:, m], strict=True)},
                )
                for m in range(6)
            ),
        )
        ordered = board.mean_ranks_M[board.order]
        assert board.friedman is not None
        assert board.critical_difference is not None
        if board.friedman.p >= 0.05 and ordered[-1] - ordered[0] > board.critical_difference:
            break
    else:
        raise AssertionError("no such board in 2000")
    assert board.groups == [(0, 5)]


def test_splits_are_averaged_before_seeds_are_compared() -> None:
    protocol, lock = made_up({"a": [1, 2]}, ["random", "best"], ["one", "two"], [3, 4])
    of = {case: [0.5, 0.5] for case in protocol.cases()}
    better = {
        case: [0.5 + gain, 0.5 + gain]
        for case, gain in zip(protocol.cases(), (0.1, 0.2, 0.3, 0.4), strict=True)
    }
    submissions = (
        submission(protocol, lock, "random", of),
        submission(protocol, lock, "best", better),
    )
    ((_, difference, _),) = Board(protocol, lock, submissions).differences("a")
    # Seed 3 has (10 + 30)/2, seed 4 has (20 + 40)/2.
    assert (difference.count, difference.mean) == (2, pytest.approx(25.0))
