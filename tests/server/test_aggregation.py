"""Aggregations by name, against what their papers' equations give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from support.reference_aggregation import (
    Adagrad,
    Adam,
    Model,
    Momentum,
    Yogi,
    bulyan,
    by_value,
    krum_order,
    mean,
    median_of,
    norm_clipped,
    trimmed_mean_of,
)

from ahfal_app.config import parse_settings
from ahfal_app.errors import ConfigError, NonFiniteModel, QuorumNotReached
from ahfal_app.flat import FlatArrays
from ahfal_app.messages.arrays import held_record
from ahfal_app.plugins import AGGREGATIONS
from ahfal_app.seeds import numpy_generator
from ahfal_app.server.aggregation import Aggregation, Limits, shortage
from ahfal_app.server.aggregation.core import aggregation as core
from ahfal_app.server.aggregation.core.base import COMMON
from ahfal_app.server.preflight import check_clients, check_settings

NAMES = (
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedadagrad",
    "fedyogi",
    "fedmedian",
    "fedtrimmedavg",
    "norm-clipping",
    "krum",
    "multikrum",
    "bulyan",
)
OPTIMIZERS = {
    "fedavgm": lambda: Momentum(1.0),
    "fedadagrad": lambda: Adagrad(0.1),
    "fedadam": lambda: Adam(0.1),
    "fedyogi": lambda: Yogi(0.01),
}
ROBUST = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")

#: Flower's strategies by themselves, with our defaults; who trains is not theirs to say.
_NOBODY: dict[str, Any] = {"fraction_train": 0.0}
_ADAPTIVE: dict[str, Any] = {"tau": 1e-3, **_NOBODY}
_MOMENTS: dict[str, Any] = {"beta_1": 0.9, "beta_2": 0.99, **_ADAPTIVE}
_ONE_MALICIOUS: dict[str, Any] = {"num_malicious_nodes": 1, **_NOBODY}
FLOWERS: dict[str, Callable[[], FedAvg]] = {
    "fedavg": lambda: flower.FedAvg(**_NOBODY),
    "fedprox": lambda: flower.FedProx(proximal_mu=0.01, **_NOBODY),
    "fedavgm": lambda: flower.FedAvgM(server_learning_rate=1.0, server_momentum=0.9, **_NOBODY),
    "fedadagrad": lambda: flower.FedAdagrad(eta=0.1, **_ADAPTIVE),
    "fedadam": lambda: flower.FedAdam(eta=0.1, **_MOMENTS),
    "fedyogi": lambda: flower.FedYogi(eta=0.01, **_MOMENTS),
    "fedmedian": lambda: flower.FedMedian(**_NOBODY),
    "fedtrimmedavg": lambda: flower.FedTrimmedAvg(beta=0.2, **_NOBODY),
    "krum": lambda: flower.Krum(**_ONE_MALICIOUS),
    "multikrum": lambda: flower.MultiKrum(num_nodes_to_select=6, **_ONE_MALICIOUS),
    "bulyan": lambda: flower.Bulyan(**_ONE_MALICIOUS),
}
#: Those that round elsewhere: the others are computed in double precision here, and FedAdam's
#: model becomes one of double precision in Flower.
ROUNDED = ("fedadam", "fedtrimmedavg", "multikrum", "bulyan")

#: Neither sorted nor with the parameters first, as in a real network.
SHAPES = {"norm.weight": (3,), "norm.running_var": (3,), "head.weight": (2, 3), "head.bias": ()}
TRAINABLE = ("norm.weight", "head.weight", "head.bias")
COUNTER = "norm.num_batches_tracked"
WEIGHTS = [1, 9, 2, 7, 3, 5, 6]


@pytest.fixture(autouse=True, scope="module")
def _identity() -> None:
    """Messages cannot be made without; the engines set it for their processes."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def draw_model(*key: int) -> Model:
    random = numpy_generator(3, "model", *key)
    return {n: np.asarray(random.normal(size=shape), np.float32) for n, shape in SHAPES.items()}


def draw_models(round_: int) -> list[Model]:
    """Seven clients' models; one is far off, as only a malicious client is."""
    models = [draw_model(round_, client) for client in range(len(WEIGHTS))]
    models[1] = {name: np.asarray(50 * array, np.float32) for name, array in models[1].items()}
    return models


def to_record(model: Model, counter: int = 0) -> ArrayRecord:
    arrays = {name: Array(np.asarray(array)) for name, array in model.items()}
    return ArrayRecord({**arrays, COUNTER: Array(np.array(counter, dtype=np.int64))})


def to_replies(models: list[Model], weights: list[int] = WEIGHTS) -> list[Message]:
    return [
        Message(
            RecordDict(
                {
                    "arrays": to_record(model, counter),
                    "metrics": MetricRecord({"num-examples": weight, "loss": 1.0, "seconds": 2.0}),
                }
            ),
            dst_node_id=0,
            message_type="train",
        )
        for counter, (model, weight) in enumerate(zip(models, weights, strict=True))
    ]


def to_model(record: ArrayRecord) -> Model:
    return {name: array.numpy() for name, array in record.items() if name != COUNTER}


def make(name: str, state: Model | None = None, **values: object) -> Aggregation:
    own = ("rounds", "reset_model")
    keys = {
        ("" if key in own else "aggregation.") + key.replace("_", "-"): value
        for key, value in values.items()
    }
    return Aggregation(parse_settings({"aggregation": name, **keys}), TRAINABLE, state)


def run(
    aggregation: Aggregation,
    current: Model,
    rounds: range,
    cycle: int = 0,
    models=draw_models,
) -> Model:
    """Let clients answer for some rounds; return the last global model."""
    for round_ in rounds:
        aggregation.configure_train(round_, to_record(current), grid=None)  # type: ignore[arg-type]
        replies = to_replies(models(round_))
        current = to_model(aggregation.aggregate_train(cycle, round_, replies))
    return current


def assert_same_bits(one: Model, other: Model) -> None:
    assert set(one) == set(other)
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert array.tobytes() == other[name].tobytes(), name


def expected_rounds(name: str, start: Model, rounds: int) -> Model:
    """Return the global model after some rounds, from the reference."""
    optimizer = OPTIMIZERS[name]() if name in OPTIMIZERS else None
    current = {key: array.astype(np.float64) for key, array in start.items()}
    for round_ in range(1, rounds + 1):
        models = [
            {key: array.astype(np.float64) for key, array in model.items()}
            for model in draw_models(round_)
        ]
        if optimizer is not None:
            averaged = mean(models, WEIGHTS)
            parameters = {key: current[key] for key in TRAINABLE}
            current = {**averaged, **optimizer.step(parameters, models, WEIGHTS)}
        elif name in ("fedavg", "fedprox"):
            current = mean(models, WEIGHTS)
        elif name == "fedmedian":
            current = by_value(models, median_of)
        elif name == "fedtrimmedavg":
            current = by_value(models, lambda values: trimmed_mean_of(values, 1))
        elif name == "norm-clipping":
            current = norm_clipped(current, models)
        elif name == "krum":
            current = models[krum_order(models, 1)[0]]
        elif name == "multikrum":
            best = krum_order(models, 1)[:6]
            current = mean([models[i] for i in best], [WEIGHTS[i] for i in best])
        else:
            current = bulyan(models, 1)
    return current


def test_every_name_is_allowed_and_made():
    # Norm clipping has equations of its own, in a file of its own.
    assert set(AGGREGATIONS.own_names()) == {*NAMES, "norm-clipping"}


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_papers_equations(name: str, rounds: int):
    start = draw_model(0)
    result = run(make(name), start, range(1, rounds + 1))
    assert list(result) == list(SHAPES)
    for key, expected in expected_rounds(name, start, rounds).items():
        assert result[key].dtype == np.float32
        np.testing.assert_allclose(result[key], expected, rtol=2e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_counters_take_the_largest(name: str):
    aggregation = make(name)
    current = to_record(draw_model(0))
    aggregation.configure_train(1, current, grid=None)  # type: ignore[arg-type]
    result = aggregation.aggregate_train(0, 1, to_replies(draw_models(1)))
    assert list(result) == list(current)
    assert result[COUNTER].numpy() == 6
    assert result[COUNTER].dtype == "int64"


def flowers_rounds(strategy: FedAvg, start: Model, rounds: range) -> Model:
    """Return the global model after some rounds of one of Flower's strategies by itself."""
    current = start
    for round_ in rounds:
        arrays = ArrayRecord({name: Array(array) for name, array in current.items()})
        strategy.configure_train(round_, arrays, ConfigRecord(), grid=None)  # type: ignore[arg-type]
        replies = to_replies(draw_models(round_))
        for reply in replies:
            # Flower would average it to a fraction.
            del reply.content.array_records["arrays"][COUNTER]
        aggregated, _ = strategy.aggregate_train(round_, replies)
        assert aggregated is not None
        current = to_model(aggregated)
    return current


@pytest.mark.parametrize("name", FLOWERS)
def test_equals_flowers_strategy_by_itself(name: str):
    """To the last bit, or to rounding. Server optimisers step on running statistics, too, there."""
    rounds, start = range(1, 4), draw_model(0)
    compared = TRAINABLE if name in OPTIMIZERS else tuple(SHAPES)
    theirs, ours = flowers_rounds(FLOWERS[name](), start, rounds), run(make(name), start, rounds)
    expected, result = ({key: model[key] for key in compared} for model in (theirs, ours))
    if name not in ROUNDED:
        assert_same_bits(result, expected)
    largest = max(np.abs(array).max() for array in expected.values())
    for key, array in expected.items():
        np.testing.assert_allclose(result[key], array, rtol=0, atol=2e-7 * largest, err_msg=key)


def test_every_strategy_of_flower_that_is_used_is_compared_with_it():
    assert {*FLOWERS, "norm-clipping"} == set(AGGREGATIONS.own_names())


@pytest.mark.parametrize("name", NAMES)
def test_answers_stay_as_they_are(name: str):
    aggregation = make(name)
    replies = to_replies(draw_models(1))
    aggregation.configure_train(1, to_record(draw_model(0)), grid=None)  # type: ignore[arg-type]
    aggregation.aggregate_train(0, 1, replies)
    for reply, model in zip(replies, draw_models(1), strict=True):
        assert_same_bits(to_model(reply.content.array_records["arrays"]), model)
        assert reply.content.metric_records["metrics"]["seconds"] == 2.0


@pytest.mark.parametrize("name", NAMES)
def test_order_of_arrays_does_not_matter(name: str):
    """Neither of the model, which a checkpoint may reorder, nor of what clients answer."""

    def reordered(round_: int) -> list[Model]:
        models = draw_models(round_)
        return [dict(sorted(m.items(), reverse=i % 2 == 0)) for i, m in enumerate(models)]

    start = draw_model(0)
    result = run(make(name), dict(sorted(start.items())), range(1, 4), models=reordered)
    assert_same_bits(result, run(make(name), start, range(1, 4)))


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_on_where_it_was_kept(name: str):
    start = draw_model(0)
    straight = make(name)
    halfway = run(straight, start, range(1, 3))
    kept = {key: array.copy() for key, array in straight.state.items()}
    assert bool(kept) == (name in OPTIMIZERS)
    restored = make(name, dict(sorted(kept.items(), reverse=True)))
    assert_same_bits(restored.state, kept)
    assert_same_bits(run(restored, halfway, range(3, 5)), run(straight, halfway, range(3, 5)))
    assert_same_bits(restored.state, straight.state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_its_state_it_goes_on_differently(name: str):
    halfway = run(make(name), draw_model(0), range(1, 3))
    straight = expected_rounds(name, draw_model(0), 3)
    forgetful = run(make(name), halfway, range(3, 4))
    assert not np.allclose(forgetful["head.weight"], straight["head.weight"], rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_after_a_reset_nothing_is_left(name: str):
    aggregation = make(name)
    start = draw_model(0)
    first = run(aggregation, start, range(1, 3))
    aggregation.reset()
    assert aggregation.state == {}
    assert_same_bits(run(aggregation, start, range(1, 3), cycle=1), first)


@pytest.mark.parametrize(("reset_model", "goes_on"), [(False, True), (True, False)])
def test_the_correction_of_the_bias_counts_rounds_since_the_model_was_fresh(
    reset_model: bool, goes_on: bool
):
    """The third round, as the first of the second cycle, equals it only where it goes on."""
    aggregation = make("fedadam", rounds=2, reset_model=reset_model)
    halfway = run(aggregation, draw_model(0), range(1, 3))
    aggregation.configure_train(1, to_record(halfway), grid=None)  # type: ignore[arg-type]
    result = to_model(aggregation.aggregate_train(1, 1, to_replies(draw_models(3))))
    expected = expected_rounds("fedadam", draw_model(0), 3)
    is_third = np.allclose(result["head.weight"], expected["head.weight"], rtol=2e-5)
    assert is_third is goes_on


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_server_optimisers_leave_running_statistics_to_the_mean(name: str):
    """Where the variances of all clients fall, an extrapolated one would become negative."""

    def falling(round_: int) -> list[Model]:
        models = [draw_model(round_, client) for client in range(len(WEIGHTS))]
        for model in models:
            model["norm.running_var"] = np.full(3, 0.5**round_, np.float32)
        return models

    result = run(make(name, learning_rate=1.0), draw_model(0), range(1, 6), 0, falling)
    np.testing.assert_allclose(result["norm.running_var"], 0.5**5, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e3, 1e38])
@pytest.mark.parametrize("name", [*ROBUST, "fedavg"])
def test_one_huge_model_moves_the_mean_and_no_robust_aggregate(name: str, scale: float):
    """Honest values are in [0, 1); squares of the huge ones overflow in float32."""
    random = numpy_generator(5, "attack")
    honest = [{"w": random.random(20).astype(np.float32)} for _ in range(6)]
    models = [*honest[:3], {"w": np.full(20, scale, np.float32)}, *honest[3:]]
    aggregation = Aggregation(parse_settings({"aggregation": name}), ("w",))
    aggregation.configure_train(1, to_record(honest[0]), grid=None)  # type: ignore[arg-type]
    # One in seven, the attacker claims far more samples than the others.
    result = aggregation.aggregate_train(0, 1, to_replies(models, [1, 1, 1, 10**6, 1, 1, 1]))
    values = result["w"].numpy()
    if name == "fedavg":
        assert (values > 0.99 * scale).all()
    else:
        assert ((values >= 0) & (values < 1)).all()


@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e6), others=st.integers(2, 6))
@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "norm-clipping"])
def test_one_of_as_few_as_three_decides_nothing(name: str, seed: int, scale: float, others: int):
    """Whatever it answers: values stay between honest ones; moves are no longer than those."""
    random = numpy_generator(seed, "attack")
    start = {"w": random.normal(size=20).astype(np.float32)}
    honest = [
        {"w": (start["w"] + random.normal(size=20)).astype(np.float32)} for _ in range(others)
    ]
    hostile = {"w": (scale * random.normal(size=20)).astype(np.float32)}
    models = [honest[0], hostile, *honest[1:]]
    values = {"aggregation.trimmed-share": 0.34} if name == "fedtrimmedavg" else {}
    aggregation = Aggregation(parse_settings({"aggregation": name, **values}), ("w",))
    aggregation.configure_train(1, to_record(start), grid=None)  # type: ignore[arg-type]
    replies = to_replies(models, [1, 10**6, *[1] * (others - 1)])
    result = aggregation.aggregate_train(0, 1, replies)["w"].numpy()
    said = np.stack([model["w"] for model in honest])
    if name == "norm-clipping":
        longest = np.linalg.norm(said - start["w"], axis=1).max()
        assert np.linalg.norm(result - start["w"]) <= longest * (1 + 1e-5)
        without = said.astype(np.float64).mean(axis=0)
        assert np.linalg.norm(result - without) <= 2 * longest
    else:
        assert (result >= said.min(axis=0)).all()
        assert (result <= said.max(axis=0)).all()


@pytest.mark.parametrize("name", ["krum", "multikrum", "bulyan"])
def test_distances_are_right_where_models_differ_little(name: str):
    """In float32 the squared norms of about 1e8 would drown squared distances of about 1."""
    random = numpy_generator(6, "close")
    offset = np.float32(1000)
    models = [{"w": offset + random.normal(size=100).astype(np.float32)} for _ in range(6)]
    models.append({"w": offset + 3 * random.normal(size=100).astype(np.float32)})
    exact = [{"w": model["w"].astype(np.float64)} for model in models]
    if name == "krum":
        expected = exact[krum_order(exact, 1)[0]]
    elif name == "multikrum":
        expected = mean([exact[i] for i in krum_order(exact, 1)[:6]], [1] * 6)
    else:
        expected = bulyan(exact, 1)
    aggregation = Aggregation(parse_settings({"aggregation": name}), ("w",))
    aggregation.configure_train(1, to_record(models[0]), grid=None)  # type: ignore[arg-type]
    result = aggregation.aggregate_train(0, 1, to_replies(models, [1] * 7))
    np.testing.assert_allclose(result["w"].numpy(), expected["w"], rtol=1e-6)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedadagrad", "fedyogi"])
def test_an_aggregate_that_is_not_finite_is_a_named_error(name: str):
    def huge(round_: int) -> list[Model]:
        sign = (-1) ** round_
        return [{"w": np.full(2, sign * 3e38, np.float32)} for _ in WEIGHTS]

    aggregation = Aggregation(parse_settings({"aggregation": name}), ("w",))
    start = {"w": np.full(2, 3e38, np.float32)}
    with pytest.raises(NonFiniteModel, match=rf"cycle 0, round 1: aggregation='{name}'.*'.*w'"):
        run(aggregation, start, range(1, 3), models=huge)


@pytest.mark.parametrize(
    ("values", "clients", "needed"),
    [
        ({"aggregation": "krum", "aggregation.malicious-clients": 0}, 3, "3·"),
        (
            {"aggregation": "krum", "aggregation.malicious-clients": 2},
            7,
            "2·2 + 3 = 7 clients in a round",
        ),
        ({"aggregation": "multikrum", "aggregation.malicious-clients": 2}, 7, "2·2 + 3 = 7"),
        ({"aggregation": "bulyan", "aggregation.malicious-clients": 1}, 7, "4·1 + 3 = 7"),
        (
            {
                "aggregation": "multikrum",
                "aggregation.averaged-clients": 5,
                "aggregation.malicious-clients": 1,
            },
            6,
            "aggregation.averaged-clients=5: allowed is at most 4 with "
            "aggregation.malicious-clients=1 and 5 clients",
        ),
        ({"aggregation": "fedmedian"}, 3, "needs at least 3 clients in a round, there are 2"),
        ({"aggregation": "norm-clipping"}, 3, "needs at least 3 clients in a round, there are 2"),
        (
            {"aggregation": "fedtrimmedavg"},
            5,
            "aggregation.trimmed-share=0.2: aggregation='fedtrimmedavg'",
        ),
        (
            {"aggregation": "fedtrimmedavg", "aggregation.trimmed-share": 0.1},
            10,
            "must trim at least 1",
        ),
    ],
)
def test_too_few_clients_are_refused_before_a_run_and_in_a_round(
    values: dict[str, object], clients: int, needed: str
):
    """With exactly as many as needed it works; with one less it names what is missing."""
    settings = parse_settings(values)
    assert shortage(settings, clients) is None
    check_settings({**values, "num-clients": clients})
    problem = shortage(settings, clients - 1)
    assert problem is not None
    if needed != "3·":
        assert needed in problem
    with pytest.raises(ConfigError) as before:
        check_settings({**values, "num-clients": clients - 1})
    assert problem in str(before.value)
    with pytest.raises(ConfigError) as joined:
        check_clients(settings.model_copy(update={"num_clients": clients - 1}), [1000])
    assert problem in str(joined.value)

    aggregation = Aggregation(settings, ("w",))
    models = [{"w": np.full(2, client, np.float32)} for client in range(clients)]
    aggregation.configure_train(1, to_record(models[0]), grid=None)  # type: ignore[arg-type]
    aggregation.aggregate_train(0, 1, to_replies(models, [1] * clients))
    with pytest.raises(QuorumNotReached) as in_round:
        aggregation.aggregate_train(2, 5, to_replies(models[1:], [1] * (clients - 1)))
    assert "cycle 2, round 5: too few usable answers" in str(in_round.value)
    assert problem in str(in_round.value)


def test_clients_that_are_not_asked_in_a_round_do_not_count():
    values = {"aggregation": "krum", "aggregation.malicious-clients": 2, "num-clients": 10}
    check_settings({**values, "client-fraction": 0.7})
    with pytest.raises(ConfigError, match="= 7 clients in a round, there are 6"):
        check_settings({**values, "client-fraction": 0.6})


def test_number_of_clients_that_is_not_known_yet_is_not_refused():
    check_settings({"aggregation": "bulyan", "aggregation.malicious-clients": 50, "num-clients": 0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"aggregation": "fedadm"}, "did you mean 'fedadam'?"),
        ({"aggregation": "qfedavg"}, "allowed is bulyan | fedadagrad"),
        ({"aggregation": "fedprox", "proximal-mu": 0.0}, "=0.0: allowed is number, > 0"),
        ({"aggregation": "fedtrimmedavg", "trimmed-share": 0.5}, "=0.5: allowed is number, > 0, <"),
        ({"aggregation": "fedavgm", "momentum": 1.0}, "=1.0: allowed is number, ≥ 0, < 1"),
        ({"aggregation": "fedadam", "second-moment": -0.1}, "=-0.1: allowed is number, ≥ 0, < 1"),
        ({"aggregation": "fedyogi", "adaptivity": 0.0}, "=0.0: allowed is number, ≥ 1e-12"),
        ({"aggregation": "fedavgm", "learning-rate": -1.0}, "=-1.0: allowed is number, > 0, ≤ 100"),
        ({"aggregation": "krum", "malicious-clients": 0.5}, "=0.5: allowed is integer, ≥ 0"),
        ({"aggregation": "multikrum", "averaged-clients": -1}, "=-1: allowed is integer, ≥ 0"),
        ({"aggregation": "fedavg", "momentum": 0.5}, "'fedavg' has no such parameter"),
    ],
)
def test_parameters_out_of_range_are_refused(values: dict[str, object], message: str):
    parameters = {f"aggregation.{key}": value for key, value in values.items()}
    name = parameters.pop("aggregation.aggregation")
    with pytest.raises(ConfigError) as caught:
        check_settings({"aggregation": name, **parameters})
    assert message in str(caught.value)
    assert all(key in str(caught.value) for key in parameters)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fedavgm", {"momentum": 0.5}),
        ("fedavgm", {"learning_rate": 0.3}),
        ("fedadam", {"learning_rate": 0.01}),
        ("fedadam", {"momentum": 0.5}),
        ("fedyogi", {"second_moment": 0.5}),
        ("fedyogi", {"adaptivity": 0.1}),
        ("fedadagrad", {"adaptivity": 0.1}),
        ("fedadagrad", {"learning_rate": 0.01}),
        ("fedtrimmedavg", {"trimmed_share": 0.4}),
        ("krum", {"malicious_clients": 2}),
        ("multikrum", {"averaged_clients": 2}),
        ("multikrum", {"malicious_clients": 2}),
        ("bulyan", {"malicious_clients": 0}),
    ],
)
def test_each_parameter_has_an_effect(name: str, values: dict[str, object]):
    def heads(aggregation: Aggregation) -> list[np.ndarray]:
        models = [draw_model(0)]
        for round_ in range(1, 9):
            models.append(run(aggregation, models[-1], range(round_, round_ + 1)))
        return [model["head.weight"] for model in models]

    assert not np.array_equal(heads(make(name)), heads(make(name, **values)))


@pytest.mark.parametrize(("value", "same"), [(1, True), (2, False)])
def test_multikrum_of_one_client_is_krum(value: int, same: bool):
    start = draw_model(0)
    multi = run(make("multikrum", averaged_clients=value), start, range(1, 2))
    krum = run(make("krum"), start, range(1, 2))
    assert np.array_equal(multi["head.weight"], krum["head.weight"]) is same


@given(seed=st.integers(0, 2**32 - 1), clients=st.integers(1, 5))
def test_averaging_all_arrays_as_one_is_averaging_each_to_the_bit(seed: int, clients: int):
    """What Flower's strategy makes of the arrays one by one is what is to come out."""
    random = np.random.default_rng(seed)
    types = {"head.weight": np.float64, "head.bias": np.float16}
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": held_record(
                        {
                            name: np.asarray(random.normal(size=shape), types.get(name, np.float32))
                            for name, shape in SHAPES.items()
                        }
                    ),
                    "metrics": MetricRecord(
                        {"num-examples": int(random.integers(1, 50)), "loss": 1.0}
                    ),
                }
            ),
            dst_node_id=0,
            message_type="train",
        )
        for _ in range(clients)
    ]
    weights = [reply.content.metric_records["metrics"]["num-examples"] for reply in replies]
    answers = [reply.content.array_records["arrays"].flat for reply in replies]
    joined = {
        dtype: core.weighted_mean([answer.parts[dtype] for answer in answers], weights)
        for dtype in answers[0].parts
    }
    found = FlatArrays(answers[0].layout, joined)
    each = core._aggregated(FedAvg(**COMMON), 1, replies, sorted(SHAPES))
    for name, value in each.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes()


@given(
    value=st.floats(width=32, allow_nan=True, allow_infinity=True),
    place=st.integers(0, 2),
    name=st.sampled_from(sorted(SHAPES)),
)
def test_few_passes_find_what_one_array_after_the_other_does(value: float, place: int, name: str):
    current = held_record({**draw_model(0), COUNTER: np.int64(3), "none": np.zeros(0, np.float32)})
    arrays = {each: array.numpy().copy() for each, array in current.items()}
    arrays["norm.running_var"][:] = 1
    arrays[name].flat[place % arrays[name].size] = value
    limits = Limits(current)
    is_sound = all(
        np.isfinite(array).all()
        and np.abs(array).max(initial=0) <= limits.most.get(each, 0)
        and (each != "norm.running_var" or (array >= 0).all())
        for each, array in arrays.items()
    )
    assert limits.hold(FlatArrays.of(arrays)) == is_sound
