"""Vectors of scikit-learn's breast cancer data: 569 patients, 30 numbers of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from sklearn.datasets import load_breast_cancer


def patients(rows: slice | np.ndarray) -> pa.Table:
    """Return some of them as a table with the columns `vector` and `label`."""
    data = load_breast_cancer()
    labels = data.target_names[data.target[rows]].tolist()
    return pa.table({"vector": list(data.data[rows].astype(np.float32)), "label": labels})


def write_patients(path: Path, rows: slice | np.ndarray) -> Path:
    """Write some of them into a parquet file."""
    parquet.write_table(patients(rows), path)
    return path
