"""What a client tells of its class counts, in each mode of privacy.

Shape suffixes: T cycles, C classes, D = 2 C + 1 entries of the vector that is summed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ahfal_app.class_statistics import class_proportions
from ahfal_app.config import Settings, exact_fraction, share_of
from ahfal_app.errors import PrivacyRefused
from ahfal_app.forgetting import effective_size, forgotten_counts
from ahfal_app.privacy.local_dp import LaplaceMechanism, proportions_of_noisy
from ahfal_app.privacy.masking import Session
from ahfal_app.privacy.participant import Participant
from ahfal_app.privacy.quantisation import quantise
from ahfal_app.privacy.sessions import MOST_STEPS, HistogramAnswer, Topic
from ahfal_app.privacy.store import PrivacyStore

#: Where sums over samples are kept, which belong to no cycle, however many there are.
_MOMENTS = -1


class Disclosure:
    """One client's disclosures, held to the terms under which it joined.

    Parameters
    ----------
    store : PrivacyStore
        Where they are kept.
    settings : Settings
        The run's settings, with `num_clients` resolved.
    run : str
        The run's identity.
    client : int
        The client's partition.

    Raises
    ------
    PrivacyRefused
        The settings that concern privacy are not those of before.
    """

    def __init__(self, store: PrivacyStore, settings: Settings, run: str, client: int) -> None:
        # Where no ε is divided by their number, a run may go on with more cycles.
        releases: dict[str, object] = {}
        if settings.uses_local_dp:
            releases["privacy.releases"] = settings.releases
            if settings.releases == "cumulative":
                releases["releases"] = settings.num_releases
        store.hold_to(
            {
                "privacy": settings.privacy,
                "privacy.epsilon": settings.epsilon,
                **releases,
                "privacy.adjacency": settings.adjacency,
                "privacy.threshold": settings.secure_aggregation_threshold,
                "num-clients": settings.num_clients,
                **_terms_of_tests(settings),
                **_terms_of_drift(settings),
            }
        )
        self._store = store
        self._settings = settings
        self._run = run
        self._client = client

    def histogram(self, cycle: int, counts_TC: NDArray[np.int64]) -> HistogramAnswer:
        """Return the class counts, with noise where the settings say so.

        Parameters
        ----------
        cycle : int
            The cycle that was just trained.
        counts_TC : NDArray[np.int64]
            Labels by the cycle from which on they count, up to this one, and by class.

        Raises
        ------
        PrivacyRefused
            Only sums over clients may become known.
        PrivacyBudgetExceeded
            The release would cost more than is left.
        """
        if self._settings.uses_secure_aggregation:
            raise PrivacyRefused(
                f"privacy={self._settings.privacy!r}: a single client's histogram is not told"
            )
        told = self._told(cycle, np.atleast_2d(counts_TC))
        zeros_C = np.zeros(np.shape(counts_TC)[-1], np.int64)
        return replace(
            told if told is not None else HistogramAnswer(zeros_C, False, 0.0),
            epsilon_spent=float(self._store.spent()),
        )

    def summand(self, cycle: int, counts_TC: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return this client's part in a cycle's secure sum, uint64 (D,).

        Raises
        ------
        PrivacyBudgetExceeded
            The release would cost more than is left.
        """
        told = self._told(cycle, np.atleast_2d(counts_TC))
        if told is None:
            return quantise(np.zeros(np.shape(counts_TC)[-1]))
        if self._settings.uses_local_dp:
            return quantise(proportions_of_noisy(told.used_C))
        return quantise(class_proportions(told.used_C))

    def moments(self, sums_E: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return sums over the client's samples: those of the first call, whatever comes later.

        Sums by one mean and deviation after another would tell how single vectors lie.

        Raises
        ------
        PrivacyRefused
            Only sums over clients may become known.
        """
        if self._settings.uses_secure_aggregation:
            raise PrivacyRefused(
                f"privacy={self._settings.privacy!r}: a single client's sums are not told"
            )
        self._store.keep_input(_MOMENTS, sums_E.view(np.uint64))
        return self._store.input(_MOMENTS).view(np.int64)

    def check_predictions(self, alone: bool) -> None:
        """Refuse that sums over this client's predictions of the stop set become known.

        Parameters
        ----------
        alone : bool
            Whether it is this client's alone that would.

        Raises
        ------
        PrivacyRefused
            The run's terms do not allow it.
        """
        if alone and self._settings.privacy != "none":
            raise PrivacyRefused(
                f"privacy={self._settings.privacy!r}: a single client's predictions are not told"
            )

    def check_drift(self) -> None:
        """Refuse that this client's comparison of two windows becomes known.

        Raises
        ------
        PrivacyRefused
            The run's terms do not allow it.
        """
        if self._settings.privacy != "none":
            raise PrivacyRefused(
                f"privacy={self._settings.privacy!r}: a single client's drift is not told"
            )

    def drift_windows(
        self, cycle: int, counts_2C: Callable[[], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Return what is predicted of two windows: that of the first call, whatever comes later.

        Windows under one model after another would tell how single samples are predicted.

        Parameters
        ----------
        cycle : int
            The cycle that the windows end with.
        counts_2C : Callable[[], NDArray[np.int64]]
            Returns the counts, which are made where none are kept. Shape (2, C).
        """
        place = Topic.DRIFT.place(cycle, 0)
        if not len(self._store.input(place)):
            self._store.keep_input(place, counts_2C().ravel().view(np.uint64))
        kept_2C: NDArray[np.int64] = self._store.input(place).view(np.int64).reshape(2, -1)
        return kept_2C

    def predictions(self, cycle: int, sums_E: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return sums over a cycle's predictions: those of the first call, whatever comes later.

        Sums of one model after another would tell how single samples are predicted.
        """
        place = Topic.STOP_SET.place(cycle, 0)
        self._store.keep_input(place, sums_E.view(np.uint64))
        return self._store.input(place).view(np.int64)

    def check_report(self) -> None:
        """Refuse to tell what is predicted of single samples where anything is to be protected.

        Raises
        ------
        PrivacyRefused
            The run's terms do not allow it.
        """
        if self._settings.privacy != "none":
            raise PrivacyRefused(
                f"privacy={self._settings.privacy!r}: predictions of single samples are not told"
            )

    def check_coordination(self) -> None:
        """Refuse to choose together with others where only what has noise may be told.

        Raises
        ------
        PrivacyRefused
            The run's terms do not allow it.
        """
        self._refuse_without_noise("embeddings")

    def check_split(self) -> None:
        """Refuse sums and numbers that a budget is split by, where only noise may be told.

        Raises
        ------
        PrivacyRefused
            The run's terms do not allow it.
        """
        self._refuse_without_noise("predictions")

    def _refuse_without_noise(self, summed: str) -> None:
        if self._settings.uses_local_dp:
            raise PrivacyRefused(
                f"privacy={self._settings.privacy!r}: sums over {summed} have no noise"
            )

    def hold_to_step(
        self, cycle: int, step: int, digest: str, topic: Topic = Topic.COORDINATION
    ) -> None:
        """Hold the server to a step of a coordination, and all before it, as first asked.

        Answers to one question after the other in the place of the same step would tell how single
        samples lie.

        Parameters
        ----------
        cycle, step : int
            The step, from 0.
        digest : str
            SHA-256 of it and of all before it, in hexadecimal.
        topic : Topic
            What is coordinated.

        Raises
        ------
        PrivacyRefused
            It was another one.
        """
        place = topic.place(cycle, MOST_STEPS // 2 + step)
        asked = np.frombuffer(bytes.fromhex(digest), dtype=np.uint64)
        self._store.keep_input(place, asked)
        if not np.array_equal(self._store.input(place), asked):
            raise PrivacyRefused(f"step {step} of cycle {cycle}: asked before in another way")

    def check_evaluation(self, alone: bool) -> None:
        """Refuse that sums over this client's held-out samples become known.

        Parameters
        ----------
        alone : bool
            Whether it is this client's alone that would.

        Raises
        ------
        PrivacyRefused
            The run's terms do not allow it.
        """
        settings = self._settings
        if settings.uses_local_dp or (alone and settings.uses_secure_aggregation):
            raise PrivacyRefused(
                f"privacy={settings.privacy!r}: sums over "
                f"{'a single client' if alone else 'clients'} are not told of held-out samples"
            )

    def participant(
        self, cycle: int, session: str, topic: Topic = Topic.HISTOGRAM, round_: int = 0
    ) -> Participant:
        """Return this client's side of a session of secure aggregation.

        Raises
        ------
        PrivacyRefused
            The run has none.
        """
        settings = self._settings
        if not settings.uses_secure_aggregation:
            raise PrivacyRefused(f"privacy={settings.privacy!r}: there is no secure aggregation")
        return Participant(
            self._store,
            Session(
                self._run,
                topic.place(cycle, round_),
                session,
                "" if topic is Topic.HISTOGRAM else f"{topic} of cycle {cycle}",
            ),
            self._client,
            settings.num_clients,
            share_of(settings.secure_aggregation_threshold, settings.num_clients),
        )

    def _told(self, cycle: int, counts_TC: NDArray[np.int64]) -> HistogramAnswer | None:
        """Return what may be used of the counts, or None where there are none and all may know.

        With `replace` no other labelled set is a neighbour of the empty one, so there is
        nothing to hide; with `add-remove` noise hides that it is empty.
        """
        settings = self._settings
        if settings.uses_local_dp and settings.releases == "increments":
            return self._sum_of_increments(cycle, counts_TC)
        counts_C = counts_TC.sum(axis=0)
        if not counts_C.any() and not self._hides_size:
            return None
        if settings.uses_local_dp:
            return HistogramAnswer(self._released(cycle, counts_C), True, 0.0)
        weighted_C, effective = None, 0.0
        if settings.forget:
            weighted_C = forgotten_counts(counts_TC, settings.forget)
        if settings.forget or settings.dispersion_correction:
            effective = effective_size(counts_TC.sum(axis=1), settings.forget)
        return HistogramAnswer(counts_C, True, 0.0, weighted_C, effective)

    def _sum_of_increments(
        self, cycle: int, counts_TC: NDArray[np.int64]
    ) -> HistogramAnswer | None:
        """Return what follows from noisy counts of new labels, each of which is in one of them.

        New is what counts since the newest release, whichever cycle that was of, so that no label
        is ever in two. What is made of the releases costs nothing more, whatever it is.
        """
        releases = self._store.releases()
        newest = max(releases, default=-1)
        if cycle > newest:
            new_C = counts_TC[newest + 1 : cycle + 1].sum(axis=0)
            if new_C.any() or self._hides_size:
                releases[cycle] = self._released(cycle, new_C)
        told_TC = np.zeros((cycle + 1, counts_TC.shape[1]), np.int64)
        for released, noisy_C in releases.items():
            if released <= cycle:
                told_TC[released] = noisy_C
        if not any(released <= cycle for released in releases):
            return None
        forget = self._settings.forget
        weighted_C = forgotten_counts(told_TC, forget) if forget else None
        return HistogramAnswer(told_TC.sum(axis=0), True, 0.0, weighted_C)

    @property
    def _hides_size(self) -> bool:
        return self._settings.uses_local_dp and self._settings.adjacency == "add-remove"

    def _released(self, cycle: int, counts_C: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return counts with noise: those of the first call for a cycle."""
        settings = self._settings
        cost = settings.epsilon_per_release
        return self._store.release(
            cycle,
            cost,
            exact_fraction(settings.epsilon),
            lambda: LaplaceMechanism.calibrated(settings.sensitivity, cost).release(counts_C),
        )


def _terms_of_tests(settings: Settings) -> dict[str, object]:
    """Return what a run that began without tests at the sites must not begin later."""
    if not settings.tests_at_sites:
        return {}
    return {
        "evaluate": settings.evaluate,
        "validation-fraction": settings.validation_fraction,
        "validation-from": settings.validation_from,
    }


def _terms_of_drift(settings: Settings) -> dict[str, object]:
    """Return what a run that began without a comparison of windows must not begin later."""
    if settings.drift_test == "none":
        return {}
    return {"drift-test": settings.drift_test, "drift-window": settings.drift_window}
