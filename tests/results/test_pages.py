"""Reports as a reader sees them: drawn, not clipped, not too wide, and nothing from outside."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import browser
from support.fake_run import make_fake_run

from ahfal_app.experiments.charts import line_style
from ahfal_app.experiments.report import render_sweep_report, write_sweep_report
from ahfal_app.experiments.results import EXPERIMENTS, ExperimentResults, RunResult
from ahfal_app.experiments.scales import Scale
from ahfal_app.parameters import Scalar
from ahfal_app.results.reading import read_run
from ahfal_app.results.records import Failure
from ahfal_app.results.report import write_report
from ahfal_app.storage.files import write_json

if TYPE_CHECKING:
    from support.devtools import Chromium

needs_browser = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path"
)

#: As long as names get: nine methods, words and brackets in some.
METHODS = (
    "random",
    "entropy",
    "least-confidence",
    "noise-stability",
    "KAFAL (KSAS + KCFU)",
    "LoGo, both steps with the client's model",
    "FEAL",
    "AHFAL without class budgets",
    "ahfal",
)


def check(page: str, folder: Path, chromium: Chromium, figures: int, tables: int) -> None:
    seen = browser.look_at(page, folder, chromium)
    assert seen.console == []
    for view, width in zip(seen.views, browser.WIDTHS, strict=True):
        assert view["width"] == width
        assert view["requests"] == []
        assert view["scrollWidth"] <= width, view["tooWide"]
        assert view["tooWide"] == []
        assert len(view["figures"]) == figures
        assert view["tables"] >= tables
        for figure in view["figures"]:
            assert figure["width"] > 250
            assert figure["height"] > 100
            assert clipped(figure) == []


def clipped(figure: dict[str, Any]) -> list[str]:
    """Return the words of a figure that reach over its edge."""
    left, top = figure["x"], figure["y"]
    right, bottom = left + figure["width"], top + figure["height"]
    return [
        text["text"]
        for text in figure["texts"]
        if text["x"] < left - 1
        or text["y"] < top - 1
        or text["x"] + text["width"] > right + 1
        or text["y"] + text["height"] > bottom + 1
    ]


@pytest.mark.usefixtures("charts")
@needs_browser
@pytest.mark.parametrize("classes", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_the_report_of_a_run(tmp_path: Path, chromium: Chromium, classes: int) -> None:
    names = None if classes == 10 else [f"a rather long class name {i}" for i in range(classes)]
    folder = make_fake_run(
        tmp_path,
        name="a-name-that-leaves-no-place-to-break-" * 3,
        evaluate_rounds=True,
        failures=[Failure(client=3, reason="E" * 200)],
        **({} if names is None else {"class_names": names}),
    )
    page = write_report(folder).read_text()
    check(page, tmp_path, chromium, figures=6, tables=9)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> ExperimentResults:
    folder = tmp_path_factory.mktemp("runs")
    run = read_run(make_fake_run(folder))
    axes: dict[str, tuple[Scalar, ...]] = {
        "strategy": METHODS,
        "alpha": (0.1, 1.0),
        "privacy of the histograms": ("local-dp+secure-aggregation, ε = 0.5", "none"),
        "seed": (0, 1),
    }
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    return ExperimentResults(
        title="Table 1: a title",
        file="table1.yaml",
        scale=Scale.SMALL,
        axes=axes,
        overrides={"dataset": "a/folder/" * 20},
        paper=(),
        runs=tuple(RunResult(point, run) for point in points),
        missing=("a-run-with-a-long-name-" * 8,),
        failures={"a-run-with-a-long-name-" * 8: "SomeError: " + "why" * 60},
        other_code=True,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
@needs_browser
def test_the_report_of_a_sweep(
    results: ExperimentResults, tmp_path: Path, chromium: Chromium
) -> None:
    # At four points: curves, halves of the classes, deviations; over alpha at each point of the
    # other axis; one split.
    check(render_sweep_report(results), tmp_path, chromium, figures=3 * 4 + 2 + 1, tables=6)


@pytest.mark.slow
@needs_browser
def test_the_contents_of_several_reports(tmp_path: Path, chromium: Chromium) -> None:
    (tmp_path / EXPERIMENTS).mkdir()
    for name in ("first", "second"):
        plan = {
            "title": "Nothing of it is done " * 10,
            "file": f"{name}.yaml",
            "scale": "paper",
            "code": "",
            "axes": {"seed": [0]},
            "overrides": {},
            "paper": [],
            "runs": [{"folder": "missing", "labels": {"seed": 0}}],
        }
        write_json(tmp_path / EXPERIMENTS / f"{name}.json", plan)
    contents = write_sweep_report(tmp_path).read_text()
    check(contents, tmp_path, chromium, figures=0, tables=0)
    first = (tmp_path / "report-first-paper.html").read_text()
    check(first, tmp_path, chromium, figures=0, tables=1)


@needs_browser
def test_a_bad_page_is_seen_to_be_bad(tmp_path: Path, chromium: Chromium) -> None:
    page = """<!DOCTYPE html><body><img src="http://example.invalid/a.png" alt="">
    <div class="wide" style="width: 1300px">wide</div>
    <figure><svg viewBox="0 0 100 100" width="90" height="90">
    <text x="80" y="50">too long for its place</text></svg></figure>
    <script>throw new Error("a script's error")</script>"""
    seen = browser.look_at(page, tmp_path, chromium)
    assert any("a script's error" in line for line in seen.console)
    for view in seen.views:
        assert view["requests"] == ["http://example.invalid/a.png"]
        assert view["scrollWidth"] > view["width"]
        assert "DIV wide" in view["tooWide"]
        assert clipped(view["figures"][0]) == ["too long for its place"]


def test_no_two_methods_look_the_same() -> None:
    assert len({tuple(line_style(place).values()) for place in range(21)}) == 21
    # Without the markers, too.
    looks = {(line_style(place)["color"], line_style(place)["linestyle"]) for place in range(21)}
    assert len(looks) == 21
