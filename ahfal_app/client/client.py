"""What a client does for each message, without Flower: join, train, count, select, collect.

Every method may be repeated: a retried message finds what the first one left, gives the
same answer and buys nothing twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.client.annotation import Annotation
from ahfal_app.client.arriving import Arriving
from ahfal_app.client.auditing import Auditing
from ahfal_app.client.coordination import UnderWay
from ahfal_app.client.drifting import Drifting
from ahfal_app.client.joint_choice import JointChoice
from ahfal_app.client.keeping import PERSONAL, SiteModels
from ahfal_app.client.local_training import ClientTraining, LabelledSets
from ahfal_app.client.purchasing import Purchasing, check_nothing_lost
from ahfal_app.client.selection import Allowance, Selection, granted
from ahfal_app.client.state import ClientState
from ahfal_app.client.stop_set import StopSet
from ahfal_app.client.testing import Testing
from ahfal_app.client.training_sets import TrainingSets
from ahfal_app.client.watching import Watching
from ahfal_app.config import Settings
from ahfal_app.data.moments import OfVectors, moments_for
from ahfal_app.drift import Found
from ahfal_app.errors import MessageRefused
from ahfal_app.evaluation import EvaluationSums
from ahfal_app.flat import ArrayForm, Layout
from ahfal_app.labels.readings import Readers
from ahfal_app.labels.store import LabelStore
from ahfal_app.messages.answers import JoinAnswer, QueryAnswer, TrainAnswer
from ahfal_app.messages.coordination import Asked
from ahfal_app.privacy.disclosure import Disclosure
from ahfal_app.privacy.participant import Participant
from ahfal_app.privacy.sessions import Advertisement, HistogramAnswer, Topic
from ahfal_app.query import make_strategy, strategy_class
from ahfal_app.query.core.server_side import Arrays, Task
from ahfal_app.results.reading import MODEL
from ahfal_app.training.flat import FlatTensors
from ahfal_app.training.resources import Resources

#: In place of a fingerprint, of which the server has no need; Flower cannot count empty text.
OWN = "own"

_log = logging.getLogger(__name__)


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
    proximal_mu : float
        Weight of the proximal term that the run's aggregation asks for; 0: none.
    allowance : Allowance
        How many labels may be asked for at once, as the ledger stands.
    check_grant : Callable[[int], None]
        Called with the labels that the server grants, where it says so; raises where the site
        does not allow them.
    fewest_tested : int
        Fewest held-out samples over which the server is told sums.
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
        proximal_mu: float = 0.0,
        allowance: Allowance = granted,
        check_grant: Callable[[int], None] = lambda _: None,
        fewest_tested: int = 1,
    ) -> None:
        self._settings = settings
        self._client = client
        self._run = run
        self._state = state
        self._resources = loaded
        self._rows_N = loaded.client_rows(client)
        self._check_grant = check_grant
        self._fewest_tested = fewest_tested
        testing = Testing(settings, client, loaded)
        self._training = ClientTraining(settings, client, state, loaded, proximal_mu)
        self._watching = Watching(settings, state, loaded)
        self._stop_set = StopSet(settings, client, state, loaded)
        arriving = Arriving(settings, client, loaded)
        auditing = Auditing(settings, client, run)
        selection = Selection(settings, client, loaded, arriving, auditing, run_folder, allowance)
        self._drifting = Drifting(settings, loaded, arriving, auditing)
        parameters = settings.parameters_of("oracle")
        readers = Readers(settings.readers, settings.readers_rule)
        annotation = Annotation(
            settings.oracle, parameters, oracle_options, client, run, state, loaded, readers
        )
        self._purchasing = Purchasing(
            settings, client, state, loaded, testing, arriving, auditing, selection, annotation
        )
        self._training_sets = TrainingSets(run, self._purchasing)
        self._joint = JointChoice(run, self._purchasing, self._disclosure)

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

    @property
    def backbone(self) -> str:
        """SHA-256 of the backbone whose features this client trains on; empty without one."""
        backbone = self._resources.backbone
        return backbone.digest if backbone is not None else ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._resources.num_classes

    @property
    def layout(self) -> Layout:
        """What the arrays of a global model must be."""
        return self._resources.layout

    @property
    def policy_forms(self) -> Mapping[str, ArrayForm]:
        """What a policy must be; empty where the query strategy has none."""
        strategy = make_strategy(self._settings.strategy, self._settings.parameters_of("strategy"))
        return strategy.policy_forms(Task.of(self._settings, self.num_classes))

    def join(self, cycle: int, begins: bool) -> JoinAnswer:
        """Tell how labels stand; where the run begins, ask for the first ones before.

        Parameters
        ----------
        cycle : int
            The cycle that a resumed run goes on with; labels bought for later ones are not
            counted yet.
        begins : bool
            Whether the run begins. Later on a store without a purchase may be one that was lost,
            which the server sees by the answer, before anybody is asked twice: `begin` comes next.
        """
        self._prepare_data()
        # From now on the server is held to these terms of privacy. They lie in the database of the
        # labels, and SQLite tidies up when nobody has it open any more.
        with self._disclosure(), self._purchasing.labels() as store:
            # Choosing at random takes no time, during which nobody else could write.
            with store.one_change():
                self._purchasing.describe(store)
                self._purchasing.arriving.note(store, cycle)
                if begins and self._settings.buys_on_joining:
                    self._purchasing.make_first(store, None, cycle)
            self._purchasing.ask(store)
            self._training_sets.fix_early(store, cycle)
            return JoinAnswer(
                num_samples=len(self._rows_N),
                labelled=len(store.labelled(through_cycle=cycle).samples_N),
                held_out=len(store.held_out(through_cycle=cycle).samples_N),
                last_cycle=store.last_cycle(),
                ledger=store.ledger(),
                arrivals=self._purchasing.arriving.figures(store, cycle),
            )

    def begin(self, granted: int | None, cycle: int = 0) -> QueryAnswer:
        """Ask for the first labels, where that was not done on joining.

        Parameters
        ----------
        granted : int | None
            How many labels the server grants; None: as many as the settings say.
        cycle : int
            The cycle that is about to be trained.
        """
        start, purchasing = time.perf_counter(), self._purchasing
        self._check(granted)
        with purchasing.labels() as store:
            purchasing.describe(store)
            purchasing.arriving.note(store, cycle)
            purchasing.make_first(store, granted, cycle)
            purchasing.ask(store)
            answer = purchasing.answer(store, 0, seconds=time.perf_counter() - start)
            return replace(answer, arrivals=purchasing.arriving.figures(store, cycle))

    def train(
        self, tensors: Mapping[str, Tensor], cycle: int, round_: int, last_round: bool
    ) -> tuple[FlatTensors, TrainAnswer]:
        """Train the global model on the labelled set L_i; keep f^L in a cycle's last round."""
        start = time.perf_counter()
        sets, watch = self._training_sets.of_cycle(cycle), None
        if self._watching.is_needed:
            with self._purchasing.labels() as store:
                store.open_only(self._purchasing.arriving.open(store, cycle))
                watch = self._watching.of_round(store.unlabelled(), cycle, round_)
        if watch is not None:
            watch.received(tensors)
        after_epoch = watch.after_epoch if watch is not None and watch.every_epoch else None
        model, result = self._training.in_round(tensors, sets, cycle, round_, after_epoch)
        if watch is not None:
            watch.trained(model, result is not None)
        trained = self._resources.model_tensors()
        if result is not None and last_round:
            self._state.save_local_model(cycle, trained)
        answer = TrainAnswer(
            num_examples=result.num_examples if result is not None else 0,
            loss=result.loss if result is not None else 0.0,
            seconds=time.perf_counter() - start,
        )
        return trained, answer

    def histogram(self, cycle: int) -> HistogramAnswer:
        """Return the class counts of what was labelled for training `cycle`."""
        counts_TC = self._class_counts(cycle)
        with self._disclosure() as disclosure:
            return disclosure.histogram(cycle, counts_TC)

    def evaluate(self, tensors: Mapping[str, Tensor], cycle: int) -> EvaluationSums | None:
        """Test the global model on what is held out of the labels that `cycle` may use.

        Returns
        -------
        EvaluationSums | None
            Sums; None where they are over so few samples that they are not told.

        Raises
        ------
        PrivacyRefused
            Only sums over clients may become known.
        """
        sums = self._tested(tensors, cycle)
        with self._disclosure() as disclosure:
            disclosure.check_evaluation(alone=True)
        return sums if sums.num_samples >= self._fewest_tested else None

    def advertise_evaluation(
        self, tensors: Mapping[str, Tensor], cycle: int, round_: int, session: str
    ) -> Advertisement:
        """Begin a session of secure aggregation of a test of the global model."""
        sums = self._tested(tensors, cycle)
        if sums.num_samples < self._fewest_tested:
            sums = EvaluationSums.nothing(self._resources.num_classes)
        with self._disclosure() as disclosure:
            disclosure.check_evaluation(alone=False)
            participant = disclosure.participant(cycle, session, Topic.EVALUATION, round_)
            return participant.advertise(sums.to_vector().view(np.uint64))

    def moments(self) -> NDArray[np.int64]:
        """Return sums over this client's samples, as `Moments` has them.

        Raises
        ------
        PrivacyRefused
            Only sums over clients may become known.
        """
        sums_E = self._moment_sums()
        with self._disclosure() as disclosure:
            return disclosure.moments(sums_E)

    def predictions(self, tensors: Mapping[str, Tensor], cycle: int) -> NDArray[np.int64]:
        """Predict this client's part of the stop set; return sums, as `prediction_sums` has them.

        Parameters
        ----------
        tensors : Mapping[str, Tensor]
            The global model f^G.
        cycle : int
            The cycle that was just trained.

        Raises
        ------
        PrivacyRefused
            Only sums over clients may become known, or only what has noise.
        """
        with self._disclosure() as disclosure:
            disclosure.check_predictions(alone=True)
            return disclosure.predictions(cycle, self._stop_set.sums(tensors, cycle))

    def drift(self, tensors: Mapping[str, Tensor] | None, cycle: int) -> Found:
        """Tell whether this client's class mix is another than before.

        Parameters
        ----------
        tensors : Mapping[str, Tensor] | None
            With `drift-test=predicted` the model that predicts both windows.
        cycle : int
            The cycle that was just trained.

        Raises
        ------
        PrivacyRefused
            The run's terms do not allow numbers of a single client.
        """
        with self._disclosure() as disclosure:
            disclosure.check_drift()
            with self._purchasing.labels() as store:
                store.freeze(cycle)
                return self._drifting.found(store, cycle, tensors, disclosure.drift_windows)

    def advertise_predictions(
        self, tensors: Mapping[str, Tensor], cycle: int, session: str
    ) -> Advertisement:
        """Begin a session of secure aggregation of predictions of the stop set."""
        with self._disclosure() as disclosure:
            disclosure.check_predictions(alone=False)
            sums_E = self._stop_set.sums(tensors, cycle)
            participant = disclosure.participant(cycle, session, Topic.STOP_SET)
            return participant.advertise(sums_E.view(np.uint64))

    def advertise_histogram(self, cycle: int, session: str) -> Advertisement:
        """Begin a session of secure aggregation of what was labelled for training `cycle`."""
        counts_TC = self._class_counts(cycle)
        with self._disclosure() as disclosure:
            participant = disclosure.participant(cycle, session)
            return participant.advertise(disclosure.summand(cycle, counts_TC))

    def advertise_moments(self, session: str) -> Advertisement:
        """Begin a session of secure aggregation of sums over the samples."""
        sums_E = self._moment_sums()
        with self._disclosure() as disclosure:
            participant = disclosure.participant(0, session, Topic.MOMENTS)
            return participant.advertise(sums_E.view(np.uint64))

    @contextmanager
    def participant(
        self, cycle: int, session: str, topic: Topic = Topic.HISTOGRAM, round_: int = 0
    ) -> Iterator[Participant]:
        """Give this client's side of a session of secure aggregation."""
        with self._disclosure() as disclosure:
            yield disclosure.participant(cycle, session, topic, round_)

    def select(
        self,
        tensors: Mapping[str, Tensor],
        cycle: int,
        statistics: ClassStatistics,
        granted: int | None = None,
        policy: Arrays | None = None,
        bought: int = -1,
    ) -> QueryAnswer:
        """Choose what to label after `cycle` and hand it to the oracle.

        Parameters
        ----------
        tensors : Mapping[str, Tensor]
            The global model f^G.
        cycle : int
            The cycle that was just trained.
        statistics : ClassStatistics
            Statistics of the labelled sets that it was trained on.
        granted : int | None
            How many labels the server grants in total; None: as many as the settings say.
        policy : Arrays, optional
            What the query strategy's half at the server has told.
        bought : int
            The newest cycle that this client is known to have bought labels for; -1: none.

        Raises
        ------
        MessageRefused
            The clients of the run choose together.
        StoreError
            The label store lacks what was bought.
        PrivacyRefused
            The strategy tells of single samples, and the run's privacy does not allow it.
        """
        start, purchasing = time.perf_counter(), self._purchasing
        self._check(granted)
        name = self._settings.strategy
        strategy = strategy_class(name)
        if strategy.is_coordinated:
            raise MessageRefused(f"strategy={name!r}: allowed is a selection with a decision")
        if strategy.tells:
            with self._disclosure() as disclosure:
                disclosure.check_report()
        fine_tuned = False
        with purchasing.labels() as store:
            check_nothing_lost(store, bought)
            purchasing.describe(store)
            if not purchasing.is_made(store, cycle + 1):
                audit_A = purchasing.open(store, cycle + 1, granted)
                local, fine_tuned = self._local_model(store, tensors, cycle)
                with store.set_aside(audit_A):
                    watched = self._watching.signals(store.unlabelled(), tensors, cycle)
                    selected = purchasing.selection.by_strategy(
                        store, local, tensors, cycle, statistics, granted, watched, policy
                    )
                predicted_A = purchasing.selection.predicted(audit_A, tensors)
                purchasing.make(store, cycle + 1, selected, audit_A, predicted_A)
            purchasing.ask(store)
            return purchasing.answer(store, cycle + 1, fine_tuned, time.perf_counter() - start)

    def report(self, cycle: int) -> Arrays:
        """Return what the server is told of the choice after a cycle: the same each time."""
        if not strategy_class(self._settings.strategy).tells:
            return {}
        with self._purchasing.labels() as store:
            request = store.request(self._purchasing.annotation.request_id(cycle + 1))
        return load_arrays(request.report) if request is not None and request.report else {}

    def coordinate(
        self,
        tensors: Mapping[str, Tensor] | None,
        cycle: int,
        asked: Asked,
        statistics: ClassStatistics,
        granted: int | None = None,
    ) -> UnderWay | None:
        """Answer a step of the coordination of what is labelled after a cycle.

        Parameters
        ----------
        tensors : Mapping[str, Tensor] | None
            The global model f^G, where it came with the message.
        cycle : int
            The cycle that was just trained.
        asked : Asked
            The step, and steps before it.
        statistics : ClassStatistics
            Statistics of the labelled sets that it was trained on.
        granted : int | None
            How many labels the server grants in total; None: as many as the settings say.

        Returns
        -------
        UnderWay | None
            With the answer; None where what came before was lost.

        Raises
        ------
        MessageRefused
            The run's strategy coordinates nothing, or the step is none of its coordinator's.
        PrivacyRefused
            The run's privacy does not allow it, or the step was asked before in another way.
        """
        self._check(granted)
        return self._joint.coordinate(tensors, cycle, asked, statistics, granted)

    def advertise_coordination(self, cycle: int, step: int, session: str) -> Advertisement:
        """Begin a session of secure aggregation of this client's part in a step's sums.

        Raises
        ------
        MessageRefused
            This is not the step that was answered last, or the answer was lost.
        """
        return self._joint.advertise(cycle, step, session, Topic.COORDINATION)

    def split(
        self, tensors: Mapping[str, Tensor] | None, cycle: int, asked: Asked
    ) -> UnderWay | None:
        """Answer a step of how the budget that all share is split after a cycle.

        Parameters
        ----------
        tensors : Mapping[str, Tensor] | None
            The global model f^G, where it came with the message.
        cycle : int
            The cycle that was just trained.
        asked : Asked
            The step, and steps before it.

        Returns
        -------
        UnderWay | None
            With the answer; None where what came before was lost.

        Raises
        ------
        MessageRefused
            The run's budget is split without asking, or the step is none of its coordinator's.
        PrivacyRefused
            The run's privacy does not allow it, or the step was asked before in another way.
        """
        return self._joint.split(tensors, cycle, asked)

    def advertise_split(self, cycle: int, step: int, session: str) -> Advertisement:
        """Begin a session of secure aggregation of this client's part in a step of `split`.

        Raises
        ------
        MessageRefused
            This is not the step that was answered last, or the answer was lost.
        """
        return self._joint.advertise(cycle, step, session, Topic.BUDGET)

    def select_together(
        self,
        tensors: Mapping[str, Tensor],
        cycle: int,
        asked: Asked,
        statistics: ClassStatistics,
        granted: int | None = None,
        bought: int = -1,
    ) -> QueryAnswer | None:
        """Choose as the clients have coordinated; parameters as of `coordinate` and `select`.

        Returns
        -------
        QueryAnswer | None
            None where what was coordinated was lost.
        """
        start, purchasing = time.perf_counter(), self._purchasing
        self._check(granted)
        with purchasing.labels() as store:
            check_nothing_lost(store, bought)
            purchasing.describe(store)
            is_bought = purchasing.is_made(store, cycle + 1)
        if not is_bought:
            selected = self._joint.chosen(tensors, cycle, asked, statistics, granted)
            if selected is None:
                return None
            with purchasing.labels() as store:
                # The same as the steps were answered with.
                audit_A = purchasing.open(store, cycle + 1, granted)
                predicted_A = purchasing.selection.predicted(audit_A, tensors)
                purchasing.make(store, cycle + 1, selected, audit_A, predicted_A)
            self._joint.forget(cycle)
        with purchasing.labels() as store:
            purchasing.ask(store)
            seconds = time.perf_counter() - start
            return purchasing.answer(store, cycle + 1, seconds=seconds)

    def collect(self, cycle: int) -> QueryAnswer:
        """Take in the answers that have come since, for the purchase before `cycle`."""
        with self._purchasing.labels() as store:
            self._purchasing.ask(store)
            return self._purchasing.answer(store, cycle)

    def keep_model(self, tensors: Mapping[str, Tensor], metadata: str, personal: bool) -> None:
        """Leave the run's model at this site, and beside it the site's own if that is wanted.

        Parameters
        ----------
        tensors : Mapping[str, Tensor]
            The model that the run leaves.
        metadata : str
            What the server says of it.
        personal : bool
            Whether f^L of the last cycle that the site took part in is left, too.

        Raises
        ------
        MessageRefused
            What the server says of it is not what the site knows, or this is no site.
        """
        folder = self._state.models_folder
        if folder is None:
            raise MessageRefused("a model is left at sites alone")
        models = SiteModels(folder, self._settings, self._resources)
        local = self._state.newest_local_model() if personal else None
        models.keep(tensors, metadata, with_personal=local is not None)
        if local is not None:
            cycle, own = local
            with self._purchasing.labels() as store:
                labels = len(store.labelled(through_cycle=cycle).samples_N)
                tests = {
                    name: self._purchasing.testing.sums(store, model, cycle)
                    for name, model in ((MODEL, tensors), (PERSONAL, own))
                }
                models.keep_personal(own, cycle, labels, tests)
        elif personal:
            _log.warning("there is no model of this site's own: it was in no cycle's last round")

    # --- inside -------------------------------------------------------------------------

    def _local_model(
        self, store: LabelStore, tensors: Mapping[str, Tensor], cycle: int
    ) -> tuple[Mapping[str, Tensor], bool]:
        """Return f^L of a cycle, and whether it had to be made of the global model."""
        local = self._state.load_local_model(cycle)
        if local is not None:
            return local, False
        sets = LabelledSets.of(store, open_N=self._purchasing.arriving.open(store, cycle))
        return self._training.in_place_of_local_model(tensors, sets, cycle), True

    def _prepare_data(self) -> None:
        """See that all data can be used, before anything is written down of the run."""
        # Whoever has a backbone computes its features now, and not while others wait for a round.
        if self._resources.backbone is not None:
            _ = self._resources.train_images
        if self._settings.tests_at_sites:
            self._resources.check_validation()
        data = self._resources.dataset
        if data.holds_vectors and not self._settings.has_dataset:
            # Whoever has numbers that cannot be summed does not join, be it later than the others.
            OfVectors(data.image_shape[2]).of(data.train, self._rows_N)

    @contextmanager
    def _disclosure(self) -> Iterator[Disclosure]:
        with self._state.privacy() as store:
            yield Disclosure(store, self._settings, self._run, self._client)

    def _tested(self, tensors: Mapping[str, Tensor], cycle: int) -> EvaluationSums:
        if not self._settings.tests_at_sites:
            raise MessageRefused(
                f"evaluate={self._settings.evaluate!r}: asked to test the model all the same"
            )
        with self._purchasing.labels() as store:
            return self._purchasing.testing.sums(store, tensors, cycle)

    def _moment_sums(self) -> NDArray[np.int64]:
        dataset = self._resources.dataset
        if dataset.format.is_measured and not dataset.holds_vectors:
            raise MessageRefused("asked for sums over images that are normalised already")
        return moments_for(dataset.format).of(dataset.train, self._rows_N)

    def _check(self, granted: int | None) -> None:
        if granted is not None:
            self._check_grant(granted)

    def _class_counts(self, cycle: int) -> NDArray[np.int64]:
        with self._purchasing.labels() as store:
            store.freeze(cycle)
            return store.counts_by_cycle(cycle, self._resources.num_classes)
