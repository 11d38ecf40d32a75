"""The leaderboard's page and table."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.benchmarks import TESTS, made_up, submission
from support.browser import CHROMIUM, look_at
from support.devtools import Chromium

from ahfal_app.benchmark.page import print_board, render_board
from ahfal_app.benchmark.scores import Board
from ahfal_app.cli import main

_ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert(1)</script> & "x"'


def board_of(methods: list[str], baselines: list[str]) -> Board:
    protocol, lock = made_up({"digits": [10, 20, 40], "cancer": [5, 10]}, baselines, seeds=range(5))
    draw = np.random.default_rng(0)
    found = []
    for place, method in enumerate(methods):
        accuracies = {
            case: (draw.integers(30, 36, len(split.labels)) + 2 * place) / TESTS
            for case, split in lock.by_case.items()
        }
        found.append(submission(protocol, lock, method, accuracies))
    return Board(protocol, lock, tuple(found))


def test_the_page_says_who_is_ahead_and_what_that_rests_on() -> None:
    board = board_of(["random", "entropy", "x", "y", "mine"], ["random", "entropy", "badge"])
    page = render_board(board, "a" * 64)
    assert "Leaderboard: Made up" in page
    assert "1 baselines are missing: badge." in page
    assert "protocol aaaaaaaaaaaaaaaa." in page
    assert "take blocks for independent" in page
    assert "Friedman&#39;s test over 10 blocks" in page
    assert "<script" not in page
    order = [page.index(f'<th scope="row">{name}</th>') for name in ("mine", "entropy", "random")]
    assert order == sorted(order)
    for title in ("Methods", "Differences to random", "Regret on digits", "What was run"):
        assert title in page


def test_names_of_other_parties_are_text_and_nothing_else() -> None:
    board = board_of(["random", HOSTILE, "[bold]x[/bold] {{ 7 * 7 }}"], ["random"])
    page = render_board(board, "a" * 64)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    console = Console(file=io.StringIO(), width=250)
    print_board(board, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert HOSTILE in text
    assert "[bold]x[/bold]" in text


def test_two_codes_are_told() -> None:
    board = board_of(["random", "mine"], ["random"])
    code = board.submissions[1].code.model_copy(update={"hash": "f" * 64})
    other = board.submissions[1].model_copy(update={"code": code})
    mixed = Board(board.protocol, board.lock, (board.submissions[0], other))
    assert "Run with 2 versions of the code" in render_board(mixed, "a" * 64)
    assert "versions of the code" not in render_board(board, "a" * 64)


def test_a_single_method_has_a_page_without_tests() -> None:
    page = render_board(board_of(["random"], ["random"]), "a" * 64)
    assert "Critical differences" not in page
    assert "Regret on digits" in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.usefixtures("charts")
def test_a_reader_sees_all_of_it_at_both_widths(tmp_path: Path, chromium: Chromium) -> None:
    names = [f"method-{number}" for number in range(25)]
    board = board_of(["random", *names, HOSTILE, "w" * 80], ["random", *names])
    seen = look_at(render_board(board, "a" * 64), tmp_path, chromium)
    assert seen.console == []
    for view in seen.views:
        assert view["scrollWidth"] <= view["width"]
        assert view["tooWide"] == []
        assert view["requests"] == []
        assert len(view["figures"]) == 3
        for figure in view["figures"]:
            for text in figure["texts"]:
                assert text["x"] >= figure["x"] - 1, text
                assert text["x"] + text["width"] <= figure["x"] + figure["width"] + 1, text["text"]
    diagram = seen.views[0]["figures"][0]["texts"]
    assert sum(text["text"].startswith("method-") for text in diagram) == 25
    assert any(text["text"].startswith("CD = ") for text in diagram)


@pytest.mark.slow
def test_the_page_that_is_kept_is_the_one_that_is_made(tmp_path: Path) -> None:
    """`uv run ahfal leaderboard conf/benchmark/quick.yaml --out results/benchmark/quick.html`."""
    made, kept = tmp_path / "quick.html", _ROOT / "results" / "benchmark" / "quick.html"
    protocol = _ROOT / "conf" / "benchmark" / "quick.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["leaderboard", str(protocol), "--out", str(made)])
    assert ended.value.code == 0
    # Charts are not drawn in tests.
    tables = [
        re.findall(r"<table.*?</table>", p.read_text("utf-8"), re.DOTALL) for p in (made, kept)
    ]
    assert len(tables[0]) == 5
    assert tables[0] == tables[1]
