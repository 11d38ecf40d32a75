"""A split of a data set, in a table and a picture, without running anything.

Shapes: K clients, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ahfal_app.class_statistics import class_statistics
from ahfal_app.config import DEFAULT_NUM_CLIENTS
from ahfal_app.experiments.charts import partition_bubbles
from ahfal_app.experiments.output import check_output, write_output
from ahfal_app.server.preflight import check_data, check_settings


def draw_partition(values: Mapping[str, object], out: Path, console: Console) -> None:
    """Split a data set as a run would, print the counts and draw them.

    Parameters
    ----------
    values : Mapping[str, object]
        Flat settings of the run.
    out : Path
        SVG file to write.
    console : Console
        Where the table goes.

    Raises
    ------
    ConfigError, PartitionError
        The settings or the file's name cannot be used, or there is no such split.
    """
    check_output(out, ".svg")
    settings = check_settings({"num-clients": DEFAULT_NUM_CLIENTS, **values})
    loaded = check_data(settings)
    labels_N = loaded.dataset.train.labels_N
    counts_KC = np.array(
        [
            np.bincount(labels_N[rows_N], minlength=loaded.num_classes)
            for rows_N in loaded.partition.indices
        ]
    )
    statistics = class_statistics(
        counts_KC, settings.tau, settings.dispersion, rule=settings.tau_rule
    )
    table = Table("client", *loaded.dataset.class_names, "all")
    for client, counts_C in enumerate(counts_KC):
        table.add_row(f"{client}", *(f"{count:,}" for count in counts_C), f"{counts_C.sum():,}")
    table.add_section()
    low = "low" if statistics.low_C.all() else ""
    table.add_row("σ", *(f"{100 * value:.1f}" for value in statistics.deviation_C), low)
    console.print(table)
    console.print(
        f"{int(statistics.low_C.sum())} of {loaded.num_classes} classes are low-variance at "
        f"τ = {statistics.tau:.4g} ({settings.dispersion}, of all samples)"
    )
    point = (("partition", settings.partition), ("alpha", settings.alpha), ("seed", settings.seed))
    chart = partition_bubbles(counts_KC, point, "partition")
    write_output(out, chart.svg)
    console.print(f"picture: {out.absolute()}", soft_wrap=True, markup=False)
