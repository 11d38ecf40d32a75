"""Whether runs that are compared had the same data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath

from ahfal_app.experiments.charts import point_text
from ahfal_app.experiments.results import ALL_RUNS, ExperimentResults, Point, RunResult
from ahfal_app.experiments.summaries import BY_CONTENT, LOADED_BY
from ahfal_app.parameters import Scalar

#: A place in the grid without the method, and what was to be loaded there.
_Place = tuple[Point, tuple[Scalar, ...]]

#: The data set's fingerprint, and the backbone's hash.
_Content = tuple[str, str]


def data_warnings(results: ExperimentResults) -> list[str]:
    """Return a line for each place whose runs had other data, or another backbone, of one name.

    As of a folder to which images have come between two runs: the settings are the same.
    """
    found: dict[_Place, dict[_Content, dict[str, None]]] = {}
    for result in results.runs:
        method = str(result.labels.get(results.method_axis, ALL_RUNS))
        by_content = found.setdefault(_place(results, result), {})
        by_content.setdefault(_content(result), {})[method] = None
    return [
        f"Not the same data{point_text(point, ' at ')}: fingerprints of "
        f"{loaded[LOADED_BY.index('dataset')]} are {_told(by_content)}; differences between these "
        "may be the data's"
        for (point, loaded), by_content in found.items()
        if len(by_content) > 1
    ]


def _told(by_content: Mapping[_Content, Iterable[str]]) -> str:
    return "; ".join(
        f"{' and '.join(part[:12] for part in content if part)} for {', '.join(methods)}"
        for content, methods in by_content.items()
    )


def _place(results: ExperimentResults, result: RunResult) -> _Place:
    """Return where a run is; by the last names of folders and files, as on any machine."""
    # Methods that are named data sets are to have other data.
    point = tuple(
        pair for pair in result.point if pair[0] != results.method_axis or pair[0] in BY_CONTENT
    )
    flat = result.run.settings.to_flat()
    return point, tuple(
        PurePath(str(flat[key])).name if key in BY_CONTENT else flat[key] for key in LOADED_BY
    )


def _content(result: RunResult) -> _Content:
    environment = result.run.environment
    backbone = environment.get("backbone", {}).get("sha256", "")
    # A server without data has none, and an older run may say none.
    return str(environment["data"].get("fingerprint") or "none"), str(backbone)
