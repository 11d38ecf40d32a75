"""What every query strategy must do; a strategy is tested here by being registered."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.fake_models import FakeModels, NoModels
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics, class_statistics
from ahfal_app.errors import InvalidSelection, NonFiniteSignal
from ahfal_app.parameters import Scalar
from ahfal_app.query import (
    LocalOnlyTraining,
    PoolView,
    QueryContext,
    QueryStrategy,
    ScoringStrategy,
    Signal,
    checked_select,
    make_strategy,
    strategy_class,
    strategy_names,
)
from ahfal_app.query.core.base import checked_report
from ahfal_app.query.core.covering import CoveringStrategy
from ahfal_app.query.core.server_side import HeldOut, RowsForm, Task

Tensors = dict[Signal, Tensor]

WIDTH = 6
LABELLED = 9

#: Signals that are matrices; the others come from `FakeModels`.
MATRICES = frozenset(Signal) - {Signal.PERTURBED_LOCAL_MODEL, Signal.LOCAL_ONLY_MODEL}

#: Strategies that may draw in vain: starts of a k-means that come to the same end, and an order of
#: equals where none are.
IN_VAIN = frozenset(
    {
        "chase",
        "ifal",
        "prob-cover",
        "coordinated-fairfal",
        "coordinated-prob-cover",
        "coordinated-max-herding",
        "coordinated-typicality",
    }
)

LOGITS = Signal.LOCAL_LOGITS
TRAINING = LocalOnlyTraining(1, 2, 0.1, 0.0, 0.0, 1, False, 1.0)


def variants() -> Iterator[tuple[str, dict[str, Scalar]]]:
    """Yield every strategy with its defaults and with each single choice of a parameter."""
    for name in strategy_names():
        yield name, {}
        for field in strategy_class(name).Parameters.model_fields.values():
            choices = (False, True) if field.annotation is bool else get_args(field.annotation)
            for choice in choices:
                if choice != field.default:
                    yield name, {str(field.alias): choice}


def label(name: str, parameters: dict[str, Scalar]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])


every_strategy = pytest.mark.parametrize(
    "strategy",
    [pytest.param(make_strategy(*case), id=label(*case)) for case in variants()],
)


def make_tensors(size: int, num_classes: int, seed: int = 0) -> Tensors:
    """Return every matrix for a pool of this size, from a continuous distribution."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for signal in sorted(MATRICES, key=lambda signal: signal.value):
        rows = LABELLED if signal.value.startswith("labelled") else size
        columns = num_classes if signal.value.endswith("logits") else WIDTH
        if signal.value.endswith("head"):
            rows, columns = num_classes, WIDTH + 1
        tensors[signal] = torch.randn(rows, columns, generator=generator)
    # Changes of the predicted class are counted, so that many samples are level.
    flips = torch.randint(0, 4, (size, 1), generator=generator)
    return {**tensors, Signal.LOCAL_FLIPS: flips.float()}


def make_pool(tensors: Tensors, ids: NDArray[np.int64] | None = None) -> PoolView:
    size = len(tensors[Signal.LOCAL_LOGITS])
    sources = {signal: lambda values=values: values for signal, values in tensors.items()}
    labelled = tensors[Signal.LABELLED_LOCAL_LOGITS], tensors[Signal.LABELLED_LOCAL_EMBEDDINGS]
    models = FakeModels(tensors[Signal.LOCAL_LOGITS], tensors[Signal.LOCAL_EMBEDDINGS], labelled)
    return PoolView(np.arange(size) if ids is None else ids, sources, models)


def make_context(budget: int, num_classes: int, **changes: Any) -> QueryContext:
    generator = np.random.default_rng(num_classes)
    histograms = generator.integers(0, 50, (5, num_classes))
    histograms[0, 0] = 1
    context = QueryContext(
        budget=budget,
        num_classes=num_classes,
        class_counts_C=histograms[0],
        statistics=class_statistics(histograms, tau=5),
        seed=7,
        client=2,
        cycle=1,
        labels_L=np.arange(LABELLED) % num_classes,
    )
    return dataclasses.replace(context, **changes)


def select(strategy: QueryStrategy, tensors: Tensors, context: QueryContext) -> list[int]:
    return [int(i) for i in checked_select(strategy, make_pool(tensors), context)]


class Recording(QueryContext):
    """A context that knows what it was asked for."""

    asked: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Recording.asked.add(name)
        return super().__getattribute__(name)


def select_and_watch(
    strategy: QueryStrategy, tensors: Tensors, context: QueryContext
) -> tuple[list[int], set[str]]:
    """Select; return the choice, and the names of all that was asked of the context."""
    fields = {field.name: getattr(context, field.name) for field in dataclasses.fields(context)}
    recording = Recording(**fields)
    Recording.asked.clear()
    return select(strategy, tensors, recording), set(Recording.asked)


def draws(strategy: QueryStrategy) -> bool:
    """Return whether the strategy, or its half at the server, may be random."""
    if strategy.is_coordinated:
        return True
    return "generator" in select_and_watch(strategy, make_tensors(40, 4), make_context(5, 4))[1]


def assert_valid(ids: list[int], pool_ids: Any, count: int) -> None:
    assert len(ids) == len(set(ids)) == count
    assert set(ids) <= {int(i) for i in pool_ids}


def leaving_global_generators_alone(select_some: Callable[[], list[int]]) -> list[int]:
    """Return what is selected, and check that no global generator was used for it.

    A thread that a library has left may draw from one meanwhile, now and then: what a selection
    uses, it uses each time.
    """
    for _ in range(5):
        before = _global_states()
        selected = select_some()
        touched = [name for name, state in _global_states().items() if state != before[name]]
        if not touched:
            return selected
    raise AssertionError(f"global generators that were used: {touched}")


def _global_states() -> dict[str, object]:
    legacy = np.random.get_state()  # noqa: NPY002
    return {
        "random": random.getstate(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in legacy],
    }


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("random", random.random),
        ("torch", lambda: torch.rand(1)),
        ("numpy", lambda: np.random.rand(1)),  # noqa: NPY002
    ],
)
def test_the_check_of_global_generators_finds_each(name: str, draw: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match=name):
        leaving_global_generators_alone(lambda: [1] if draw() is not None else [])
    assert leaving_global_generators_alone(lambda: [1]) == [1]


@every_strategy
@settings(max_examples=10, deadline=None)
@given(
    size=st.integers(0, 40),
    num_classes=st.integers(2, 12),
    budget=st.integers(0, 50),
    seed=st.integers(0, 1000),
)
def test_selects_exactly_the_budget(
    strategy: QueryStrategy, size: int, num_classes: int, budget: int, seed: int
) -> None:
    ids = np.sort(np.random.default_rng(seed).choice(1000, size, replace=False))
    pool = make_pool(make_tensors(size, num_classes, seed), ids)
    selected = checked_select(strategy, pool, make_context(budget, num_classes))
    assert selected.dtype == np.int64
    assert_valid(selected.tolist(), ids, min(budget, size))


@every_strategy
def test_same_inputs_give_the_same_answer_and_nothing_else_is_touched(
    strategy: QueryStrategy,
) -> None:
    tensors, context = make_tensors(40, 5), make_context(9, 5)
    copies = {signal: values.clone() for signal, values in tensors.items()}
    selected = leaving_global_generators_alone(lambda: select(strategy, tensors, context))
    for signal, values in tensors.items():
        assert torch.equal(values, copies[signal])
    assert select(strategy, tensors, context) == selected
    # Ids are only names.
    renamed = checked_select(strategy, make_pool(tensors, np.arange(40) * 7 + 3), context)
    assert renamed.tolist() == [7 * i + 3 for i in selected]


@every_strategy
def test_randomness_depends_on_client_cycle_and_seed_alone(strategy: QueryStrategy) -> None:
    tensors = make_tensors(60, 5)
    keys: list[dict[str, int]] = [{}, {"client": 3}, {"cycle": 2}, {"seed": 8}]
    answers = {tuple(select(strategy, tensors, make_context(12, 5, **key))) for key in keys}
    assert draws(strategy) if len(answers) > 1 else not draws(strategy) or strategy.name in IN_VAIN


@every_strategy
def test_order_of_the_pool_does_not_matter(strategy: QueryStrategy) -> None:
    if draws(strategy):
        pytest.skip("draws by position, so another order is another draw")
    if getattr(strategy.parameters, "ties", None) == "id":
        pytest.skip("the smallest ids among equals, so another order is another choice")
    if isinstance(strategy, CoveringStrategy):
        pytest.skip("two samples that cover each other alone are level: the first one is taken")
    tensors, context = make_tensors(40, 5), make_context(9, 5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = {
        signal: values[order] if len(values) == 40 else values for signal, values in tensors.items()
    }
    selected = select(strategy, shuffled, context)
    assert order[selected].tolist() == select(strategy, tensors, context)


@every_strategy
def test_nothing_to_buy_or_nothing_to_choose_runs_no_model(strategy: QueryStrategy) -> None:
    def untouched() -> Tensor:
        raise AssertionError("no model must be run")

    sources = dict.fromkeys(MATRICES, untouched)
    ids = [4, 6, 9]
    for pool_ids, budget, expected in [(ids, 0, []), ([], 5, []), (ids, 3, ids), (ids, 9, ids)]:
        pool = PoolView(pool_ids, sources, NoModels())
        selected = checked_select(strategy, pool, make_context(budget, 3))
        assert selected.dtype == np.int64
        assert selected.tolist() == expected


#: Whose scores may be equal for all though samples differ, as models or draws agree.
DRAWN_IF_EQUAL = {"ifal", "noise-stability", "temporal"}


@every_strategy
def test_identical_samples(strategy: QueryStrategy) -> None:
    tensors = {signal: values[:1].repeat(30, 1) for signal, values in make_tensors(1, 4).items()}
    context = make_context(7, 4, labels_L=np.zeros(30, dtype=np.int64))
    selected = select(strategy, tensors, context)
    assert_valid(selected, range(30), 7)
    if strategy.name in DRAWN_IF_EQUAL:
        assert selected != list(range(7))
    elif isinstance(strategy, ScoringStrategy):
        assert selected == list(range(7))


@every_strategy
def test_constant_signals(strategy: QueryStrategy) -> None:
    for constant in (0.0, 1e30, -1e30):
        tensors = {
            signal: torch.full_like(values, constant)
            for signal, values in make_tensors(30, 4).items()
        }
        assert_valid(select(strategy, tensors, make_context(7, 4)), range(30), 7)


@every_strategy
def test_extreme_logits(strategy: QueryStrategy) -> None:
    for num_classes in (2, 10):
        tensors = {
            signal: values.sign() * 1e30 if signal.value.endswith("logits") else values
            for signal, values in make_tensors(30, num_classes).items()
        }
        assert_valid(select(strategy, tensors, make_context(7, num_classes)), range(30), 7)


@every_strategy
@pytest.mark.parametrize("num_classes", [2, 7])
def test_skewed_labelled_sets(strategy: QueryStrategy, num_classes: int) -> None:
    """Each combination, but for those that differ in what the strategy does not look at."""
    one = np.eye(num_classes, dtype=np.int64)[-1]
    counts = (0 * one, 40 * one, np.ones_like(one))
    splits = [
        ClassStatistics(one.astype(float), np.zeros(num_classes), np.full(num_classes, low))
        for low in (True, False)
    ]
    tensors = make_tensors(30, num_classes)
    looked_at: set[str] = set()
    for counts_C, statistics in itertools.product(counts, splits):
        is_new = ("class_counts_C" in looked_at or counts_C is counts[0]) and (
            "statistics" in looked_at or statistics is splits[0]
        )
        if is_new or not looked_at:
            context = make_context(7, num_classes, class_counts_C=counts_C, statistics=statistics)
            selected, asked = select_and_watch(strategy, tensors, context)
            assert_valid(selected, range(30), 7)
            looked_at |= asked


@every_strategy
def test_no_labelled_samples(strategy: QueryStrategy) -> None:
    tensors = make_tensors(30, 4)
    for signal, values in tensors.items():
        if signal.value.startswith("labelled"):
            tensors[signal] = values[:0]
    nothing = np.zeros(4, dtype=np.int64)
    context = make_context(7, 4, class_counts_C=nothing, labels_L=nothing[:0])
    assert_valid(select(strategy, tensors, context), range(30), 7)


@every_strategy
@pytest.mark.parametrize("labelled", [1, LABELLED])
def test_one_left_over_and_single_samples_without_features(
    strategy: QueryStrategy, labelled: int
) -> None:
    """A pool of one more than the budget, some of whose embeddings are zero; one label or more."""
    tensors = make_tensors(8, 4)
    for signal, values in tensors.items():
        if signal.value.startswith("labelled"):
            tensors[signal] = values[:labelled].clone()
        if signal.value.endswith(("embeddings", "maps")):
            tensors[signal][0] = 0.0
    labels_L = np.arange(labelled) % 4
    counts_C = np.bincount(labels_L, minlength=4)
    context = make_context(7, 4, class_counts_C=counts_C, labels_L=labels_L)
    assert_valid(select(strategy, tensors, context), range(8), 7)


@every_strategy
def test_single_predicted_class(strategy: QueryStrategy) -> None:
    tensors = make_tensors(30, 6)
    for signal, values in tensors.items():
        if signal.value.endswith("logits"):
            values[:, 3] += 50
    assert_valid(select(strategy, tensors, make_context(7, 6)), range(30), 7)


@every_strategy
def test_bad_signals_are_a_named_error(strategy: QueryStrategy) -> None:
    low = ClassStatistics(np.full(4, 0.25), np.zeros(4), np.ones(4, dtype=bool))
    context = make_context(7, 4, statistics=low)
    for bad in (float("nan"), float("inf")):
        tensors = make_tensors(30, 4)
        for values in tensors.values():
            values[2:5] = bad
        if strategy.signals:
            with pytest.raises(NonFiniteSignal, match=r"3 of (30|9) rows"):
                checked_select(strategy, make_pool(tensors), context)
        else:
            assert_valid(select(strategy, tensors, context), range(30), 7)


@every_strategy
def test_what_is_told_of_a_choice_has_the_declared_form(strategy: QueryStrategy) -> None:
    task = Task(seed=7, num_classes=5, num_clients=3, held_out=6, most_rows=12)
    pool, context = make_pool(make_tensors(12, 5)), make_context(4, 5)
    ids = checked_select(strategy, pool, context)
    report = checked_report(strategy, task, pool, context, ids)
    if not strategy.tells:
        assert report == {}
        assert strategy.server_side(task) is None
        assert not strategy.policy_forms(task)
        assert not strategy.report_forms(task)
        assert strategy.remembers == 0
        return
    assert report.keys() == strategy.report_forms(task).keys()
    # A site decides by these names.
    assert strategy.reveals
    again = checked_report(strategy, task, make_pool(make_tensors(12, 5)), context, ids)
    assert all(np.array_equal(report[name], again[name]) for name in report)
    assert checked_report(strategy, task, pool, context, ids[:0]) == {}


@every_strategy
def test_a_half_at_the_server_is_what_it_was_told(strategy: QueryStrategy) -> None:
    """Whatever is interrupted: a server that is restored knows all that it has known."""
    task = Task(seed=7, num_classes=5, num_clients=3, held_out=6, most_rows=12)
    straight, resumed = strategy.server_side(task), strategy.server_side(task)
    if straight is None or resumed is None:
        pytest.skip("has no half at the server")
    for cycle in range(3):
        logits = np.random.default_rng(cycle).normal(size=(6, 5)).astype(np.float32)
        held_out = HeldOut(logits, np.arange(6) % 5)
        context = make_context(4, 5, cycle=cycle + 1)
        pool = make_pool(make_tensors(12, 5, cycle))
        ids = checked_select(strategy, pool, context)
        reports = {1: checked_report(strategy, task, pool, context, ids)}
        for side in (straight, resumed):
            side.trained(cycle, held_out)
            forms = strategy.policy_forms(task)
            assert side.policy().keys() in ({}.keys(), forms.keys())
            side.check_report(reports[1])
            side.reported(cycle, reports)
        following = strategy.server_side(task)
        assert following is not None
        following.restore(resumed.state())
        resumed = following
    states = [{n: v.tobytes() for n, v in side.state().items()} for side in (straight, resumed)]
    assert states[0] == states[1]


@every_strategy
def test_scores_are_finite_float64(strategy: QueryStrategy) -> None:
    if not isinstance(strategy, ScoringStrategy):
        pytest.skip("gives no scores")
    scores = strategy.scores(make_pool(make_tensors(30, 4)), make_context(7, 4))
    assert scores.shape == (30,)
    assert scores.dtype == torch.float64
    assert torch.isfinite(scores).all()


class Broken(QueryStrategy):
    """Returns what it is told to."""

    name: ClassVar[str] = "broken"
    paper: ClassVar[str] = "none"
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.LOCAL_LOGITS})

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        answer = self.answer(pool) if callable(self.answer) else self.answer
        return answer  # type: ignore[no-any-return]


def write_through_numpy(pool: PoolView) -> NDArray[np.int64]:
    pool.signal(Signal.LOCAL_LOGITS).numpy()[0, 0] = 9.0
    return pool.ids_N[:2]


def swap_rows(pool: PoolView) -> NDArray[np.int64]:
    values = pool.signal(Signal.LOCAL_LOGITS)
    values.copy_(values.flip(0))
    return pool.ids_N[:2]


class TestCheckedSelect:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (np.array([1]), "selected 1 samples; exactly 2 are needed"),
            (np.array([1, 2, 3]), "selected 3 samples; exactly 2"),
            (np.array([1, 1]), "selected 1 samples more than once"),
            (np.array([1, 77]), "selected 1 ids that are not in the pool"),
            (np.array([1, 2], dtype=np.int32), "returned a ndarray of dtype int32"),
            (np.array([[1, 2]]), "a vector of int64 ids is needed"),
            ([1, 2], "returned a list of dtype None"),
            (write_through_numpy, "changed the pool's local-logits"),
            (swap_rows, "changed the pool's local-logits"),
            (lambda pool: pool.signal(Signal.GLOBAL_LOGITS), "'global-logits' is not among"),
        ],
    )
    def test_broken_contract_is_a_named_error(self, answer: Any, message: str) -> None:
        with pytest.raises(InvalidSelection, match=message):
            checked_select(Broken(answer), make_pool(make_tensors(9, 3)), make_context(2, 3))

    def test_ids_of_the_pool_cannot_be_changed(self) -> None:
        pool = make_pool(make_tensors(9, 3))
        with pytest.raises(ValueError, match="read-only"):
            pool.ids_N[0] = 5
        checked_select(make_strategy("entropy"), pool, make_context(9, 3))[0] = 5
        assert pool.ids_N[0] == 0

    def test_signals_are_computed_once(self) -> None:
        calls = []

        def source() -> Tensor:
            calls.append(1)
            return torch.zeros(9, 3)

        pool = PoolView(np.arange(9), {Signal.LOCAL_LOGITS: source})
        for strategy in ("entropy", "entropy"):
            checked_select(make_strategy(strategy), pool, make_context(2, 3))
        assert len(calls) == 1


class Telling(Broken):
    """Reports what it is told to."""

    name: ClassVar[str] = "telling"
    tells: ClassVar[bool] = True

    def report_forms(self, task: Task) -> dict[str, RowsForm]:
        return {"rows": RowsForm((2,), "float32"), "flags": RowsForm((), "uint8")}

    def report(self, pool: PoolView, context: QueryContext, ids_B: NDArray[np.int64]) -> Any:
        return self.answer(pool) if callable(self.answer) else self.answer


ROWS, FLAGS = np.zeros((3, 2), np.float32), np.zeros(3, np.uint8)


def changing(pool: PoolView) -> dict[str, Any]:
    pool.signal(Signal.LOCAL_LOGITS)[0] = 0.0
    return {"rows": ROWS, "flags": FLAGS}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"rows": ROWS},
        {"rows": ROWS, "flags": FLAGS[:2]},
        {"rows": ROWS.astype(float), "flags": FLAGS},
        {"rows": ROWS[:, :1], "flags": FLAGS},
        {"rows": ROWS, "flags": FLAGS, "ids": FLAGS},
        changing,
    ],
)
def test_nothing_is_told_that_is_not_declared(answer: Any) -> None:
    task, pool = Task(0, 3, 1), make_pool(make_tensors(9, 3))
    fine = Telling({"rows": ROWS, "flags": FLAGS})
    assert checked_report(fine, task, pool, make_context(2, 3), np.arange(2)).keys() == {
        "rows",
        "flags",
    }
    with pytest.raises(InvalidSelection, match=r"'telling' (reported|changed)"):
        checked_report(Telling(answer), task, pool, make_context(2, 3), np.arange(2))


class TestPoolView:
    @pytest.mark.parametrize("ids", [[2, 1], [1, 1], [[1, 2]], [0.5, 1.5]])
    def test_ids_must_be_strictly_increasing_integers(self, ids: Any) -> None:
        with pytest.raises(ValueError, match="ids"):
            PoolView(ids, {})

    @pytest.mark.parametrize("values", [torch.zeros(8, 3), torch.zeros(9), torch.ones(9, 3).long()])
    def test_signals_must_be_matrices_that_follow_the_ids(self, values: Tensor) -> None:
        pool = PoolView(np.arange(9), {Signal.LOCAL_LOGITS: lambda: values})
        with pytest.raises(ValueError, match="signal 'local-logits' has"):
            pool.signal(Signal.LOCAL_LOGITS)

    def test_signal_without_a_source(self) -> None:
        pool = PoolView(np.arange(9), {}).declaring({Signal.LOCAL_LOGITS})
        with pytest.raises(ValueError, match="no source for the signal 'local-logits'"):
            pool.signal(Signal.LOCAL_LOGITS)

    def test_models_must_be_declared_and_there(self) -> None:
        tensors = make_tensors(9, 3)
        pool = make_pool(tensors)
        assert torch.equal(pool.perturbed(lambda model: None).logits_NC, tensors[LOGITS])
        undeclared = pool.declaring({Signal.PERTURBED_LOCAL_MODEL})
        undeclared.perturbed(lambda model: None)
        with pytest.raises(InvalidSelection, match="'local-only-model' is not among"):
            undeclared.local_only(TRAINING)
        without = PoolView(np.arange(9), {}).declaring(Signal)
        with pytest.raises(ValueError, match="no source for the signal 'local-only-model'"):
            without.local_only(TRAINING)

    @pytest.mark.parametrize("which", ["logits", "embeddings"])
    def test_outputs_of_models_are_checked(self, which: str) -> None:
        bad = {"logits": torch.zeros(9, 3), "embeddings": torch.zeros(9, 4)}
        bad[which][4, 2] = torch.inf
        pool = PoolView(np.arange(9), {}, FakeModels(**bad))
        with pytest.raises(NonFiniteSignal, match=r"'local-only-model': 1 of 9 rows"):
            pool.local_only(TRAINING)
        with pytest.raises(ValueError, match="'perturbed-local-model' has 9 rows for 8 ids"):
            PoolView(np.arange(8), {}, FakeModels(**bad)).perturbed(lambda model: None)

    def test_what_is_computed_once_is_shared_by_views_of_the_same_pool(self) -> None:
        calls: list[str] = []

        def compute() -> int:
            calls.append("computed")
            return len(calls)

        pool = make_pool(make_tensors(9, 3))
        assert pool.declaring(frozenset()).once("key", compute) == 1
        assert pool.once("key", compute) == 1
        assert pool.once("other", compute) == 2
        assert make_pool(make_tensors(9, 3)).once("key", compute) == 3


class TestQueryContext:
    @pytest.mark.parametrize(
        "changes", [{"budget": -1}, {"class_counts_C": np.zeros(3, dtype=np.int64)}]
    )
    def test_impossible_context_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="is needed"):
            make_context(**{"budget": 1, "num_classes": 4, **changes})

    def test_generators_differ_by_purpose_and_are_repeatable(self) -> None:
        context = make_context(1, 4)
        first = context.generator("a").integers(1 << 60)
        assert context.generator("a").integers(1 << 60) == first
        assert context.generator("b").integers(1 << 60) != first


def test_random_is_uniform() -> None:
    strategy = make_strategy("random")
    pool, context = PoolView(np.arange(4), {}), make_context(1, 2)
    drawn = [
        int(checked_select(strategy, pool, dataclasses.replace(context, cycle=cycle))[0])
        for cycle in range(2000)
    ]
    counts = np.bincount(drawn, minlength=4)
    # The chi-square statistic with 3 degrees of freedom exceeds 16.3 once in a thousand.
    assert ((counts - 500) ** 2 / 500).sum() < 16.3


def test_random_streams_differ_by_client_cycle_and_seed() -> None:
    strategy, pool = make_strategy("random"), PoolView(np.arange(200), {})
    keys: list[dict[str, int]] = [{}, {"client": 3}, {"cycle": 2}, {"seed": 8}]
    answers = [checked_select(strategy, pool, make_context(20, 5, **key)) for key in keys]
    assert len({tuple(answer) for answer in answers}) == len(keys)


def test_entropy_of_either_model() -> None:
    local = torch.tensor([[0.0, 0.0], [5.0, 0.0], [1.0, 0.0]])
    tensors = {
        **make_tensors(3, 2),
        Signal.LOCAL_LOGITS: local,
        Signal.GLOBAL_LOGITS: local.flip(0),
    }
    for model, expected in (("local", [0, 2]), ("global", [2, 0])):
        strategy = make_strategy("entropy", {"model": model})
        assert checked_select(strategy, make_pool(tensors), make_context(2, 2)).tolist() == expected
