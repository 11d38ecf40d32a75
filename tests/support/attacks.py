"""A site whose files are called after patients, and a server that sends it whatever it likes."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image
from pyarrow import parquet
from support.site_images import digits

from ahfal_app.client_app import app as client_app
from ahfal_app.config import parse_settings
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.images import DataFormat
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.ledger import Ledger
from ahfal_app.models import build_model
from ahfal_app.plugins import shared_code_hash

#: In the name of every file of the site, and nowhere else.
PATIENT = "Mustermann-Erika"
FOLDER = "station-7"
CLASSES = tuple("0123456789")
IMAGES = 60
RUN = "0123456789abcdef"

#: What the attacked run says where an attack says nothing else.
SETTINGS: dict[str, object] = {
    "partition": "sites",
    "num-clients": 3,
    "model": "small-cnn",
    "rounds": 2,
    "local-epochs": 1,
    "strategy": "entropy",
    "initial-fraction": 0.2,
    "query-fraction": 0.1,
    "target-fraction": 0.4,
}

Spoil = Callable[[RecordDict], None]

_MODEL = "small-cnn"
_FORMAT = DataFormat(CLASSES, (8, 8, 1), (0.3,), (0.38,), Augmentation(0, False))


class Target:
    """A site that is attacked.

    Attributes
    ----------
    root : Path
        Holds `site`, with all that is the site's, and whatever an attack writes beside it.
    node : dict[str, object]
        What the site says of itself.
    replies : list[Message]
        All that it has answered.
    """

    def __init__(self, root: Path, **node: object) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.root = root
        self.site = root / "site"
        truth = self._write(self.site / "images")
        (self.site / "truth.csv").write_text(
            "file,label\n" + "".join(f"{name},{label}\n" for name, label in truth.items())
        )
        self.node: dict[str, Any] = {
            "partition-id": 0,
            "num-partitions": 3,
            "data": str(self.site / "images"),
            "state-dir": str(self.state),
            "truth": str(self.site / "truth.csv"),
            "data-dir": str(self.site / "decoded"),
            **node,
        }
        self.replies: list[Message] = []

    model = _MODEL
    data_format = _FORMAT

    @property
    def state(self) -> Path:
        return self.site / "state"

    def arrays(self) -> ArrayRecord:
        return model_arrays()

    def _write(self, folder: Path) -> dict[str, str]:
        return _write_images(folder)

    def send(
        self,
        kind: str,
        settings: Mapping[str, object] | None = None,
        spoil: Spoil | None = None,
        order: Mapping[str, object] | None = None,
    ) -> Message:
        """Send what a server that follows the protocol sends, spoilt; return the answer."""
        # Not the settings' own checks: a hostile server has none.
        own = parse_settings(SETTINGS | {"model": self.model})
        said = own.to_flat() | dict(settings or {})
        about = ConfigRecord(
            {
                "settings": json.dumps(said),
                "run": RUN,
                "run-folder": "/srv/runs/run",
                "code": shared_code_hash(own.to_flat()),
                "cycle": 0,
                "server-round": 1 if kind == "train" else 0,
                "proximal-mu": 0.0,
                "data": self.data_format.to_json(),
            }
        )
        content = RecordDict({"config": about})
        for key, value in (order or {}).items():
            about[key] = value  # type: ignore[assignment]
        if kind in ("train", "query.select", "query.predictions"):
            content["arrays"] = self.arrays()
        if kind == "query.select":
            content["statistics"] = MetricRecord(
                {"mean": [0.1] * 10, "deviation": [0.0] * 10, "low": [1] * 10}
            )
        if kind in ("query.join", "query.select"):
            content["purchases"] = MetricRecord({"purchases": 0})
        if spoil is not None:
            spoil(content)
        return self.deliver(kind, content)

    def deliver(self, kind: str, content: RecordDict) -> Message:
        """Have a message answered."""
        message = Message(content, 1, kind)
        message.metadata.__dict__["_message_id"] = str(len(self.replies))
        context = Context(
            run_id=1, node_id=1, node_config=self.node, state=RecordDict(), run_config={}
        )
        reply = client_app(message, context)
        self.replies.append(reply)
        return reply

    def refused(
        self,
        kind: str,
        code: str,
        settings: Mapping[str, object] | None = None,
        spoil: Spoil | None = None,
        order: Mapping[str, object] | None = None,
    ) -> str:
        """Send an attack, which must change nothing; return what the server was told of it."""
        before, ledgers = self.everything_outside(), self.ledgers()
        reply = self.send(kind, settings, spoil, order)
        assert reply.has_error(), reply.content
        reason = str(reply.error.reason)
        assert reason.startswith(f"[{code}] "), reason
        assert self.everything_outside() == before
        assert self.ledgers() == ledgers
        return reason

    def everything_outside(self) -> dict[str, str]:
        """Return digests of all files beside what the site gives to AHFAL."""
        own = {str(self.state), str(self.site / "decoded")}
        found: dict[str, str] = {}
        for folder, below, files in os.walk(self.root):
            below[:] = [name for name in below if f"{folder}/{name}" not in own]
            found |= dict.fromkeys((f"{folder}/{name}" for name in below), "")
            for name in files:
                content = Path(folder, name).read_bytes()
                found[f"{folder}/{name}"] = hashlib.sha256(content).hexdigest()
        return found

    def ledgers(self) -> dict[str, Ledger]:
        """Return the ledger of every run, by its folder."""
        found = {}
        for path in sorted(self.state.rglob(STORE_FILE)):
            store = LabelStore.open_existing(path)
            found[str(path.parent)] = store.ledger()
            store.close()
        return found

    def leaks(self) -> list[str]:
        """Return what of the site's own names stands in any answer so far."""
        names = (PATIENT, FOLDER, *PATIENT.split("-"), str(self.root), self.root.name)
        text = "\n".join(piece for reply in self.replies for piece in _pieces(reply))
        return [name for name in names if name.casefold() in text.casefold()]


class VectorTarget(Target):
    """A site with vectors, each shown to people by a text with a patient's name."""

    model = "linear"
    data_format = DataFormat(
        CLASSES, (1, 1, 64), (5.0,) * 64, (6.0,) * 64, Augmentation(0, False), vectors=True
    )

    @staticmethod
    def text(row: int) -> str:
        """Return what is shown of a row."""
        return f"{PATIENT}, born {1920 + row}"

    def arrays(self) -> ArrayRecord:
        return ArrayRecord(build_model("linear", (1, 1, 64), len(CLASSES), seed=0).state_dict())

    def _write(self, folder: Path) -> dict[str, str]:
        pixels_NHW, labels_N = digits()
        folder.mkdir(parents=True)
        name = f"{PATIENT}.parquet"
        vectors = list(pixels_NHW[:IMAGES].reshape(IMAGES, -1).astype(np.float32))
        texts = [self.text(row) for row in range(IMAGES)]
        parquet.write_table(pa.table({"vector": vectors, "text": texts}), folder / name)
        return {f"{name}#{row}": CLASSES[labels_N[row]] for row in range(IMAGES)}


def model_arrays(spoil: Callable[[dict[str, Any]], None] | None = None) -> ArrayRecord:
    """Return a fresh global model, spoilt."""
    model = build_model(_MODEL, (8, 8, 1), len(CLASSES), seed=0)
    tensors = dict(model.state_dict())
    if spoil is not None:
        spoil(tensors)
    return ArrayRecord(tensors)


def _write_images(folder: Path) -> dict[str, str]:
    (folder / FOLDER).mkdir(parents=True)
    for name, (content, _) in _images().items():
        (folder / name).write_bytes(content)
    return {name: label for name, (_, label) in _images().items()}


@cache
def _images() -> dict[str, tuple[bytes, str]]:
    """Return content and class of each file."""
    pixels_NHW, labels_N = digits()
    images = {}
    for row in range(IMAGES):
        content = io.BytesIO()
        Image.fromarray(pixels_NHW[row]).save(content, format="PNG")
        name = f"{FOLDER}/{PATIENT}-{1920 + row}.png"
        images[name] = content.getvalue(), CLASSES[labels_N[row]]
    return images


def _pieces(reply: Message) -> Iterator[str]:
    """Give all texts, keys and bytes of an answer as text."""
    if reply.has_error():
        yield str(reply.error.reason)
        return
    for name, record in reply.content.items():
        yield name
        for key, value in record.items():
            yield key
            for each in value if isinstance(value, list) else [value]:
                content = getattr(each, "data", each)
                if isinstance(content, bytes):
                    yield content.decode("latin-1")
                elif not isinstance(content, np.ndarray):
                    yield str(content)
