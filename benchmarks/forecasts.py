"""What forecasts from the first cycles of recorded runs would have said of their last one.

    uv run python benchmarks/forecasts.py

Reads `summaries.jsonl` of the folders of `results/` and writes `results/forecasts/`: a page and a
table of every forecast. The same runs give the same files.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ahfal_app.parameters import Scalar
from ahfal_app.results.forecast import forecast_budget
from ahfal_app.stopping import CycleResult, StoppingRule, make_rule

ROOT = Path(__file__).parents[1]

#: Experiments whose runs have enough cycles, and how many of these a forecast is made from.
EXPERIMENTS = {
    "pretrained-few-labels": (4, 5, 6),
    "strategies-digits": (4, 5),
    "feal-digits": (4, 5),
    "table1-small": (4, 5),
}

#: The experiment that is shown strategy by strategy, and from how many cycles.
_DETAIL = ("pretrained-few-labels", 5)

#: Parameters of `stopping=gain`: its defaults, more patience, and one that stops more.
_RULES: tuple[dict[str, Scalar], ...] = (
    {"least": 0.005, "patience": 1},
    {"least": 0.005, "patience": 2},
    {"least": 0.02, "patience": 1},
    {"least": 0.02, "patience": 2},
)

_TESTS = 10**6


@dataclass(frozen=True)
class Case:
    """One forecast of a run's last test accuracy, and what that was; accuracies are shares."""

    experiment: str
    strategy: str
    seed: int
    points: int
    labels: int
    target_labels: int
    low: float
    forecast: float
    high: float
    run_low: float
    run_high: float
    last: float
    observed: float

    @property
    def is_covered(self) -> bool:
        """Whether the interval of the curve has what was observed."""
        return self.low <= self.observed <= self.high

    @property
    def is_covered_as_a_run(self) -> bool:
        """Whether the interval of a run has what was observed."""
        return self.run_low <= self.observed <= self.run_high

    @property
    def error(self) -> float:
        """Forecast less what was observed, in points."""
        return 100 * (self.forecast - self.observed)

    @property
    def error_of_last(self) -> float:
        """The same of whoever says that nothing changes any more."""
        return 100 * (self.last - self.observed)


def cases(results: Path) -> list[Case]:
    """Return a forecast for each run and number of points."""
    return [
        case
        for experiment, numbers in EXPERIMENTS.items()
        for run in _runs(results, experiment)
        for case in _of_run(experiment, run, numbers)
    ]


def _runs(results: Path, experiment: str) -> Iterator[dict]:
    """Yield the summaries of an experiment's runs; older files have nothing else in a line."""
    for line in (results / experiment / "summaries.jsonl").read_text("utf-8").splitlines():
        found = json.loads(line)
        yield found.get("summary", found)


def _of_run(experiment: str, run: dict, numbers: Sequence[int]) -> Iterator[Case]:
    labels, accuracies = run["labels_per_cycle"], run["accuracy_per_cycle"]
    for points in numbers:
        budget = labels[-1] - labels[points - 1]
        told = forecast_budget(labels[:points], accuracies[:points], budget, budget, 0.0)
        found, of_a_run = told.accuracy, told.of_a_run
        if found is None or of_a_run is None or not run["complete"]:
            continue
        yield Case(
            experiment,
            run["strategy"],
            run["seed"],
            points,
            labels[points - 1],
            labels[-1],
            found.low,
            found.point,
            found.high,
            of_a_run.low,
            of_a_run.high,
            accuracies[points - 1],
            accuracies[-1],
        )


def table(found: Sequence[Case], by_strategy: bool) -> list[str]:
    """Return a table of coverage and errors, a row for each experiment or strategy."""
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in found:
        name = case.strategy if by_strategy else case.experiment
        until = () if by_strategy else (f"{case.points}", f"{case.labels} → {case.target_labels}")
        groups.setdefault((name, *until), []).append(case)
    heads = ["strategy"] if by_strategy else ["experiment", "points", "labels"]
    heads += ["runs", "in the run's interval", "its width", "in the curve's", "its width"]
    heads += ["error", "too high by", "no change at all"]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for key, group in groups.items():
        numbers = (
            f"{len(group)}",
            _share(sum(case.is_covered_as_a_run for case in group), len(group)),
            f"{statistics.median(100 * (case.run_high - case.run_low) for case in group):.1f}",
            _share(sum(case.is_covered for case in group), len(group)),
            f"{statistics.median(100 * (case.high - case.low) for case in group):.1f}",
            f"{statistics.fmean(abs(case.error) for case in group):.1f}",
            f"{statistics.fmean(case.error for case in group):+.1f}",
            f"{statistics.fmean(abs(case.error_of_last) for case in group):.1f}",
        )
        lines.append(f"| {' | '.join((*key, *numbers))} |")
    return lines


def _share(count: int, whole: int) -> str:
    return f"{count} ({100 * count / whole:.0f} %)"


@dataclass(frozen=True)
class Ended:
    """Where `stopping=gain` would have ended a run; accuracies are shares.

    `saved` is a share of the labels of the whole run; 0 where it would have gone through.
    """

    experiment: str
    saved: float
    lost: float


def ended_by_gain(results: Path, parameters: dict[str, Scalar]) -> list[Ended]:
    """Return for each run where the rule would have ended it, and what it would have lost."""
    rule = make_rule("gain", parameters)
    return [
        _ended(experiment, run, rule)
        for experiment in EXPERIMENTS
        for run in _runs(results, experiment)
    ]


def _ended(experiment: str, run: dict, rule: StoppingRule) -> Ended:
    labels, accuracies = run["labels_per_cycle"], run["accuracy_per_cycle"]
    # The rule goes by accuracies, and not by how many tests these are of.
    history = [
        CycleResult(n, round(y * _TESTS), _TESTS) for n, y in zip(labels, accuracies, strict=True)
    ]
    ends = [end for end in range(1, len(history)) if rule.stops(history[:end])]
    last = ends[0] - 1 if ends else len(history) - 1
    return Ended(experiment, 1 - labels[last] / labels[-1], accuracies[-1] - accuracies[last])


def gain_table(results: Path) -> list[str]:
    """Return a table of what the rule would have saved and lost."""
    heads = ("experiment", "least", "patience", "runs", "ended", "labels saved", "lost", "at most")
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for experiment in EXPERIMENTS:
        for parameters in _RULES:
            group = [
                each for each in ended_by_gain(results, parameters) if each.experiment == experiment
            ]
            ended = [each for each in group if each.saved > 0]
            numbers = ["–", "–", "–"]
            if ended:
                numbers = [
                    f"{100 * statistics.fmean(each.saved for each in ended):.0f} %",
                    f"{100 * statistics.fmean(each.lost for each in ended):+.1f}",
                    f"{100 * max(each.lost for each in ended):+.1f}",
                ]
            cells = (
                experiment,
                *map(str, parameters.values()),
                f"{len(group)}",
                f"{len(ended)}",
                *numbers,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def words(found: Sequence[Case]) -> str:
    """Return what the forecasts say, with their numbers."""
    as_runs = _share(sum(case.is_covered_as_a_run for case in found), len(found))
    as_curves = _share(sum(case.is_covered for case in found), len(found))
    nearer = []
    for experiment in EXPERIMENTS:
        group = [case for case in found if case.experiment == experiment]
        count = sum(abs(case.error) < abs(case.error_of_last) for case in group)
        nearer.append(f"in {count} of {len(group)} cases of `{experiment}`")
    return (
        f"Of {len(found)} forecasts, {as_runs} of the intervals *of a run* hold what came. They "
        "are wide: from four points next to nothing is known. The intervals *of the curve* tell "
        f"how far its bend is known and no more: {as_curves} of them hold what came, so that they "
        "are no bounds of a single run. The forecast is nearer to what came than the last "
        f"accuracy, taken as it is, {', '.join(nearer)}: where a curve is nearly flat and runs "
        "scatter, as on digits, it is no better than that. Seeds of one strategy, and numbers of "
        "points of one run, are no independent trials."
    )


def write(found: Sequence[Case], results: Path, folder: Path) -> None:
    """Write the page and the table of every forecast."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "forecasts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Case)])
        # Sums of other processors' libraries may differ in the last digits.
        writer.writerows([_rounded(value) for value in astuple(case)] for case in found)
    (folder / "README.md").write_text("\n".join(page(found, results)) + "\n", encoding="utf-8")


def _rounded(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


def page(found: Sequence[Case], results: Path) -> list[str]:
    """Return the lines of the page."""
    detail = [case for case in found if (case.experiment, case.points) == _DETAIL]
    return [
        "# Forecasts, and what came",
        "",
        "What `ahfal forecast --budget` would have said of a run's last test accuracy by its first",
        "cycles, against what it was. Made by `uv run python benchmarks/forecasts.py` from the",
        "summaries of the runs; every forecast is in [forecasts.csv](forecasts.csv).",
        "",
        words(found),
        "",
        *table(found, by_strategy=False),
        "",
        f"`{_DETAIL[0]}` from {_DETAIL[1]} points, by strategy:",
        "",
        *table(detail, by_strategy=True),
        "",
        "Both intervals are of 95 %; widths are medians, errors are means, in points of accuracy.",
        "*Error* is without its sign, *too high by* with it. *No change at all* is the error of",
        "whoever takes the accuracy that the run has for its last.",
        "",
        "## Where `stopping=gain` would have ended these runs",
        "",
        "By the upper end of the curve's interval. Labels saved are a share of the whole run's,",
        "and what is lost are points of its last accuracy, in the mean of the runs that it would",
        "have ended, and at most; below 0, the run got worse afterwards. In runs of six to eight",
        "cycles a dip of the accuracy looks like the end of the curve; a second cycle in which the",
        "rule has to hold takes most of that away.",
        "",
        *gain_table(results),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="their folder")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "forecasts")
    return parser.parse_args()


def main() -> None:
    """Write them anew."""
    arguments = _arguments()
    write(cases(arguments.results), arguments.results, arguments.out)


if __name__ == "__main__":
    main()
