"""Many clients in one process: memory and time per trained sample, with 10 and with 1,000.

Synthetic images of CIFAR-10's shape. Each number of clients runs in a process of its own, with
as many images a client, 10 % of them labelled at the start; two cycles of five rounds of five
local epochs. All of the few clients train in each round, and a tenth of the many; or, with
`--at-once`, as many of both, as many users of a large federation do.

    uv run python benchmarks/scale.py
    uv run python benchmarks/scale.py --clients 1000 10000 --at-once 100 --output scale_10000.json

The few clients are measured before and after the many, since a shared machine's speed drifts.
Reported are the seconds of a round's training and aggregation over the samples trained on (the
median over the rounds after the first, which pays for what is set up once), the seconds from one
round's end to the next one's over the same, records and checkpoint among them, the processor's
seconds of these (which other programs change less) and of the whole run over all samples, those
until all clients have joined over the clients, and the most memory that the process took, beside
the size of the images. With `--at-once` the run is one of logistic regression on small grey images,
all of them labelled, so that what clients cost besides their training shows.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from ahfal_app.engine.local import simulate
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import read_run
from ahfal_app.results.records import RoundRecord

_CLASSES = 10
_TEST_IMAGES = 1000

#: Images that differ; with more of them they come again.
_DISTINCT = 20_000


@dataclass(frozen=True)
class Work:
    """What the clients have and do: the shape of their images, and settings."""

    side: int
    channels: int
    epochs: int
    settings: dict[str, object]


_WHOLE = Work(
    32,
    3,
    5,
    {
        "partition": "dirichlet-balanced",
        "alpha": 1.0,
        "model": "resnet8",
        "rounds": 5,
        "cycles": 2,
        "compile": "never",
    },
)
_AT_ONCE = Work(
    28,
    1,
    1,
    {
        "partition": "iid",
        "model": "linear",
        "batch-size": 10,
        "learning-rate": 0.03,
        "momentum": 0.0,
        "weight-decay": 0.0,
        "augment": "none",
        "strategy": "random",
        "initial-fraction": 1.0,
        "target-fraction": 1.0,
        "rounds": 40,
        "cycles": 1,
    },
)


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    result: dict[str, Any] = {
        "benchmark": "scale",
        "environment": describe_environment(
            class_names=[], data_fingerprint="", partition_fingerprint=None
        ),
        "runs": [],
    }
    few, many = arguments.clients
    work = _AT_ONCE if arguments.at_once else _WHOLE
    images = arguments.images or (50 if arguments.at_once else 500)
    result["images_per_client"], result["work"] = images, asdict(work)
    around = [few] * arguments.repeats
    for clients in (*around, many, *around):
        fraction = arguments.fraction if clients == many else 1.0
        if arguments.at_once:
            fraction = arguments.at_once / clients
        load = os.getloadavg()[0]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured = pool.apply(_measure, (clients, images, fraction, work))
        measured["load_before"] = load
        result["runs"].append(measured)
        print(json.dumps(measured), flush=True)
    for measure in (
        "seconds_per_sample",
        "whole_seconds_per_sample",
        "round_processor_seconds_per_sample",
        "joining_processor_seconds_per_client",
        "processor_seconds_per_sample",
        "memory_beyond_images_mib",
        "most_memory_mib",
    ):
        ratio = _ratio(result["runs"], many, measure)
        result[f"{measure}_ratio"] = ratio
        print(f"{measure}: {ratio:.2f} times")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def _ratio(runs: list[dict[str, Any]], many: int, measure: str) -> float:
    """Return what many clients take, over the median of what few do."""
    of_many = next(run[measure] for run in runs if run["clients"] == many)
    return float(of_many / statistics.median(r[measure] for r in runs if r["clients"] != many))


class _Ends(Progress):
    """Notes when all have joined and when each round is over, by the clock and the processor's."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.joined = 0.0
        self.times: list[float] = []
        self.processor_times: list[float] = []

    def run_started(self, num_cycles: int, rounds: int, rounds_done: int = 0) -> None:
        super().run_started(num_cycles, rounds, rounds_done)
        self.joined = time.process_time()

    def round_done(self, record: RoundRecord) -> None:
        super().round_done(record)
        self.times.append(time.perf_counter())
        self.processor_times.append(time.process_time())


def _measure(clients: int, images: int, fraction: float, work: Work) -> dict[str, Any]:
    ends = _Ends()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images"
        _write_images(data, clients * images, work)
        before, start = _most_memory(), time.process_time()
        run = simulate(
            {
                "dataset": str(data),
                "data-dir": str(Path(folder) / "cache"),
                "output-dir": str(Path(folder) / "runs"),
                "num-clients": clients,
                "client-fraction": fraction,
                "local-epochs": work.epochs,
                **work.settings,
            },
            ends,
        )
        processor_seconds = time.process_time() - start
        rounds = read_run(run).metrics.rounds
    trained = [record.num_examples * work.epochs for record in rounds]
    of_rounds = [
        (record.seconds["train"] + record.seconds["aggregate"]) / samples
        for record, samples in zip(rounds, trained, strict=True)
    ]
    whole, processor = (
        [
            (end - before_it) / samples
            for (before_it, end), samples in zip(pairwise(times), trained[1:], strict=True)
        ]
        for times in (ends.times, ends.processor_times)
    )
    image_mib = clients * images * work.side**2 * work.channels / 2**20
    return {
        "clients": clients,
        "clients_in_each_round": [record.clients for record in rounds],
        "image_mib": image_mib,
        "most_memory_mib": _most_memory(),
        "memory_beyond_images_mib": _most_memory() - image_mib,
        "memory_before_mib": before,
        "trained_samples": sum(trained),
        "seconds_per_sample_of_rounds": of_rounds,
        "seconds_per_sample": statistics.median(of_rounds[1:]),
        "whole_seconds_per_sample": statistics.median(whole),
        "round_processor_seconds_per_sample": statistics.median(processor),
        "joining_processor_seconds_per_client": (ends.joined - start) / clients,
        "processor_seconds_per_sample": processor_seconds / sum(trained),
    }


def _write_images(folder: Path, count: int, work: Work) -> None:
    """Write a data set as parquet files, with the columns `img` and `label`."""
    draw = np.random.default_rng(0)
    centres = draw.integers(40, 216, (_CLASSES, 4, 4, work.channels))
    for split, size in (("train", count), ("test", _TEST_IMAGES)):
        target = folder / "data" / f"{split}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        labels = draw.integers(0, _CLASSES, min(size, _DISTINCT))
        images = [{"bytes": _png(centres[c], draw, work), "path": None} for c in labels]
        table = pa.table({"img": images, "label": labels})
        with pq.ParquetWriter(target, table.schema) as writer:
            for start in range(0, size, _DISTINCT):
                writer.write_table(table.slice(0, size - start))


def _png(centre: np.ndarray, draw: np.random.Generator, work: Work) -> bytes:
    blocks = np.ones((work.side // 4, work.side // 4, 1))
    noise = draw.integers(-40, 40, (work.side, work.side, 1))
    pixels = (np.kron(centre, blocks) + noise).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if work.channels == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _most_memory() -> float:
    """Return the most memory that this process has taken, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs=2, default=[10, 1000], metavar=("FEW", "MANY"))
    parser.add_argument("--images", type=int, help="of each client; 500, or 50 with --at-once")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the many in a round")
    parser.add_argument("--at-once", type=int, help="clients of a round, of the few and the many")
    parser.add_argument("--repeats", type=int, default=2, help="of the few, before and after")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "scale.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
