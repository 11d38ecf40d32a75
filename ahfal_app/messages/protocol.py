"""What the server sends: types of messages, its orders and the class statistics.

Raw images, labels of single samples and sample ids are in none of them.
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
from ahfal_app.messages.fields import count, number

JOIN = "query.join"
TRAIN = "train"
HISTOGRAM = "query.histogram"
SELECT = "query.select"
COLLECT = "query.collect"


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
    """

    settings: Settings
    run: str
    run_folder: str
    code: str
    cycle: int = 0
    round: int = 0
    data: DataFormat | None = None
    proximal_mu: float = 0.0

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
                "proximal-mu": self.proximal_mu,
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
            proximal_mu=number(record, "proximal-mu"),
        )


@functools.lru_cache(maxsize=8)
def _settings(text: str) -> Settings:
    return parse_settings(json.loads(text))


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
