"""What the server sends: types of messages, its orders and the class statistics.

Raw images, labels of single samples and sample ids are in none of them. What is predicted of single
samples is told where a query strategy declares it, and a site allows it (`reports.py`).
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, MetricRecord

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.config import Settings, parse_settings
from ahfal_app.data.images import DataFormat
from ahfal_app.messages.fields import LARGEST_NUMBER, count, number, numbers, text
from ahfal_app.messages.formats import data_format_from

JOIN = "query.join"
BEGIN = "query.begin"
MOMENTS = "query.moments"
PREDICTIONS = "query.predictions"
DRIFT = "query.drift"
TRAIN = "train"
HISTOGRAM = "query.histogram"
SPLIT = "query.split"
COORDINATE = "query.coordinate"
SELECT = "query.select"
COLLECT = "query.collect"
MODEL = "query.model"

#: A run's identity, as `secrets.token_hex(8)` makes it. Folders are called after it.
RUN_PATTERN = "[0-9a-f]{16}"

_CODE_PATTERN = "[0-9a-f]{64}"
_LONGEST_SETTINGS = 1 << 16
_LONGEST_PATH = 4096
_LONGEST_FORMAT = 1 << 20
# Classes and normalisation, as in a format, and some lines besides.
_LONGEST_METADATA = _LONGEST_FORMAT + (1 << 16)


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
    proximal_mu : float
        Weight of the proximal term in the clients' loss; 0: none.
    backbone : str
        SHA-256 of the server's backbone, which a client's must have, too; empty: there is none.
    """

    settings: Settings
    run: str
    run_folder: str
    code: str
    cycle: int = 0
    round: int = 0
    data: DataFormat | None = None
    proximal_mu: float = 0.0
    backbone: str = ""

    def to_record(self) -> ConfigRecord:
        """Return the order as it travels."""
        record = ConfigRecord(
            {
                "settings": json.dumps(self.settings.to_tell()),
                "run": self.run,
                "run-folder": self.run_folder,
                "code": self.code,
                "cycle": self.cycle,
                "server-round": self.round,
                "proximal-mu": self.proximal_mu,
            }
        )
        if self.data is not None:
            record["data"] = self.data.to_json()
        if self.backbone:
            record["backbone"] = self.backbone
        return record

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Order:
        """Return the order that came in.

        Raises
        ------
        ValueError
            Something is missing or is not what it must be.
        ConfigError
            The settings cannot be used.
        """
        settings = _settings(text(record, "settings", ".+", _LONGEST_SETTINGS))
        order = cls(
            settings=settings,
            run=text(record, "run", RUN_PATTERN, 16),
            run_folder=text(record, "run-folder", r"[^\0]+", _LONGEST_PATH),
            code=text(record, "code", _CODE_PATTERN, 64),
            cycle=count(record, "cycle"),
            round=count(record, "server-round"),
            data=_data_format(record, settings),
            proximal_mu=number(record, "proximal-mu"),
            backbone=text(record, "backbone", _CODE_PATTERN, 64) if settings.uses_backbone else "",
        )
        # After the last training there is nothing more to be asked for.
        for key, value, most in (
            ("cycle", order.cycle, settings.num_cycles),
            ("server-round", order.round, settings.rounds),
        ):
            if value > most:
                raise ValueError(f"{key}={value}: allowed is at most {most}")
        return order


@functools.lru_cache(maxsize=8)
def _settings(content: str) -> Settings:
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("settings: nested too deep") from None
    if not isinstance(values, dict):
        raise ValueError("settings: allowed is an object of settings")
    return parse_settings(values)


def _data_format(record: ConfigRecord, settings: Settings) -> DataFormat | None:
    if "data" not in record:
        return None
    return data_format_from(text(record, "data", ".+", _LONGEST_FORMAT), settings)


def metadata_to_record(metadata: str) -> ConfigRecord:
    """Return what a model's file says of it, as it travels."""
    return ConfigRecord({"metadata": metadata})


def metadata_from_record(record: ConfigRecord) -> str:
    """Return the metadata of a model that came in; what they say is to be checked.

    Raises
    ------
    ValueError
        They are missing, no text or too long.
    """
    return text(record, "metadata", ".+", _LONGEST_METADATA)


def grant_to_record(labels: int) -> MetricRecord:
    """Return the labels that a client has been granted, in total, as they travel."""
    return MetricRecord({"labels": labels})


def grant_from_record(record: MetricRecord) -> int:
    """Return the labels that came in as granted.

    Raises
    ------
    ValueError
        It is no count.
    """
    return count(record, "labels")


def purchases_to_record(last_cycle: int) -> MetricRecord:
    """Return the newest cycle that a client is known to have bought labels for, as it travels."""
    # Counted from 1, since a client that has bought nothing has no cycle.
    return MetricRecord({"purchases": last_cycle + 1})


def purchases_from_record(record: MetricRecord) -> int:
    """Return the newest cycle that labels are known to be bought for; -1: none.

    Raises
    ------
    ValueError
        It is no count.
    """
    return count(record, "purchases") - 1


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


def statistics_from_record(record: MetricRecord, num_classes: int) -> ClassStatistics:
    """Return the class statistics that came in.

    Raises
    ------
    ValueError
        Something is missing, or is not what statistics of so many classes can be.
    """
    target_C = None
    if "target" in record:
        # Counts or proportions: of any scale.
        target_C = np.array(numbers(record, "target", num_classes, LARGEST_NUMBER))
        if not target_C.any():
            raise ValueError("target: allowed are numbers that are not all 0")
    return ClassStatistics(
        mean_C=np.array(numbers(record, "mean", num_classes, 1.0)),
        deviation_C=np.array(numbers(record, "deviation", num_classes, 1.0)),
        low_C=np.array(numbers(record, "low", num_classes, 1.0), dtype=bool),
        target_C=target_C,
    )
