"""What people are told of class mixes that change."""

from __future__ import annotations

from ahfal_app.drift import LEVEL
from ahfal_app.intervals import Interval
from ahfal_app.ledger import AuditFigures
from ahfal_app.results.reading import Run
from ahfal_app.results.records import CycleRecord, DriftRecord, SiteDrift
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import percent

# Sites that are named in one sentence.
_MOST_NAMED = 5


def drift_words(record: DriftRecord) -> str:
    """Return in one sentence what two windows have come to."""
    judged = [site for site in record.sites if not site.refusal]
    if record.method == "predicted":
        if not judged:
            return "predicted classes cannot be compared: " + _refusals(record)
        largest = max(judged, key=lambda site: site.divergence or 0.0)
        return (
            f"predicted classes differ most at {largest.who}: divergence "
            f"{largest.divergence:.3f}, total variation {largest.variation:.2f}; an indicator, no "
            "test"
        )
    if not judged:
        return "drift of the class mix cannot be judged: " + _refusals(record)
    if not record.is_drift:
        text = f"no drift of the class mix is seen by {len(judged)} tests"
        unjudged = len(record.sites) - len(judged)
        return text + (f"; {unjudged} cannot be made" if unjudged else "")
    if not record.drifting:
        return f"the class mix drifts, by all tests together (p = {_p(record.pooled)})"
    named = ", ".join(
        f"{site.who} (p = {_p(site.corrected)})" for site in record.drifting[:_MOST_NAMED]
    )
    more = len(record.drifting) - _MOST_NAMED
    return f"the class mix drifts at {named}" + (f" and {more} more sites" if more > 0 else "")


def drift_notes(run: Run) -> list[str]:
    """Return what the newest comparison says; empty where there was none."""
    told = [cycle for cycle in run.metrics.cycles if cycle.drift is not None]
    if not told or told[-1].drift is None:
        return []
    return [f"{drift_words(told[-1].drift)} (after cycle {told[-1].cycle + 1})"]


def drift_table(run: Run) -> TextTable | None:
    """List what each client's comparisons have come to; None where there were none."""
    told = [(cycle, cycle.drift) for cycle in run.metrics.cycles if cycle.drift is not None]
    if not told:
        return None
    if told[0][1].method == "predicted":
        headings = ("Cycles", "Client", "KL divergence (nats)", "Total variation", "Why not")
        rows = [
            (_cycles(cycle, drift), site.who, *_shift_cells(site))
            for cycle, drift in told
            for site in drift.sites
        ]
        return TextTable(
            title="Drift of predicted classes",
            headings=headings,
            rows=rows,
            numbers=frozenset({2, 3}),
            note="An indicator, and no test: classes as the model of the reference window's last "
            "cycle predicts them of all that arrived, recent against reference, half a count added "
            "to each class. The model's errors are in it.",
        )
    rows = []
    for cycle, drift in told:
        rows += [(_cycles(cycle, drift), site.who, *_test_cells(site)) for site in drift.sites]
        if drift.pooled is not None:
            together = ("", "", "", _p(drift.pooled), "", "")
            rows.append((_cycles(cycle, drift), "all together", *together))
    return TextTable(
        title="Drift of the class mix",
        headings=("Cycles", "Client", "X²", "G", "df", "p", "p by Holm", "Why not"),
        rows=rows,
        numbers=frozenset(range(2, 7)),
        note=_note(run),
    )


def audit_table(run: Run) -> TextTable | None:
    """List how right each cycle's model was of what was drawn at random; None where untold."""
    told = [(f"{cycle.cycle + 1}", cycle.audit) for cycle in run.metrics.cycles if cycle.audit]
    if not told:
        return None
    if len(told) > 1:
        told.append(("all", AuditFigures.total(audit for _, audit in told)))
    rows = []
    for name, audit in told:
        right = Interval(audit.right, audit.labelled)
        share, bounds = right.share, right.bounds
        rows.append(
            (
                name,
                f"{audit.asked:,}",
                f"{audit.labelled:,}",
                f"{audit.right:,}",
                "n/a" if share is None else percent(share),
                "n/a" if bounds is None else f"{percent(bounds[0])} to {percent(bounds[1])}",
            )
        )
    return TextTable(
        title="The model on audit labels",
        headings=("Cycle", "Drawn", "Labelled", "Right", "Accuracy", "95 % interval"),
        rows=rows,
        numbers=frozenset(range(1, 6)),
        note="What the cycle's model said of the samples that were drawn at random after it, "
        "before anybody labelled them; by the labels that had come when the purchase ended. "
        "Wilson's interval. " + _of_what(run),
    )


def _of_what(run: Run) -> str:
    if run.settings.pool_memory == 1:
        return "They are drawn of what came since the purchase before."
    return (
        "They are drawn of all that may be asked for, what the strategy has left of earlier "
        "arrivals included: where it takes what is hard, this is more than on new samples."
    )


def _note(run: Run) -> str:
    settings = run.settings
    words = [
        f"Labels that were drawn at random ({percent(settings.audit_share, 1)} of all) in two "
        f"windows of {settings.drift_window} cycles are compared, by "
        + (
            "Pearson's X² with rare classes merged."
            if settings.drift_test == "chi-square"
            else "X² and 999 relabellings."
        ),
        f"Below {LEVEL:g}, corrected for the clients of a cycle by Holm's method, counts as drift; "
        "nothing changes by itself. The test takes the draws for independent and the people who "
        "label for the same in both windows.",
    ]
    if settings.pool_memory != 1:
        words.append(
            "With pool-memory other than 1 the draws are of what the strategy has left of earlier "
            "arrivals, too: where it takes much of one class, that may look like drift."
        )
    return " ".join(words)


def _cycles(cycle: CycleRecord, drift: DriftRecord) -> str:
    last, window = cycle.cycle + 1, drift.window
    return f"{last - 2 * window + 1}–{last - window}, {last - window + 1}–{last}"


def _test_cells(site: SiteDrift) -> tuple[str, ...]:
    if site.refusal:
        return ("", "", "", "", "", site.refusal)
    numbers = (f"{site.statistic:.2f}", f"{site.log_ratio:.2f}", f"{site.df}")
    return (*numbers, _p(site.p), _p(site.corrected), "")


def _shift_cells(site: SiteDrift) -> tuple[str, ...]:
    if site.refusal:
        return ("", "", site.refusal)
    return (f"{site.divergence:.3f}", f"{site.variation:.3f}", "")


def _refusals(record: DriftRecord) -> str:
    return "; ".join(sorted({site.refusal for site in record.sites if site.refusal}))


def _p(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"
