"""What a client does for each message, without Flower: join, train, count, select, collect.

Every method may be repeated: a retried message finds what the first one left, gives the
same answer and buys nothing twice.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ahfal_app.client_state import ClientState
from ahfal_app.config import Settings
from ahfal_app.errors import DatasetError, OracleError
from ahfal_app.labels import Labelled, LabelReceipt, LabelRequest, LabelStore, Ledger, request_id
from ahfal_app.local_update import LocalUpdate, carry_out
from ahfal_app.models import Classifier
from ahfal_app.objectives import LocalSituation, make_objective
from ahfal_app.oracle import EncodedImage, Site, make_oracle
from ahfal_app.pool_models import PoolSituation, make_pool
from ahfal_app.privacy.disclosure import Disclosure, HistogramAnswer
from ahfal_app.privacy.participant import Participant
from ahfal_app.privacy.sessions import Advertisement
from ahfal_app.query import (
    Aligned,
    PoolView,
    QueryContext,
    QueryStrategy,
    ScoringStrategy,
    Signal,
    checked_select,
    make_strategy,
)
from ahfal_app.resources import Resources
from ahfal_app.results.selections import write_client_selection
from ahfal_app.seeds import torch_generator
from ahfal_app.statistics import ClassStatistics
from ahfal_app.training import TrainingResult, TrainingState

#: In place of a fingerprint, of which the server has no need; Flower cannot count empty text.
OWN = "own"

#: The option of every oracle that keeps files: where.
ORACLE_FOLDER = "oracle-dir"

# Who skips a sample whose image is no longer there.
_GONE = "gone"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JoinAnswer:
    """What a client tells about itself."""

    num_samples: int
    labelled: int
    last_cycle: int
    ledger: Ledger


@dataclass(frozen=True)
class TrainAnswer:
    """A client's model after local training."""

    tensors: dict[str, Tensor]
    num_examples: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class QueryAnswer:
    """How a client's purchase stands; which samples it chose stays with the client."""

    selected: int
    labelled: int
    pending: int
    ledger: Ledger
    fine_tuned: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Judgement:
    """What was chosen, and what the query strategy and the client's model make of it.

    Attributes
    ----------
    chosen_B : NDArray[np.int64]
        Sample ids. Shape (B,).
    scores_B : NDArray[np.floating] | None
        Acquisition scores, where the strategy gives any. Shape (B,).
    guesses_B : NDArray[np.int64] | None
        Class indices that the local model f^L says, where the strategy has it. Shape (B,).
    """

    chosen_B: NDArray[np.int64]
    scores_B: NDArray[np.floating] | None = None
    guesses_B: NDArray[np.int64] | None = None


class Client:
    """One client of a run.

    Parameters
    ----------
    settings : Settings
        The run's settings, with `num_clients` resolved.
    client : int
        The client's partition, from 0.
    run : str
        The run's identity, equal after a resume.
    state : ClientState
        What the client keeps between messages.
    run_folder : Path | None
        The run's folder, for the record of selections; only where the run is simulated.
    loaded : Resources
        The client's data and its model.
    oracle_options : Mapping[str, str]
        What the site has set for its oracle.
    """

    def __init__(
        self,
        settings: Settings,
        client: int,
        run: str,
        state: ClientState,
        run_folder: Path | None,
        loaded: Resources,
        oracle_options: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._client = client
        self._run = run
        self._state = state
        self._run_folder = run_folder
        self._oracle_options = oracle_options
        self._resources = loaded
        self._rows_N = loaded.client_rows(client)

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the data set that all share; `own` where it has its own."""
        return OWN if self._resources.site else self._resources.dataset.fingerprint

    @property
    def partition_fingerprint(self) -> str:
        """Fingerprint of the partition; `own` where there is none."""
        return OWN if self._resources.site else self._resources.partition.fingerprint

    @property
    def device(self) -> str:
        """Kind of device that this client computes on."""
        return self._resources.device.type

    def join(self, cycle: int) -> JoinAnswer:
        """Ask for the initial labels, chosen at random, and tell how they stand.

        Parameters
        ----------
        cycle : int
            The cycle that a resumed run goes on with; labels bought for later ones are not
            counted yet.
        """
        with self._disclosure():
            pass  # From now on the server is held to these terms of privacy.
        with self._labels() as store:
            self._describe(store)
            if store.request(self._request_id(0)) is None:
                budget = self._allotted(store, 0)
                strategy = make_strategy("random", {})
                context = self._context(budget, 0, _no_statistics(self._resources), store)
                chosen = checked_select(strategy, PoolView(store.unlabelled(), {}), context)
                self._reserve(store, 0, strategy.name, Judgement(chosen))
            self._ask_oracle(store)
            return JoinAnswer(
                num_samples=len(self._rows_N),
                labelled=len(store.labelled(through_cycle=cycle).samples_N),
                last_cycle=store.last_cycle(),
                ledger=store.ledger(),
            )

    def train(
        self, tensors: dict[str, Tensor], cycle: int, round_: int, last_round: bool
    ) -> TrainAnswer:
        """Train the global model on the labelled set L_i; keep f^L in a cycle's last round."""
        start = time.perf_counter()
        with self._labels() as store:
            store.freeze(cycle)
            labelled = store.labelled(through_cycle=cycle)
            initially_labelled = store.labelled(through_cycle=0)
        model = self._model(tensors)
        if len(labelled.samples_N) == 0:
            return TrainAnswer(model.state_dict(), 0, 0.0, time.perf_counter() - start)
        result = self._train(model, tensors, labelled, initially_labelled, (cycle, round_))
        self._state.save_training(cycle, round_, result.state)
        if last_round:
            self._state.save_local_model(cycle, model.state_dict())
        return TrainAnswer(
            model.state_dict(), result.num_examples, result.loss, time.perf_counter() - start
        )

    def histogram(self, cycle: int) -> HistogramAnswer:
        """Return the class counts of what was labelled for training `cycle`."""
        counts_C = self._class_counts(cycle)
        with self._disclosure() as disclosure:
            return disclosure.histogram(cycle, counts_C)

    def advertise_keys(self, cycle: int, session: str) -> Advertisement:
        """Begin a session of secure aggregation of what was labelled for training `cycle`."""
        counts_C = self._class_counts(cycle)
        with self._disclosure() as disclosure:
            participant = disclosure.participant(cycle, session)
            return participant.advertise(disclosure.summand(cycle, counts_C))

    @contextmanager
    def participant(self, cycle: int, session: str) -> Iterator[Participant]:
        """Give this client's side of a session of secure aggregation."""
        with self._disclosure() as disclosure:
            yield disclosure.participant(cycle, session)

    def select(
        self, tensors: dict[str, Tensor], cycle: int, statistics: ClassStatistics
    ) -> QueryAnswer:
        """Choose what to label after `cycle` and hand it to the oracle.

        Parameters
        ----------
        tensors : dict[str, Tensor]
            The global model f^G.
        cycle : int
            The cycle that was just trained.
        statistics : ClassStatistics
            Statistics of the labelled sets that it was trained on.
        """
        start = time.perf_counter()
        fine_tuned = False
        with self._labels() as store:
            self._describe(store)
            if store.request(self._request_id(cycle + 1)) is None:
                local = self._state.load_local_model(cycle)
                if local is None:
                    local, fine_tuned = self._fine_tuned(tensors, store, cycle), True
                self._buy(store, local, tensors, cycle, statistics)
            self._ask_oracle(store)
            return self._query_answer(store, cycle + 1, fine_tuned, time.perf_counter() - start)

    def collect(self, cycle: int) -> QueryAnswer:
        """Take in the answers that have come since, for the purchase before `cycle`."""
        with self._labels() as store:
            self._ask_oracle(store)
            return self._query_answer(store, cycle)

    # --- inside -------------------------------------------------------------------------

    @contextmanager
    def _labels(self) -> Iterator[LabelStore]:
        grows = self._resources.site is not None
        with self._state.labels(self._rows_N, self._resources.num_classes, grows) as store:
            yield store

    def _describe(self, store: LabelStore) -> None:
        """Tell the store what things are called, and which labels are there already."""
        site = self._resources.site
        store.describe(self._resources.dataset.class_names, site.names if site else None)
        for annotator, labels in (site.given if site else {}).items():
            store.give(labels, annotator)

    @contextmanager
    def _disclosure(self) -> Iterator[Disclosure]:
        with self._state.privacy() as store:
            yield Disclosure(store, self._settings, self._run, self._client)

    def _class_counts(self, cycle: int) -> NDArray[np.int64]:
        with self._labels() as store:
            store.freeze(cycle)
            return store.labelled(through_cycle=cycle).class_counts(self._resources.num_classes)

    def _request_id(self, cycle: int) -> str:
        return request_id(self._run, self._client, cycle)

    def _buy(
        self,
        store: LabelStore,
        local: dict[str, Tensor],
        tensors: dict[str, Tensor],
        cycle: int,
        statistics: ClassStatistics,
    ) -> None:
        budget = self._allotted(store, cycle + 1)
        strategy = self._strategy(store.unlabelled(), statistics)
        situation = self._situation(store, local, tensors, cycle + 1)
        pool = make_pool(self._settings, self._resources, strategy, situation)
        context = self._context(budget, cycle + 1, statistics, store)
        chosen = checked_select(strategy, pool, context)
        judgement = self._judgement(strategy, pool, context, chosen)
        self._record(judgement, cycle)
        self._reserve(store, cycle + 1, strategy.name, judgement)

    def _strategy(self, ids_N: NDArray[np.int64], statistics: ClassStatistics) -> QueryStrategy:
        """Return the query strategy, aligned to a target where there is one."""
        strategy = make_strategy(self._settings.strategy, self._settings.strategy_parameters)
        if statistics.target_C is None or not isinstance(strategy, ScoringStrategy):
            return strategy
        true_N = self._resources.dataset.train.labels_N[ids_N]
        membership_N = true_N if self._settings.align_membership == "true" else None
        return Aligned(strategy, statistics.target_C.tolist(), membership_N)

    def _allotted(self, store: LabelStore, cycle: int) -> int:
        """Grant what is due by a cycle and return what is free: B_i, and what was missed before."""
        store.allot(self._settings.labels_due(cycle, len(self._rows_N)))
        return store.ledger().free

    def _reserve(self, store: LabelStore, cycle: int, strategy: str, judgement: Judgement) -> None:
        scores_B, guesses_B = judgement.scores_B, judgement.guesses_B
        request = LabelRequest(
            self._request_id(cycle),
            cycle,
            strategy,
            tuple(judgement.chosen_B.tolist()),
            scores=tuple(scores_B.tolist()) if scores_B is not None else (),
            guesses=tuple(guesses_B.tolist()) if guesses_B is not None else (),
        )
        store.reserve(request)

    def _ask_oracle(self, store: LabelStore) -> None:
        """Submit every open request, again if need be, and store what has been answered.

        An oracle that fails is asked again the next time: the request is in the store, and the
        server waits for its labels as for those of slow people.
        """
        requests = store.unfinished_requests()
        if not requests:
            return
        conflicts = len(store.conflicts())
        try:
            oracle = make_oracle(self._settings.oracle, self._site())
        except OracleError as error:
            _log.warning("oracle %s: %s", self._settings.oracle, error)
            return
        for request in requests:
            present = self._present(store, request)
            try:
                if present.samples:
                    oracle.submit(present)
                receipts = oracle.collect(request.request_id)
            except OracleError as error:
                _log.warning("oracle %s: %s", self._settings.oracle, error)
            else:
                store.commit(receipts)
        if new := len(store.conflicts()) - conflicts:
            _log.warning("%d answers contradict labels that stand; the first ones do", new)

    def _present(self, store: LabelStore, request: LabelRequest) -> LabelRequest:
        """Return what of a request is still there; give back what nobody can label any more."""
        is_here_B = np.isin(request.samples, self._rows_N)
        if is_here_B.all():
            return request
        receipts = [
            LabelReceipt(request.request_id, sample, None, _GONE)
            for sample, is_here in zip(request.samples, is_here_B, strict=True)
            if not is_here
        ]
        store.commit(receipts)
        return dataclasses.replace(
            request,
            samples=tuple(itertools.compress(request.samples, is_here_B)),
            scores=tuple(itertools.compress(request.scores, is_here_B)),
            guesses=tuple(itertools.compress(request.guesses, is_here_B)),
        )

    def _site(self) -> Site:
        labels_N = self._resources.dataset.train.labels_N[self._rows_N]
        labels = zip(self._rows_N.tolist(), labels_N.tolist(), strict=True)
        folder = self._oracle_options.get(ORACLE_FOLDER)
        return Site(
            self._client,
            self._resources.dataset.class_names,
            {sample: label for sample, label in labels if label >= 0},
            self._image,
            Path(folder).expanduser() if folder else self._state.oracle_folder,
            self._oracle_options,
        )

    def _image(self, sample: int) -> EncodedImage:
        if self._resources.site is not None:
            site = self._resources.site
            try:
                return EncodedImage(site.names[sample], site.content(sample))
            except DatasetError as error:
                # It went while this process was at work; the next one finds it gone.
                raise OracleError(f"image {site.names[sample]}: {error}") from error
        content = io.BytesIO()
        pixels_HWC = self._resources.dataset.train.images_NHWC[sample]
        Image.fromarray(pixels_HWC.squeeze()).save(content, format="PNG")
        return EncodedImage(f"{sample}.png", content.getvalue())

    def _query_answer(
        self, store: LabelStore, cycle: int, fine_tuned: bool = False, seconds: float = 0.0
    ) -> QueryAnswer:
        request = store.request(self._request_id(cycle))
        return QueryAnswer(
            selected=len(request.samples) if request is not None else 0,
            labelled=len(store.labelled().samples_N),
            pending=store.ledger().reserved,
            ledger=store.ledger(),
            fine_tuned=fine_tuned,
            seconds=seconds,
        )

    def _context(
        self,
        budget: int,
        for_cycle: int,
        statistics: ClassStatistics,
        store: LabelStore,
    ) -> QueryContext:
        return QueryContext(
            budget=budget,
            num_classes=self._resources.num_classes,
            class_counts_C=store.labelled().class_counts(self._resources.num_classes),
            statistics=statistics,
            seed=self._settings.seed,
            client=self._client,
            cycle=for_cycle,
        )

    def _situation(
        self,
        store: LabelStore,
        local: dict[str, Tensor],
        tensors: dict[str, Tensor],
        for_cycle: int,
    ) -> PoolSituation:
        labelled = store.labelled()
        return PoolSituation(
            client=self._client,
            cycle=for_cycle,
            ids_N=store.unlabelled(),
            labelled_ids_L=labelled.samples_N,
            labels_L=labelled.labels_N,
            local_tensors=local,
            global_tensors=tensors,
        )

    def _judgement(
        self,
        strategy: QueryStrategy,
        pool: PoolView,
        context: QueryContext,
        chosen_B: NDArray[np.int64],
    ) -> Judgement:
        """Return scores and guesses, where figures are drawn of them or people see them."""
        if self._run_folder is None and self._settings.oracle == "simulated":
            return Judgement(chosen_B)
        positions_B = np.searchsorted(pool.ids_N, chosen_B)
        scores_B = guesses_B = None
        if isinstance(strategy, ScoringStrategy) and len(pool.ids_N):
            scores_B = strategy.scores(pool, context).cpu().numpy()[positions_B]
        if Signal.LOCAL_LOGITS in strategy.signals and len(pool.ids_N):
            logits_NC = pool.signal(Signal.LOCAL_LOGITS)
            guesses_B = logits_NC.argmax(dim=1).cpu().numpy()[positions_B]
        return Judgement(chosen_B, scores_B, guesses_B)

    def _record(self, judgement: Judgement, cycle: int) -> None:
        """Write down what was chosen, for figures; only where the run's folder is at hand."""
        if self._run_folder is None:
            return
        write_client_selection(
            self._run_folder,
            cycle=cycle,
            client=self._client,
            sample_ids=judgement.chosen_B,
            classes=self._resources.dataset.train.labels_N[judgement.chosen_B],
            pseudo_classes=judgement.guesses_B,
            scores=judgement.scores_B,
        )

    def _model(self, tensors: dict[str, Tensor]) -> Classifier:
        model = self._resources.model()
        model.load_state_dict(tensors)
        return model

    def _training_state(self, cycle: int, round_: int) -> TrainingState | None:
        state = self._state.load_training(cycle, round_)
        if state is not None and self._settings.optimizer_state == "reset":
            # The learning rate's schedule counts on, whatever becomes of the momentum.
            return dataclasses.replace(state, momentum={})
        return state

    def _fine_tuned(
        self, tensors: dict[str, Tensor], store: LabelStore, cycle: int
    ) -> dict[str, Tensor]:
        """Stand in for f^L of a client that missed the last round: f^G, trained on L_i."""
        model = self._model(tensors)
        labelled, initially_labelled = store.labelled(), store.labelled(through_cycle=0)
        if len(labelled.samples_N):
            when = (cycle, self._settings.rounds + 1)
            self._train(model, tensors, labelled, initially_labelled, when)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def _train(
        self,
        model: Classifier,
        global_tensors: dict[str, Tensor],
        labelled: Labelled,
        initially_labelled: Labelled,
        when: tuple[int, int],
    ) -> TrainingResult:
        settings = self._settings
        recipe = self._resources.recipe(settings)
        known = initially_labelled if settings.kcfu_pool == "initial" else labelled
        situation = LocalSituation(
            self._client,
            *when,
            class_counts_C=labelled.class_counts(self._resources.num_classes),
            pool_rows_N=np.setdiff1d(self._rows_N, known.samples_N, assume_unique=True),
            global_tensors=global_tensors,
        )
        strategy = make_strategy(settings.strategy, settings.strategy_parameters)
        objective = make_objective(settings, self._resources, strategy, recipe, situation)
        update = LocalUpdate(
            model,
            self._resources.train_images,
            torch.from_numpy(labelled.samples_N),
            torch.from_numpy(labelled.labels_N),
            recipe,
            self._training_state(*when),
            torch_generator(settings.seed, "training", self._client, *when),
            objective,
        )
        return carry_out(update)


def _no_statistics(resources: Resources) -> ClassStatistics:
    """Return what is known of the classes before anything is labelled: nothing."""
    zeros_C = np.zeros(resources.num_classes)
    return ClassStatistics(zeros_C, zeros_C, zeros_C.astype(bool))
