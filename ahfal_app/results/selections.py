"""What was selected: one row for each chosen sample, written from the clients' side.

Only simulated clients write these rows (for figures); they never travel in a message.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from ahfal_app.errors import ReportError
from ahfal_app.storage.files import write_bytes

SELECTIONS = "selections.parquet"

SCHEMA = pa.schema(
    [
        ("cycle", pa.int32()),
        ("client", pa.int32()),
        ("sample", pa.int64()),
        ("class", pa.int32()),
        ("pseudo_class", pa.int32()),
        ("score", pa.float64()),
    ]
)


def write_client_selection(
    folder: Path,
    *,
    cycle: int,
    client: int,
    sample_ids: ArrayLike,
    classes: ArrayLike,
    pseudo_classes: ArrayLike | None = None,
    scores: ArrayLike | None = None,
) -> None:
    """Write what one client selected in one cycle; writing it again replaces it.

    Parameters
    ----------
    folder : Path
        The run's folder.
    cycle, client : int
        Cycle from 0; the client's place in the partition.
    sample_ids, classes : array_like, shape (n,)
        Chosen samples and their labels.
    pseudo_classes : array_like, shape (n,), optional
        What the client's model took them for; -1 where unknown.
    scores : array_like, shape (n,), optional
        Scores of the query strategy; NaN where it gives none.
    """
    ids_N = np.asarray(sample_ids, dtype=np.int64)
    table = pa.table(
        [
            _filled(cycle, ids_N, np.int32),
            _filled(client, ids_N, np.int32),
            ids_N,
            np.asarray(classes, dtype=np.int32),
            _filled(-1, ids_N, np.int32) if pseudo_classes is None else _int32(pseudo_classes),
            _filled(np.nan, ids_N, np.float64) if scores is None else _float64(scores),
        ],
        schema=SCHEMA,
    )
    path = _part(Path(folder), client, cycle)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, table)


def merge_selections(folder: Path, num_cycles: int) -> Path | None:
    """Merge the clients' files into `selections.parquet`, by cycle and client.

    Parameters
    ----------
    folder : Path
        The run's folder.
    num_cycles : int
        Cycles that the run has recorded; later ones were interrupted and are left out.

    Returns
    -------
    Path or None
        The merged file; None where no client of this machine has written anything.
    """
    folder = Path(folder)
    parts = [
        path
        for path in folder.glob("clients/*/selections/*.parquet")
        if path.stem.isdecimal() and int(path.stem) < num_cycles
    ]
    if not parts:
        return None
    tables = [pq.read_table(path, schema=SCHEMA) for path in parts]
    merged = pa.concat_tables(tables).sort_by(
        [("cycle", "ascending"), ("client", "ascending"), ("sample", "ascending")]
    )
    write_table(folder / SELECTIONS, merged)
    return folder / SELECTIONS


def read_class_counts(folder: Path, num_classes: int) -> NDArray[np.int64] | None:
    """Count the selected samples per cycle and true class.

    Returns
    -------
    NDArray[np.int64], shape (cycles, classes), or None
        Counts; None without `selections.parquet`.

    Raises
    ------
    ReportError
        The file is damaged or names a class that the run does not have.
    """
    path = Path(folder) / SELECTIONS
    if not path.exists():
        return None
    try:
        table = pq.read_table(path, columns=["cycle", "class"])
    except (pa.ArrowException, OSError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from error
    cycles_N, classes_N = (table[name].to_numpy().astype(np.int64) for name in ("cycle", "class"))
    if len(classes_N) and (classes_N.min() < 0 or classes_N.max() >= num_classes):
        raise ReportError(f"{path}: allowed classes are 0 to {num_classes - 1}")
    num_cycles = int(cycles_N.max()) + 1 if len(cycles_N) else 0
    counts = np.bincount(cycles_N * num_classes + classes_N, minlength=num_cycles * num_classes)
    return counts.astype(np.int64).reshape(num_cycles, num_classes)


def _part(folder: Path, client: int, cycle: int) -> Path:
    return folder / "clients" / str(client) / "selections" / f"{cycle}.parquet"


def _filled(value: float, like: NDArray[np.int64], kind: type[np.generic]) -> NDArray[np.generic]:
    return np.full(like.shape, value, dtype=kind)


def _int32(values: ArrayLike) -> NDArray[np.int32]:
    return np.asarray(values, dtype=np.int32)


def _float64(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table whole, or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())
