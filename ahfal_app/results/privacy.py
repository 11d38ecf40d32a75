"""What a run promised about the class histograms, and what it has spent, for its readers."""

from __future__ import annotations

from typing import Any

from ahfal_app.results.reading import Run
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import percent

_NEIGHBOURS = {
    "replace": "the class of one labelled sample is another; how many are labelled is public",
    "add-remove": "one labelled sample more or less; how many are labelled is hidden in the "
    "histograms alone, not in the weights of aggregation",
}

_RELEASES = {
    "cumulative": "each has all labels so far, and their costs add up",
    "increments": "each label is in one of them, so that all together cost what the dearest does",
}

_NOT_COVERED = (
    "Model updates, which samples were chosen, their number, and when messages were sent. "
    "docs/privacy.md has the threat model."
)


def describe_privacy(run: Run) -> dict[str, Any]:
    """Return what `summary.json` holds of privacy; numbers where they mean something."""
    settings = run.settings
    facts: dict[str, Any] = {"mode": settings.privacy}
    if settings.uses_local_dp:
        facts |= {
            "mechanism": "integer Laplace on class counts",
            "adjacency": settings.adjacency,
            "sensitivity": settings.sensitivity,
            "release": settings.releases,
            "epsilon": settings.epsilon,
            "releases": settings.num_releases,
            "epsilon_per_release": float(settings.epsilon_per_release),
            "epsilon_spent": run.metrics.epsilon_spent,
        }
    if settings.uses_secure_aggregation:
        facts["secure_aggregation_threshold"] = settings.secure_aggregation_threshold
    return facts


def privacy_table(run: Run) -> TextTable | None:
    """List how the histograms were protected; None if they were not."""
    settings = run.settings
    if settings.privacy == "none":
        return None
    rows: list[tuple[str, str]] = [("Mode", settings.privacy)]
    if settings.uses_local_dp:
        rows += [
            ("Mechanism", "integer Laplace noise on the class counts, drawn by each client"),
            ("Adjacency", f"{settings.adjacency}: {_NEIGHBOURS[settings.adjacency]}"),
            ("Sensitivity (L1)", f"{settings.sensitivity}"),
            ("Releases", f"{settings.releases}: {_RELEASES[settings.releases]}"),
            ("ε per histogram", _number(float(settings.epsilon_per_release))),
            ("ε spent", _spent(run)),
        ]
    if settings.uses_secure_aggregation:
        share = percent(settings.secure_aggregation_threshold, 0)
        rows += [
            ("Secure aggregation", "the server sees sums over the clients alone"),
            ("Threshold", f"{share} of the clients must stay until the sum is unmasked"),
        ]
    rows.append(("Not covered", _NOT_COVERED))
    return TextTable("Privacy of the class histograms", ("What", "Value"), rows)


def _spent(run: Run) -> str:
    settings = run.settings
    return (
        f"{_number(run.metrics.epsilon_spent)} of {_number(settings.epsilon)}, over "
        f"{settings.num_releases} histograms; the most of any client"
    )


def _number(value: float) -> str:
    return f"{value:.6g}"
