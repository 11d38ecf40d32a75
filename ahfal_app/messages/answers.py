"""What clients answer, and how it travels in records.

Shape suffix: C classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
from flwr.app import ConfigRecord, MetricRecord
from numpy.typing import NDArray

from ahfal_app.drift import DriftTest, Found, Refusal, Shift, chi_square_p
from ahfal_app.ledger import ArrivalFigures, AuditFigures, Ledger
from ahfal_app.messages.fields import (
    LARGEST_COUNT,
    LARGEST_NUMBER,
    count,
    number,
    numbers,
    shown,
    text,
)
from ahfal_app.messages.keys import LOSS_KEY, WEIGHT_KEY
from ahfal_app.privacy.sessions import HistogramAnswer

# More are more than a mistake: lists are made of them.
_MOST_CLIENTS = 1_000_000

# What the keys of an audit's figures begin with.
_AUDIT = "audit-"


@dataclass(frozen=True)
class Introduction:
    """What a node tells about itself before anything else is asked of it.

    Attributes
    ----------
    client : int
        The partition that it serves.
    num_clients : int
        The number of partitions that there are.
    code : str
        Hash of its code.
    code_folder : str
        Where that is; empty where it is the server's code, since a site's folders are its own
        affair.
    data, partition : str
        Fingerprints of the data set and of its split.
    device : str
        What it trains on.
    backbone : str
        SHA-256 of its backbone; empty where there is none.
    version : str
        Version of its package; empty where it says none.
    """

    client: int
    num_clients: int
    code: str
    code_folder: str = ""
    data: str = ""
    partition: str = ""
    device: str = ""
    backbone: str = ""
    version: str = ""

    def to_record(self) -> ConfigRecord:
        """Return it as it travels; Flower cannot count empty text, so that is left out."""
        about: dict[str, str | int] = {
            "client": self.client,
            "num-clients": self.num_clients,
            "code": self.code,
        }
        texts = {
            "code-folder": self.code_folder,
            "data": self.data,
            "partition": self.partition,
            "device": self.device,
            "backbone": self.backbone,
            "version": self.version,
        }
        return ConfigRecord({**about, **{key: text for key, text in texts.items() if text}})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Introduction:
        """Return what came in.

        Raises
        ------
        ValueError
            Something is missing or is not what it must be.
        """
        num_clients = count(record, "num-clients")
        if not 1 <= num_clients <= _MOST_CLIENTS:
            raise ValueError(f"num-clients={num_clients}: allowed is 1 to {_MOST_CLIENTS}")
        return cls(
            client=count(record, "client"),
            num_clients=num_clients,
            code=text(record, "code", "[0-9a-f]+", 64),
            code_folder=_optional(record, "code-folder", r"[^\0]+", 4096),
            data=_optional(record, "data", "[0-9a-z]+", 64),
            partition=_optional(record, "partition", "[0-9a-z]+", 64),
            device=_optional(record, "device", "[a-z]+", 16),
            backbone=_optional(record, "backbone", "[0-9a-f]+", 64),
            version=_optional(record, "version", "[0-9A-Za-z.!+-]+", 64),
        )


@dataclass(frozen=True)
class JoinAnswer:
    """What a client tells about its labels.

    Attributes
    ----------
    num_samples, labelled : int
        All samples, and those that are labelled to be trained on.
    last_cycle : int
        The newest cycle that labels were bought for; -1: none.
    ledger : Ledger
        Its ledger.
    held_out : int
        Labelled samples that are held out for testing.
    arrivals : ArrivalFigures | None
        How many samples have come and gone; None where all are there from the start.
    """

    num_samples: int
    labelled: int
    last_cycle: int
    ledger: Ledger
    held_out: int = 0
    arrivals: ArrivalFigures | None = None

    def to_metrics(self) -> MetricRecord:
        """Return it as it travels."""
        return MetricRecord(
            {
                "num-samples": self.num_samples,
                "labelled": self.labelled,
                # Counted from 1, since a client that has bought nothing has no cycle.
                "purchases": self.last_cycle + 1,
                "held-out": self.held_out,
                **asdict(self.ledger),
                **_told(self.arrivals),
            }
        )

    @classmethod
    def from_metrics(cls, metrics: MetricRecord) -> JoinAnswer:
        """Return what came in.

        Raises
        ------
        ValueError
            Something is missing or is no count.
        """
        return cls(
            num_samples=count(metrics, "num-samples"),
            labelled=count(metrics, "labelled"),
            last_cycle=count(metrics, "purchases") - 1,
            ledger=_ledger(metrics),
            held_out=count(metrics, "held-out"),
            arrivals=_arrivals(metrics),
        )


@dataclass(frozen=True)
class TrainAnswer:
    """What a client tells about its local training, beside its arrays.

    Attributes
    ----------
    num_examples : int
        Labelled samples that it has trained on.
    loss : float
        Mean loss of its last local epoch; not every method's is above 0.
    seconds : float
        What it took.
    """

    num_examples: int
    loss: float
    seconds: float = 0.0

    def to_metrics(self) -> MetricRecord:
        """Return it as it travels."""
        return MetricRecord(
            {WEIGHT_KEY: self.num_examples, LOSS_KEY: self.loss, "seconds": self.seconds}
        )

    @classmethod
    def from_metrics(cls, metrics: MetricRecord) -> TrainAnswer:
        """Return what came in.

        Raises
        ------
        ValueError
            Something is missing, no count, or not finite.
        """
        return cls(
            num_examples=count(metrics, WEIGHT_KEY),
            loss=number(metrics, LOSS_KEY, lowest=-LARGEST_NUMBER),
            seconds=number(metrics, "seconds") if "seconds" in metrics else 0.0,
        )


@dataclass(frozen=True)
class QueryAnswer:
    """How a client's purchase stands; which samples it chose is no part of it.

    Attributes
    ----------
    selected : int
        Samples that were asked for.
    labelled : int
        All that are labelled to be trained on.
    pending : int
        Those that are asked for and not answered.
    ledger : Ledger
        Its ledger.
    fine_tuned : bool
        Whether its local model had to be made of the global one.
    seconds : float
        What choosing took.
    held_out : int
        Labelled samples that are held out for testing.
    longest : int
        Those of the pending ones that wait longest: what is unanswered of the oldest request.
    longest_seconds : float
        For how long they have waited, by the site's own clock.
    arrivals : ArrivalFigures | None
        How many samples have come and gone; None where all are there from the start.
    audit : AuditFigures | None
        How right the global model was of what was drawn at random for this purchase; None where
        nothing was, or nothing is told of it.
    """

    selected: int
    labelled: int
    pending: int
    ledger: Ledger
    fine_tuned: bool = False
    seconds: float = 0.0
    held_out: int = 0
    longest: int = 0
    longest_seconds: float = 0.0
    arrivals: ArrivalFigures | None = None
    audit: AuditFigures | None = None

    def to_metrics(self) -> MetricRecord:
        """Return it as it travels."""
        audit = {} if self.audit is None else asdict(self.audit)
        return MetricRecord(
            {
                "selected": self.selected,
                "labelled": self.labelled,
                "pending": self.pending,
                "fine-tuned": int(self.fine_tuned),
                "seconds": self.seconds,
                "held-out": self.held_out,
                "longest": self.longest,
                "longest-seconds": self.longest_seconds,
                **asdict(self.ledger),
                **_told(self.arrivals),
                **{f"{_AUDIT}{name}": number for name, number in audit.items()},
            }
        )

    @classmethod
    def from_metrics(cls, metrics: MetricRecord) -> QueryAnswer:
        """Return what came in.

        Raises
        ------
        ValueError
            Something is missing or is no count, or more of an audit is told of than was asked for.
        """
        audit = _audit(metrics)
        if audit is not None and audit.asked > count(metrics, "selected"):
            raise ValueError(f"{audit}: allowed are no more than were asked for")
        return cls(
            selected=count(metrics, "selected"),
            labelled=count(metrics, "labelled"),
            pending=count(metrics, "pending"),
            ledger=_ledger(metrics),
            fine_tuned=bool(count(metrics, "fine-tuned")),
            seconds=number(metrics, "seconds"),
            held_out=count(metrics, "held-out"),
            longest=count(metrics, "longest"),
            longest_seconds=number(metrics, "longest-seconds"),
            arrivals=_arrivals(metrics),
            audit=audit,
        )


def histogram_to_metrics(answer: HistogramAnswer) -> MetricRecord:
    """Return a client's class counts as metrics."""
    record = MetricRecord(
        {
            "counts": answer.counts_C.tolist(),
            "has-labels": int(answer.has_labels),
            "epsilon-spent": answer.epsilon_spent,
        }
    )
    if answer.weighted_C is not None:
        record["weighted"] = answer.weighted_C.tolist()
    if answer.effective:
        record["effective"] = answer.effective
    return record


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
        raise ValueError(f"counts={shown(counts)}: allowed are {num_classes} counts")
    lowest = -LARGEST_COUNT if noisy else 0
    if any(type(value) is not int or not lowest <= value <= LARGEST_COUNT for value in counts):
        raise ValueError(
            f"counts={shown(counts)}: allowed are integers{'' if noisy else ' ≥ 0'} up to "
            f"{LARGEST_COUNT:.0e}"
        )
    return HistogramAnswer(
        np.array(counts, dtype=np.int64),
        bool(count(metrics, "has-labels")),
        number(metrics, "epsilon-spent"),
        _weighted(metrics, np.array(counts, dtype=np.float64), noisy),
        number(metrics, "effective") if "effective" in metrics else 0.0,
    )


def _weighted(
    metrics: MetricRecord, counts_C: NDArray[np.float64], noisy: bool
) -> NDArray[np.float64] | None:
    """Return counts in which older labels count less, where a client tells any."""
    if "weighted" not in metrics:
        return None
    if noisy:
        weighted = metrics["weighted"]
        if (
            not isinstance(weighted, list)
            or len(weighted) != len(counts_C)
            or not all(abs(value) <= LARGEST_COUNT for value in weighted)
        ):
            raise ValueError(
                f"weighted={shown(weighted)}: allowed are {len(counts_C)} numbers up to "
                f"{LARGEST_COUNT:.0e}"
            )
        return np.array(weighted, np.float64)
    weighted_C = np.array(numbers(metrics, "weighted", len(counts_C), LARGEST_NUMBER))
    # A label weighs at most 1; sums are rounded.
    if (weighted_C > counts_C * (1 + 1e-9)).any():
        raise ValueError(
            f"weighted={shown(metrics['weighted'])}: allowed is at most the class's count"
        )
    return weighted_C


def moments_to_metrics(sums_E: NDArray[np.int64]) -> MetricRecord:
    """Return sums over a client's samples, as `Moments` has them, as metrics."""
    return MetricRecord({"sums": sums_E.tolist()})


def moments_from_metrics(metrics: MetricRecord, size: int) -> NDArray[np.int64]:
    """Return sums over a client's samples that came in, int64 (size,).

    Raises
    ------
    ValueError
        They are not so many integers.
    """
    sums = metrics.get("sums")
    if not isinstance(sums, list) or len(sums) != size:
        raise ValueError(f"sums={shown(sums)}: allowed are {size} integers")
    if any(type(value) is not int or abs(value) >= 2**62 for value in sums):
        raise ValueError(f"sums={shown(sums)}: allowed are integers below 2^62")
    return np.array(sums, dtype=np.int64)


def predictions_to_metrics(sums_E: NDArray[np.int64]) -> MetricRecord:
    """Return sums over a client's predictions, as `prediction_sums` has them, as metrics."""
    return MetricRecord({"sums": sums_E.tolist()})


def predictions_from_metrics(metrics: MetricRecord, size: int) -> NDArray[np.int64]:
    """Return sums over a client's predictions that came in, int64 (size,).

    Raises
    ------
    ValueError
        They are not so many counts.
    """
    sums_E = moments_from_metrics(metrics, size)
    if (sums_E < 0).any():
        raise ValueError(f"sums={shown(metrics['sums'])}: allowed are counts")
    return sums_E


def drift_to_metrics(found: Found) -> MetricRecord:
    """Return what a client makes of two windows as metrics."""
    if isinstance(found, Refusal):
        # Counted from 1, since metrics are numbers.
        return MetricRecord({"refusal": list(Refusal).index(found) + 1})
    return MetricRecord({"refusal": 0, **asdict(found)})


def drift_from_metrics(metrics: MetricRecord, method: str, num_classes: int) -> Found:
    """Return what came in of a client's comparison of two windows.

    Parameters
    ----------
    metrics : MetricRecord
        The answer.
    method : str
        The setting `drift-test`. With `chi-square` p is computed here, whatever was told.
    num_classes : int
        Number of classes.

    Raises
    ------
    ValueError
        Something is missing, or cannot be.
    """
    refusals = list(Refusal)
    refusal = count(metrics, "refusal")
    if refusal > len(refusals):
        raise ValueError(f"refusal={refusal}: allowed is at most {len(refusals)}")
    if refusal:
        return refusals[refusal - 1]
    if method == "predicted":
        shift = Shift(number(metrics, "divergence"), number(metrics, "variation"))
        if shift.variation > 1:
            raise ValueError(f"variation={shift.variation}: allowed is at most 1")
        return shift
    statistic, log_ratio = number(metrics, "statistic"), number(metrics, "log_ratio")
    df, p = count(metrics, "df"), number(metrics, "p")
    if not 1 <= df < num_classes:
        raise ValueError(f"df={df}: allowed is 1 to {num_classes - 1}")
    if p > 1:
        raise ValueError(f"p={p}: allowed is at most 1")
    if method == "chi-square":
        p = chi_square_p(statistic, df)
    return DriftTest(statistic, log_ratio, df, p)


def _ledger(metrics: MetricRecord) -> Ledger:
    return Ledger(**{field.name: count(metrics, field.name) for field in fields(Ledger)})


def _told(arrivals: ArrivalFigures | None) -> dict[str, int]:
    return {} if arrivals is None else asdict(arrivals)


def _arrivals(metrics: MetricRecord) -> ArrivalFigures | None:
    names = [field.name for field in fields(ArrivalFigures)]
    if names[0] not in metrics:
        return None
    return ArrivalFigures(**{name: count(metrics, name) for name in names})


def _audit(metrics: MetricRecord) -> AuditFigures | None:
    names = [field.name for field in fields(AuditFigures)]
    if f"{_AUDIT}{names[0]}" not in metrics:
        return None
    return AuditFigures(**{name: count(metrics, f"{_AUDIT}{name}") for name in names})


def _optional(record: ConfigRecord, key: str, pattern: str, longest: int) -> str:
    return text(record, key, pattern, longest) if key in record else ""
