from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.config import Settings, parse_settings
from ahfal_app.errors import ResumeError
from ahfal_app.server.shared_budget import Parts, SharedBudget, alike, less_free, split


def numbers(initial: int, query: int, target: int, **more: object) -> Settings:
    return parse_settings(
        {
            **more,
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


def test_what_a_share_of_each_client_is_more_than_one_of_all():
    # 5 % of 101, 51 and 11 are 5.05, 2.55 and .55; of the 163 together it is 8.15.
    sizes = {0: 101, 1: 51, 2: 11}
    each = parse_settings({"initial-fraction": 0.05})
    assert [each.labels_due(0, size) for size in sizes.values()] == [6, 3, 1]
    together = parse_settings({"budget": "global", "initial-fraction": 0.05})
    assert split(together, 0, sizes, {}) == {0: 5, 1: 3, 2: 1}


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


def test_shares_and_equal_parts_of_three_clients():
    # 17 · 100 / 160, 17 · 50 / 160 and 17 · 10 / 160 are 10.625, 5.3125 and 1.0625.
    sizes = {0: 100, 1: 50, 2: 10}
    assert split(numbers(17, 17, 34), 0, sizes, {}) == {0: 11, 1: 5, 2: 1}
    assert alike(17, sizes, {}).labels == {0: 6, 1: 6, 2: 5}


def test_equal_parts_leave_nobody_behind_and_stop_at_what_a_client_has(tmp_path: Path):
    settings, sizes = numbers(17, 17, 51, **{"budget-split": "equal"}), {0: 100, 1: 50, 2: 10}
    budget = SharedBudget(settings, tmp_path / "budget.json")
    assert budget.granted(0, sizes) == {0: 6, 1: 6, 2: 5}
    # The last one has five left; its sixth goes to the others, who had the same before.
    assert budget.granted(1, sizes) == {0: 12, 1: 12, 2: 10}
    assert budget.granted(2, sizes) == {0: 21, 1: 20, 2: 10}


def test_of_equal_parts_who_had_fewest_gets_the_first_that_is_left_over(tmp_path: Path):
    settings, sizes = numbers(17, 17, 51, **{"budget-split": "equal"}), {0: 99, 1: 99, 2: 99}
    budget = SharedBudget(settings, tmp_path / "budget.json")
    budget.granted(0, sizes)
    assert budget.granted(1, sizes) == {0: 12, 1: 11, 2: 11}


def test_what_a_client_has_left_is_taken_off_its_part_and_split_once_more(tmp_path: Path):
    settings, sizes = numbers(12, 12, 36, **{"budget-split": "equal"}), {0: 99, 1: 99, 2: 99}
    budget = SharedBudget(settings, tmp_path / "budget.json")
    assert budget.granted(0, sizes) == {0: 4, 1: 4, 2: 4}
    # The second has asked for one of its four: it needs one label more to have four again, and
    # the three that are over are split alike, so that each can ask for five.
    second = budget.granted(1, sizes, {0: 4, 1: 1, 2: 4})
    assert second == {0: 9, 1: 6, 2: 9}
    assert sum(second.values()) == 24


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 10), st.integers(0, 30)),
        min_size=1,
        max_size=6,
    )
)
def test_splitting_once_more_buys_no_label_too_many(clients: list[tuple[int, int, int]]):
    labels = {c: given for c, (given, _, _) in enumerate(clients)}
    free = {c: left for c, (_, left, _) in enumerate(clients)}
    most = {c: given + room for c, (given, _, room) in enumerate(clients)}
    added = less_free(Parts(labels, most, dict.fromkeys(labels, 1.0)), free)
    assert sum(added.values()) <= sum(labels.values())
    for client, more in added.items():
        assert more >= max(0, labels[client] - free[client])
        if more:
            assert free[client] + more <= max(most[client], labels[client])


def test_a_plan_of_an_earlier_version_is_kept(tmp_path: Path):
    path = tmp_path / "budget.json"
    path.write_text('{"0": {"0": 3, "1": 7}}')
    budget = SharedBudget(numbers(10, 10, 30), path)
    assert budget.granted(0, {0: 50, 1: 50}) == {0: 3, 1: 7}
    assert budget.granted(1, {0: 50, 1: 50}) == {0: 10, 1: 10}


def test_a_plan_says_who_got_what_and_why(tmp_path: Path):
    settings, path, sizes = numbers(10, 10, 30), tmp_path / "budget.json", {0: 30, 1: 70}
    budget = SharedBudget(settings, path)
    budget.granted(0, sizes)
    budget.granted(1, sizes)
    for known in (budget, SharedBudget(settings, path)):
        told = known.told(1, lambda client: f"site {client}")
        assert told.split == "share"
        assert [(g.who, g.before, g.added, g.weight) for g in told.clients] == [
            ("site 0 (client 0)", 3, 3, 30.0),
            ("site 1 (client 1)", 7, 7, 70.0),
        ]


MISSING = {"budget-split": "missing"}


def test_clients_are_asked_about_the_same_labels_after_a_crash(tmp_path: Path):
    """Folders have grown since, and with them what is due; the steps must be the same."""
    settings = parse_settings(
        {**MISSING, "budget": "global", "initial-fraction": 0.1, "query-fraction": 0.1}
    )
    path, asked = tmp_path / "budget.json", []

    def ask(labels: int) -> Parts:
        asked.append(labels)
        if len(asked) == 1:
            raise RuntimeError("power cut")
        return Parts({0: 3, 1: 7}, {0: 50, 1: 50}, {0: 3.0, 1: 7.0})

    budget = SharedBudget(settings, path)
    # The first labels by share: there is no model to ask about.
    assert budget.granted(0, {0: 50, 1: 50}) == {0: 5, 1: 5}
    with pytest.raises(RuntimeError):
        budget.granted(1, {0: 50, 1: 50}, ask=ask)
    again = SharedBudget(settings, path)
    assert again.granted(1, {0: 50, 1: 90}, ask=ask) == {0: 8, 1: 12}
    assert asked == [10, 10]
    assert [grant.weight for grant in again.told(1, lambda _: "").clients] == [3.0, 7.0]
    # Once it is written, nobody is asked.
    assert SharedBudget(settings, path).granted(1, {}, ask=ask) == {0: 8, 1: 12}
    assert asked == [10, 10]


def test_who_was_not_there_keeps_what_it_had_and_what_is_left_over_is_due_later(tmp_path: Path):
    settings, sizes = numbers(9, 9, 27, **MISSING), {0: 50, 1: 50, 2: 50}
    budget = SharedBudget(settings, tmp_path / "budget.json")
    assert budget.granted(0, sizes) == {0: 3, 1: 3, 2: 3}
    two = Parts({0: 4, 2: 2}, {0: 4, 2: 2}, {0: 4.0, 2: 2.0})
    assert budget.granted(1, sizes, ask=lambda _: two) == {0: 7, 1: 3, 2: 5}
    labels: list[int] = []

    def ask(number: int) -> Parts:
        labels.append(number)
        return Parts({0: 6, 1: 6, 2: 0}, {0: 20, 1: 20, 2: 20}, {0: 1.0, 1: 1.0, 2: 0.0})

    # The first has asked for five of its seven: its part is four, and two go to both once more.
    assert budget.granted(2, sizes, {0: 5, 1: 3, 2: 5}, ask) == {0: 12, 1: 10, 2: 5}
    assert labels == [12]


def test_nobody_is_asked_about_no_labels(tmp_path: Path):
    settings = numbers(9, 9, 27, **MISSING)
    budget = SharedBudget(settings, tmp_path / "budget.json")
    assert budget.granted(0, {0: 4, 1: 5}) == {0: 4, 1: 5}

    def ask(labels: int) -> Parts:
        raise AssertionError(f"asked about {labels} labels")

    assert budget.granted(1, {0: 4, 1: 5}, ask=ask) == {0: 4, 1: 5}
