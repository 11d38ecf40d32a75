from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.config import Settings, parse_settings
from ahfal_app.errors import ResumeError
from ahfal_app.server.shared_budget import SharedBudget, split


def numbers(initial: int, query: int, target: int) -> Settings:
    return parse_settings(
        {
            "budget": "global",
            "initial-labels": initial,
            "query-labels": query,
            "target-labels": target,
        }
    )


def test_a_budget_is_split_by_largest_remainder():
    # Shares of 10: 5.5, 3.3, 1.2; what is left goes to the largest remainder, 0.5.
    settings, sizes = numbers(10, 10, 30), {0: 55, 1: 33, 2: 12}
    first = split(settings, 0, sizes, {})
    assert first == {0: 6, 1: 3, 2: 1}
    # Exact shares of 20: 11, 6.6, 2.4; lacking are 5, 3.6, 1.4.
    second = split(settings, 1, sizes, first)
    assert second == {0: 11, 1: 7, 2: 2}
    assert split(settings, 2, sizes, second) == {0: 16, 1: 10, 2: 4}


def test_fractions_mean_all_clients_samples_together():
    settings = parse_settings({"budget": "global", "initial-fraction": 0.1})
    # ceil(0.1 × 45) = 5, of which 25/45, 15/45 and 5/45 are 2.78, 1.67 and 0.56.
    assert split(settings, 0, {0: 25, 1: 15, 2: 5}, {}) == {0: 3, 1: 2, 2: 0}


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    initial=st.integers(1, 40),
    query=st.integers(1, 15),
    more=st.integers(0, 60),
)
def test_labels_never_sink_and_sum_to_what_is_due(
    sizes: list[int], initial: int, query: int, more: int
):
    settings = numbers(initial, query, initial + more)
    by_client, samples = dict(enumerate(sizes)), sum(sizes)
    before: dict[int, int] = {}
    for cycle in range(settings.num_cycles):
        granted = split(settings, cycle, by_client, before)
        due = min(samples, initial + cycle * query, initial + more)
        assert sum(granted.values()) == due
        for client, size in by_client.items():
            assert before.get(client, 0) <= granted[client] <= size
            # Never a label or more above the exact share.
            assert granted[client] < due * size / samples + 1
        before = granted


def test_who_comes_later_has_a_share_of_what_is_bought_then_and_who_is_gone_keeps_its_own():
    settings = numbers(10, 10, 30)
    first = split(settings, 0, {0: 50, 1: 50}, {})
    assert first == {0: 5, 1: 5}
    second = split(settings, 1, {0: 50, 2: 50}, first)
    assert second == {0: 8, 1: 5, 2: 7}
    assert sum(second.values()) == 20


def test_of_a_share_labels_of_who_is_gone_are_no_part():
    """10 % of 300, then 15 to 35 % of the 200 samples that are left, by hand."""
    shares = {"initial-fraction": 0.1, "query-fraction": 0.05, "target-fraction": 0.35}
    settings = parse_settings({"budget": "global", **shares})
    granted = split(settings, 0, {0: 100, 1: 100, 2: 100}, {})
    assert granted == {0: 10, 1: 10, 2: 10}
    for cycle, each in enumerate((15, 20, 25, 30, 35), start=1):
        granted = split(settings, cycle, {0: 100, 1: 100}, granted)
        assert granted == {0: each, 1: each, 2: 10}
    # Who comes back is behind, and what is bought until the end goes to it.
    assert split(settings, 5, {0: 100, 1: 100, 2: 100}, granted) == {0: 35, 1: 35, 2: 35}


def test_a_plan_that_was_written_is_never_made_anew(tmp_path: Path):
    settings, path = numbers(10, 10, 30), tmp_path / "budget.json"
    first = SharedBudget(settings, path).granted(0, {0: 30, 1: 70})
    again = SharedBudget(settings, path)
    # Folders may have grown since.
    assert again.granted(0, {0: 500, 1: 70}) == first == {0: 3, 1: 7}
    # Exact shares of 20 are 14 and 6 now, and the second has more than that already.
    assert again.granted(1, {0: 70, 1: 30}) == {0: 13, 1: 7}


@pytest.mark.parametrize("content", ["", "[]", '{"0": 3}', '{"0": {"a": 1}}'])
def test_a_damaged_plan_stops_the_run(tmp_path: Path, content: str):
    path = tmp_path / "budget.json"
    path.write_text(content)
    with pytest.raises(ResumeError, match=r"budget\.json: cannot be read"):
        SharedBudget(numbers(1, 1, 2), path)
