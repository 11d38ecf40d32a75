"""What became of each sample that arrived, in simulation: one row for each in `arrivals.parquet`.

The server writes what came for a cycle, each client what it asked for, both for figures alone; none
of it travels in a message.

Shape suffixes: N samples that came for a cycle, B that were asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ahfal_app.config import Settings
from ahfal_app.results.selections import write_table

ARRIVALS = "arrivals.parquet"

#: The part of a cycle, as the server writes it.
_CAME = pa.schema(
    [
        ("cycle", pa.int32()),
        ("client", pa.int32()),
        ("sample", pa.int64()),
        ("class", pa.int32()),
        ("severity", pa.float64()),
        ("right_before", pa.bool_()),
    ]
)

#: The part of a purchase, as its client writes it.
_ASKED = pa.schema([("sample", pa.int64()), ("bought", pa.int32()), ("audit", pa.bool_())])


def write_came(
    folder: Path,
    cycle: int,
    clients_N: NDArray[np.int64],
    samples_N: NDArray[np.int64],
    classes_N: NDArray[np.int64],
    severity: float,
    right_N: NDArray[np.bool_] | None,
) -> None:
    """Write what came first for a cycle; writing it again replaces it.

    Parameters
    ----------
    folder : Path
        The run's folder.
    cycle : int
        From 0.
    clients_N, samples_N, classes_N : NDArray[np.int64]
        Whose each is, its id and its true class.
    severity : float
        How far images have changed that came for it, from 0 to 5.
    right_N : NDArray[np.bool_] | None
        Whether the model of the cycle before was right, before any was labelled; None for the
        first cycle, which has none before.
    """
    size = len(samples_N)
    columns = [
        np.full(size, cycle, np.int32),
        clients_N.astype(np.int32),
        samples_N,
        classes_N.astype(np.int32),
        np.full(size, severity),
        pa.nulls(size, pa.bool_()) if right_N is None else right_N,
    ]
    path = folder / "arrivals" / f"{cycle}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, pa.table(columns, schema=_CAME))


def write_asked(
    folder: Path,
    cycle: int,
    client: int,
    chosen_B: NDArray[np.int64],
    audit_A: NDArray[np.int64],
) -> None:
    """Write what a client asks for before a cycle; writing it again replaces it.

    Parameters
    ----------
    folder : Path
        The run's folder.
    cycle, client : int
        The cycle that is trained on the labels, and the client's place in the partition.
    chosen_B, audit_A : NDArray[np.int64]
        What the query strategy chose, and what was drawn at random.
    """
    samples = np.concatenate([chosen_B, audit_A])
    is_audit = np.arange(len(samples)) >= len(chosen_B)
    columns = [samples, np.full(len(samples), cycle, np.int32), is_audit]
    path = folder / "clients" / str(client) / "asked" / f"{cycle}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, pa.table(columns, schema=_ASKED))


def merge_arrivals(folder: Path, settings: Settings, num_cycles: int) -> Path | None:
    """Merge all parts into `arrivals.parquet`, by cycle, client and sample.

    `bought` is the cycle before which somebody was asked for the sample, and `audit` whether it was
    drawn at random; null where nobody was. `expired` is the cycle from whose purchase on it could
    not be asked for any more; null where it was bought, or is open at the end, and for all where
    samples may come again.

    Parameters
    ----------
    folder : Path
        The run's folder.
    settings : Settings
        The run's settings.
    num_cycles : int
        Cycles that the run has recorded; later ones were interrupted and are left out.

    Returns
    -------
    Path or None
        The file; None where all samples are there from the start.
    """
    came = _read(folder.glob("arrivals/*.parquet"), _CAME, num_cycles)
    if came is None:
        return None
    asked = _read(folder.glob("clients/*/asked/*.parquet"), _ASKED, num_cycles)
    asked = _ASKED.empty_table() if asked is None else asked
    # No sample is of two clients, so that its id alone says which it is.
    merged = came.join(asked, keys="sample", join_type="left outer")
    memory, gone = settings.pool_memory, pa.scalar(None, pa.int32())
    if memory and settings.arrival_exhausted != "recycle":
        leaves = pc.add(merged["cycle"], pa.scalar(memory, pa.int32()))
        is_gone = pc.and_(pc.is_null(merged["bought"]), pc.less(leaves, num_cycles))
        gone = pc.if_else(is_gone, leaves, gone)
    else:
        gone = pa.nulls(len(merged), pa.int32())
    merged = merged.append_column("expired", gone).select(
        [*_CAME.names, "bought", "audit", "expired"]
    )
    order = [("cycle", "ascending"), ("client", "ascending"), ("sample", "ascending")]
    write_table(folder / ARRIVALS, merged.sort_by(order))
    return folder / ARRIVALS


def _read(parts: Iterable[Path], schema: pa.Schema, num_cycles: int) -> pa.Table | None:
    tables = [
        pq.read_table(path, schema=schema)
        for path in parts
        if path.stem.isdecimal() and int(path.stem) < num_cycles
    ]
    return pa.concat_tables(tables) if tables else None
