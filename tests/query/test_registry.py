from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import Field
from support.registering import register

import ahfal_app.query
from ahfal_app.class_statistics import class_statistics
from ahfal_app.config import parse_settings
from ahfal_app.errors import ConfigError, DuplicateComponent, UnknownComponent
from ahfal_app.parameters import parameter_problems
from ahfal_app.plugins import STRATEGIES
from ahfal_app.query import (
    PoolView,
    QueryContext,
    QueryStrategy,
    Signal,
    checked_select,
    make_strategy,
    strategy_class,
    strategy_entry,
    strategy_names,
    strategy_table,
)


class ThirdParty(QueryStrategy):
    """Takes the first samples."""

    name: ClassVar[str] = "third-party"
    paper: ClassVar[str] = "none"
    signals: ClassVar[frozenset[Signal]] = frozenset()

    class Parameters(QueryStrategy.Parameters):
        """One of each kind."""

        step_size: int = Field(default=1, ge=1, description="A whole number.")
        noise: float = Field(default=0.1, ge=0, description="A number.")
        exact: bool = Field(default=False, description="A switch.")

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        return pool.ids_N[: context.budget]


def check_parameters(name: str, values: dict[str, object]) -> list[str]:
    return parameter_problems("strategy", name, strategy_class(name).Parameters, values)


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, STRATEGIES, "third-party", f"{__name__}:ThirdParty")


def test_every_module_is_a_strategy_and_nothing_else() -> None:
    folder = Path(ahfal_app.query.__path__[0])
    modules = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--"}
    assert set(strategy_names()) >= modules
    for name in modules:
        assert strategy_class(name).name == name


def test_names_are_listed_without_torch_or_strategies() -> None:
    program = (
        "import sys; from ahfal_app.query import strategy_names; "
        "assert {'ahfal', 'entropy', 'random'} <= set(strategy_names()); "
        "assert not {'torch', 'flwr', 'ahfal_app.query.ahfal'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names_can_all_be_imported() -> None:
    for name in ahfal_app.query.__all__:
        assert getattr(ahfal_app.query, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ahfal_app.query.nothing  # noqa: B018


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownComponent, match=r"'entrpy'; did you mean 'entropy'\?; there are: "):
        make_strategy("entrpy")


def test_all_bad_parameters_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_strategy("ahfal", {"balance": "inverse-cuont", "low-iff": "local", "toggle": True})
    balance, toggle, low_iff = caught.value.problems
    assert balance == (
        "strategy.balance='inverse-cuont': allowed is `inverse-count` | `representation-ratio` "
        "| `none`; did you mean 'inverse-count'?"
    )
    assert toggle.startswith("strategy.toggle=True: allowed is `by-class` | ")
    assert low_iff == (
        "strategy.low-iff: 'ahfal' has no such parameter; did you mean 'low-if'?; "
        "it takes: balance, deficits, low-if, toggle"
    )


def test_python_names_of_parameters_are_not_keys() -> None:
    assert check_parameters("ahfal", {"low_if": "local"})
    assert not check_parameters("ahfal", {"low-if": "local"})


def test_parameters_come_through_the_settings() -> None:
    settings = parse_settings({"strategy": "ahfal", "strategy.low-if": "local-or-global"})
    strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
    assert strategy.parameters.model_dump(by_alias=True)["low-if"] == "local-or-global"


def test_every_strategy_describes_itself() -> None:
    table = strategy_table()
    assert tuple(entry.name for entry in table) == strategy_names()
    for entry in table:
        assert entry.summary.endswith(".")
        assert entry.paper
        for parameter in entry.parameters:
            assert parameter.key.startswith("strategy.")
            assert parameter.meaning.endswith(".")
            assert parameter.default is not None
            assert not check_parameters(
                entry.name, {parameter.key.removeprefix("strategy."): parameter.default}
            )


@pytest.mark.usefixtures("third_party")
class TestThirdParty:
    def test_is_listed_and_made(self) -> None:
        assert "third-party" in strategy_names()
        strategy = make_strategy("third-party", {"step-size": 3, "noise": 1, "exact": True})
        assert isinstance(strategy, ThirdParty)
        assert strategy.parameters.step_size == 3

    @pytest.mark.parametrize(
        ("key", "value", "allowed"),
        [
            ("step-size", 0, "integer, ≥ 1"),
            ("step-size", True, "integer, ≥ 1"),
            ("step-size", 1.5, "integer, ≥ 1"),
            ("step-size", "2", "integer, ≥ 1"),
            ("noise", float("nan"), "number, ≥ 0"),
            ("exact", 1, "true | false"),
        ],
    )
    def test_nothing_is_silently_converted(self, key: str, value: object, allowed: str) -> None:
        [problem] = check_parameters("third-party", {key: value})
        assert problem == f"strategy.{key}={value!r}: allowed is {allowed}"


def test_example_of_the_documentation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "adding-a-strategy.md"
    example = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    # Whoever follows the page has a strategy of its name.
    example = example.replace('"logit-gap"', '"documented-gap"')
    (tmp_path / "documented_gap.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    register(monkeypatch, STRATEGIES, "documented-gap", "documented_gap:LogitGap")
    strategy = make_strategy("documented-gap", {"model": "global"})
    logits = torch.tensor([[4.0, 0.0], [1.0, 0.9], [0.0, 2.0]])
    pool = PoolView([3, 5, 8], {Signal.GLOBAL_LOGITS: lambda: logits})
    statistics = class_statistics([[1, 1]], tau=12)
    context = QueryContext(2, 2, np.array([1, 1]), statistics, seed=0, client=0, cycle=0)
    assert checked_select(strategy, pool, context).tolist() == [5, 8]


def test_name_taken_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, STRATEGIES, "entropy", f"{__name__}:ThirdParty")
    with pytest.raises(
        DuplicateComponent, match=r"'entropy' .*ahfal_app\.query\.entropy and test_"
    ):
        strategy_names()


@pytest.mark.parametrize("value", ["ThirdParty", "Path"])
def test_entry_point_must_be_a_strategy_of_that_name(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    register(monkeypatch, STRATEGIES, "other", f"{__name__}:{value}")
    with pytest.raises(UnknownComponent, match="holds no QueryStrategy whose `name` is 'other'"):
        make_strategy("other")


def test_one_strategy_is_told_in_full() -> None:
    entry = strategy_entry("feal")
    assert entry.description.startswith(entry.summary)
    assert "strategy.loss" in {parameter.key for parameter in entry.parameters}
    with pytest.raises(UnknownComponent, match="did you mean 'feal'"):
        strategy_entry("fea")
