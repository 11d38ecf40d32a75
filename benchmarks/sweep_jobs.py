"""Throughput of a sweep: one run at a time, two at a time, and one on a single core.

    uv run python benchmarks/sweep_jobs.py --data uoft-cs/cifar10

A run by itself already serves as many clients at a time as there are cores. So two numbers
count: how much the machine does with two runs at a time against one (which shows what is left
idle by one), and against one run that has a single core (which shows what the runs cost each
other). Each way does the same runs from start to end, processes included; they take turns,
since a shared machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ahfal_app.results.environment import describe_environment
from ahfal_app.results.reading import read_run

_FILE = """
title: throughput
base: {base}
max-train-samples: 10000
rounds: 10
cycles: 1
sweep: {{strategy: [ahfal], seed: {seeds}}}
"""

#: Name, runs at the same time, and whether all of it stays on one core.
_WAYS = (("one job", 1, False), ("two jobs", 2, False), ("one job on one core", 1, True))

_CONFIG = Path(__file__).parent.parent / "conf" / "cifar10.yaml"


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    environment = describe_environment(
        class_names=[], data_fingerprint="", partition_fingerprint=None
    )
    result: dict[str, Any] = {
        "benchmark": "sweep_jobs",
        "environment": environment,
        "data": arguments.data_note or arguments.data,
        "settings": "as scale small, one cycle",
        "runs": arguments.runs,
        "seconds": {name: [] for name, _, _ in _WAYS},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(arguments.repeats):
        for name, jobs, one_core in _WAYS:
            seconds, seen = _sweep(arguments.data, arguments.runs, jobs, one_core)
            result["seconds"][name].append(seconds)
            result["data_fingerprint"] = seen
            print(f"{name}: {arguments.runs} runs in {seconds:.1f} s", flush=True)
            result["throughput_of_two_jobs"] = _ratios(result["seconds"])
            arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for name, ratio in result["throughput_of_two_jobs"].items():
        print(f"two jobs: {ratio:.2f} times the throughput of {name}")


def _sweep(data: str, runs: int, jobs: int, one_core: bool) -> tuple[float, str]:
    """Return the seconds that a sweep takes, and the fingerprint of its data."""

    def stay_on_one_core() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "throughput.yaml", Path(folder) / "out"
        file.write_text(_FILE.format(base=_CONFIG.resolve(), seeds=list(range(runs))))
        command = [sys.executable, "-m", "ahfal_app", "sweep", str(file), "--out", str(out)]
        command += ["--jobs", str(jobs), f"dataset={data}", "compile=never"]
        start = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=stay_on_one_core if one_core else None,
        )
        seconds = time.perf_counter() - start
        done = [read_run(path) for path in (out / "runs").iterdir()]
    if len(done) != runs or not all(run.summary["complete"] for run in done):
        raise SystemExit(f"{len(done)} of {runs} runs were done")
    return seconds, str(done[0].environment["data"]["fingerprint"])


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the throughput of two jobs over that of the others, from median times."""
    medians = {name: statistics.median(times) for name, times in seconds.items() if times}
    two = medians.get("two jobs")
    if two is None:
        return {}
    return {name: value / two for name, value in medians.items() if name != "two jobs"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="uoft-cs/cifar10", help="as the setting `dataset`")
    parser.add_argument("--data-note", default="", help="what the data is, for the results")
    parser.add_argument("--runs", type=int, default=4, help="in each sweep")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "sweep_jobs.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
