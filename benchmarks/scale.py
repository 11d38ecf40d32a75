"""Many clients in one process: memory and time per trained sample, with 10 and with 1,000.

Synthetic images of CIFAR-10's shape. Each number of clients runs in a process of its own, with
as many images a client, 10 % of them labelled at the start; two cycles of five rounds of five
local epochs. All of the few clients train in each round, and a tenth of the many.

    uv run python benchmarks/scale.py

The few clients are measured before and after the many, since a shared machine's speed drifts.
Reported are the seconds of a round's training and aggregation over the samples trained on (the
median over the rounds after the first, which pays for what is set up once), the processor's
seconds of the whole run over all samples, and the most memory that the process took, beside the
size of the images.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
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

_SIDE, _CHANNELS, _CLASSES = 32, 3, 10
_TEST_IMAGES = 1000
_EPOCHS = 5


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    result: dict[str, Any] = {
        "benchmark": "scale",
        "environment": describe_environment(
            class_names=[], data_fingerprint="", partition_fingerprint=None
        ),
        "images_per_client": arguments.images,
        "runs": [],
    }
    few, many = arguments.clients
    for clients in (few, few, many, few, few):
        fraction = arguments.fraction if clients == many else 1.0
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured = pool.apply(_measure, (clients, arguments.images, fraction))
        result["runs"].append(measured)
        print(json.dumps(measured), flush=True)
    for measure in ("seconds_per_sample", "processor_seconds_per_sample"):
        ratio = _ratio(result["runs"], many, measure)
        result[f"{measure}_ratio"] = ratio
        print(f"{measure}: {ratio:.2f} times")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def _ratio(runs: list[dict[str, Any]], many: int, measure: str) -> float:
    """Return what many clients take, over the median of what few do."""
    of_many = next(run[measure] for run in runs if run["clients"] == many)
    return float(of_many / statistics.median(r[measure] for r in runs if r["clients"] != many))


def _measure(clients: int, images: int, fraction: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images"
        _write_images(data, clients * images)
        before, start = _most_memory(), time.process_time()
        run = simulate(
            {
                "dataset": str(data),
                "data-dir": str(Path(folder) / "cache"),
                "output-dir": str(Path(folder) / "runs"),
                "num-clients": clients,
                "client-fraction": fraction,
                "partition": "dirichlet-balanced",
                "alpha": 1.0,
                "model": "resnet8",
                "rounds": 5,
                "local-epochs": _EPOCHS,
                "cycles": 2,
                "compile": "never",
            },
            Progress(Console(quiet=True)),
        )
        processor_seconds = time.process_time() - start
        rounds = read_run(run).metrics.rounds
    samples = sum(record.num_examples for record in rounds) * _EPOCHS
    of_rounds = [
        (record.seconds["train"] + record.seconds["aggregate"]) / (record.num_examples * _EPOCHS)
        for record in rounds
    ]
    return {
        "clients": clients,
        "clients_in_each_round": [record.clients for record in rounds],
        "image_mib": clients * images * _SIDE * _SIDE * _CHANNELS / 2**20,
        "most_memory_mib": _most_memory(),
        "memory_before_mib": before,
        "trained_samples": samples,
        "seconds_per_sample_of_rounds": of_rounds,
        "seconds_per_sample": statistics.median(of_rounds[1:]),
        "processor_seconds_per_sample": processor_seconds / samples,
    }


def _write_images(folder: Path, count: int) -> None:
    """Write a data set as parquet files, with the columns `img` and `label`."""
    draw = np.random.default_rng(0)
    centres = draw.integers(40, 216, (_CLASSES, 4, 4, _CHANNELS))
    for split, size in (("train", count), ("test", _TEST_IMAGES)):
        target = folder / "data" / f"{split}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        labels = draw.integers(0, _CLASSES, size)
        writer: pq.ParquetWriter | None = None
        for start in range(0, size, 10_000):
            part = labels[start : start + 10_000]
            table = pa.table(
                {
                    "img": [{"bytes": _png(centres[c], draw), "path": None} for c in part],
                    "label": part,
                }
            )
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _png(centre: np.ndarray, draw: np.random.Generator) -> bytes:
    pixels = np.kron(centre, np.ones((8, 8, 1))) + draw.integers(-40, 40, (_SIDE, _SIDE, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _most_memory() -> float:
    """Return the most memory that this process has taken, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs=2, default=[10, 1000], metavar=("FEW", "MANY"))
    parser.add_argument("--images", type=int, default=500, help="of each client")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the many in a round")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "scale.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
