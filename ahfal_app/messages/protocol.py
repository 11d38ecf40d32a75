"""The messages between server and clients: types, keys, and how values travel in records.

Raw images, labels of single samples and sample ids are in none of them.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.client.client import QueryAnswer
from ahfal_app.config import Settings, parse_settings
from ahfal_app.data.images import DataFormat
from ahfal_app.labels.store import Ledger
from ahfal_app.privacy.disclosure import HistogramAnswer
from ahfal_app.server.aggregation import METRICS_KEY

JOIN = "query.join"
TRAIN = "train"
HISTOGRAM = "query.histogram"
SELECT = "query.select"
COLLECT = "query.collect"

CONFIG_KEY = "config"
STATISTICS_KEY = "statistics"


@dataclass(frozen=True)
class Order:
    """What every message tells a client besides its arrays.

    Attributes
    ----------
    settings : Settings
        The run's settings, resolved.
    run : str
        The run's identity, equal after a resume.
    run_folder : str
        The run's folder as the server sees it; a simulated client sees it, too.
    code : str
        Hash of the server's code.
    cycle, round : int
        From 0 and from 1; round 0 outside of training.
    data : DataFormat | None
        What the data of clients that have their own must have in common.
    """

    settings: Settings
    run: str
    run_folder: str
    code: str
    cycle: int = 0
    round: int = 0
    data: DataFormat | None = None

    def to_record(self) -> ConfigRecord:
        """Return the order as it travels."""
        record = ConfigRecord(
            {
                "settings": json.dumps(self.settings.to_flat()),
                "run": self.run,
                "run-folder": self.run_folder,
                "code": self.code,
                "cycle": self.cycle,
                "server-round": self.round,
            }
        )
        if self.data is not None:
            record["data"] = self.data.to_json()
        return record

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Order:
        """Return the order that came in."""
        return cls(
            settings=_settings(str(record["settings"])),
            run=str(record["run"]),
            run_folder=str(record["run-folder"]),
            code=str(record["code"]),
            cycle=count(record, "cycle"),
            round=count(record, "server-round"),
            data=DataFormat.from_json(str(record["data"])) if "data" in record else None,
        )


@functools.lru_cache(maxsize=8)
def _settings(text: str) -> Settings:
    return parse_settings(json.loads(text))


def ledger_to_metrics(ledger: Ledger) -> dict[str, int]:
    """Return a ledger as metrics."""
    return asdict(ledger)


def ledger_from_metrics(metrics: MetricRecord) -> Ledger:
    """Return a ledger from metrics.

    Raises
    ------
    ValueError
        A count is missing or negative, or they do not add up.
    """
    ledger = Ledger(**{key: count(metrics, key) for key in Ledger.__dataclass_fields__})
    if ledger.allotted != ledger.spent + ledger.reserved + ledger.free:
        raise ValueError(f"{ledger}: allotted must be spent + reserved + free")
    return ledger


def query_answer_to_metrics(answer: QueryAnswer) -> MetricRecord:
    """Return how a purchase stands as metrics."""
    return MetricRecord(
        {
            "selected": answer.selected,
            "labelled": answer.labelled,
            "pending": answer.pending,
            "fine-tuned": int(answer.fine_tuned),
            "seconds": answer.seconds,
            **ledger_to_metrics(answer.ledger),
        }
    )


def query_answer_from_metrics(metrics: MetricRecord) -> QueryAnswer:
    """Return how a purchase stands from metrics.

    Raises
    ------
    ValueError
        Something is missing or is no count.
    """
    return QueryAnswer(
        selected=count(metrics, "selected"),
        labelled=count(metrics, "labelled"),
        pending=count(metrics, "pending"),
        ledger=ledger_from_metrics(metrics),
        fine_tuned=bool(count(metrics, "fine-tuned")),
        seconds=number(metrics, "seconds"),
    )


def histogram_to_metrics(answer: HistogramAnswer) -> MetricRecord:
    """Return a client's class counts as metrics."""
    return MetricRecord(
        {
            "counts": answer.counts_C.tolist(),
            "has-labels": int(answer.has_labels),
            "epsilon-spent": answer.epsilon_spent,
        }
    )


def histogram_from_metrics(metrics: MetricRecord, num_classes: int, noisy: bool) -> HistogramAnswer:
    """Return a client's class counts, exact ones or noisy ones.

    Raises
    ------
    ValueError
        Something is missing, or the counts are not as many as there are classes, or not what
        counts can be.
    """
    counts = metrics.get("counts")
    if not isinstance(counts, list) or len(counts) != num_classes:
        raise ValueError(f"counts={counts!r}: allowed are {num_classes} counts")
    if any(not isinstance(value, int) or (value < 0 and not noisy) for value in counts):
        raise ValueError(f"counts={counts!r}: allowed are integers{'' if noisy else ' ≥ 0'}")
    has_labels = bool(count(metrics, "has-labels"))
    spent = number(metrics, "epsilon-spent")
    return HistogramAnswer(np.array(counts, dtype=np.int64), has_labels, spent)


def statistics_to_record(statistics: ClassStatistics) -> MetricRecord:
    """Return class statistics as they travel: 2 C floats, C flags, and a target if any."""
    record = MetricRecord(
        {
            "mean": statistics.mean_C.tolist(),
            "deviation": statistics.deviation_C.tolist(),
            "low": statistics.low_C.astype(int).tolist(),
        }
    )
    if statistics.target_C is not None:
        record["target"] = statistics.target_C.tolist()
    return record


def statistics_from_record(record: MetricRecord) -> ClassStatistics:
    """Return the class statistics that came in."""
    return ClassStatistics(
        mean_C=np.array(record["mean"], dtype=np.float64),
        deviation_C=np.array(record["deviation"], dtype=np.float64),
        low_C=np.array(record["low"], dtype=bool),
        target_C=np.array(record["target"], dtype=np.float64) if "target" in record else None,
    )


def count(record: MetricRecord | ConfigRecord, key: str) -> int:
    """Return a value that must be an integer of at least 0.

    Raises
    ------
    ValueError
        It is missing or something else.
    """
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key}={value!r}: allowed is an integer ≥ 0")
    return value


def number(record: MetricRecord, key: str, lowest: float = 0.0) -> float:
    """Return a metric that must be a finite number of at least `lowest`.

    Raises
    ------
    ValueError
        It is missing or something else.
    """
    value = record.get(key)
    if not isinstance(value, float) or not lowest <= value < math.inf:
        raise ValueError(f"{key}={value!r}: allowed is a number ≥ {lowest:g}")
    return value


def metrics_of(content: RecordDict) -> MetricRecord:
    """Return the metrics of an answer.

    Raises
    ------
    ValueError
        There are none.
    """
    if METRICS_KEY not in content.metric_records:
        raise ValueError(f"answer without {METRICS_KEY!r}")
    return content.metric_records[METRICS_KEY]
