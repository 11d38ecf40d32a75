"""Accuracy of query strategies over several seeds: a table, a figure, and all numbers.

    python benchmarks/compare_strategies.py conf/digits.yaml --seeds 5 --output digits

Each run goes through the in-process engine. All strategies of a seed see the same split,
the same initial labels and the same initial models. Results are written after each run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from ahfal_app.config_sources import read_arguments
from ahfal_app.engine.local import run_in_process

RESULTS = Path(__file__).parent / "results"
#: Colours that the colour-blind tell apart (Okabe and Ito), markers for grey print.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"))
_PATHS = ("dataset", "data-dir", "output-dir", "name", "seed", "strategy")


def main() -> None:
    """Run the comparison from the command line."""
    arguments = _arguments()
    values = read_arguments(arguments.settings)
    runs: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for strategy in arguments.strategies:
            runs.append(_run(values, strategy, seed))
            _write(arguments, runs)
    print(_table(runs))


def _run(values: dict[str, object], strategy: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        settings = {**values, "strategy": strategy, "seed": seed, "output-dir": folder}
        run = run_in_process(settings, Console(quiet=True))
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
        environment: dict[str, Any] = json.loads((run / "environment.json").read_text())
        settings_used = (run / "config.yaml").read_text().splitlines()
    kept = [line for line in settings_used if line.split(":")[0] not in _PATHS]
    print(
        f"{strategy} seed {seed}: {[round(a, 4) for a in summary['accuracy_per_cycle']]}",
        flush=True,
    )
    return {
        "strategy": strategy,
        "seed": seed,
        "accuracy_per_cycle": summary["accuracy_per_cycle"],
        "labels_per_cycle": summary["labels_per_cycle"],
        "seconds": summary["seconds"]["total"],
        "settings": kept,
        "environment": environment,
    }


def _write(arguments: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    content = {
        "data": arguments.data_note,
        "settings": runs[0]["settings"],
        "environment": runs[0]["environment"],
        "summary": _summary(runs),
        "runs": [
            {k: v for k, v in run.items() if k not in ("settings", "environment")} for run in runs
        ],
    }
    path = RESULTS / f"{arguments.output}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    _figure(runs, arguments.data_note).savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    summary = {}
    for strategy in dict.fromkeys(run["strategy"] for run in runs):
        curves = [run["accuracy_per_cycle"] for run in runs if run["strategy"] == strategy]
        summary[strategy] = {
            "seeds": len(curves),
            "mean": [statistics.fmean(values) for values in zip(*curves, strict=True)],
            "std": [
                statistics.stdev(values) if len(values) > 1 else None
                for values in zip(*curves, strict=True)
            ],
        }
    return summary


def _table(runs: list[dict[str, Any]]) -> str:
    labels = runs[0]["labels_per_cycle"]
    lines = ["| labels | " + " | ".join(f"{count:,}" for count in labels) + " |"]
    lines.append("| --- |" + " --- |" * len(labels))
    for strategy, numbers in _summary(runs).items():
        cells = [
            f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")
            for mean, std in zip(numbers["mean"], numbers["std"], strict=True)
        ]
        lines.append(f"| `{strategy}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(runs: list[dict[str, Any]], title: str) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (strategy, numbers), (colour, marker) in zip(_summary(runs).items(), STYLES, strict=False):
        labels = next(r["labels_per_cycle"] for r in runs if r["strategy"] == strategy)
        mean = [100 * value for value in numbers["mean"]]
        spread = [100 * (value or 0) for value in numbers["std"]]
        axes.errorbar(labels, mean, spread, color=colour, marker=marker, capsize=3, label=strategy)
    axes.set(xlabel="labels, all clients together", ylabel="test accuracy in %", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", help="as for `ahfal run`")
    parser.add_argument("--strategies", nargs="+", default=["ahfal", "entropy", "random"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-note", default="", help="what the data is, for the results")
    parser.add_argument("--output", default="comparison", help="name of the result files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
