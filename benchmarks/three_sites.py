"""Three sites whose labels come from three kinds of oracles, against the run in one process.

A part of CIFAR-10 is split over three sites. On this machine start, as the compose files start
them, a SuperLink and three SuperNodes with TLS and registered keys. At the first site a script
answers in Label Studio, over its API; at the second one a script fills in files; the third one
has the simulated oracle. All answers are the true labels. Then the same run is rehearsed in this
process: simulated oracles everywhere, the same seed. Accuracies, labels and the final model must
be equal to the last bit, else the exit code is 1.

    uv sync --extra label-studio
    uv run python benchmarks/three_sites.py --data cifar10 --label-studio label-studio

`cifar10` is a folder with `train*.parquet` and `test*.parquet`, which have a column of images and
one of labels; `label-studio` is the program of an installation of its own. Results go to
`results/three-sites`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from flwr.app import Context, Message
from rich.console import Console

from ahfal_app.client_app import app as client_app
from ahfal_app.deployment.certificates import write_certificates
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.labels.exchange import find_store, verify_store
from ahfal_app.labels.store import LabelStore
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import Run, read_run
from ahfal_app.results.report import write_report
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "results" / "three-sites"

sys.path.insert(0, str(_ROOT / "tests"))

from cifar_sites import Plan, SiteImages, write_data  # noqa: E402
from support.deployment import deployment  # noqa: E402
from support.hospitals import Labeller, Trial  # noqa: E402
from support.studio import TOKEN, annotator_at_work, label_studio  # noqa: E402

_ORACLES = {"site-1": "label-studio", "site-2": "files", "site-3": "simulated"}
_SITES = tuple(_ORACLES)
_STUDIO_SITE, _FILES_SITE, _PARQUET_SITE = _SITES

#: Three cycles of three rounds.
_SETTINGS: dict[str, object] = {
    "partition": "sites",
    "num-clients": len(_SITES),
    "model": "resnet8",
    "strategy": "ahfal",
    "rounds": 3,
    "local-epochs": 1,
    "batch-size": 16,
    "initial-fraction": 0.1,
    "query-fraction": 0.05,
    "target-fraction": 0.2,
    "quorum": 1.0,
    "start-timeout": 600.0,
    "round-timeout": 900.0,
    "label-deadline": 3600.0,
}

_PUBLISHED = ("config.yaml", "metrics.jsonl", "summary.json", "environment.json")


@dataclass
class ThreeSites(Trial):
    """Sites that differ in who answers.

    Attributes
    ----------
    studio : str
        Label Studio's address.
    """

    studio: str = ""

    def node_config(self, site: str) -> str:
        """Return what a site says of itself."""
        root = self.folder / "sites" / site
        values = _node(self.folder, site, _ORACLES[site], self.state(site))
        if site == _STUDIO_SITE:
            values |= {"oracle-url": self.studio, "oracle-token-file": str(root / "token")}
        elif site == _FILES_SITE:
            values |= {"oracle-dir": str(self.labeller.folders[site])}
        else:
            values |= {"truth": str(root / "truth.csv")}
        return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    plan = Plan(
        _SITES,
        _PARQUET_SITE,
        arguments.images,
        arguments.test_images,
        arguments.alpha,
        arguments.seed,
    )
    with tempfile.TemporaryDirectory(prefix="ahfal-three-sites-") as name:
        work = Path(name)
        os.environ["AHFAL_TEST"] = name
        sites = write_data(arguments.data, work, plan)
        settings = {**_SETTINGS, "dataset": str(work / "test-set"), "seed": arguments.seed}
        runs = {"deployment": _deployed(work, settings, sites, arguments.label_studio)}
        runs["in-process"] = _rehearsed(work, settings)
        outcome = Outcome(work, sites, runs)
        _write(arguments.output, outcome, settings, plan)
    print(json.dumps(outcome.equal))
    sys.exit(not all(outcome.equal.values()))


def _deployed(
    work: Path, settings: Mapping[str, object], sites: Mapping[str, SiteImages], program: str
) -> Path:
    """Run on real processes, with labels from each site's own oracle; return the run's folder."""
    write_certificates(work / "certificates", [], _SITES)
    (work / "label-studio").mkdir()
    (work / "sites" / _STUDIO_SITE / "token").write_text(f"{TOKEN}\n")
    folders = {_FILES_SITE: work / "sites" / _FILES_SITE / "to-label"}
    labeller = Labeller(folders, sites[_FILES_SITE].truth)
    with ExitStack() as stack:
        studio = stack.enter_context(label_studio(work / "label-studio", [program]))
        running = stack.enter_context(deployment(work, work / "certificates"))
        stack.enter_context(annotator_at_work(studio, sites[_STUDIO_SITE].contents.__getitem__))
        stack.enter_context(labeller.at_work())
        trial = ThreeSites(work, running, labeller, work / "cache", _SITES, stack, studio=studio)
        trial.start()
        trial.run(**settings)
        trial.end()
    return trial.run_folder


def _rehearsed(work: Path, settings: Mapping[str, object]) -> Path:
    """Run in this process, with simulated oracles everywhere; return the run's folder."""
    nodes = [
        _node(work, site, "simulated", _rehearsal_state(work, site)) | {"truth": str(truth)}
        for site in _SITES
        for truth in [work / "sites" / site / "truth.csv"]
    ]

    def handler(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        context.node_config = nodes[int(str(partition))]  # type: ignore[assignment]
        return client_app(message, context)

    folders = {"output-dir": str(work / "rehearsal"), "data-dir": str(work / "cache")}
    start = prepare({**settings, **folders})
    with InProcessGrid(handler, len(_SITES)) as grid:  # type: ignore[arg-type]
        return execute(start, grid, Progress(Console()))


def _node(work: Path, site: str, oracle: str, state: Path) -> dict[str, object]:
    """Return what each site says of itself, whoever answers there."""
    return {
        "partition-id": _SITES.index(site),
        "num-partitions": len(_SITES),
        "data": str(work / "sites" / site / "images"),
        "state-dir": str(state),
        "data-dir": str(work / "cache"),
        "oracle": oracle,
    }


def _rehearsal_state(work: Path, site: str) -> Path:
    return work / "rehearsal-state" / site


@dataclass(frozen=True)
class Outcome:
    """Both runs, and what the label stores hold after them.

    Attributes
    ----------
    work : Path
        Where all of it lies.
    sites : Mapping[str, SiteImages]
        What is true of the sites' images.
    runs : Mapping[str, Path]
        The runs' folders.
    """

    work: Path
    sites: Mapping[str, SiteImages]
    runs: Mapping[str, Path]

    @cached_property
    def labels(self) -> dict[str, dict[str, tuple[str, str]]]:
        """Class and annotator by file, of each site in the deployment."""
        return {site: _labels(self.work / "sites" / site / "state") for site in _SITES}

    @cached_property
    def accuracies(self) -> list[list[float]]:
        """Accuracy after each cycle, of each run."""
        return [[c.accuracy for c in read_run(run).metrics.cycles] for run in self.runs.values()]

    @cached_property
    def equal(self) -> dict[str, bool]:
        """What is equal between the runs; and whether all labels are true."""
        bought = {site: _classes(labels) for site, labels in self.labels.items()}
        rehearsed = {s: _classes(_labels(_rehearsal_state(self.work, s))) for s in _SITES}
        models = [(run / "model.safetensors").read_bytes() for run in self.runs.values()]
        return {
            "accuracy_per_cycle": self.accuracies[0] == self.accuracies[1],
            "model": models[0] == models[1],
            "labels": bought == rehearsed,
            "labels_are_true": all(
                bought[site].items() <= self.sites[site].truth.items() for site in _SITES
            ),
        }


def _labels(state: Path) -> dict[str, tuple[str, str]]:
    """Return class and annotator by file, of a label store that is sound."""
    names = verify_store(state).class_names
    store = LabelStore.open_existing(find_store(state))
    try:
        entries = store.entries()
    finally:
        store.close()
    return {str(e.file): (names[e.label], str(e.annotator)) for e in entries if e.label is not None}


def _classes(labels: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {file: label for file, (label, _) in labels.items()}


def _write(output: Path, outcome: Outcome, settings: Mapping[str, object], plan: Plan) -> None:
    """Write what came out, and both runs' own files."""
    output.mkdir(parents=True, exist_ok=True)
    known = read_run(outcome.runs["in-process"]).environment
    result = {
        "benchmark": "three_sites",
        "data": "CIFAR-10, JPEG-compressed",
        "environment": describe_environment(
            class_names=known["data"]["class_names"],
            data_fingerprint=known["data"]["fingerprint"],
            partition_fingerprint=None,
        ),
        "resolved": known["resolved"],
        "settings": {**settings, "dataset": _shown(str(settings["dataset"]), outcome.work)},
        "plan": asdict(plan),
        "sites": {site: _describe_site(outcome, site) for site in _SITES},
        "runs": {name: _describe_run(read_run(run)) for name, run in outcome.runs.items()},
        "equal": outcome.equal,
    }
    (output / "three-sites.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, run in outcome.runs.items():
        _publish(run, output / name, outcome.work)


def _describe_site(outcome: Outcome, site: str) -> dict[str, Any]:
    labels = outcome.labels[site]
    return {
        "oracle": _ORACLES[site],
        "images": len(outcome.sites[site].truth),
        "images_per_class": dict(sorted(Counter(outcome.sites[site].truth.values()).items())),
        "labels": len(labels),
        "labels_by_annotator": dict(Counter(annotator for _, annotator in labels.values())),
    }


def _describe_run(run: Run) -> dict[str, Any]:
    rounds, cycles = run.metrics.rounds, run.metrics.cycles
    seconds = [sum(record.seconds.values()) for record in rounds]
    return {
        "accuracy_per_cycle": [cycle.accuracy for cycle in cycles],
        "labels_per_cycle": [cycle.labels for cycle in cycles],
        "labels_per_site": [cycle.labels_per_client for cycle in cycles],
        "failures": run.metrics.num_failures,
        "seconds_per_round": {"median": median(seconds), "all": seconds},
        "seconds_of_purchases": [cycle.seconds for cycle in cycles],
    }


def _publish(run: Path, target: Path, work: Path) -> None:
    """Copy what tells of a run, without the folders of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / target.name
        copy.mkdir()
        for name in _PUBLISHED:
            (copy / name).write_text(_shown((run / name).read_text(), work))
        target.mkdir(exist_ok=True)
        for path in (*(copy / name for name in _PUBLISHED), write_report(copy)):
            shutil.copy(path, target / path.name)


def _shown(text: str, work: Path) -> str:
    return text.replace(f"{work}/", "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the data set")
    parser.add_argument("--label-studio", required=True, help="Label Studio's program")
    parser.add_argument("--images", type=int, default=1500, help="of all sites together")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
