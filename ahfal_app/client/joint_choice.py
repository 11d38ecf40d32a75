"""What clients decide in steps together: what each of them labels, and how a budget is split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.client.coordination import Coordinating, Situation, UnderWay, model_digest
from ahfal_app.client.purchasing import Purchasing
from ahfal_app.client.selection import Selected
from ahfal_app.errors import MessageRefused
from ahfal_app.messages.coordination import Asked
from ahfal_app.privacy.disclosure import Disclosure
from ahfal_app.privacy.sessions import Advertisement, Topic
from ahfal_app.query import PoolView, QueryContext, make_strategy
from ahfal_app.query.core.coordination import (
    COORDINATED_SIGNALS,
    CoordinatedStrategy,
    Coordination,
)
from ahfal_app.query.core.questions import joined
from ahfal_app.query.core.splitting import Split, make_split


@dataclass(frozen=True, eq=False)
class JointChoice:
    """One client's part in what is decided together.

    Attributes
    ----------
    run : str
        The run's identity.
    purchasing : Purchasing
        The client's labels, settings, state and data.
    disclosure : Callable
        Opens what the run's terms of privacy allow to be told.
    """

    run: str
    purchasing: Purchasing
    disclosure: Callable[[], AbstractContextManager[Disclosure]]

    def coordinate(
        self,
        tensors: Mapping[str, Tensor] | None,
        cycle: int,
        asked: Asked,
        statistics: ClassStatistics,
        granted: int | None,
    ) -> UnderWay | None:
        """Answer a step of what is labelled after a cycle; as of `Client.coordinate`."""
        coordinating = self._coordinating(cycle)
        if asked.first == 0:
            with self.disclosure() as disclosure:
                disclosure.check_coordination()
        return coordinating.answered(
            asked,
            self._fresh(tensors, cycle, statistics, granted) if tensors is not None else None,
            "" if tensors is None else model_digest(tensors),
            lambda: self._situation_now(cycle, statistics, granted),
        )

    def split(
        self, tensors: Mapping[str, Tensor] | None, cycle: int, asked: Asked
    ) -> UnderWay | None:
        """Answer a step of how the budget is split after a cycle; as of `Client.split`."""
        splitting, split = self._splitting(cycle)
        if asked.first == 0:
            with self.disclosure() as disclosure:
                disclosure.check_split()
        purchasing, selection = self.purchasing, self.purchasing.selection

        def situation() -> tuple[PoolView, QueryContext]:
            with purchasing.labels() as store:
                purchasing.show(store, cycle + 1)
                pool = selection.pool(store, split, {}, tensors or {}, cycle)
                return pool, selection.context_of_split(store, cycle)

        def samples() -> tuple[NDArray[np.int64], NDArray[np.int64], QueryContext]:
            with purchasing.labels() as store:
                purchasing.show(store, cycle + 1)
                context = selection.context_of_split(store, cycle)
                return store.unlabelled(), store.labelled().samples_N, context

        origin = "" if tensors is None else model_digest(tensors)
        return splitting.answered(asked, None if tensors is None else situation, origin, samples)

    def advertise(self, cycle: int, step: int, session: str, topic: Topic) -> Advertisement:
        """Begin a session of secure aggregation of this client's part in a step's sums.

        Parameters
        ----------
        cycle : int
            The cycle that was just trained.
        step : int
            The step that was answered last.
        session : str
            The session's name.
        topic : Topic
            What is decided: `COORDINATION` or `BUDGET`.

        Raises
        ------
        MessageRefused
            This is not the step that was answered last, or the answer was lost.
        """
        of_split = topic is Topic.BUDGET
        steps = self._splitting(cycle)[0] if of_split else self._coordinating(cycle)
        answer = steps.last_answer(step)
        with self.disclosure() as disclosure:
            _check(disclosure, topic)
            participant = disclosure.participant(cycle, session, topic, step)
            return participant.advertise(joined(answer.sums).view(np.uint64))

    def chosen(
        self,
        tensors: Mapping[str, Tensor],
        cycle: int,
        asked: Asked,
        statistics: ClassStatistics,
        granted: int | None,
    ) -> Selected | None:
        """Choose as was coordinated; None where that was lost. As of `Client.select_together`."""
        coordinating = self._coordinating(cycle)
        if asked.last == 0:
            raise MessageRefused("a decision: allowed is one after the opening")
        if asked.first == 0:
            before = Asked(0, asked.questions[:-1])
            known = self.coordinate(tensors, cycle, before, statistics, granted)
        else:
            known = coordinating.at_hand(lambda: self._situation_now(cycle, statistics, granted))
        part = coordinating.part(asked, known)
        if known is None or part is None:
            return None
        context = replace(known.context, coordinated=part)
        return self.purchasing.selection.coordinated(known.pool, context, cycle)

    def forget(self, cycle: int) -> None:
        """Forget what this process keeps of the steps: the choice is written down."""
        self._coordinating(cycle).forget()

    # --- inside -------------------------------------------------------------------------

    def _coordinating(self, cycle: int) -> Coordinating:
        settings = self.purchasing.settings
        strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
        if not isinstance(strategy, CoordinatedStrategy):
            raise MessageRefused(
                f"strategy={strategy.name!r}: its clients choose alone, and coordinate nothing"
            )
        if odd := strategy.signals - COORDINATED_SIGNALS:
            names = ", ".join(sorted(signal.value for signal in odd))
            raise MessageRefused(f"strategy={strategy.name!r}: it compares {names} of clients")
        return self._in_steps(strategy, cycle, Topic.COORDINATION)

    def _splitting(self, cycle: int) -> tuple[Coordinating, Split]:
        settings = self.purchasing.settings
        split = make_split(settings)
        if split is None:
            raise MessageRefused(
                f"budget-split={settings.budget_split!r}: nobody is asked what it goes by"
            )
        return self._in_steps(split, cycle, Topic.BUDGET), split

    def _in_steps(self, coordination: Coordination, cycle: int, topic: Topic) -> Coordinating:
        purchasing = self.purchasing

        def hold(step: int, digest: str) -> None:
            # In simulation server and client are one machine, and a step would take ten times as
            # long: the step before is remembered all the same.
            is_site = purchasing.loaded.site is not None
            if is_site or purchasing.settings.uses_secure_aggregation:
                with self.disclosure() as disclosure:
                    _check(disclosure, topic)
                    disclosure.hold_to_step(cycle, step, digest, topic)

        place = self.run, purchasing.client, cycle
        return Coordinating(coordination, purchasing.state, place, hold, topic)

    def _fresh(
        self,
        tensors: Mapping[str, Tensor],
        cycle: int,
        statistics: ClassStatistics,
        granted: int | None,
    ) -> Situation:
        """Return what makes the client's pool of the global model that came."""
        purchasing, selection = self.purchasing, self.purchasing.selection

        def situation() -> tuple[PoolView, QueryContext]:
            with (
                purchasing.labels() as store,
                store.set_aside(purchasing.open(store, cycle + 1, granted)),
            ):
                # Of the local model nothing is used, so that none has to be made where it is lost.
                strategy = selection.strategy(store.unlabelled(), statistics)
                pool = selection.pool(store, strategy, {}, tensors, cycle)
                return pool, selection.context(store, cycle, statistics, granted)

        return situation

    def _situation_now(
        self, cycle: int, statistics: ClassStatistics, granted: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], QueryContext]:
        purchasing = self.purchasing
        with (
            purchasing.labels() as store,
            store.set_aside(purchasing.open(store, cycle + 1, granted)),
        ):
            context = purchasing.selection.context(store, cycle, statistics, granted)
            return store.unlabelled(), store.labelled().samples_N, context


def _check(disclosure: Disclosure, topic: Topic) -> None:
    check = disclosure.check_split if topic is Topic.BUDGET else disclosure.check_coordination
    check()
