"""Settings that cannot be used together, by family: a line for each, which says what is allowed."""

from __future__ import annotations

import itertools

from ahfal_app.setting_fields import (
    FEWEST_SUMMED,
    NO_DATASET,
    SITES,
    SMALLEST_EPSILON,
    setting_fields,
)
from ahfal_app.settings import Settings

#: Settings that say what a data set would say, for a server that has none: their fields.
_IN_PLACE_OF_DATA = {"image-channels": "image_channels", "vector-length": "vector_length"}

#: Settings that mean something in one mode of privacy alone.
_PRIVACY_KEYS = {
    "privacy.epsilon": ("epsilon", "local-dp"),
    "privacy.adjacency": ("adjacency", "local-dp"),
    "privacy.releases": ("releases", "local-dp"),
    "privacy.threshold": ("secure_aggregation_threshold", "secure-aggregation"),
}

#: Settings that are given together, or not at all.
_NUMBERS = ("initial-labels", "query-labels", "target-labels")


def contradictions(settings: Settings) -> list[str]:
    """Return a line for each setting that cannot be used as others are."""
    problems = _privacy_contradictions(settings)
    classes = [name.casefold() for name in settings.class_list]
    if len(set(classes)) < len(classes) or len(classes) == 1 or "" in classes:
        problems.append(
            f"classes={settings.classes!r}: allowed are at least two different names, with commas "
            "between"
        )
    if settings.has_sites and settings.client_state != "disk":
        problems.append(
            f"client-state={settings.client_state!r}: allowed is 'disk' with partition='sites', "
            "since labels that people are paid for must outlive the process"
        )
    problems += _data_contradictions(settings) + _amount_contradictions(settings)
    problems += _arrival_contradictions(settings) + _statistics_contradictions(settings)
    problems += _view_contradictions(settings) + _drift_contradictions(settings)
    problems += _split_contradictions(settings)
    return problems + _evaluation_contradictions(settings)


def _data_contradictions(settings: Settings) -> list[str]:
    """Refuse what a server without data cannot do, and what stands in place of data beside it."""
    if settings.has_dataset:
        fields = setting_fields()
        return [
            f"{key}={value!r}: allowed with dataset={NO_DATASET!r} alone; else the data say it"
            for key, name in _IN_PLACE_OF_DATA.items()
            if (value := getattr(settings, name)) != fields[key].default
        ]
    why = f"with dataset={NO_DATASET!r}"
    problems = []
    if not settings.has_sites:
        problems.append(f"partition={settings.partition!r}: allowed is {SITES!r} {why}")
    if settings.tests_on_server:
        problems.append(
            f"evaluate={settings.evaluate!r}: allowed is 'sites' {why}, since the server has "
            "nothing to test with"
        )
    if not settings.class_list:
        problems.append(
            f"classes='': allowed are at least two names, with commas between, {why}, since the "
            "server knows no others"
        )
    if settings.held_out:
        problems.append(
            f"held-out={settings.held_out}: allowed is 0 {why}, since the server tests nothing"
        )
    if settings.vector_length:
        problems += _vector_contradictions(settings)
    elif not settings.image_size and not settings.uses_backbone:
        problems.append(
            f"image-size=0: allowed is at least 1 {why} and without a backbone; or vector-length, "
            "where the sites have vectors"
        )
    return problems


def _vector_contradictions(settings: Settings) -> list[str]:
    """Refuse what is about images, where sites are said to have vectors."""
    why = f"with vector-length={settings.vector_length}"
    wanted = (
        ("image-size", settings.image_size, {0}, "0"),
        ("image-channels", settings.image_channels, {3}, "3"),
        ("augment", settings.augment, {"auto", "none"}, "auto | none"),
        ("backbone", settings.backbone, {"none"}, "'none'"),
    )
    return [
        f"{key}={value!r}: allowed is {allowed} {why}"
        for key, value, fitting, allowed in wanted
        if value not in fitting
    ]


def _view_contradictions(settings: Settings) -> list[str]:
    """Refuse views of images where no features are computed, or nothing is augmented."""
    why = ""
    if not settings.uses_backbone:
        why = "without a backbone, since training then augments each image anew"
    elif not settings.uses_features:
        why = f"with tune={settings.tune!r}, since training then augments each image anew"
    elif settings.augment == "none":
        why = "with augment='none'"
    if not settings.feature_views or not why:
        return []
    return [f"feature-views={settings.feature_views}: allowed is 0 {why}"]


def _evaluation_contradictions(settings: Settings) -> list[str]:
    """Refuse tests at the sites that would undo a protection, and a share of nothing."""
    problems = []
    if settings.tests_at_sites and settings.uses_local_dp:
        problems.append(
            f"evaluate={settings.evaluate!r}: allowed is 'server' with "
            f"privacy={settings.privacy!r}, since counts of the samples that a client holds out "
            "carry no noise and would tell what the noise hides"
        )
    between = {"evaluate-every": settings.evaluate_every, "evaluate-last": settings.evaluate_last}
    if settings.tests_at_sites and settings.uses_secure_aggregation:
        problems += [
            f"{key}={value}: allowed is 0 with "
            f"evaluate={settings.evaluate!r} and privacy={settings.privacy!r}, since a sum that "
            "was begun is of one model for good, and a round may be repeated"
            for key, value in between.items()
            if value
        ]
    chooses = settings.keep == "best" and settings.evaluate == "sites"
    if chooses and settings.validation_from == "all":
        problems.append(
            "keep='best': allowed is 'last' with evaluate='sites' and validation-from='all', since "
            "each cycle is tested with other samples than the one before; or "
            "validation-from='initial'"
        )
    for key in ("validation-fraction", "validation-from"):
        value, default = settings.to_flat()[key], setting_fields()[key].default
        if not settings.tests_at_sites and value != default:
            problems.append(
                f"{key}={value!r}: has no effect with evaluate='server'; allowed is nothing, or "
                "evaluate=sites|both"
            )
    return problems


def _amount_contradictions(settings: Settings) -> list[str]:
    """Refuse an end below the start, and numbers of labels of which one is missing."""
    if settings.label_steps:
        return _step_contradictions(settings)
    numbers = {key: getattr(settings, key.replace("-", "_")) for key in _NUMBERS}
    if any(numbers.values()) and not all(numbers.values()):
        missing = [key for key, value in numbers.items() if not value]
        given = [f"{key}={value}" for key, value in numbers.items() if value]
        return [
            f"{missing[0]}=0: allowed is at least 1 with {', '.join(given)}, or none of "
            f"{', '.join(_NUMBERS)}"
        ]
    kind = "labels" if settings.counts_labels else "fraction"
    initial, _, target = settings.label_amounts
    if target < initial:
        low, least = (getattr(settings, f"{when}_{kind}") for when in ("target", "initial"))
        return [f"target-{kind}={low!r}: allowed is at least initial-{kind}={least!r}"]
    return []


def _step_contradictions(settings: Settings) -> list[str]:
    """Refuse steps that do not grow, and another setting that says how many labels there are."""
    given, steps_T = f"label-steps={settings.label_steps!r}", settings.steps_T
    if len(steps_T) < 2 or not steps_T[0] or any(b <= a for a, b in itertools.pairwise(steps_T)):
        return [f"{given}: allowed are at least two numbers from 1, each above the one before"]
    others = {key: getattr(settings, key.replace("-", "_")) for key in _NUMBERS}
    return [f"{key}={value}: allowed is 0 with {given}" for key, value in others.items() if value]


def _split_contradictions(settings: Settings) -> list[str]:
    """Refuse a way to split one budget where each client has its own, or only noise is told."""
    split, default = settings.budget_split, setting_fields()["budget-split"].default
    if not settings.has_global_budget and split != default:
        return [
            f"budget-split={split!r}: has no effect with budget='client'; allowed is nothing, or "
            "budget='global'"
        ]
    floor, cap = settings.budget_floor, settings.budget_cap
    if not settings.asks_for_split:
        return [
            f"{key}={value}: has no effect with budget-split={split!r}; allowed is 0, or "
            "budget-split=missing|threshold"
            for key, value in (("budget-floor", floor), ("budget-cap", cap))
            if value
        ]
    problems = []
    if cap and floor > cap:
        problems.append(f"budget-floor={floor}: allowed is at most budget-cap={cap}")
    if settings.uses_local_dp:
        problems.append(
            f"budget-split={split!r}: allowed with privacy={settings.privacy!r} is 'share' or "
            "'equal', since sums over predictions have no noise"
        )
    return problems


def _arrival_contradictions(settings: Settings) -> list[str]:
    """Refuse what says how samples arrive where they are all there, and what cannot be together."""
    if not settings.simulates_arrivals:
        return _without_arrivals(settings)
    why, problems = f"with arrivals={settings.arrivals!r}", list[str]()
    if settings.has_sites:
        problems.append(
            f"arrivals={settings.arrivals!r}: allowed is 'all' with partition={SITES!r}, where "
            "samples arrive when their files do"
        )
    for key in ("arrival-start", "arrival-rate"):
        value = float(settings.to_flat()[key])
        if settings.arrivals == "share" and value > 1:
            problems.append(f"{key}={value!r}: allowed is at most 1 {why}")
        if settings.arrivals == "count" and (not value.is_integer() or value < 1):
            problems.append(f"{key}={value:g}: allowed is a whole number of at least 1 {why}")
    if settings.arrivals != "count" and settings.arrival_replacement:
        problems.append(f"arrival-replacement=true: allowed is false {why}")
    if settings.arrival_exhausted == "recycle":
        problems += _recycle_contradictions(settings)
    return problems + _look_contradictions(settings)


def _statistics_contradictions(settings: Settings) -> list[str]:
    """Refuse what needs a client's own counts where the server has none, or only noisy ones."""
    problems = []
    if settings.dispersion_correction and settings.privacy != "none":
        problems.append(
            f"dispersion-correction=true: allowed is false with privacy={settings.privacy!r}, "
            "since it needs each client's exact counts"
        )
    if settings.dispersion_correction and settings.dispersion != "deviation":
        problems.append(
            f"dispersion-correction=true: allowed is false with dispersion={settings.dispersion!r}"
        )
    if settings.forget_budgets and not settings.forget:
        problems.append(
            "forget-budgets=true: has no effect with forget=0; allowed is false, or forget above 0"
        )
    if settings.forget and settings.uses_local_dp and settings.releases == "cumulative":
        problems.append(
            f"forget={settings.forget:g}: allowed is 0 with privacy={settings.privacy!r} and "
            "privacy.releases='cumulative', whose integers hold all labels alike; or "
            "privacy.releases='increments'"
        )
    return problems


def _drift_contradictions(settings: Settings) -> list[str]:
    """Refuse a comparison of windows that would judge something else, or tell too much."""
    window, default = settings.drift_window, setting_fields()["drift-window"].default
    if settings.drift_test == "none":
        if window == default:
            return []
        return [
            f"drift-window={window}: has no effect with drift-test='none'; allowed is nothing, or "
            "another drift-test"
        ]
    test, problems = f"drift-test={settings.drift_test!r}", list[str]()
    if settings.privacy != "none":
        problems.append(
            f"{test}: allowed is 'none' with privacy={settings.privacy!r}, since each client tells "
            "exact numbers of its own; and noisy counts cannot be tested"
        )
    if settings.drift_test != "predicted" and not settings.audit_share:
        problems.append(
            f"audit-share=0: allowed is above 0 with {test}, since a test of labels that a "
            "strategy has chosen would test the strategy; or drift-test='predicted'"
        )
    if not settings.tells_arrivals:
        problems.append(
            f"{test}: allowed is 'none' with arrivals='all', where nothing arrives that could drift"
        )
    if settings.arrival_exhausted == "recycle":
        problems.append(
            f"{test}: allowed is 'none' with arrival-exhausted='recycle', since what comes again "
            "is what the strategy has left"
        )
    if 2 * window > settings.num_cycles:
        most = settings.num_cycles // 2
        problems.append(
            f"drift-window={window}: allowed is at most {most} with {settings.num_cycles} cycles, "
            "two windows of which are compared"
        )
    return problems


def _without_arrivals(settings: Settings) -> list[str]:
    """Refuse settings of arrivals that have no effect where all samples are there."""
    flat, fields = settings.to_flat(), setting_fields()
    keys = [key for key in fields if key.startswith("arrival-")] + ["covariate-drift"]
    keys += [key for key in fields if key.startswith("severity")]
    problems = [
        f"{key}={flat[key]!r}: has no effect with arrivals='all'; allowed is nothing, or "
        "arrivals=share|count"
        for key in keys
        if flat[key] != fields[key].default
    ]
    if settings.pool_memory and not settings.has_sites:
        problems.append(
            f"pool-memory={settings.pool_memory}: allowed is 0 with arrivals='all', where no "
            f"sample arrives later than another; or arrivals=share|count, or partition={SITES!r}"
        )
    return problems


def _recycle_contradictions(settings: Settings) -> list[str]:
    """Refuse that samples come again that have not gone, or of which nobody knows how they look."""
    wanted = (
        ("arrivals", settings.arrivals, settings.arrivals == "count", "'count'"),
        ("pool-memory", settings.pool_memory, settings.pool_memory > 0, "at least 1"),
        ("arrival-replacement", True, not settings.arrival_replacement, "false"),
        (
            "covariate-drift",
            settings.covariate_drift,
            settings.covariate_drift == "none",
            "'none'",
        ),
    )
    return [
        f"{key}={value!r}: allowed is {allowed} with arrival-exhausted='recycle'"
        for key, value, fits, allowed in wanted
        if not fits
    ]


def _look_contradictions(settings: Settings) -> list[str]:
    """Refuse what says how images change where they do not."""
    flat, fields = settings.to_flat(), setting_fields()
    if settings.covariate_drift == "none":
        return [
            f"{key}={flat[key]!r}: has no effect with covariate-drift='none'; allowed is nothing"
            for key in fields
            if key.startswith("severity") and flat[key] != fields[key].default
        ]
    period = settings.severity_period
    if settings.severity_path != "recurring" and period != fields["severity-period"].default:
        return [f"severity-period={period}: allowed with severity-path='recurring' alone"]
    return []


def _privacy_contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.privacy != "none" and settings.client_state != "disk":
        problems.append(
            f"client-state={settings.client_state!r}: allowed is 'disk' with "
            f"privacy={settings.privacy!r}, since a node that starts again must still know what "
            "it has released"
        )
    if settings.uses_local_dp and settings.epsilon < SMALLEST_EPSILON:
        problems.append(
            f"privacy.epsilon={settings.epsilon!r}: allowed is at least {SMALLEST_EPSILON:g} with "
            f"privacy={settings.privacy!r}"
        )
    for key, (name, belongs_to) in _PRIVACY_KEYS.items():
        value = getattr(settings, name)
        if belongs_to not in settings.privacy and value != setting_fields()[key].default:
            problems.append(
                f"{key}={value!r}: has no effect with privacy={settings.privacy!r}; allowed is "
                f"nothing, or privacy={belongs_to!r}"
            )
    if settings.num_clients:
        problems += too_few_for_secure_aggregation(settings)
    return problems


def too_few_for_secure_aggregation(settings: Settings) -> list[str]:
    """Return the line that refuses secure aggregation over fewer than three clients."""
    if not settings.uses_secure_aggregation or settings.num_clients >= FEWEST_SUMMED:
        return []
    return [
        f"num-clients={settings.num_clients}: allowed is at least {FEWEST_SUMMED} with "
        f"privacy={settings.privacy!r}, since of two clients each would learn the other's histogram"
    ]
