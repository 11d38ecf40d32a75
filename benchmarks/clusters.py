"""K-means from ten starts: ours, all starts side by side, beside scikit-learn's, one by one.

Both on one thread, in turns, as seconds of processor time; what is told are medians, and how good
the clusters are, as the sum of squared distances to their means. Points are of as many groups as
features of photographs would have, and random.

    uv run python benchmarks/clusters.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from ahfal_app.query.core.clustering import lloyd
from ahfal_app.results.environment import describe_environment

_STARTS, _GROUPS = 10, 10


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    torch.set_num_threads(1)
    points_ND = _points(arguments.points, arguments.width)
    result = {
        "benchmark": "clusters",
        "environment": describe_environment(
            class_names=[], data_fingerprint="", partition_fingerprint=None
        ),
        "points": arguments.points,
        "width": arguments.width,
        "starts": _STARTS,
        "clusters": {},
    }
    for number in arguments.clusters:
        result["clusters"][number] = _measured(points_ND, number, arguments.turns)
        print(number, json.dumps(result["clusters"][number]), flush=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def _measured(points_ND: torch.Tensor, number: int, turns: int) -> dict[str, object]:
    ways: dict[str, Callable[[int], NDArray[np.int64]]] = {
        "ours": lambda seed: lloyd(points_ND, number, _STARTS, np.random.default_rng(seed)),
        "scikit-learn": lambda seed: _scikit_learn(points_ND, number, seed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    spread: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name, way in ways.items():
            start = time.process_time()
            clusters_N = way(turn)
            seconds[name].append(time.process_time() - start)
            spread[name].append(_spread(points_ND, clusters_N))
    ratios = [t / o for t, o in zip(seconds["scikit-learn"], seconds["ours"], strict=True)]
    return {
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "spread": {name: statistics.fmean(found) for name, found in spread.items()},
        "times_as_fast": statistics.median(ratios),
        "turns": turns,
        "load": os.getloadavg()[0],
    }


def _scikit_learn(points_ND: torch.Tensor, number: int, seed: int) -> NDArray[np.int64]:
    model = KMeans(number, n_init=_STARTS, random_state=seed, algorithm="lloyd")
    with threadpool_limits(1):
        return model.fit_predict(points_ND.float().numpy()).astype(np.int64)


def _spread(points_ND: torch.Tensor, clusters_N: NDArray[np.int64]) -> float:
    groups = [points_ND[clusters_N == cluster] for cluster in np.unique(clusters_N)]
    return sum(float((group - group.mean(dim=0)).square().sum()) for group in groups)


def _points(count: int, width: int) -> torch.Tensor:
    """Return points of length 1 in groups that overlap, float64. Shape (N, D)."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(_GROUPS, width))
    values = centres[draw.integers(0, _GROUPS, count)] + 2 * draw.normal(size=(count, width))
    return torch.from_numpy(values / np.linalg.norm(values, axis=1, keepdims=True))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=5000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--clusters", type=int, nargs="+", default=[7, 50, 250])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "clusters.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
