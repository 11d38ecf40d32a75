"""What can be wrong with arrivals, found before a run starts."""

from __future__ import annotations

from collections.abc import Sequence

from ahfal_app.arrivals import make_order
from ahfal_app.config import Settings
from ahfal_app.query import WatchingStrategy, strategy_class
from ahfal_app.server.stop_set import observes_stop_set
from ahfal_app.training.resources import Resources


def arrival_problems(settings: Settings) -> list[str]:
    """Return what does not go together with samples that arrive over time, one line each."""
    problems = []
    watches = issubclass(strategy_class(settings.strategy), WatchingStrategy)
    if settings.pool_memory == 1 and watches:
        problems.append(
            f"pool-memory=1: allowed is 0 or at least 2 with strategy={settings.strategy!r}, which "
            "watches a sample for a cycle before it chooses"
        )
    if not settings.simulates_arrivals:
        return problems
    why = f"with arrivals={settings.arrivals!r}"
    if settings.parameters_of("local-update").get("pool") == "initial":
        problems.append(
            f"local-update.pool='initial': allowed is 'current' {why}, since not all samples were "
            "there at the start"
        )
    if observes_stop_set(settings):
        key = "stop-set" if settings.stop_set == "always" else "stopping"
        problems.append(
            f"{key}={settings.to_flat()[key]!r}: allowed {why} is none that needs predictions of "
            "the stop set, which is drawn of all samples"
        )
    return problems + _order_problems(settings, why)


def _order_problems(settings: Settings, why: str) -> list[str]:
    order = make_order(settings.arrival_order, settings.parameters_of("arrival-order"))
    of_order = f"with arrival-order={order.name!r}"
    problems = []
    if order.sets_shares and settings.arrivals == "share":
        problems += [
            f"{key}={value:g}: allowed is 0 {of_order} and arrivals='share', where each task's "
            "samples come in equal parts over its cycles"
            for key, value in (
                ("arrival-start", settings.arrival_start),
                ("arrival-rate", settings.arrival_rate),
            )
            if value
        ]
    elif settings.arrivals == "share":
        problems += [
            f"{key}=0: allowed is above 0 {why}"
            for key, value in (
                ("arrival-start", settings.arrival_start),
                ("arrival-rate", settings.arrival_rate),
            )
            if not value
        ]
    if settings.arrival_replacement and not order.is_uniform:
        problems.append(f"arrival-replacement=true: allowed is false {of_order}")
    if settings.arrival_exhausted == "recycle" and not order.is_uniform:
        problems.append(f"arrival-exhausted='recycle': allowed is refuse | less {of_order}")
    first = settings.label_amounts[0] if settings.counts_labels else 0
    is_count = settings.arrivals == "count"
    if is_count and not settings.has_global_budget and first > settings.arrival_start:
        problems.append(
            f"{settings.first_labels}: allowed is at most arrival-start="
            f"{settings.arrival_start:g} at the start, the samples that are there"
        )
    return problems


def arrival_data_problems(settings: Settings, loaded: Resources) -> list[str]:
    """Return why arrivals do not fit a data set, one line each."""
    if not settings.simulates_arrivals:
        return []
    problems = []
    if settings.covariate_drift != "none" and loaded.dataset.holds_vectors:
        problems.append(
            f"covariate-drift={settings.covariate_drift!r}: allowed is 'none' with vectors, which "
            "have no look"
        )
    order = make_order(settings.arrival_order, settings.parameters_of("arrival-order"))
    problems += order.problems(loaded.num_classes, settings.num_cycles)
    if settings.num_clients and not settings.has_sites and not problems:
        problems += exhaustion_problems(settings, [len(r) for r in loaded.partition.indices])
    return problems


def exhaustion_problems(settings: Settings, sizes: Sequence[int]) -> list[str]:
    """Return a line where the smallest client has too few samples for all cycles.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    sizes : Sequence[int]
        Samples of each client.
    """
    if settings.arrivals != "count" or settings.arrival_exhausted != "refuse":
        return []
    order = make_order(settings.arrival_order, settings.parameters_of("arrival-order"))
    if order.leaves_over:
        return []
    cycles, fewest = settings.num_cycles, min(sizes)
    wanted = int(settings.arrival_start) + (cycles - 1) * int(settings.arrival_rate)
    if wanted <= fewest:
        return []
    return [
        f"arrival-rate={settings.arrival_rate:g}: with arrival-start={settings.arrival_start:g} "
        f"{wanted} samples arrive in {cycles} cycles, and the smallest client has {fewest}; "
        "allowed is fewer, or arrival-exhausted=less|recycle"
    ]
