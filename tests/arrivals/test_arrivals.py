"""When samples arrive: cases computed by hand, and what holds for all settings."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.arrivals import NEVER_ASKED, Amounts, Arrivals, ClientArrivals, Stock, make_arrivals
from ahfal_app.arrivals.class_incremental import ClassIncremental, by_tasks, group_of_classes
from ahfal_app.arrivals.core.base import in_batches
from ahfal_app.arrivals.core.looks import changed_images, changed_pixels, strength
from ahfal_app.arrivals.core.paths import Path, changed
from ahfal_app.arrivals.prior_drift import PriorDrift, by_mix, class_counts
from ahfal_app.config import Settings, parse_settings
from ahfal_app.seeds import numpy_generator


def _stock(counts: list[int], num_cycles: int, client: int = 0) -> Stock:
    classes = np.repeat(np.arange(len(counts)), counts)
    return Stock(0, client, classes, len(counts), num_cycles)


def _count(start: int, rate: int, replacement: bool = False) -> Amounts:
    return Amounts("count", Fraction(start), Fraction(rate), replacement)


@pytest.mark.parametrize(
    ("amounts", "size", "expected"),
    [
        (_count(2, 3), 10, [2, 5, 8, 10, 10]),
        (Amounts("share", Fraction(1, 10), Fraction(3, 10)), 10, [1, 4, 7, 10, 10]),
        (Amounts("share", Fraction(1, 4), Fraction(1, 4)), 7, [2, 4, 6, 7, 7]),
    ],
)
def test_how_many_have_arrived(amounts: Amounts, size: int, expected: list[int]):
    assert amounts.cumulative(size, 5, seed=0, client=0).tolist() == expected


def test_a_place_of_the_order_arrives_when_so_many_have():
    order = np.array([3, 0, 4, 1, 2])
    # Two at first, then one, then one more; the last never.
    assert in_batches(np.array([2, 3, 4]), order).tolist() == [0, 2, -1, 0, 1]


def _asked(**cycles: int) -> np.ndarray:
    return np.array([cycles.get(name, NEVER_ASKED) for name in "abcde"])


def test_what_nobody_asked_for_comes_again():
    # The order is a b c d e, two come in each cycle, and one of them is bought.
    arrivals = ClientArrivals(
        _stock([5], 3), np.arange(5), np.array([0, 0, 1, 1, 2]), memory=1, wanted=_count(2, 2)
    )
    assert arrivals.new(0, _asked()).tolist() == [0, 1]
    assert arrivals.new(1, _asked(a=0)).tolist() == [2, 3]
    bought = _asked(a=0, c=1)
    came = arrivals.new(2, bought).tolist()
    assert len(came) == 2
    assert 4 in came
    assert set(came) - {4} < {1, 3}
    # What is bought of it changes nothing of what had come.
    assert arrivals.new(2, _asked(a=0, c=1, e=2)).tolist() == came


def test_where_nothing_is_left_nothing_comes():
    arrivals = ClientArrivals(
        _stock([2], 3), np.arange(2), np.array([0, 0]), memory=1, wanted=_count(2, 2)
    )
    assert arrivals.new(1, np.zeros(2, np.int64)).tolist() == []
    assert sorted(arrivals.new(1, np.array([0, NEVER_ASKED])).tolist()) == [1]


def test_tasks_come_one_after_the_other():
    stock, groups = _stock([4, 0, 6, 2], 4), np.array([0, 0, 1, 1])
    share = Amounts("share", Fraction(0), Fraction(0))
    cycles = by_tasks(stock, share, groups, 2)
    assert [int((cycles <= cycle).sum()) for cycle in range(4)] == [2, 4, 8, 12]
    assert set(stock.classes_N[cycles < 2]) == {0}
    # In numbers, what is left at a task's end never comes.
    cycles = by_tasks(stock, _count(1, 2), groups, 2)
    assert [int((cycles == cycle).sum()) for cycle in range(-1, 4)] == [5, 1, 2, 2, 2]


def test_groups_of_classes_are_of_equal_size():
    groups = group_of_classes(0, 10, 5)
    assert np.bincount(groups).tolist() == [2] * 5
    assert group_of_classes(0, 10, 5, client=3).tolist() != groups.tolist()


def _first_tasks(classes: str, num_clients: int) -> list[list[int]]:
    """Return which classes come in the first half of four cycles, by client."""
    settings = parse_settings(
        {
            "arrivals": "count",
            "arrival-start": 30,
            "arrival-rate": 30,
            "arrival-order": "class-incremental",
            "arrival-order.groups": 2,
            "arrival-order.classes": classes,
            "initial-labels": 1,
            "query-labels": 1,
            "target-labels": 4,
        }
    )
    # Each client has nine samples of each of ten classes.
    labels = np.tile(np.arange(10), 9 * num_clients)
    rows = np.split(np.arange(len(labels)), num_clients)
    arrivals = make_arrivals(settings, rows, labels, 10)
    first = [labels[each.rows_N[np.isin(each.cycle_N, (0, 1))]] for each in arrivals.clients]
    later = [labels[each.rows_N[np.isin(each.cycle_N, (2, 3))]] for each in arrivals.clients]
    for one, other in zip(first, later, strict=True):
        assert len(np.unique(one)) == len(np.unique(other)) == 5
        assert not set(one.tolist()) & set(other.tolist())
    return [np.unique(each).tolist() for each in first]


def test_all_clients_have_tasks_in_one_order() -> None:
    shared = _first_tasks("shared", 5)
    assert shared == [shared[0]] * 5
    tasks = ClassIncremental(ClassIncremental.Parameters(groups=2)).tasks(Settings().seed, 10)
    assert tasks is not None
    assert shared[0] == np.flatnonzero(tasks == 0).tolist()


def test_or_each_has_them_in_its_own() -> None:
    own = _first_tasks("own", 5)
    assert len({tuple(each) for each in own}) == 5
    # The same again, however many clients there are.
    assert _first_tasks("own", 7)[:5] == own
    order = ClassIncremental(ClassIncremental.Parameters(groups=2, classes="own"))
    assert order.tasks(Settings().seed, 10) is None


@pytest.mark.parametrize(
    ("mix", "total", "stock", "expected"),
    [
        ((0.55, 0.25, 0.2), 10, (99, 99, 99), [6, 2, 2]),
        ((0.55, 0.25, 0.2), 10, (5, 8, 9), [5, 3, 2]),
        ((0.55, 0.25, 0.2), 10, (1, 2, 9), [1, 2, 7]),
        ((1.0, 0.0, 0.0), 4, (0, 3, 3), [0, 2, 2]),
    ],
)
def test_classes_of_what_arrives(mix, total: int, stock, expected: list[int]):
    assert class_counts(total, mix, stock).tolist() == expected


def test_a_mix_moves_from_one_to_the_other():
    first, last = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    moved = changed("linear", 4, 4)[:, None]
    mix = (1 - moved) * first + moved * last
    stock = _stock([99, 99, 99], 4)
    cycles = by_mix(stock, np.array([10, 20, 30, 40]), mix)
    found = [np.bincount(stock.classes_N[cycles == t], minlength=3).tolist() for t in range(4)]
    assert found == [[7, 2, 1], [5, 2, 3], [3, 3, 4], [1, 3, 6]]


def test_paths():
    assert changed("recurring", 5, 4).tolist() == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert changed("sudden", 5, 4).tolist() == [0, 0, 0, 1, 1]
    assert changed("linear", 3, 4).tolist() == [0, 0.5, 1]
    assert changed("linear", 1, 4).tolist() == [0]


#: Five cycles; `recurring` is back after four.
_MOVED: dict[Path, list[float]] = {
    "linear": [0, 0.25, 0.5, 0.75, 1],
    "sudden": [0, 0, 0, 1, 1],
    "recurring": [0, 0.5, 1, 0.5, 0],
}


def _ends(stock: Stock, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the mixes that a client's arrivals move from and to, as their keys draw them."""
    about = np.full(stock.num_classes, alpha)
    first, last = (
        numpy_generator(stock.seed, "arrivals.prior", stock.client, end).dirichlet(about)
        for end in (0, 1)
    )
    return first, last


@pytest.mark.parametrize("path", _MOVED)
@pytest.mark.parametrize("client", [0, 1])
def test_the_wanted_mix_moves_along_its_path(path: Path, client: int) -> None:
    stock = _stock([9] * 4, 5, client)
    first, last = _ends(stock, 0.3)
    assert 0.5 * np.abs(first - last).sum() > 0.3
    mix = PriorDrift(PriorDrift.Parameters(path=path)).wanted_mix(stock)
    assert mix.shape == (5, 4)
    assert mix[0] == pytest.approx(first, abs=1e-12)
    for found, moved in zip(mix, _MOVED[path], strict=True):
        assert found == pytest.approx(first + moved * (last - first), abs=1e-12)


@pytest.mark.parametrize("path", [*_MOVED, "walk"])
def test_what_arrives_has_the_wanted_mix_where_there_is_stock(
    path: Literal["linear", "sudden", "recurring", "walk"],
) -> None:
    order = PriorDrift(PriorDrift.Parameters(path=path))
    stock = _stock([500] * 4, 5)
    mix = order.wanted_mix(stock)
    cycles = order.arrival_cycles(stock, _count(100, 100))
    for cycle in range(5):
        came = np.bincount(stock.classes_N[cycles == cycle], minlength=4)
        assert came.sum() == 100
        assert np.abs(came / 100 - mix[cycle]).max() < 0.01


def test_a_walk_stays_near_the_mix_before():
    order = PriorDrift(PriorDrift.Parameters(path="walk", concentration=20.0, alpha=50.0))
    mixes = [order.wanted_mix(_stock([9, 9, 9], 2, client)) for client in range(400)]
    steps = np.array([mix[1] - mix[0] for mix in mixes])
    about = np.array([mix[0] for mix in mixes])
    # Variance q (1 - q) / (κ + 1), as of a Dirichlet draw.
    expected = np.sqrt((about * (1 - about)).mean(axis=0) / 21)
    assert steps.std(axis=0) == pytest.approx(expected, rel=0.12)
    assert np.abs(steps.mean(axis=0)).max() < 0.02


def test_a_step_of_a_walk_by_hand():
    """From (.5, .3, .2) with κ = 20: deviations of .109, .100 and .087."""
    order = PriorDrift(PriorDrift.Parameters(path="walk", concentration=20.0))
    first_C = np.array([0.5, 0.3, 0.2])
    steps = np.array([order._walk(_stock([9, 9, 9], 2, c), first_C)[1] for c in range(4000)])
    assert steps.mean(axis=0) == pytest.approx(first_C, abs=0.006)
    assert steps.std(axis=0) == pytest.approx([0.109, 0.100, 0.087], abs=0.004)


def test_a_class_that_a_walk_has_lost_may_come_back() -> None:
    """Each mix is drawn about κ times the one before, and 10⁻³ more for each class."""
    order = PriorDrift(PriorDrift.Parameters(path="walk", concentration=20.0))
    first = np.array([0.5, 0.3, 0.2])
    mix = order._walk(_stock([9, 9, 9], 3, client=4), first)
    assert mix[0] == pytest.approx(first)
    for cycle in (1, 2):
        drawn = numpy_generator(0, "arrivals.prior", 4, 2 + cycle)
        assert mix[cycle] == pytest.approx(drawn.dirichlet(20 * mix[cycle - 1] + 1e-3), rel=1e-9)
    lost = np.array([1.0, 0.0, 0.0])
    after = [order._walk(_stock([9, 9, 9], 2, client), lost)[1] for client in range(1000)]
    assert 0 < np.mean([mix[0] < 0.999 for mix in after]) < 0.05


def test_looks():
    pixels = np.array([0, 0.5, 1], np.float32).reshape(1, 1, 3, 1)
    changed_ = changed_pixels(pixels, "contrast", strength("contrast", 2))
    assert changed_.ravel().tolist() == [0.25, 0.5, 0.75]
    assert changed_pixels(np.full((1, 1, 1, 1), 0.95, np.float32), "brightness", 0.1).item() == 1
    # Severity 2 at a quarter of the path is level 0.5.
    assert strength("noise", 2 * 0.25) == pytest.approx(0.02)


def test_turned_images_turn_about_their_centre():
    image = np.zeros((1, 5, 5, 1), np.float32)
    image[0, 1, 2, 0] = 1.0  # Above the centre.
    turned = changed_pixels(image, "rotation", 90.0)[0, :, :, 0]
    assert np.argwhere(turned > 0.5).tolist() in ([[2, 1]], [[2, 3]])


@pytest.mark.parametrize("look", ["noise", "brightness", "contrast", "blur", "rotation"])
def test_an_image_changes_alike_whatever_its_neighbours_are(look: str):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    levels = np.array([0.0, 5.0, 2.5, 5.0, 0.0, 1.0])
    found = changed_images(images, levels, look, np.random.default_rng(1))
    assert (found[levels == 0] == images[levels == 0]).all()
    assert all((found[i] != images[i]).any() for i in (1, 2, 3, 5))
    other = changed_images(images, np.where(levels == 5, 5, 0), look, np.random.default_rng(1))
    assert (other[levels == 5] == found[levels == 5]).all()


_AMOUNTS = st.one_of(
    st.builds(
        lambda start, rate: {"arrivals": "count", "arrival-start": start, "arrival-rate": rate},
        st.integers(1, 8),
        st.integers(1, 8),
    ),
    st.builds(
        lambda start, rate: {"arrivals": "share", "arrival-start": start, "arrival-rate": rate},
        st.sampled_from([0.1, 0.3, 0.75]),
        st.sampled_from([0.05, 0.2, 1.0]),
    ),
)
_ORDERS = st.sampled_from(
    [
        {"arrival-order": "random"},
        {"arrival-order": "random", "arrival-replacement": True, "arrivals": "count"},
        {"arrival-order": "class-incremental", "arrival-order.groups": 2},
        {"arrival-order": "prior-drift"},
        {"arrival-order": "prior-drift", "arrival-order.path": "walk"},
    ]
)


def _settings(amounts: dict[str, object], order: dict[str, object], memory: int) -> Settings:
    if order.get("arrival-replacement") and amounts["arrivals"] != "count":
        amounts = {"arrival-start": 3, "arrival-rate": 2}
    labels = {"initial-labels": 1, "query-labels": 1, "target-labels": 6}
    return parse_settings(
        {**amounts, **order, **labels, "pool-memory": memory, "arrival-exhausted": "less"}
    )


def _arrivals(settings: Settings, sizes: list[int]) -> tuple[Arrivals, np.ndarray]:
    labels = np.random.default_rng(7).integers(0, 4, sum(sizes))
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return make_arrivals(settings, rows, labels, 4), labels


@given(_AMOUNTS, _ORDERS, st.integers(0, 3), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_every_sample_arrives_once_and_is_open_for_so_long(
    amounts: dict[str, object], order: dict[str, object], memory: int, sizes: list[int]
):
    settings = _settings(amounts, order, memory)
    arrivals, _ = _arrivals(settings, sizes)
    cycles = range(settings.num_cycles)
    for client, each in enumerate(arrivals.clients):
        new = [each.new(cycle) for cycle in cycles]
        come = np.concatenate(new)
        assert len(np.unique(come)) == len(come)
        assert set(come.tolist()) <= set(each.rows_N.tolist())
        for cycle in cycles:
            assert each.arrived(cycle) == sum(len(rows) for rows in new[: cycle + 1])
            first = max(0, cycle - memory + 1) if memory else 0
            opened = np.sort(np.concatenate(new[first : cycle + 1]))
            assert each.open(cycle).tolist() == opened.tolist()
        if settings.arrival_order != "class-incremental" and not settings.arrival_replacement:
            expected = [Amounts.of(settings).by(cycle, sizes[client]) for cycle in cycles]
            assert [each.arrived(cycle) for cycle in cycles] == expected


@given(_AMOUNTS, _ORDERS)
def test_equal_settings_have_equal_arrivals_and_clients_their_own(
    amounts: dict[str, object], order: dict[str, object]
):
    settings = _settings(amounts, order, 1)
    one, _ = _arrivals(settings, [30, 30])
    again, _ = _arrivals(settings, [30, 30])
    assert one.fingerprint == again.fingerprint
    # Another strategy changes nothing.
    other, _ = _arrivals(settings.model_copy(update={"strategy": "random"}), [30, 30])
    assert other.fingerprint == one.fingerprint
    # A client more leaves those before as they are.
    more = make_arrivals(
        settings,
        [each.rows_N for each in one.clients] + [np.arange(60, 90)],
        np.concatenate([each.stock.classes_N for each in one.clients] + [np.zeros(30, int)]),
        4,
    )
    for before, after in zip(one.clients, more.clients, strict=False):
        assert (before.cycle_N == after.cycle_N).all()


@pytest.mark.parametrize("path", ["walk", "recurring"])
def test_a_cycle_more_moves_nothing_that_has_arrived(path: str):
    order = PriorDrift(PriorDrift.Parameters(path=path))
    assert not order.is_by_length
    amounts = _count(4, 4)
    short = order.arrival_cycles(_stock([20, 20, 20], 5), amounts)
    long = order.arrival_cycles(_stock([20, 20, 20], 8), amounts)
    assert (long[short >= 0] == short[short >= 0]).all()
    assert (long[short < 0] > 4).any()


def test_draws_with_replacement_are_as_many_different_ones_as_draws_of_the_rest():
    amounts, reference = _count(10, 10, replacement=True), []
    found = [amounts.cumulative(30, 2, 0, client).tolist() for client in range(300)]
    for trial in range(300):
        draw = np.random.default_rng(trial)
        first = len(np.unique(draw.integers(0, 30, 10)))
        reference.append([first, first + len(np.unique(draw.integers(0, 30 - first, 10)))])
    assert np.mean(found, axis=0) == pytest.approx(np.mean(reference, axis=0), abs=0.3)
    assert all(one <= 10 and one < two <= one + 10 for one, two in found)
