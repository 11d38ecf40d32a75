"""The lines of `metrics.jsonl`: one record for each round and each cycle.

The suffix `_C` marks a list over classes and `_K` one over clients, in the order of the
classes and of the partition. Bytes count the messages' contents, seconds are wall-clock.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from ahfal_app.drift import LEVEL
from ahfal_app.ledger import ArrivalFigures, AuditFigures, Ledger
from ahfal_app.stop_set import Observation


def _finite_or_none(value: object) -> object:
    # A diverged loss must not make the run's record unreadable: JSON knows no NaN.
    return None if isinstance(value, float) and not math.isfinite(value) else value


Loss = Annotated[float | None, BeforeValidator(_finite_or_none)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        """Take NumPy arrays and scalars as well: what has `tolist` becomes plain Python."""
        if not isinstance(values, dict):
            return values
        return {
            key: value.tolist() if hasattr(value, "tolist") else value
            for key, value in values.items()
        }


def called(client: int, site: str) -> str:
    """Return what a client is called in messages to people: by its site's name, if it has one."""
    return f"{site} (client {client})" if site else f"client {client}"


class Failure(_Record):
    """A client that did not answer a message, or answered with an error.

    `site` is the name that its site was registered under, if there is one.
    """

    client: int
    reason: str
    site: str = ""

    @property
    def who(self) -> str:
        """What the client is called in messages to people."""
        return called(self.client, self.site)


class Joined(_Record):
    """A client that came to a run under way, with so many samples, or came back to it."""

    client: Count
    site: str = ""
    samples: Count
    is_back: bool = False

    @property
    def who(self) -> str:
        """What the client is called in messages to people."""
        return called(self.client, self.site)


Bounds = tuple[float, float]


class TestRecord(_Record):
    """A test of the global model.

    `metrics` has all by name, None where one is not defined, and `intervals` those of them that
    have one, of 95 %. `recall` and `precision` (C) are shares of counts, with Wilson's intervals;
    `auroc` (C) is each class's against the rest, to within `auroc_resolution` (C): half of the
    pairs that share a bin. `confusion` has true classes as rows; it and `calibration` (samples,
    those right, and the mean of the highest probabilities, by bins of
    equal width) are empty where a site is told of beside others.
    """

    __test__ = False  # No class of tests, whatever its name begins with.

    where: Literal["server", "sites"]
    samples: Count
    metrics: dict[str, float | None]
    intervals: dict[str, Bounds] = Field(default_factory=dict)
    recall: tuple[Share | None, ...] = ()
    recall_intervals: tuple[Bounds | None, ...] = ()
    precision: tuple[Share | None, ...] = ()
    precision_intervals: tuple[Bounds | None, ...] = ()
    auroc: tuple[Share | None, ...] = ()
    auroc_intervals: tuple[Bounds | None, ...] = ()
    auroc_resolution: tuple[Share | None, ...] = ()
    confusion: tuple[tuple[Count, ...], ...] = ()
    calibration: tuple[tuple[Count, Count, Share | None], ...] = ()


class SiteTest(_Record):
    """What a site's test came to; `site` is the name that it was registered under, if any."""

    client: Count
    site: str = ""
    test: TestRecord

    @property
    def who(self) -> str:
        """What the site is called in messages to people."""
        return called(self.client, self.site)


class Forgetting(_Record):
    """What forgetting changes of a cycle's statistics.

    `deviation` and `low` (C) are what they would be if nothing was forgotten, `effective` how many
    equally weighted labels each client's are worth, of those that have told counts; empty where
    only noisy ones are known.
    """

    deviation: tuple[Share, ...]
    low: tuple[bool, ...]
    effective: tuple[Annotated[float, Field(ge=0)], ...] = ()


class ArrivalTests(_Record):
    """Tests of a simulated cycle's model on what comes, and on how it looks.

    `next_right` of the `next_count` samples that come for the next cycle were predicted rightly,
    before any was labelled. `accuracy` is of the test set as it looks in this cycle, `level` how
    far that has changed, from 0 to 5; both None where images do not change.
    """

    next_right: Count = 0
    next_count: Count = 0
    accuracy: Share | None = None
    level: Annotated[float, Field(ge=0, le=5)] | None = None


class ArrivalsRecord(_Record):
    """What had come and gone when a cycle's labels had been asked for.

    `figures` are all clients' together, `clients` (K) how many samples of each had arrived; the
    rest is known in simulation alone: `classes` (C), what came first for this cycle, by true class;
    `distance`, the total variation between that and the mix that was wanted of it; `unseen`
    samples never come within the run; `tests`.
    """

    figures: ArrivalFigures
    clients: tuple[Count, ...] = ()
    classes: tuple[Count, ...] = ()
    distance: Share | None = None
    unseen: Count | None = None
    tests: ArrivalTests | None = None


class SiteDrift(_Record):
    """What a client makes of its class mix in two windows; `site` is its name, if it has one.

    Of a test `statistic` (X²), `log_ratio` (G), `df`, `p` and `corrected`, p by Holm's method for
    all clients' tests in the cycle; of an indicator `divergence` (nats) and `variation`; of neither
    `refusal`, why there is none.
    """

    client: Count
    site: str = ""
    statistic: Annotated[float, Field(ge=0)] | None = None
    log_ratio: Annotated[float, Field(ge=0)] | None = None
    df: Count | None = None
    p: Share | None = None
    corrected: Share | None = None
    divergence: float | None = None
    variation: Share | None = None
    refusal: str = ""

    @property
    def who(self) -> str:
        """What the client is called in messages to people."""
        return called(self.client, self.site)


class DriftRecord(_Record):
    """Whether class mixes have changed between two windows of `window` cycles.

    `sites` has each client that answered, `pooled` is p of all chi-square tests together.
    """

    method: Literal["chi-square", "permutation", "predicted"]
    window: Annotated[int, Field(ge=1)]
    sites: tuple[SiteDrift, ...]
    pooled: Share | None = None

    @property
    def drifting(self) -> tuple[SiteDrift, ...]:
        """The clients whose own test says that their mix has changed."""
        return tuple(s for s in self.sites if s.corrected is not None and s.corrected < LEVEL)

    @property
    def is_drift(self) -> bool:
        """Whether any test says so, all of them together included."""
        return bool(self.drifting) or (self.pooled is not None and self.pooled < LEVEL)


class Grant(_Record):
    """What a client was granted of a budget that all share; `site` is its name, if it has one.

    `before` labels had been granted to it, `added` were granted then; `weight` is what that went by
    (`GrantsRecord`), None where the client took no part.
    """

    client: Count
    site: str = ""
    before: Count
    added: Count
    weight: Annotated[float, Field(ge=0)] | None = None

    @property
    def who(self) -> str:
        """What the client is called in messages to people."""
        return called(self.client, self.site)


class GrantsRecord(_Record):
    """How the labels that are bought after a cycle were split over the clients.

    Weights by `split`: with `share` a client's samples, with `equal` 1, with `missing` its share of
    the labels that go to the classes that all clients lack, with `threshold` its samples whose
    scores are among the highest of all. `left` labels nobody could take: they are due in the next
    cycle.
    """

    split: Literal["share", "equal", "missing", "threshold"]
    clients: tuple[Grant, ...]
    left: Count = 0


class RoundRecord(_Record):
    """One federated round.

    `clients` is the number that answered; `train_loss` is None where it was not finite;
    `test_accuracy` is None in rounds without a test of the global model, and `metrics` and `tests`
    are empty there; else they are as of a cycle, without matrices. `load` is the mean number of
    processes of the server's machine that wanted a core in the last minute, where it tells that.
    """

    kind: Literal["round"] = "round"
    cycle: Count
    round: Annotated[int, Field(ge=1)]
    clients: Count
    failed: tuple[Failure, ...] = ()
    num_examples: Count
    train_loss: Loss
    test_accuracy: Share | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)
    tests: tuple[TestRecord, ...] = ()
    seconds: dict[str, Seconds] = Field(default_factory=dict)
    bytes_down: Count = 0
    bytes_up: Count = 0
    load: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class CycleRecord(_Record):
    """One cycle: the test of its model, the class statistics and the selection.

    `labels` and `labels_per_client` (K) are those the cycle's model was trained on.
    `accuracy`, `loss`, `class_accuracy` (C; None for a class without test samples) and `metrics`
    (the others by name, None where one is not defined) are of the first of `tests`: the server's,
    or where it has none the sites' together. `sites` has each site's, `untested` why others told
    none, `joined` who came between the cycle before and this one, and `held_out` how many labels
    are kept for testing and not trained on. `mean` and `deviation`
    (C, proportions in [0, 1]) and `low` (C) are None in the last cycle, which selects
    nothing; `tau` is in percentage points. `epsilon_spent` is what the histograms have cost
    of a client's privacy budget so far, the most of any client; None without noise. `budget`
    labels were asked for, `bought` came and `pending` are still awaited. `stopped_by` says why
    the run ended here, before its target; empty otherwise. `stop_set` has how predictions of
    the clients' stop set differ from the cycle before; None where nobody asked. `arrivals` has
    what had come and gone; None where all samples are there from the start. `forgetting` has what
    statistics would be without it; None where nothing is forgotten, or nobody knows. `drift` has
    how class mixes have changed; None where no windows end with the cycle. `audit` has how right
    the cycle's model was of what was then drawn at random, as far as its labels had come when the
    purchase ended; None where nobody told. `policy` has what the
    query strategy's half at the server tells of itself, by name. `grants` has how the budget was
    split that all clients share; None where each has its own, or nothing was bought. `seconds`,
    `bytes_down` and `bytes_up` count what happened outside the cycle's rounds, so that sums
    over all records are the run's.
    """

    kind: Literal["cycle"] = "cycle"
    cycle: Count
    labels: Count
    labels_per_client: tuple[Count, ...]
    accuracy: Share
    class_accuracy: tuple[Share | None, ...]
    loss: Loss
    metrics: dict[str, float | None] = Field(default_factory=dict)
    held_out: Count = 0
    tests: tuple[TestRecord, ...] = ()
    sites: tuple[SiteTest, ...] = ()
    untested: tuple[Failure, ...] = ()
    joined: tuple[Joined, ...] = ()
    mean: tuple[Share, ...] | None = None
    deviation: tuple[Share, ...] | None = None
    low: tuple[bool, ...] | None = None
    tau: float
    epsilon_spent: Annotated[float, Field(ge=0)] | None = None
    budget: Count = 0
    bought: Count = 0
    pending: Count = 0
    stopped_by: str = ""
    stop_set: Observation | None = None
    arrivals: ArrivalsRecord | None = None
    forgetting: Forgetting | None = None
    drift: DriftRecord | None = None
    audit: AuditFigures | None = None
    policy: dict[str, Loss] = Field(default_factory=dict)
    grants: GrantsRecord | None = None
    ledger: Ledger
    failed: tuple[Failure, ...] = ()
    seconds: dict[str, Seconds] = Field(default_factory=dict)
    bytes_down: Count = 0
    bytes_up: Count = 0


Record = RoundRecord | CycleRecord

_ADAPTER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def parse_record(line: bytes) -> Record:
    """Parse one line of `metrics.jsonl`.

    Raises
    ------
    pydantic.ValidationError
        The line is not JSON or not a record.
    """
    return _ADAPTER.validate_json(line)
