"""The simulated oracle: answers at once with the data set's own labels."""

from __future__ import annotations

from collections.abc import Mapping

from ahfal_app.labels.store import LabelReceipt, LabelRequest
from ahfal_app.oracle import Oracle, Site

ANNOTATOR = "simulated"


class SimulatedOracle(Oracle):
    """Answers every request at once and correctly; skips what it has no truth of."""

    def __init__(self, truth: Mapping[int, int]) -> None:
        self._truth = truth
        self._requests: dict[str, LabelRequest] = {}

    def submit(self, request: LabelRequest) -> None:
        """Take a request."""
        self._requests.setdefault(request.request_id, request)

    def collect(self, request_id: str) -> list[LabelReceipt]:
        """Return the true labels of a request's samples; nothing for an unknown request.

        Where several people are to read each sample, it is as many.
        """
        request = self._requests.get(request_id)
        if request is None:
            return []
        people = [ANNOTATOR, *(f"{ANNOTATOR}-{n}" for n in range(2, request.readers + 1))]
        return [
            LabelReceipt(request_id, sample, self._truth.get(sample), person)
            for sample in request.samples
            for person in people
        ]


def make(site: Site) -> SimulatedOracle:
    """Return a simulated oracle."""
    return SimulatedOracle(site.truth)
