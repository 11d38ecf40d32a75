"""A run's settings, and what follows from them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path

from ahfal_app.drift import is_tested
from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar
from ahfal_app.setting_fields import NO_DATASET, OF_SERVER, SITES, SettingFields
from ahfal_app.storage.yaml_text import dump_yaml


class Settings(SettingFields):
    """All settings of a run, and what follows from each alone or from several together."""

    def parameters_of(self, setting: str) -> dict[str, Scalar]:
        """Return the parameters of the component that a setting chooses, without its prefix."""
        prefix = f"{setting}."
        return {
            key.removeprefix(prefix): value
            for key, value in self.parameters.items()
            if key.startswith(prefix)
        }

    @property
    def simulates_arrivals(self) -> bool:
        """Whether samples of a simulated client arrive over time."""
        return self.arrivals != "all"

    @property
    def tells_arrivals(self) -> bool:
        """Whether clients tell how many samples have come and gone."""
        return self.simulates_arrivals or self.has_sites

    @property
    def tells_audit(self) -> bool:
        """Whether clients tell how right the global model is of what they label at random."""
        return self.audit_share > 0 and self.privacy == "none"

    def compares_windows(self, cycle: int) -> bool:
        """Tell whether clients compare two windows of cycles once a cycle is trained."""
        return self.drift_test != "none" and is_tested(cycle, self.drift_window)

    @property
    def counts_labels(self) -> bool:
        """Whether labels are bought in numbers, and not as shares of the samples."""
        return self.target_labels > 0 or bool(self.label_steps)

    @property
    def steps_T(self) -> tuple[int, ...]:
        """Labels at each training (T), where they are given one by one; else empty."""
        return tuple(int(step) for step in self.label_steps.split(",")) if self.label_steps else ()

    @property
    def target_key(self) -> str:
        """The setting that says what is labelled at the end."""
        if self.label_steps:
            return "label-steps"
        return "target-labels" if self.counts_labels else "target-fraction"

    @property
    def first_labels(self) -> str:
        """The number of first labels as it is set, for messages."""
        if self.label_steps:
            return f"label-steps={self.label_steps!r}"
        return f"initial-labels={self.initial_labels}"

    @property
    def has_global_budget(self) -> bool:
        """Whether the server splits one budget over all clients."""
        return self.budget == "global"

    @property
    def asks_for_split(self) -> bool:
        """Whether clients are asked for what one budget is split by."""
        return self.budget_split not in ("share", "equal")

    @property
    def buys_on_joining(self) -> bool:
        """Whether a client knows alone, as it joins, which first labels to buy."""
        return not self.has_global_budget and self.initial_strategy == "random"

    @property
    def label_amounts(self) -> tuple[Fraction, Fraction, Fraction]:
        """What is labelled at the start, in a cycle and at the end: numbers, or exact shares.

        Where steps differ, the largest that is taken stands for them.
        """
        if steps_T := self.steps_T[: self.cycles or None]:
            largest = max((b - a for a, b in itertools.pairwise(steps_T)), default=0)
            return Fraction(steps_T[0]), Fraction(largest), Fraction(steps_T[-1])
        if self.counts_labels:
            whole = (self.initial_labels, self.query_labels, self.target_labels)
            return Fraction(whole[0]), Fraction(whole[1]), Fraction(whole[2])
        shares = (self.initial_fraction, self.query_fraction, self.target_fraction)
        return exact_fraction(shares[0]), exact_fraction(shares[1]), exact_fraction(shares[2])

    def labelled_amount(self, cycle: int) -> Fraction:
        """Return what is labelled when `cycle` (from 0) is trained: a number, or an exact share."""
        if steps_T := self.steps_T:
            return Fraction(steps_T[min(cycle, len(steps_T) - 1)])
        initial, query, target = self.label_amounts
        return min(initial + cycle * query, target)

    def purchase_growth(self, cycle: int) -> float:
        """Return how many times as large the purchase after a cycle is as the one before it.

        1 where no steps say so, and at their ends.
        """
        steps_T = self.steps_T
        if not 0 < cycle < len(steps_T) - 1:
            return 1.0
        before, now, after = steps_T[cycle - 1 : cycle + 2]
        return (after - now) / (now - before)

    @property
    def num_cycles(self) -> int:
        """Number of trainings: one on the initial labels, then one after each purchase."""
        initial, query, target = self.label_amounts
        needed = len(self.steps_T)
        if not needed:
            needed = 1 + math.ceil((target - initial) / query) if query else 1
        return min(needed, self.cycles) if self.cycles else needed

    @property
    def has_sites(self) -> bool:
        """Whether the clients have data of their own, and the server's is for testing alone."""
        return self.partition == SITES

    @property
    def has_dataset(self) -> bool:
        """Whether the server has data."""
        return self.dataset != NO_DATASET

    @property
    def data_name(self) -> str:
        """What people call the data."""
        return self.dataset if self.has_dataset else "the sites' own data"

    @property
    def tests_on_server(self) -> bool:
        """Whether the server tests the global model on a test set of its own."""
        return self.evaluate != "sites"

    @property
    def tests_at_sites(self) -> bool:
        """Whether clients hold out labelled samples and test the global model on them."""
        return self.evaluate != "server"

    @property
    def last_rounds(self) -> int:
        """How many of a cycle's last rounds are all tested: its end alone, or more."""
        return min(max(1, self.evaluate_last), self.rounds)

    def tests_between(self, round_: int) -> bool:
        """Return whether the global model is tested after a round that does not end a cycle."""
        if round_ >= self.rounds:
            return False
        is_due = bool(self.evaluate_every) and round_ % self.evaluate_every == 0
        return is_due or round_ > self.rounds - self.last_rounds

    @property
    def uses_backbone(self) -> bool:
        """Whether the model takes a backbone's features."""
        return self.backbone != "none"

    @property
    def uses_features(self) -> bool:
        """Whether the backbone is frozen, so that its features are computed once."""
        return self.uses_backbone and self.tune == "head"

    @property
    def class_list(self) -> tuple[str, ...]:
        """Names of the classes, in order; empty where the data set's own are meant."""
        return tuple(name.strip() for name in self.classes.split(",")) if self.classes else ()

    @property
    def uses_local_dp(self) -> bool:
        """Whether histograms are noised before they leave a client."""
        return "local-dp" in self.privacy

    @property
    def uses_secure_aggregation(self) -> bool:
        """Whether the server sees sums over the clients' histograms alone."""
        return "secure-aggregation" in self.privacy

    @property
    def stop_set_share(self) -> int:
        """How many samples each client has in the stop set, where it has so many."""
        return max(1, self.stop_set_size // max(1, self.num_clients))

    @property
    def num_releases(self) -> int:
        """Number of histograms that a client tells: one before each purchase but the first."""
        return self.num_cycles - 1

    @property
    def epsilon_per_release(self) -> Fraction:
        """The exact share of `epsilon` that one histogram may cost."""
        # Each label is in one of the increments, which therefore do not add up.
        parts = 1 if self.releases == "increments" else max(1, self.num_releases)
        return exact_fraction(self.epsilon) / parts

    @property
    def sensitivity(self) -> int:
        """L1 distance of the class counts of two neighbouring labelled sets."""
        return 2 if self.adjacency == "replace" else 1

    def labels_due(self, cycle: int, num_samples: int) -> int:
        """Return how many samples are to be labelled when `cycle` is trained.

        Parameters
        ----------
        cycle : int
            From 0.
        num_samples : int
            Samples of a client; of all of them together where `budget` is `global`.
        """
        amount = self.labelled_amount(cycle)
        return min(
            num_samples, int(amount) if self.counts_labels else math.ceil(amount * num_samples)
        )

    def audits_due(self, labels: int) -> int:
        """Return how many of a client's labels are drawn at random, of so many in all."""
        return math.ceil(exact_fraction(self.audit_share) * labels)

    def labels_of_all(self, cycle: int, num_samples: int, num_clients: int) -> int:
        """Return about how many of all clients' samples are labelled when `cycle` is trained."""
        if self.counts_labels and not self.has_global_budget:
            return min(num_samples, int(self.labelled_amount(cycle)) * num_clients)
        return self.labels_due(cycle, num_samples)

    def to_flat(self) -> dict[str, Scalar]:
        """Return all settings by their kebab-case keys, as `parse_settings` reads them."""
        flat: dict[str, Scalar] = self.model_dump(by_alias=True)
        return flat | dict(sorted(self.parameters.items()))

    def to_tell(self) -> dict[str, Scalar]:
        """Return what others than the server may hear of the settings, as `to_flat` does."""
        return {key: value for key, value in self.to_flat().items() if key not in OF_SERVER}

    def to_yaml(self) -> str:
        """Return all settings as YAML."""
        return dump_yaml(self.to_flat())


def exact_fraction(value: float) -> Fraction:
    """Return the number that a person has written, and not the float nearest to it."""
    # 0.1 + 0.05 must be 0.15 and not 0.15000000000000002, or a client buys a label too many.
    return Fraction(str(value))


def share_of(fraction: float, count: int) -> int:
    """Return that share of a count, rounded up, at least 1."""
    return max(1, math.ceil(exact_fraction(fraction) * count))


def expanded(key: str, path: str | Path) -> Path:
    """Return a path in which `~` is the home folder that it stands for.

    Parameters
    ----------
    key : str
        The setting, or whatever else says so; for the message.
    path : str | Path
        The path as a person has written it.

    Raises
    ------
    ConfigError
        There is no such home: `HOME` is not set and the system knows of none, or of no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            [
                f"{key}={str(path)!r}: no home folder is known for this user (HOME is not set); "
                "allowed is a path without ~"
            ]
        ) from None
