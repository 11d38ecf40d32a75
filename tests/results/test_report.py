from __future__ import annotations

import io
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from support.charts import with_charts
from support.fake_run import CIFAR10, make_fake_run

from ahfal_app.errors import ReportError
from ahfal_app.results.reading import read_metrics, read_run
from ahfal_app.results.records import Failure
from ahfal_app.results.report import write_report
from ahfal_app.results.selections import read_class_counts
from ahfal_app.results.summary import print_summary
from ahfal_app.results.svg import tick_label

VOID = {"meta", "br", "img", "link", "input", "hr"}
EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, attributes, tables and figures of a page; fails on unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.stack):
            self.tables[-1][-1][-1] += data

    def table(self, first_heading: str, *others: str) -> list[list[str]]:
        for rows in self.tables:
            if rows[0][0] == first_heading and set(others) <= set(rows[0]):
                return rows
        raise AssertionError(f"no table {first_heading} {others}")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_fake_run(
        tmp_path_factory.mktemp("runs"),
        num_clients=4,
        samples=400,
        rounds=3,
        failures=(Failure(client=2, reason=f"RuntimeError: {EVIL}"),),
        evaluate_rounds=True,
    )
    with with_charts():
        write_report(folder)
    return folder


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    return (run_folder / "report.html").read_text()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def svgs(html: str) -> list[ElementTree.Element]:
    return [
        ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    ]


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in {"src", "href", "xlink:href"}:
            assert value is not None
            assert value.startswith(("#", "data:image/png;base64,"))
        assert not name.startswith("on")
    policies = [value for name, value in page.attributes if name == "content"]
    assert any(str(policy).startswith("default-src 'none'") for policy in policies)


@pytest.mark.slow
def test_figures_are_well_formed_and_speak(html: str) -> None:
    figures = svgs(html)
    assert len(figures) == 6
    for figure in figures:
        title, description = figure[0], figure[1]
        assert title.tag.endswith("}title")
        assert title.text
        assert description.tag.endswith("}desc")
        assert description.text
        assert figure.get("role") == "img"
        assert figure.get("viewBox")
        assert "width" not in figure.attrib


@pytest.mark.slow
def test_ids_are_unique_and_references_lead_somewhere(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', html)
    assert used
    assert set(used) <= set(ids)


def test_cycle_table_holds_the_metrics(page: Page, run_folder: Path) -> None:
    headings, *rows = page.table("Cycle", "Budget")
    cycles = read_metrics(run_folder).cycles
    assert len(rows) == len(cycles) == 6
    for row, cycle in zip(rows, cycles, strict=True):
        cells = dict(zip(headings, row, strict=True))
        assert cells["Labels"] == f"{cycle.labels:,}"
        assert cells["Test accuracy"] == f"{100 * cycle.accuracy:.2f} %"
        assert cells["Test loss"] == f"{cycle.loss:.4f}"
        assert cells["Bought"] == f"{cycle.bought:,}"
        if cycle.deviation is None:
            assert cells["Mean deviation (points)"] == "n/a"
        else:
            assert float(cells["Mean deviation (points)"]) == pytest.approx(
                100 * np.mean(cycle.deviation), abs=0.005
            )


def test_numbers_behind_the_figures_are_those_of_the_files(page: Page, run_folder: Path) -> None:
    run = read_run(run_folder)
    cycles = run.metrics.cycles
    *_, accuracy = [rows for rows in page.tables if rows[0] == ["Class", *_cycle_names(6)]]
    for place, row in enumerate(accuracy[1:]):
        assert row[0] == f"{place}: {CIFAR10[place]}"
        assert row[1:] == [f"{100 * (c.class_accuracy[place] or 0):.2f} %" for c in cycles]
    deviation, selected = [rows for rows in page.tables if rows[0] == ["Class", *_cycle_names(5)]]
    counts = read_class_counts(run_folder, 10)
    assert counts is not None
    for place in range(10):
        for number in range(5):
            low, value = cycles[number].low, cycles[number].deviation
            assert low is not None
            assert value is not None
            word = "low" if low[place] else "high"
            assert deviation[place + 1][number + 1] == f"{100 * value[place]:.2f} {word}"
            assert selected[place + 1][number + 1] == f"{counts[number, place]:,}"
    partition = page.table("Client", "airplane")
    assert [[int(cell.replace(",", "")) for cell in row[1:]] for row in partition[1:]] == (
        run.partition["counts"]
    )


def _cycle_names(count: int) -> list[str]:
    return [f"Cycle {number}" for number in range(1, count + 1)]


def test_time_table_adds_up(page: Page, run_folder: Path) -> None:
    _, *phases, total = page.table("Phase")
    assert {row[0] for row in phases} == set(read_metrics(run_folder).seconds)
    shares = [float(row[2].removesuffix(" %")) for row in phases]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert shares == sorted(shares, reverse=True)
    assert total[0] == "all"


def test_settings_and_environment_are_complete(page: Page, run_folder: Path) -> None:
    run = read_run(run_folder)
    rows = {row[0]: row[1:] for row in page.table("Setting")[1:]}
    # Where the server tells of its events is its own affair.
    assert set(rows) == set(run.settings.to_tell())
    assert rows["rounds"][:2] == ["3", "10"]
    assert rows["momentum"][:2] == ["0.9", ""]
    environment = {row[0]: row[1] for row in page.table("What")[1:]}
    assert environment["code: hash"] == run.environment["code"]["hash"]


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
def test_names_from_people_stay_text(tmp_path: Path, html: str, page: Page) -> None:
    assert EVIL not in html
    assert f"RuntimeError: {EVIL}" in page.text
    names = [EVIL, "$x^$", '"><img src=x onerror=alert(1)>', "_private", "bell\x07", "犬", ""]
    folder = make_fake_run(
        tmp_path, class_names=names, num_clients=2, samples=100, rounds=1, dataset=EVIL
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = write_report(folder).read_text()
    strange = Page(text)
    assert not {"script", "img", "b"} & set(strange.tags)
    assert len(svgs(text)) == 6
    labels = "".join(svgs(text)[0].itertext()) + "".join(svgs(text)[1].itertext())
    assert "_private" in labels
    assert "$x^$" in labels


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(run_folder: Path, html: str, tmp_path: Path) -> None:
    with with_charts():
        write_report(run_folder)
    assert (run_folder / "report.html").read_text() == html
    # A run without selections differs in that figure alone.
    copy = tmp_path / run_folder.name
    shutil.copytree(run_folder, copy)
    (copy / "selections.parquet").unlink()
    # Empty charts will do to count them.
    other = write_report(copy).read_text()
    assert len(svgs(other)) == 5


def test_complete_run_has_no_banner(page: Page) -> None:
    assert "partial" not in page.text.lower()
    assert "Final test accuracy" in page.text


@pytest.mark.slow
@pytest.mark.parametrize("cycles_done", [0, 1, 3])
def test_partial_run_has_a_banner(
    tmp_path: Path, cycles_done: int, request: pytest.FixtureRequest
) -> None:
    if cycles_done < 2:  # Charts have their edges at nothing and at one point.
        request.getfixturevalue("charts")
    folder = make_fake_run(tmp_path, num_clients=2, samples=100, rounds=2, cycles_done=cycles_done)
    text = Page(write_report(folder).read_text()).text
    assert f"Partial: {cycles_done} of 6 cycles." in text
    assert "Final test accuracy" not in text


def test_real_clients_tell_less_and_it_still_reports(tmp_path: Path) -> None:
    folder = make_fake_run(tmp_path, num_clients=2, samples=100, rounds=2, simulated=False)
    text = write_report(folder).read_text()
    assert len(svgs(text)) == 4
    assert not (folder / "partition.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
def test_one_cycle_without_selection(tmp_path: Path) -> None:
    folder = make_fake_run(tmp_path, num_clients=2, samples=100, rounds=1, cycles_done=6, cycles=6)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    last = [line.replace(b'"cycle":5', b'"cycle":0') for line in lines[-2:]]
    (folder / "metrics.jsonl").write_bytes(b"".join(last))
    text = write_report(folder).read_text()
    assert "Deviation of the classes" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
def test_many_classes_and_clients_thin_their_labels(tmp_path: Path) -> None:
    folder = make_fake_run(
        tmp_path,
        class_names=[f"class number {number}" for number in range(100)],
        num_clients=100,
        samples=200,
        rounds=1,
        cycles_done=2,
    )
    text = write_report(folder).read_text()
    for figure in svgs(text):
        written = [t for t in figure.iter() if t.tag.endswith("}text")]
        assert len(written) < 80
    assert len(text) < 2_000_000


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
def test_untrained_model_and_absent_classes(tmp_path: Path) -> None:
    folder = make_fake_run(tmp_path, num_clients=2, samples=100, rounds=1, cycles_done=1)
    path = folder / "metrics.jsonl"
    line = path.read_text()
    start = line.index('"class_accuracy":[') + len('"class_accuracy":[')
    end = line.index("]", start)
    values = ",".join(["null"] * 5 + ["0.0"] * 5)
    path.write_text(line[:start] + values + line[end:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = Page(write_report(folder).read_text())
    rows = report.table("Class", "Cycle 1")
    assert rows
    assert "n/a" in report.text


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    folder = make_fake_run(tmp_path, num_clients=2, samples=100, rounds=1, cycles_done=1)
    (folder / missing).unlink()
    with pytest.raises(ReportError, match=missing):
        write_report(folder)


@pytest.mark.parametrize("optional", ["environment.json", "partition.json", "summary.json"])
def test_optional_files_may_be_missing(tmp_path: Path, optional: str) -> None:
    folder = make_fake_run(tmp_path, num_clients=2, samples=100, rounds=1, cycles_done=1)
    (folder / optional).unlink()
    assert write_report(folder).exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("environment.json", "{", "not JSON"),
        ("partition.json", "[]", "JSON object"),
        ("partition.json", '{"counts": [[1, 2]]}', "counts"),
        ("partition.json", '{"counts": [[1], [1, 2]]}', "counts"),
        ("environment.json", '{"data": {"class_names": ["a"]}}', "10 classes"),
        ("config.yaml", "- a", "mapping"),
        ("config.yaml", "a: [", "YAML"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str, words: str) -> None:
    folder = make_fake_run(tmp_path, num_clients=2, samples=100, rounds=1, cycles_done=1)
    (folder / file).write_text(content)
    with pytest.raises(ReportError, match=words):
        write_report(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_summary_on_a_terminal_holds_the_numbers(run_folder: Path) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    print_summary(run_folder, console)
    text = console.export_text()
    for cycle in read_metrics(run_folder).cycles:
        assert f"{100 * cycle.accuracy:.2f} %" in text
    assert str(run_folder / "report.html") in text


@pytest.mark.parametrize(
    ("name", "label"),
    [("cat", "cat"), ("a\x00b\n", "a b"), ("x" * 20, "x" * 15 + "…"), ("", "")],
)
def test_tick_labels_are_short_and_legal(name: str, label: str) -> None:
    assert tick_label(name) == label
