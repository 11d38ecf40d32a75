"""Everything that can be wrong with a run's settings, found before anything is done.

`config.py` knows each setting alone; whether a strategy, a model or a data set of that
name exists, and whether they go together, is checked here. All problems are told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ahfal_app.config import SITES, Settings, read_settings, setting_fields, suggestion
from ahfal_app.data.partition import partition_names
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.models import model_problem
from ahfal_app.oracle import oracle_names
from ahfal_app.query import (
    ScoringStrategy,
    check_parameters,
    make_strategy,
    strategy_class,
    strategy_names,
)
from ahfal_app.server.aggregation import clients_in_a_round, shortage
from ahfal_app.trackers import library_problem, tracker_names
from ahfal_app.training.resources import Resources, resolve_device, resources
from ahfal_app.training.together.choice import resolve_client_batching


def check_settings(values: Mapping[str, object]) -> Settings:
    """Parse settings and check every name in them.

    Raises
    ------
    ConfigError
        Every problem there is, one line each.
    """
    settings, problems = read_settings(values)
    for key, names in _NAMES.items():
        problems.extend(_name_problem(key, values, names()))
    problems.extend(_model_problem(values))
    if settings.strategy in strategy_names():
        unusable = check_parameters(settings.strategy, settings.strategy_parameters)
        problems.extend(unusable or [*_loss_problem(settings), *_alignment_problem(settings)])
    try:
        resolve_device(settings.device)
    except ConfigError as error:
        problems.extend(error.problems)
    problems.extend(_aggregation_problem(settings))
    problems.extend(_tracker_problem(settings))
    if problems:
        raise ConfigError(problems)
    return settings


def with_absolute_paths(settings: Settings) -> Settings:
    """Return settings that mean the same from every working directory."""
    update = {
        name: str(Path(value).expanduser().absolute())
        for name in ("output_dir", "data_dir", "resume")
        if (value := getattr(settings, name))
    }
    dataset = Path(settings.dataset).expanduser()
    if dataset.is_dir():
        update["dataset"] = str(dataset.absolute())
    return settings.model_copy(update=update)


def check_data(settings: Settings) -> Resources:
    """Load the data set and check that the settings fit it.

    Raises
    ------
    ConfigError
        The data set cannot be used, or the settings or the network do not fit it.
    """
    try:
        loaded = resources(settings)
    except DatasetError as error:
        raise ConfigError([f"dataset={settings.dataset!r}: {error}"]) from error
    num_samples = len(loaded.dataset.train.labels_N)
    problems = []
    if settings.num_clients * settings.min_partition_size > num_samples and not settings.has_sites:
        problems.append(
            f"num-clients={settings.num_clients}: allowed is at most "
            f"{num_samples // settings.min_partition_size}, since the data set has {num_samples} "
            f"training samples and min-partition-size={settings.min_partition_size}"
        )
    try:
        # Whether a network fits the images shows when it is built.
        loaded.new_model(0)
    except ConfigError as error:
        problems.extend(error.problems)
    try:
        resolve_client_batching(settings.client_batching, loaded.device, loaded.model_name)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    # With an unknown number of clients this is a first check; it is made again when they join.
    if not settings.has_sites:
        check_budget(settings, -(-num_samples // (settings.num_clients or 1)))
    return loaded


def check_budget(settings: Settings, largest_client: int) -> None:
    """Check that a cycle buys something.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    largest_client : int
        Samples of the client that has most.

    Raises
    ------
    ConfigError
        `query-fraction` of the largest client is less than one label.
    """
    if settings.target_fraction <= settings.initial_fraction:
        return
    if settings.query_fraction * largest_client < 1:
        raise ConfigError(
            [
                f"query-fraction={settings.query_fraction!r}: the budget is 0 labels for clients "
                f"of {largest_client} samples; allowed is a share that buys at least 1"
            ]
        )


def check_clients(settings: Settings, largest_client: int) -> None:
    """Check what depends on the clients, once they are known: the budget and the aggregation.

    Parameters
    ----------
    settings : Settings
        The run's settings, with `num_clients` resolved.
    largest_client : int
        Samples of the client that has most.

    Raises
    ------
    ConfigError
        A cycle buys nothing, or there are too few clients for the aggregation.
    """
    if problems := _aggregation_problem(settings):
        raise ConfigError(problems)
    check_budget(settings, largest_client)


_NAMES: dict[str, Callable[[], Sequence[str]]] = {
    "strategy": strategy_names,
    "partition": partition_names,
    "oracle": oracle_names,
    "tracker": tracker_names,
}


def _loss_problem(settings: Settings) -> list[str]:
    """Refuse two losses for one training."""
    strategy = make_strategy(settings.strategy, settings.strategy_parameters)
    if settings.local_update == "plain" or not strategy.has_training_loss:
        return []
    return [
        f"local-update={settings.local_update!r}: allowed is 'plain', since "
        f"strategy={settings.strategy!r} as it is set trains with a loss of its own"
    ]


def _aggregation_problem(settings: Settings) -> list[str]:
    """Refuse too few clients for the aggregation, where their number is known."""
    if not settings.num_clients:
        return []
    problem = shortage(settings, clients_in_a_round(settings))
    return [] if problem is None else [problem]


def _tracker_problem(settings: Settings) -> list[str]:
    """Refuse a tracker whose library is not installed."""
    if settings.tracker not in tracker_names():
        return []
    problem = library_problem(settings.tracker)
    return [] if problem is None else [problem]


def _alignment_problem(settings: Settings) -> list[str]:
    """Refuse alignment of a strategy that does not score samples, or to what nobody knows."""
    problems = []
    known = settings.oracle == "simulated" and not settings.has_sites
    if settings.align != "none" and not issubclass(
        strategy_class(settings.strategy), ScoringStrategy
    ):
        scoring = [n for n in strategy_names() if issubclass(strategy_class(n), ScoringStrategy)]
        problems.append(
            f"align={settings.align!r}: allowed is 'none' for strategy={settings.strategy!r}, "
            f"which gives no scores to align; these do: {', '.join(scoring)}"
        )
    if settings.align == "true-global" and not known:
        problems.append(
            f"align='true-global': allowed only with oracle='simulated' and without "
            f"partition={SITES!r}, since nobody else knows the true classes of all samples"
        )
    if settings.align_membership == "true" and not known:
        problems.append(
            f"align-membership='true': allowed only with oracle='simulated' and without "
            f"partition={SITES!r}, since nobody else knows the true classes before they are bought"
        )
    return problems


def _model_problem(values: Mapping[str, object]) -> list[str]:
    name = values.get("model", setting_fields()["model"].default)
    problem = model_problem(name) if isinstance(name, str) else None
    return [problem] if problem else []


def _name_problem(key: str, values: Mapping[str, object], names: Sequence[str]) -> list[str]:
    value = values.get(key, setting_fields()[key].default)
    if not isinstance(value, str) or value in names:
        return []
    near = suggestion(value, names)
    return [f"{key}={value!r}: allowed is {' | '.join(names)}{near}"]
