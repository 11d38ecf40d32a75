"""What the server of a simulation knows of its clients' arrivals, and tests with them.

At real sites it knows what the sites tell, and nothing of this.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from ahfal_app.arrivals import Arrivals, ClientArrivals
from ahfal_app.config import Settings
from ahfal_app.results.arrival_rows import write_came
from ahfal_app.results.records import ArrivalTests
from ahfal_app.training.prediction import evaluate, predict
from ahfal_app.training.resources import Resources

_Chosen = Callable[[ClientArrivals], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class SimulatedArrivals:
    """The arrivals of a simulated run's clients, with the true classes of their samples.

    Attributes
    ----------
    settings : Settings
        The run's settings, with `num_clients` resolved.
    loaded : Resources
        Data and network.
    arrivals : Arrivals
        When samples arrive.
    folder : Path
        The run's folder, where each arrival is written down.
    """

    settings: Settings
    loaded: Resources
    arrivals: Arrivals
    folder: Path

    def count(self, client: int, cycle: int) -> int:
        """Return how many samples of a client have arrived by a cycle."""
        return self.arrivals.clients[client].arrived(cycle)

    def class_counts(self, cycle: int) -> NDArray[np.int64]:
        """Return the true class counts of what all clients have by a cycle. Shape (C,)."""
        return self._counted(lambda each: (each.cycle_N >= 0) & (each.cycle_N <= cycle))

    def new_class_counts(self, cycle: int) -> NDArray[np.int64]:
        """Return the true class counts of what comes first in a cycle. Shape (C,)."""
        return self._counted(lambda each: each.cycle_N == cycle)

    def unseen(self) -> int:
        """Return how many samples of all clients never arrive."""
        return sum(int(np.count_nonzero(each.cycle_N < 0)) for each in self.arrivals.clients)

    def drift_from_wanted(self, cycle: int) -> float | None:
        """Return the total variation between a cycle's arrivals and the class mix wanted of them.

        The mean over the clients, weighted by what arrives; None where nothing is wanted or comes.
        """
        distances, weights = [], []
        for each in self.arrivals.clients:
            mix_TC = self.arrivals.order.wanted_mix(each.stock)
            classes_N = each.stock.classes_N[each.cycle_N == cycle]
            if mix_TC is not None and len(classes_N):
                found_C = np.bincount(classes_N, minlength=self.loaded.num_classes)
                shares_C = found_C / len(classes_N)
                distances.append(0.5 * float(np.abs(shares_C - mix_TC[cycle]).sum()))
                weights.append(len(classes_N))
        return float(np.average(distances, weights=weights)) if weights else None

    def tested(self, cycle: int, arrays: ArrayRecord) -> ArrivalTests:
        """Test a cycle's model on what comes next, before any of it is labelled.

        And, where images change, on the test set as it would look if it came in the cycle.

        Parameters
        ----------
        cycle : int
            The cycle that was just trained.
        arrays : ArrayRecord
            The global model.
        """
        tensors = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
        right_N = self._prequential(cycle + 1, tensors)
        right, count = int(np.count_nonzero(right_N)), len(right_N)
        settings, accuracy, level = self.settings, None, None
        if settings.covariate_drift != "none":
            images = self.loaded.test_images_at(settings, cycle)
            model = self.loaded.model_with(tensors)
            accuracy = evaluate(model, images, self.loaded.num_classes, 1).accuracy
            level = float(self.loaded.levels(settings)[cycle])
        return ArrivalTests(next_right=right, next_count=count, accuracy=accuracy, level=level)

    def write_first(self) -> None:
        """Write down what is there before the first cycle, of which no model has said anything."""
        self._write(0, None)

    def _prequential(self, cycle: int, tensors: dict[str, torch.Tensor]) -> NDArray[np.bool_]:
        """Return whether the model is right of what comes first for a cycle; write that down."""
        if cycle >= self.settings.num_cycles:
            return np.zeros(0, bool)
        right_N = self._is_right(np.concatenate(self._rows(cycle)), tensors)
        self._write(cycle, right_N)
        return right_N

    def _rows(self, cycle: int) -> list[NDArray[np.int64]]:
        """Return the ids of what comes first for a cycle, by client; not what comes again."""
        return [each.rows_N[each.cycle_N == cycle] for each in self.arrivals.clients]

    def _write(self, cycle: int, right_N: NDArray[np.bool_] | None) -> None:
        rows = self._rows(cycle)
        rows_N = np.concatenate(rows)
        drifts = self.settings.covariate_drift != "none"
        write_came(
            self.folder,
            cycle,
            np.repeat(np.arange(len(rows)), [len(each) for each in rows]),
            rows_N,
            self.loaded.dataset.train.labels_N[rows_N],
            float(self.loaded.levels(self.settings)[cycle]) if drifts else 0.0,
            right_N,
        )

    def _is_right(
        self, rows_N: NDArray[np.int64], tensors: dict[str, torch.Tensor]
    ) -> NDArray[np.bool_]:
        if not len(rows_N):
            return np.zeros(0, bool)
        model, images = self.loaded.model_with(tensors), self.loaded.train_images
        logits_NC = predict(model, images, torch.from_numpy(rows_N)).logits_NC
        found_N = logits_NC.argmax(dim=1).cpu().numpy()
        is_right_N: NDArray[np.bool_] = found_N == self.loaded.dataset.train.labels_N[rows_N]
        return is_right_N

    def _counted(self, chosen: _Chosen) -> NDArray[np.int64]:
        counts_C = np.zeros(self.loaded.num_classes, np.int64)
        for each in self.arrivals.clients:
            classes_N = each.stock.classes_N[chosen(each)]
            counts_C += np.bincount(classes_N, minlength=self.loaded.num_classes)
        return counts_C


def simulated_arrivals(
    settings: Settings, loaded: Resources, folder: Path
) -> SimulatedArrivals | None:
    """Return the arrivals of a run's simulated clients; None where all samples are there."""
    arrivals = loaded.arrivals(settings) if settings.simulates_arrivals else None
    return None if arrivals is None else SimulatedArrivals(settings, loaded, arrivals, folder)


class KnownArrivals:
    """What the server of a run knows of arrivals, from when its clients have joined.

    Parameters
    ----------
    all_counts_C : NDArray[np.int64]
        True class counts of all samples, where all are there from the start. Shape (C,).
    """

    def __init__(self, all_counts_C: NDArray[np.int64]) -> None:
        self._all_counts_C = all_counts_C
        self.simulated: SimulatedArrivals | None = None

    def joined(self, simulated: SimulatedArrivals | None) -> None:
        """Take over the arrivals, once it is known how many clients there are."""
        self.simulated = simulated
        if simulated is not None:
            simulated.write_first()

    def arrived(self, client: int, num_samples: int, cycle: int) -> int:
        """Return how many of a client's samples are there by a cycle, of so many."""
        return num_samples if self.simulated is None else self.simulated.count(client, cycle)

    def class_counts(self, cycle: int) -> NDArray[np.int64]:
        """Return the true class counts of what all clients have by a cycle. Shape (C,)."""
        return self._all_counts_C if self.simulated is None else self.simulated.class_counts(cycle)

    def facts(self, cycle: int, arrays: ArrayRecord) -> dict[str, object]:
        """Return what is known of a cycle's arrivals in simulation alone, for `ArrivalsRecord`."""
        simulated = self.simulated
        if simulated is None:
            return {}
        return {
            "classes": tuple(simulated.new_class_counts(cycle).tolist()),
            "distance": simulated.drift_from_wanted(cycle),
            "unseen": simulated.unseen(),
            "tests": simulated.tested(cycle, arrays),
        }

    def describe(self) -> dict[str, object]:
        """Return what `partition.json` says of arrivals; empty where all samples are there."""
        simulated = self.simulated
        if simulated is None:
            return {}
        settings, arrivals = simulated.settings, simulated.arrivals
        tasks_C = arrivals.order.tasks(settings.seed, simulated.loaded.num_classes)
        return {
            "arrivals": {
                "fingerprint": arrivals.fingerprint,
                "tasks": None if tasks_C is None else tasks_C.tolist(),
            }
        }
