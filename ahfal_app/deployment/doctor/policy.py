"""What the site lets a run do, and what that leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ahfal_app.client.node_config import (
    KNOWN_KEYS,
    KNOWN_PREFIXES,
    is_site,
    models_kept,
    state_folder,
)
from ahfal_app.client.past_runs import past_runs
from ahfal_app.client.policy import PREFIX, Policy
from ahfal_app.deployment.doctor.finding import Finding, failure, good, warning
from ahfal_app.errors import ConfigError, StoreError
from ahfal_app.parameters import suggestion

# Without these a server may take all of what people and disks have.
_NEEDED = {
    "labels_per_run": "how many labels a run may ask people for",
    "disk_gib": "how much disk it may take",
}


def check_policy(node_config: Mapping[str, object]) -> Iterator[Finding]:
    """Read the policy, tell all of it, and warn of what is open to whatever a server asks for."""
    for key in node_config:
        if key not in KNOWN_KEYS and not key.startswith(KNOWN_PREFIXES):
            yield warning(
                "node-config",
                f"{key}: AHFAL knows no such key{suggestion(key, KNOWN_KEYS)}; it has no effect",
            )
    try:
        models_kept(node_config)
    except ConfigError as error:
        yield from (failure("node-config", problem) for problem in error.problems)
    try:
        policy = Policy.from_node_config(node_config)
    except ConfigError as error:
        yield from (failure("policy", problem) for problem in error.problems)
        return
    text = ", ".join(policy.describe())
    open_rules = [rule for rule in _NEEDED if getattr(policy, rule) is None]
    if open_rules and node_config.get("data"):
        keys = ", ".join(PREFIX + rule.replace("_", "-") for rule in open_rules)
        what = " and ".join(_NEEDED[rule] for rule in open_rules)
        yield warning("policy", f"{text}; set {keys}: else the server alone says {what}")
    else:
        yield good("policy", text)
    if policy.counts_past_runs and is_site(node_config):
        yield from _check_past(policy, node_config)


def _check_past(policy: Policy, node_config: Mapping[str, object]) -> Iterator[Finding]:
    """Tell what of the limits for all runs together is used up."""
    try:
        past = past_runs(state_folder(node_config), but="")
    except (ConfigError, StoreError):
        return  # The check of the state tells it.
    for limit, used, what in (
        (policy.total_labels, past.labels, "labels"),
        (policy.total_epsilon, past.epsilon, "of ε"),
    ):
        if limit is not None:
            text = f"{float(used):g} {what} of {limit:g} are spent by all runs together"
            yield (
                good("policy", text)
                if used < limit
                else warning("policy", f"{text}: no run can have more")
            )
