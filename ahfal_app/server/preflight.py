"""Everything that can be wrong with a run's settings, found before anything is done.

`config.py` knows the settings alone; whether a strategy, a model or a data set of that
name exists, and whether they go together, is checked here. All problems are told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ahfal_app.backbones import PRETRAINED, UNTRAINED, backbone_problem
from ahfal_app.config import SITES, Settings, expanded, read_settings
from ahfal_app.data.partition import partition_names
from ahfal_app.errors import ConfigError, DatasetError, UnknownComponent
from ahfal_app.evaluation import figure_names
from ahfal_app.labels.names import ClassNames
from ahfal_app.models import model_problem, network_parameters
from ahfal_app.models.core.finetuned import tune_problem
from ahfal_app.parameters import Parameters, Scalar, parameter_problems, suggestion
from ahfal_app.plugins import DATASETS, FAMILIES, MODELS, TRACKERS, Family
from ahfal_app.query import (
    ClassBalanced,
    ScoringStrategy,
    Signal,
    make_strategy,
    strategy_class,
    strategy_names,
)
from ahfal_app.query.core.coordination import COORDINATED_SIGNALS
from ahfal_app.query.core.splitting import comparable_strategies, not_comparable
from ahfal_app.server.aggregation import clients_in_a_round, shortage
from ahfal_app.server.arrival_checks import (
    arrival_data_problems,
    arrival_problems,
    exhaustion_problems,
)
from ahfal_app.server.events import checked_target
from ahfal_app.server.stop_set import observes_stop_set
from ahfal_app.stop_set import FEWEST_SAMPLES
from ahfal_app.trackers import NO_TRACKER, library_problem
from ahfal_app.training.choices import backbone_of, resolve_device, resolve_head_name
from ahfal_app.training.objectives import make_local_update
from ahfal_app.training.resources import Resources, resources
from ahfal_app.training.together.choice import resolve_client_batching

#: Networks of ours that train on images, and on a backbone's features mean nothing.
_FOR_IMAGES = frozenset({"resnet8", "preact-resnet8", "mobilenet-v2", "small-cnn"})


def check_settings(values: Mapping[str, object]) -> Settings:
    """Parse settings and check every name in them.

    Raises
    ------
    ConfigError
        Every problem there is, one line each.
    """
    settings, problems = read_settings(values)
    refused = {key: found for key in FAMILIES if (found := _component_problems(settings, key))}
    problems.extend(problem for found in refused.values() for problem in found)
    problems.extend(_partition_problem(settings))
    problems.extend(_initial_problem(settings))
    problems.extend(_metric_problem(settings))
    for needed, check in _TOGETHER:
        if not refused.keys() & needed:
            problems.extend(check(settings))
    try:
        resolve_device(settings.device)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return settings


def with_absolute_paths(settings: Settings) -> Settings:
    """Return settings that mean the same from every working directory."""
    update = {
        name: str(expanded(name.replace("_", "-"), value).absolute())
        for name in ("output_dir", "data_dir", "resume", "initial_model")
        if (value := getattr(settings, name))
    }
    weights = settings.backbone_weights
    if settings.uses_backbone and weights not in (PRETRAINED, UNTRAINED):
        update["backbone_weights"] = str(expanded("backbone-weights", weights).absolute())
    if settings.on_event:
        update["on_event"] = checked_target(settings.on_event)
    dataset = expanded("dataset", settings.dataset)
    if settings.has_dataset and dataset.is_dir():
        update["dataset"] = str(dataset.absolute())
    return settings.model_copy(update=update)


def without_defaults(settings: Settings) -> Settings:
    """Return settings without parameters that say their defaults: the run is the same.

    They must have passed `check_settings`.
    """
    said: dict[str, Scalar] = {}
    for key, family in FAMILIES.items():
        chosen = family.chosen(str(getattr(settings, key.replace("-", "_"))))
        given = settings.parameters_of(key)
        for name in chosen:
            kept = family.parameters_of(name, given) if len(chosen) > 1 else given
            model = _parameters(family, settings, name).model_validate(kept)
            own = model.model_dump(by_alias=True, exclude_defaults=True)
            said |= {f"{key}.{parameter}": value for parameter, value in own.items()}
    return settings.model_copy(update={"parameters": said})


def check_data(settings: Settings) -> Resources:
    """Load the data set and check that the settings fit it.

    Raises
    ------
    ConfigError
        The data set cannot be used, or the settings or the network do not fit it.
    PartitionError
        There is no split of it as the settings want it.
    """
    _check_weights(settings)
    try:
        loaded = resources(settings)
    except DatasetError as error:
        told = str(error)
        # Most name it themselves.
        where = "" if told.startswith("dataset=") else f"dataset={settings.dataset!r}: "
        raise ConfigError([f"{where}{told}"]) from error
    num_samples = len(loaded.dataset.train.labels_N)
    problems = []
    if settings.num_clients * settings.min_partition_size > num_samples and not settings.has_sites:
        problems.append(
            f"num-clients={settings.num_clients}: allowed is at most "
            f"{num_samples // settings.min_partition_size}, since the data set has {num_samples} "
            f"training samples and min-partition-size={settings.min_partition_size}"
        )
    if settings.initial_strategy != "random" and not loaded.has_features:
        problems.append(
            f"initial-strategy={settings.initial_strategy!r}: allowed is 'random' for images "
            "without a frozen backbone, which have no features before a network is trained"
        )
    problems += arrival_data_problems(settings, loaded)
    if settings.has_sites or settings.oracle != "simulated":
        problems += _class_name_problems(loaded.dataset.class_names)
    try:
        # Whether a network fits the images shows when it is built.
        loaded.new_model(0)
    except ConfigError as error:
        problems.extend(error.problems)
    try:
        resolve_client_batching(settings.client_batching, loaded.device, loaded.facts_name)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    # Features are computed before anything starts, so that clients find them.
    if settings.uses_features:
        if settings.has_dataset:
            _ = loaded.test_images
            _ = loaded.held_out_images
        if not settings.has_sites:
            _ = loaded.train_images
    if settings.num_clients and not settings.has_sites:
        # Else each client would fail at it, one after the other.
        _ = loaded.partition
    # With an unknown number of clients this is a first check; it is made again when they join.
    if not settings.has_sites:
        clients = settings.num_clients or 1
        evenly = [(num_samples + client) // clients for client in range(clients)]
        check_budget(settings, [num_samples] if settings.counts_labels else evenly)
    return loaded


def _check_weights(settings: Settings) -> None:
    """Refuse weights that cannot be used, before a data set is decoded for nothing."""
    if settings.uses_backbone:
        backbone = backbone_of(settings)
        problem = None if settings.uses_features else tune_problem(backbone, settings.tune)
        if problem:
            raise ConfigError([problem])


def check_budget(settings: Settings, sizes: Sequence[int]) -> None:
    """Check that a cycle buys something.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    sizes : Sequence[int]
        Samples of each client.

    Raises
    ------
    ConfigError
        `query-fraction` of the largest client, or of all, is less than one label, or nothing is
        left to buy after the first labels.
    """
    initial, query, target = settings.label_amounts
    if target <= initial:
        return
    is_global = settings.has_global_budget
    most, whose = (
        (sum(sizes), "all clients together") if is_global else (max(sizes), "the largest client")
    )
    if settings.counts_labels and initial >= most:
        raise ConfigError(
            [
                f"{settings.first_labels}: {whose} has {most} samples, so that no cycle buys "
                "anything; allowed is fewer"
            ]
        )
    if not settings.counts_labels and query * most < 1:
        raise ConfigError(
            [
                f"query-fraction={settings.query_fraction!r}: the budget is 0 labels for {whose}, "
                f"with {most} samples; allowed is a share that buys at least 1"
            ]
        )


def labelled_whole(settings: Settings, sizes: Mapping[str, int]) -> list[str]:
    """Return the clients that have fewer samples than numbers of labels at the end, by name."""
    if not settings.counts_labels or settings.has_global_budget:
        return []
    target = settings.label_amounts[2]
    return [name for name, size in sizes.items() if size < target]


def _class_name_problems(class_names: Sequence[str]) -> list[str]:
    """Return what keeps people from naming a class, in files of labels or elsewhere."""
    try:
        ClassNames(class_names)
    except ConfigError as error:
        return list(error.problems)
    return []


def planned_labels(settings: Settings, sizes: Sequence[int]) -> int:
    """Return how many labels clients of these sizes have at the end of a run."""
    last = settings.num_cycles - 1
    if settings.has_global_budget:
        return settings.labels_due(last, sum(sizes))
    return sum(settings.labels_due(last, size) for size in sizes)


def check_clients(settings: Settings, sizes: Sequence[int]) -> None:
    """Check what depends on the clients, once they are known: the budget and the aggregation.

    Parameters
    ----------
    settings : Settings
        The run's settings, with `num_clients` resolved.
    sizes : Sequence[int]
        Samples of each client.

    Raises
    ------
    ConfigError
        A cycle buys nothing, or there are too few clients for the aggregation.
    """
    if problems := [
        *_aggregation_problem(settings),
        *_stopping_problem(settings),
        *exhaustion_problems(settings, sizes),
    ]:
        raise ConfigError(problems)
    check_budget(settings, sizes)


def _component_problems(settings: Settings, key: str) -> list[str]:
    """Return why a component is not there, or a line for each parameter that it cannot take."""
    family, name = FAMILIES[key], str(getattr(settings, key.replace("-", "_")))
    if family.alone:
        problems = family.choice_problems(name)
        return problems or family.parameter_problems(name, settings.parameters_of(key))
    if problem := _unknown(family, name):
        return [problem]
    try:
        model = _parameters(family, settings, name)
    except UnknownComponent as error:
        return [str(error)]
    except ConfigError as error:
        return list(error.problems)
    return parameter_problems(key, name, model, settings.parameters_of(key))


def _unknown(family: Family, name: str) -> str | None:
    """Return the line that refuses a name which no component of a family has, or None."""
    if family is MODELS:
        return model_problem(name)
    if family is DATASETS:
        return None  # It may be a folder, or Hugging Face's; that shows when it is loaded.
    return family.problem(name, also=(NO_TRACKER,) if family is TRACKERS else ())


def _parameters(family: Family, settings: Settings, name: str) -> type[Parameters]:
    if family is MODELS:
        return network_parameters(resolve_head_name(settings, settings.dataset))
    return family.parameters(name) if name in family.names() else Parameters


def _backbone_problem(settings: Settings) -> list[str]:
    """Refuse a backbone that nobody knows, and what goes with none or with one alone."""
    if not settings.uses_backbone:
        defaults = Settings()
        return [
            f"{key}={value!r}: allowed with a backbone alone, and backbone='none'"
            for key, name in (("tune", "tune"), ("backbone-size", "backbone_size"))
            if (value := getattr(settings, name)) != getattr(defaults, name)
        ]
    problems = []
    if problem := backbone_problem(settings.backbone):
        problems.append(problem)
    if settings.model in _FOR_IMAGES or settings.model.startswith("torchvision/"):
        problems.append(
            f"model={settings.model!r}: allowed with backbone={settings.backbone!r} is a head on "
            "vectors: auto | linear | mlp, or another package's"
        )
    return problems


def _loss_problem(settings: Settings) -> list[str]:
    """Refuse two losses for one training."""
    strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
    if make_local_update(settings).takes_strategy_loss or not strategy.has_training_loss:
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
    problem = library_problem(settings.tracker)
    return [] if problem is None else [problem]


def _stopping_problem(settings: Settings) -> list[str]:
    """Refuse what would tell predictions of single samples, or tell them where noise is wanted."""
    if not observes_stop_set(settings):
        return []
    asks = (
        f"stop-set={settings.stop_set!r}"
        if settings.stop_set == "always"
        else f"stopping={settings.stopping!r}"
    )
    problems = []
    if settings.uses_local_dp and not settings.uses_secure_aggregation:
        problems.append(
            f"{asks}: allowed with privacy={settings.privacy!r} is none that needs predictions of "
            "the clients' stop set, which have no noise; with "
            "privacy='local-dp+secure-aggregation' their sums alone are told"
        )
    least = FEWEST_SAMPLES * settings.num_clients
    if settings.stop_set_size < least:
        problems.append(
            f"stop-set-size={settings.stop_set_size}: allowed is at least {least}, "
            f"{FEWEST_SAMPLES} for each of {settings.num_clients} clients"
        )
    return problems


def _coordination_problem(settings: Settings) -> list[str]:
    """Refuse choosing together where that would tell what is to have noise, or alone."""
    strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
    if not strategy.is_coordinated:
        return []
    problems = []
    if settings.uses_local_dp:
        problems.append(
            f"strategy={settings.strategy!r}: allowed with privacy='none' or 'secure-aggregation', "
            "since sums over embeddings have no noise"
        )
    if odd := strategy.signals - COORDINATED_SIGNALS:
        names = ", ".join(sorted(signal.value for signal in odd))
        problems.append(
            f"strategy={settings.strategy!r}: it compares {names} of different clients, which have "
            "nothing in common; allowed are outputs of the global model"
        )
    return problems


def _split_problem(settings: Settings) -> list[str]:
    """Refuse a threshold over scores that are of each client's own kind, or are none."""
    why = not_comparable(settings) if settings.budget_split == "threshold" else ""
    if not why:
        return []
    fitting = ", ".join(comparable_strategies())
    return [
        f"budget-split='threshold': allowed is 'share', 'equal' or 'missing', since {why}; with "
        f"strategy.model='global' these do: {fitting}"
    ]


def _server_side_problem(settings: Settings) -> list[str]:
    """Refuse what a strategy cannot do with the run, and reports where privacy is wanted."""
    strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
    problems = strategy.problems(settings)
    if strategy.tells and settings.privacy != "none":
        problems.append(
            f"privacy={settings.privacy!r}: allowed is 'none' with strategy={settings.strategy!r}, "
            "whose clients tell what is predicted of single samples"
        )
    return problems


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


def _forgetting_problem(settings: Settings) -> list[str]:
    """Refuse class budgets that forget where there are none, or none that can."""
    if not settings.forget_budgets:
        return []
    strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
    if not isinstance(strategy, ClassBalanced):
        return [
            f"forget-budgets=true: allowed is false with strategy={settings.strategy!r}, which has "
            "no class budgets"
        ]
    balance = strategy.parameters.balance
    if balance != "inverse-count":
        return [
            f"forget-budgets=true: allowed is false with strategy.balance={balance!r}; or "
            "strategy.balance='inverse-count'"
        ]
    if settings.align != "none":
        return [
            f"forget-budgets=true: allowed is false with align={settings.align!r}, whose budgets "
            "bring all labels to a target"
        ]
    return []


def _initial_problem(settings: Settings) -> list[str]:
    """Refuse what cannot choose before there are labels."""
    value = settings.initial_strategy
    # Only the one that is named: each brings its libraries along.
    if value in strategy_names() and _can_be_first(value):
        return []
    names = first_strategies()
    return [
        f"initial-strategy={value!r}: allowed are those that need no labels: {' | '.join(names)}"
        f"{suggestion(value, names)}"
    ]


def _metric_problem(settings: Settings) -> list[str]:
    """Refuse a metric that no test gives."""
    names = figure_names()
    if settings.metric in names:
        return []
    near = suggestion(settings.metric, names)
    return [f"metric={settings.metric!r}: allowed is {' | '.join(names)}{near}"]


def first_strategies() -> list[str]:
    """Return the query strategies that can choose the first labels."""
    return [name for name in strategy_names() if _can_be_first(name)]


def _can_be_first(name: str) -> bool:
    strategy = strategy_class(name)
    return (
        not (strategy.needs_labels or strategy.is_coordinated)
        and strategy.signals <= FEATURE_SIGNALS
    )


def _partition_problem(settings: Settings) -> list[str]:
    names, value = partition_names(), settings.partition
    if value in names:
        return []
    return [f"partition={value!r}: allowed is {' | '.join(names)}{suggestion(value, names)}"]


#: What can be had of a pool before there is a model.
FEATURE_SIGNALS = frozenset(
    {
        Signal.LOCAL_EMBEDDINGS,
        Signal.GLOBAL_EMBEDDINGS,
        Signal.LABELLED_LOCAL_EMBEDDINGS,
        Signal.LABELLED_GLOBAL_EMBEDDINGS,
    }
)

#: What components must be there for each further check of how they go together.
_TOGETHER: tuple[tuple[set[str], Callable[[Settings], list[str]]], ...] = (
    ({"strategy", "local-update"}, _loss_problem),
    ({"strategy"}, _alignment_problem),
    ({"strategy"}, _forgetting_problem),
    ({"strategy"}, _coordination_problem),
    ({"strategy"}, _server_side_problem),
    ({"strategy"}, _split_problem),
    ({"aggregation"}, _aggregation_problem),
    ({"tracker"}, _tracker_problem),
    ({"model"}, _backbone_problem),
    ({"stopping"}, _stopping_problem),
    ({"strategy", "stopping", "arrival-order"}, arrival_problems),
)
