"""What a client answers to a test of the global model: sums, or that they would tell too much."""

from __future__ import annotations

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from ahfal_app.evaluation import EvaluationSums
from ahfal_app.evaluation.sums import vector_size

EVALUATE = "evaluate"

#: Key of the record in an answer.
RECORD_KEY = "evaluation"

_SUMS = "sums"
_TOO_FEW = "too-few"


def evaluation_to_record(sums: EvaluationSums | None) -> ConfigRecord:
    """Return a client's sums as they travel; None: of so few samples that they are not told."""
    if sums is None:
        return ConfigRecord({_TOO_FEW: True})
    return ConfigRecord({_SUMS: sums.to_vector().astype("<i8").tobytes()})


def evaluation_from(content: RecordDict, num_classes: int, most: int) -> EvaluationSums | None:
    """Return the sums that a client told; None where it tells none, of too few samples.

    Parameters
    ----------
    content : RecordDict
        The answer.
    num_classes : int
        Number of classes.
    most : int
        The most samples that the client can have tested with.

    Raises
    ------
    ValueError
        They are missing, or no test comes to them.
    """
    if RECORD_KEY not in content.config_records:
        raise ValueError(f"answer without {RECORD_KEY!r}")
    record = content.config_records[RECORD_KEY]
    if record.get(_TOO_FEW) is True:
        return None
    sums, size = record.get(_SUMS), vector_size(num_classes)
    if not isinstance(sums, bytes) or len(sums) != 8 * size:
        raise ValueError(f"{_SUMS}: allowed are {size} whole numbers")
    vector_D = np.frombuffer(sums, dtype="<i8").astype(np.int64)
    return EvaluationSums.from_vector(vector_D, num_classes, most)
