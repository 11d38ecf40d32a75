"""Where a client's labels come from: its oracle is asked, what it answers goes into the store."""

from __future__ import annotations

import dataclasses
import io
import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save as save_arrays

from ahfal_app.client.auditing import kept_predictions
from ahfal_app.client.node_config import oracle_folder
from ahfal_app.client.selection import Selected
from ahfal_app.client.state import ClientState
from ahfal_app.errors import DatasetError, LabelConflict, OracleError
from ahfal_app.labels.readings import Readers
from ahfal_app.labels.records import AUDIT
from ahfal_app.labels.store import LabelRequest, LabelStore, request_id
from ahfal_app.oracle import EncodedImage, Site, make_oracle
from ahfal_app.parameters import Scalar
from ahfal_app.storage.private import for_others
from ahfal_app.training.resources import Resources

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotation:
    """A client's side of the labelling: requests, and the oracle that answers them.

    Attributes
    ----------
    oracle : str
        Name of the oracle.
    parameters : Mapping[str, Scalar]
        The run's parameters of it.
    options : Mapping[str, str]
        What the site has set for it.
    client : int
        The client's partition, from 0.
    run : str
        The run's identity, equal after a resume.
    state : ClientState
        What the client keeps between messages.
    loaded : Resources
        The client's data.
    readers : Readers
        How many people read each image, and what decides.
    """

    oracle: str
    parameters: Mapping[str, Scalar]
    options: Mapping[str, str]
    client: int
    run: str
    state: ClientState
    loaded: Resources
    readers: Readers

    def describe(self, store: LabelStore) -> None:
        """Tell the store what things are called, and which labels are there already."""
        site = self.loaded.site
        if site is not None:
            store.follow_images()  # What went is given back before the budget is spent.
        store.describe(self.loaded.dataset.class_names, site.names if site else None)
        for annotator, labels in (site.given if site else {}).items():
            store.give(labels, annotator)

    def request_id(self, cycle: int) -> str:
        """Return the name of the request before a cycle, the same each time."""
        return request_id(self.run, self.client, cycle)

    def reserve(
        self,
        store: LabelStore,
        cycle: int,
        selected: Selected,
        audit_A: NDArray[np.int64],
        predicted_A: NDArray[np.int64] | None = None,
    ) -> None:
        """Write down what will be asked for before `cycle`, before anybody is asked.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        cycle : int
            The cycle that labels are bought for.
        selected : Selected
            What the query strategy has chosen.
        audit_A : NDArray[np.int64]
            What was drawn at random. It is a request of its own, without scores and guesses, so
            that these tell nobody what to say. Shape (A,).
        predicted_A : NDArray[np.int64], optional
            What the global model says of it, which is kept to be compared with the labels.
        """
        scores_B, guesses_B = selected.scores_B, selected.guesses_B
        request = LabelRequest(
            self.request_id(cycle),
            cycle,
            selected.strategy,
            tuple(selected.samples_B.tolist()),
            scores=tuple(scores_B.tolist()) if scores_B is not None else (),
            guesses=tuple(guesses_B.tolist()) if guesses_B is not None else (),
            readers=self.readers.count,
            rule=self.readers.rule,
            report=save_arrays(dict(selected.report)) if selected.report else b"",
        )
        # One change, or a run that is killed in between would choose the rest by labels that came.
        with store.one_change():
            if len(audit_A):
                store.reserve(
                    LabelRequest(
                        request_id(self.run, self.client, cycle, AUDIT),
                        cycle,
                        AUDIT,
                        tuple(audit_A.tolist()),
                        readers=self.readers.count,
                        rule=self.readers.rule,
                        report=b""
                        if predicted_A is None
                        else kept_predictions(audit_A, predicted_A),
                    )
                )
            store.reserve(request)

    def ask(self, store: LabelStore) -> None:
        """Submit what is unanswered, again if need be, and store what has been answered.

        Of samples that were labelled or skipped the oracle is not told again: where its own copy
        of a request is gone, people must not be asked for what they have said already. Images
        that the site no longer has are withdrawn: nobody is asked for them, or paid.

        An oracle that fails is asked again the next time: the request is in the store, and the
        server waits for its labels as for those of slow people. One that answers what it was not
        asked is taken for such: none of its answers to that request are used, and others are.
        """
        gone = store.follow_images()
        requests = store.unfinished_requests()
        if not requests and not gone:
            return
        conflicts = set(store.conflicts())
        try:
            oracle = make_oracle(self.oracle, self._site(), self.parameters)
        except OracleError as error:
            _log.warning("oracle %s: %s", self.oracle, error)
            return
        for request in requests:
            unanswered = _unanswered(store, request)
            with self._at_work():
                if unanswered.samples:
                    oracle.submit(unanswered)
                receipts = oracle.collect(request.request_id)
                store.commit(receipts)
        with self._at_work():
            if gone:
                oracle.withdraw(gone)  # After what people have said of them is kept.
                store.withdrawn(gone)
                _log.warning("%d samples that were asked for are gone from this site", len(gone))
        if new := set(store.conflicts()) - conflicts:
            _log.warning("%d answers contradict labels that stand; the first ones do", len(new))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let the oracle work, and tell what it could not do now: it is asked again."""
        try:
            with self._for_people():
                yield
        except (OracleError, LabelConflict) as error:
            _log.warning("oracle %s: %s", self.oracle, error)

    def _for_people(self) -> AbstractContextManager[None]:
        """Write for whom the oracle's folder is open, unless it is part of the site's own state."""
        folder = oracle_folder(self.options)
        if folder is None or self.state.holds(folder):
            return nullcontext()
        return for_others()

    def _site(self) -> Site:
        rows_N = self.loaded.client_rows(self.client)
        labels_N = self.loaded.dataset.train.labels_N[rows_N]
        labels = zip(rows_N.tolist(), labels_N.tolist(), strict=True)
        return Site(
            self.client,
            self.loaded.dataset.class_names,
            {sample: label for sample, label in labels if label >= 0},
            self._image,
            oracle_folder(self.options) or self.state.oracle_folder,
            self.options,
            self.readers,
        )

    def _image(self, sample: int) -> EncodedImage:
        if self.loaded.site is not None:
            site = self.loaded.site
            try:
                return EncodedImage(site.names[sample], *self._shown(sample))
            except DatasetError as error:
                # It went while this process was at work; the next one finds it gone.
                raise OracleError(f"image {site.names[sample]}: {error}") from error
        if self.loaded.dataset.holds_vectors:
            return EncodedImage(f"{sample}.png", *self._shown(sample))
        content = io.BytesIO()
        pixels_HWC = self.loaded.train.images_NHWC[sample]
        Image.fromarray(pixels_HWC.squeeze()).save(content, format="PNG")
        return EncodedImage(f"{sample}.png", content.getvalue())

    def _shown(self, sample: int) -> tuple[bytes, str]:
        """Return an image file of what people see of a sample, and its link where it is one."""
        loaded, site = self.loaded, self.loaded.site
        name = site.names[sample] if site else f"sample {sample}"
        if not loaded.dataset.holds_vectors:
            return site.content(sample) if site else b"", ""
        from ahfal_app.data.shown import link_of, picture

        given = loaded.dataset.train.shown
        content = site.content(sample) if site else given[sample] if given else b""
        return picture(content, name), link_of(content)


def _unanswered(store: LabelStore, request: LabelRequest) -> LabelRequest:
    """Return what of a request is still to be labelled."""
    answered = store.answered(request.request_id)
    is_open_B = [sample not in answered for sample in request.samples]
    return dataclasses.replace(
        request,
        samples=tuple(itertools.compress(request.samples, is_open_B)),
        scores=tuple(itertools.compress(request.scores, is_open_B)),
        guesses=tuple(itertools.compress(request.guesses, is_open_B)),
    )
