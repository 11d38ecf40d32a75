"""A run's folder as a run writes it, without training anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ahfal_app.config import parse_settings
from ahfal_app.ledger import Ledger
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.records import CycleRecord, Failure, RoundRecord
from ahfal_app.results.run_folder import Recorder, describe_partition, new_run_folder
from ahfal_app.results.selections import write_client_selection
from ahfal_app.seeds import numpy_generator

CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TAU = 12.0


def make_fake_run(
    parent: Path,
    *,
    name: str = "",
    class_names: Sequence[str] = CIFAR10,
    num_clients: int = 10,
    samples: int = 5000,
    rounds: int = 10,
    cycles_done: int = 6,
    failures: Sequence[Failure] = (),
    evaluate_rounds: bool = False,
    simulated: bool = True,
    **values: object,
) -> Path:
    """Write `cycles_done` of six cycles of a run and return its folder."""
    settings = parse_settings(
        {"output-dir": str(parent), "dataset": "uoft-cs/cifar10", "rounds": rounds, "name": name}
        | {key.replace("_", "-"): value for key, value in values.items()}
    )
    folder = new_run_folder(settings)
    recorder = Recorder(folder)
    random = numpy_generator(7, "fake run")
    num_classes = len(class_names)
    counts_KC = np.floor(samples * random.dirichlet(np.full(num_classes, 0.3), size=num_clients))
    recorder.start(
        settings,
        describe_environment(
            class_names=class_names,
            data_fingerprint="d" * 64,
            partition_fingerprint="e" * 64 if simulated else None,
        ),
        describe_partition(counts_KC, "e" * 64) if simulated else None,
    )
    share_KC = counts_KC / counts_KC.sum(axis=1, keepdims=True)
    budget = samples // 20
    for cycle in range(cycles_done):
        for number in range(1, rounds + 1):
            progress = cycle + number / rounds
            recorder.record(
                RoundRecord(
                    cycle=cycle,
                    round=number,
                    clients=num_clients,
                    failed=tuple(failures) if (cycle, number) == (0, 2) else (),
                    num_examples=num_clients * (2 + cycle) * budget,
                    train_loss=0.2 + 2 * np.exp(-number / 3) / (1 + 0.3 * cycle),
                    test_accuracy=0.7 - 0.5 * np.exp(-progress) if evaluate_rounds else None,
                    seconds={"train": 7.5 + cycle + random.random(), "aggregate": 0.11},
                    bytes_down=num_clients * 311_784,
                    bytes_up=num_clients * 311_912,
                )
            )
        is_last = cycle == 5
        shrunk_KC = 1 / num_classes + (share_KC - 1 / num_classes) * max(0.55, 1 - 0.3 * cycle)
        deviation_C = shrunk_KC.std(axis=0)
        labels = num_clients * (2 + cycle) * budget
        bought = 0 if is_last else num_clients * budget
        accuracy = 0.66 - 0.3 * np.exp(-0.5 * (cycle + 0.5))
        class_accuracy = np.clip(
            accuracy
            + 0.15 * np.sin(np.arange(num_classes))
            + 0.02 * random.normal(size=num_classes),
            0,
            1,
        ).tolist()
        recorder.record(
            CycleRecord(
                cycle=cycle,
                labels=labels,
                labels_per_client=(labels // num_clients,) * num_clients,
                accuracy=accuracy,
                class_accuracy=class_accuracy,
                loss=1.6 - 0.12 * cycle,
                mean=None if is_last else shrunk_KC.mean(axis=0),
                deviation=None if is_last else deviation_C,
                low=None if is_last else 100 * deviation_C < TAU,
                tau=TAU,
                budget=bought,
                bought=bought,
                ledger=Ledger(
                    allotted=7 * num_clients * budget,
                    spent=labels + bought,
                    reserved=0,
                    free=7 * num_clients * budget - labels - bought,
                ),
                seconds={"evaluate": 1.9, "statistics": 0.21, "select": 0 if is_last else 4.2},
                bytes_down=num_clients * 312_500,
                bytes_up=num_clients * 1_240,
            )
        )
        if simulated and not is_last:
            for client in range(num_clients):
                classes_N = random.choice(num_classes, size=budget, p=share_KC[client])
                write_client_selection(
                    folder,
                    cycle=cycle,
                    client=client,
                    sample_ids=np.arange(cycle * budget, (cycle + 1) * budget),
                    classes=classes_N,
                    pseudo_classes=classes_N,
                    scores=random.random(budget),
                )
    recorder.finish()
    return folder
