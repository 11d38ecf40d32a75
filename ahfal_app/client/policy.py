"""What a site lets a run do, whatever the server says: `policy-…` in `--node-config`.

Every message is held against it before anything is loaded, trained, told or asked for. A rule
that is not set allows what the settings of runs allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ahfal_app.client.past_runs import PastRuns
from ahfal_app.config import Settings, exact_fraction
from ahfal_app.data.images import DataFormat
from ahfal_app.errors import ConfigError, PolicyRefused
from ahfal_app.ledger import Ledger
from ahfal_app.models import model_problem
from ahfal_app.oracle import oracle_names
from ahfal_app.parameters import suggestion
from ahfal_app.query import make_strategy, strategy_names
from ahfal_app.query.core.reveals import MEANINGS, Reveal
from ahfal_app.query.core.splitting import make_split

#: Of every key; one that starts so and is not known is refused, as it would protect nothing.
PREFIX = "policy-"

GIB = 2**30

#: Of fewer held-out images a site tells the server nothing, unless it says otherwise: sums over
#: one or two say what single ones were taken for.
FEWEST_TESTED = 5

_LOCAL_DP = "local-dp"


def _names(value: object) -> object:
    """Split a text with commas, as `--node-config` has no lists."""
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(","))


_Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_names)]


def _rule(meaning: str, **bounds: Any) -> Any:
    return Field(default=None, description=meaning, **bounds)


class Policy(BaseModel):
    """A site's rules; None where there is none.

    Make one with `from_node_config`, which also checks what goes together.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: PREFIX + name.replace("_", "-"),
        populate_by_name=True,
    )

    privacy: (
        Literal["none", "local-dp", "secure-aggregation", "local-dp+secure-aggregation"] | None
    ) = _rule("least protection of the class histograms")
    epsilon: float | None = _rule("largest privacy budget ε of a run", gt=0)
    total_epsilon: float | None = _rule("largest ε of all runs together", gt=0)
    cycles: int | None = _rule("most cycles of a run", ge=1)
    labels_per_cycle: int | None = _rule("most labels that a cycle asks for", ge=1)
    labels_per_run: int | None = _rule("most labels that a run asks for", ge=1)
    total_labels: int | None = _rule("most labels that all runs together ask for", ge=1)
    image_size: int | None = _rule("largest height and width of images, in pixels", ge=1)
    strategies: _Names | None = _rule("query strategies that may choose, with commas between")
    reveals: _Names | None = _rule(
        "what a run may tell of the site's samples besides, with commas between: "
        f"{' | '.join(Reveal)}; nothing where it is not set"
    )
    oracles: _Names | None = _rule("oracles that may be asked, with commas between")
    models: _Names | None = _rule("networks that may be trained, with commas between")
    local_epochs: int | None = _rule("most epochs of local training in a round", ge=1)
    fewest_tested: int | None = _rule(
        f"fewest held-out samples over which sums are told to the server; {FEWEST_TESTED} where it "
        "is not set",
        ge=2,
    )
    disk_gib: float | None = _rule("most disk that state and decoded data may take, in GiB", gt=0)

    @classmethod
    def from_node_config(cls, node_config: Mapping[str, object]) -> Policy:
        """Return the policy that a site has set.

        Raises
        ------
        ConfigError
            A key is unknown, a value has the wrong type or is out of range, a name is unknown,
            or a limit of ε stands without the protection that it limits.
        """
        own = {key: value for key, value in node_config.items() if key.startswith(PREFIX)}
        try:
            policy = cls.model_validate(own)
        except ValidationError as error:
            raise ConfigError([_problem(detail, own) for detail in error.errors()]) from None
        if problems := list(policy._contradictions()):
            raise ConfigError(problems)
        return policy

    def check(self, settings: Settings, data: DataFormat | None, past: PastRuns) -> None:
        """Refuse a run that breaks a rule; what depends on the site's images is checked later.

        Parameters
        ----------
        settings : Settings
            What the message says, with what the site sets for itself.
        data : DataFormat | None
            What the message says that images are to be made.
        past : PastRuns
            What other runs have cost the site.

        Raises
        ------
        PolicyRefused
            A rule is broken; all that are, are named.
        """
        refuse(
            [
                *self._privacy_broken(settings, past),
                *_most_broken("cycles", self.cycles, settings.num_cycles),
                *self._image_size_broken(settings, data),
                *_names_broken("strategies", self.strategies, settings.strategy),
                *_names_broken("strategies", self.strategies, *_first_choice(settings)),
                *self._reveals_broken(settings),
                *_names_broken("oracles", self.oracles, settings.oracle),
                *_names_broken("models", self.models, settings.model),
                *_most_broken("local-epochs", self.local_epochs, settings.local_epochs),
            ]
        )

    def check_labels(self, settings: Settings, num_samples: int, past: PastRuns) -> None:
        """Refuse a run that would ask for more labels than it may.

        Parameters
        ----------
        settings : Settings
            What the message says.
        num_samples : int
            The site's images, of which budgets are shares.
        past : PastRuns
            What other runs have cost the site.

        Raises
        ------
        PolicyRefused
            A rule is broken.
        """
        if settings.has_global_budget:
            return  # What this site gets of it, the server says: `check_grant`.
        if (self.labels_per_cycle, self.labels_per_run, self.total_labels) == (None, None, None):
            return
        most, all_cycles = (
            _largest_purchase(settings, num_samples),
            _all_labels(settings, num_samples),
        )
        refuse(
            [
                *_most_broken("labels-per-cycle", self.labels_per_cycle, most),
                *_most_broken("labels-per-run", self.labels_per_run, all_cycles),
                *_most_broken("total-labels", self.total_labels, past.labels + all_cycles),
            ]
        )

    def check_grant(self, granted: int, past: PastRuns) -> None:
        """Refuse more labels than a run may ask for; what a cycle may is held by `allowance`.

        Parameters
        ----------
        granted : int
            Labels that the server grants, in all cycles so far.
        past : PastRuns
            What other runs have cost the site.

        Raises
        ------
        PolicyRefused
            A rule is broken.
        """
        refuse(
            [
                *_most_broken("labels-per-run", self.labels_per_run, granted),
                *_most_broken("total-labels", self.total_labels, past.labels + granted),
            ]
        )

    def check_disk(self, total_bytes: int) -> None:
        """Refuse what would make state and decoded images take more disk than they may.

        Raises
        ------
        PolicyRefused
            It would.
        """
        refuse(list(_most_broken("disk-gib", self.disk_gib, Fraction(total_bytes, GIB))))

    def allowance(self, ledger: Ledger, past: PastRuns) -> int:
        """Return how many labels may be asked for now, whatever was allotted.

        A site that was away is allotted what it has missed; that, too, is bought in parts.
        """
        so_far = ledger.spent + ledger.reserved
        left = [ledger.free]
        if self.labels_per_cycle is not None:
            left.append(self.labels_per_cycle)
        if self.labels_per_run is not None:
            left.append(self.labels_per_run - so_far)
        if self.total_labels is not None:
            left.append(self.total_labels - past.labels - so_far)
        return max(0, min(left))

    @property
    def counts_past_runs(self) -> bool:
        """Whether it has a rule for all runs together."""
        return self.total_labels is not None or self.total_epsilon is not None

    @property
    def most_disk_bytes(self) -> int | None:
        """The most disk that state and decoded images may take."""
        return None if self.disk_gib is None else int(self.disk_gib * GIB)

    def describe(self) -> list[str]:
        """Return each rule as a person reads it, in order: key, value, or that there is none."""
        described = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            text = "|".join(value) if isinstance(value, tuple) else value
            unset = "nothing" if name == "reveals" else "not limited"
            shown = unset if value is None else str(text)
            described.append(f"{str(field.alias).removeprefix(PREFIX)}: {shown}")
        return described

    # --- inside -------------------------------------------------------------------------

    def _contradictions(self) -> Iterator[str]:
        for key, value in (("epsilon", self.epsilon), ("total-epsilon", self.total_epsilon)):
            if value is not None and _LOCAL_DP not in (self.privacy or ""):
                yield (
                    f"{PREFIX}{key}={value!r}: allowed only with {PREFIX}privacy={_LOCAL_DP!r}, or "
                    "a run without noise would tell exact counts"
                )
        for key, given, known in (
            ("strategies", self.strategies, strategy_names()),
            ("oracles", self.oracles, oracle_names()),
            ("reveals", self.reveals, tuple(Reveal)),
        ):
            for name in given or ():
                if name not in known:
                    yield (
                        f"{PREFIX}{key}: {name!r} is not known; allowed are "
                        f"{', '.join(known)}{suggestion(name, known)}"
                    )
        for name in self.models or ():
            if problem := model_problem(name):
                yield f"{PREFIX}models: {problem}"

    def _privacy_broken(self, settings: Settings, past: PastRuns) -> Iterator[_Broken]:
        wanted, offered = _parts(self.privacy), _parts(settings.privacy)
        if not wanted <= offered:
            yield _Broken("privacy", f"{settings.privacy!r}; at least {self.privacy!r}")
        if not settings.uses_local_dp:
            return
        epsilon = exact_fraction(settings.epsilon)
        yield from _most_broken("epsilon", self.epsilon, epsilon)
        yield from _most_broken("total-epsilon", self.total_epsilon, past.epsilon + epsilon)

    def _reveals_broken(self, settings: Settings) -> Iterator[_Broken]:
        """Say what the run tells of single clients' samples that the site has not allowed."""
        strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
        split = make_split(settings)
        allowed, told = self.reveals or (), strategy.reveals | (split.reveals if split else set())
        is_summed = strategy.is_coordinated or split is not None
        if is_summed and not settings.uses_secure_aggregation:
            told |= {Reveal.SUMS}
        if strategy.tells and not told:
            # Another package's, which does not say what it tells.
            told |= {Reveal.OTHER}
        if missing := sorted(told - set(allowed)):
            words = ", ".join(f"{each} ({MEANINGS[Reveal(each)]})" for each in missing)
            yield _Broken("reveals", f"{words}; {', '.join(allowed) or 'nothing'}")

    def _image_size_broken(self, settings: Settings, data: DataFormat | None) -> Iterator[_Broken]:
        size = max((settings.image_size, *(data.image_shape[:2] if data else ())))
        yield from _most_broken("image-size", self.image_size, size)


@dataclass(frozen=True)
class _Broken:
    """A rule that is broken, and how."""

    rule: str
    text: str


def refuse(broken: Sequence[_Broken]) -> None:
    """Raise where rules are broken.

    Raises
    ------
    PolicyRefused
        At least one is.
    """
    if broken:
        rules = [PREFIX + each.rule for each in broken]
        problems = [f"{PREFIX}{each.rule}: asked for is {each.text} is allowed" for each in broken]
        raise PolicyRefused(rules, problems)


def _most_broken(rule: str, most: float | None, asked: float | Fraction) -> Iterator[_Broken]:
    if most is not None and asked > exact_fraction(most):
        yield _Broken(rule, f"{float(asked):g}; at most {most:g}")


def _names_broken(rule: str, allowed: Sequence[str] | None, *asked: str) -> Iterator[_Broken]:
    for name in asked:
        if allowed is not None and name not in allowed:
            yield _Broken(rule, f"{name!r}; one of {', '.join(allowed)}")


def _first_choice(settings: Settings) -> list[str]:
    """Return what chooses the first labels, where that is not chance, which sees no sample."""
    return [] if settings.initial_strategy == "random" else [settings.initial_strategy]


def _parts(privacy: str | None) -> set[str]:
    return set((privacy or "none").split("+")) - {"none"}


def _largest_purchase(settings: Settings, num_samples: int) -> int:
    """Return the most labels that are asked for at once: at the start, or after a cycle."""
    later = 0
    if settings.num_cycles > 1:
        initial, query, target = settings.label_amounts
        most = min(query, target - initial) * (1 if settings.counts_labels else num_samples)
        later = min(num_samples, math.ceil(most))
    return max(settings.labels_due(0, num_samples), later)


def _all_labels(settings: Settings, num_samples: int) -> int:
    return settings.labels_due(settings.num_cycles - 1, num_samples)


def _problem(detail: Mapping[str, Any], given: Mapping[str, object]) -> str:
    key = str(detail["loc"][0])
    rules = {str(field.alias): field for field in Policy.model_fields.values()}
    if key not in rules:
        return f"{key}: unknown rule{suggestion(key, rules)}; allowed are {', '.join(rules)}"
    return f"{key}={given[key]!r}: allowed is: {rules[key].description} ({detail['msg']})"
