"""A client's audit: the labels that are drawn at random, and not chosen by the query strategy.

Shape suffixes: A samples of an audit, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ahfal_app.config import Settings
from ahfal_app.drift import LEAST_ANSWERED, DriftTest, Method, Refusal, drift_test
from ahfal_app.labels.records import AUDIT, request_id
from ahfal_app.labels.store import LabelStore
from ahfal_app.ledger import AuditFigures
from ahfal_app.seeds import numpy_generator

_PREDICTED = "predicted"
_SAMPLES = "samples"


def kept_predictions(samples_A: NDArray[np.int64], predicted_A: NDArray[np.int64]) -> bytes:
    """Return as bytes which classes a model says of an audit's samples.

    Parameters
    ----------
    samples_A : NDArray[np.int64]
        Their ids, strictly increasing. Some may leave the audit: images that go and come back.
    predicted_A : NDArray[np.int64]
        Class index of each.
    """
    return save_arrays({_SAMPLES: samples_A, _PREDICTED: predicted_A})


@dataclass(frozen=True)
class Auditing:
    """What a client asks for at random.

    Attributes
    ----------
    settings : Settings
        The run's settings.
    client : int
        The client's partition.
    run : str
        The run's identity.
    """

    settings: Settings
    client: int
    run: str

    def request_id(self, cycle: int) -> str:
        """Return the name of the audit's request before a cycle, the same each time."""
        return request_id(self.run, self.client, cycle, AUDIT)

    def asked(self, store: LabelStore, cycle: int) -> NDArray[np.int64]:
        """Return what was drawn before a cycle, increasing; empty where nothing was. Shape (A,)."""
        request = store.request(self.request_id(cycle))
        return np.sort(np.array(request.samples if request else (), np.int64))

    def drawn(self, store: LabelStore, cycle: int, budget: int) -> NDArray[np.int64]:
        """Draw from the open pool what is due of the audit before a cycle.

        That is the audit's share of all labels allotted so far, rounded up, less what was drawn
        before. What one purchase had no room for is drawn in the next.

        Parameters
        ----------
        store : LabelStore
            The client's labels, with what is due allotted.
        cycle : int
            The cycle that labels are bought for.
        budget : int
            Labels that may be asked for in all.

        Returns
        -------
        NDArray[np.int64]
            Ids, increasing. Shape (A,).
        """
        due = self.settings.audits_due(store.ledger().allotted)
        before = sum(len(self.asked(store, earlier)) for earlier in range(cycle))
        pool_N = store.unlabelled()
        size = max(0, min(due - before, budget, len(pool_N)))
        generator = numpy_generator(self.settings.seed, "audit", self.client, cycle)
        return np.sort(generator.choice(pool_N, size=size, replace=False))

    def figures(self, store: LabelStore, cycle: int) -> AuditFigures | None:
        """Return how right the model was of the audit before a cycle, by the labels there are.

        None where nothing was drawn, or no model was asked; also where an older version has kept
        what it said of samples of which some have left the audit, and not of which.
        """
        request = store.request(self.request_id(cycle))
        if request is None or not request.report:
            return None
        kept = load_arrays(request.report)
        predicted_A = kept[_PREDICTED]
        # Drawn samples are in increasing order.
        drawn_A = kept.get(_SAMPLES, np.array(request.samples, np.int64))
        if len(drawn_A) != len(predicted_A):
            return None
        labelled = right = 0
        for labels in (store.labelled(), store.held_out()):
            is_asked_N = np.isin(labels.samples_N, request.samples)
            places = np.searchsorted(drawn_A, labels.samples_N[is_asked_N])
            labelled += len(places)
            right += int(np.count_nonzero(predicted_A[places] == labels.labels_N[is_asked_N]))
        return AuditFigures(len(request.samples), labelled, right)

    def tested(
        self, store: LabelStore, cycle: int, num_classes: int, method: Method
    ) -> DriftTest | Refusal:
        """Test whether the audit's class mix is another than before, by the labels of a cycle.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        cycle : int
            The cycle with which the recent window ends; labels that came later do not count.
        num_classes : int
            Number of classes.
        method : Method
            How it is tested.
        """
        counts = []
        for window_N in windows(cycle, self.settings.drift_window):
            asked_A = np.concatenate([self.asked(store, each) for each in window_N])
            counts_C = self._class_counts(store, asked_A, cycle, num_classes)
            if counts_C.sum() < LEAST_ANSWERED * len(asked_A):
                return Refusal.UNANSWERED
            counts.append(counts_C)
        key = (self.client, cycle)
        return drift_test(
            counts[0],
            counts[1],
            method,
            lambda: numpy_generator(self.settings.seed, "drift", *key),
        )

    def _class_counts(
        self, store: LabelStore, asked_A: NDArray[np.int64], cycle: int, num_classes: int
    ) -> NDArray[np.int64]:
        """Return how many of the samples are of each class, by their labels in a cycle."""
        counts_C = np.zeros(num_classes, np.int64)
        # What is held out for testing is of the audit all the same.
        for labels in (store.labelled(cycle), store.held_out(cycle)):
            is_asked_N = np.isin(labels.samples_N, asked_A)
            counts_C += np.bincount(labels.labels_N[is_asked_N], minlength=num_classes)
        return counts_C


def windows(cycle: int, length: int) -> tuple[range, range]:
    """Return the cycles of the reference window and of the recent one, which ends with a cycle."""
    middle = cycle + 1 - length
    return range(middle - length, middle), range(middle, cycle + 1)
