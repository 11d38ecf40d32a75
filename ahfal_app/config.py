"""Every setting of a run: name, type, range, default and meaning, in this one place.

The run config of Flower, YAML files, the command line and the table in the README are
all read or generated from `Settings`.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ahfal_app.errors import ConfigError

#: Settings of the chosen query strategy carry this prefix: `strategy.<parameter>`.
STRATEGY_PREFIX = "strategy."

#: The number of clients of the in-process engine when `num-clients` is 0.
DEFAULT_NUM_CLIENTS = 10

#: A secure sum of fewer histograms would tell each client too much about the others.
FEWEST_SUMMED = 3

#: Below this the noise would outgrow any data set.
SMALLEST_EPSILON = 1e-6

#: The partition of a run whose clients have data of their own.
SITES = "sites"

Scalar = bool | int | float | str

#: Settings that mean something in one mode of privacy alone.
_PRIVACY_KEYS = {
    "epsilon": "local-dp",
    "adjacency": "local-dp",
    "secure-aggregation-threshold": "secure-aggregation",
}

AggregationName = Literal[
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedadagrad",
    "fedyogi",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
]


def _setting(default: Any, group: str, meaning: str, **bounds: Any) -> Any:
    return Field(default=default, description=meaning, json_schema_extra={"group": group}, **bounds)


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Settings(BaseModel):
    """All settings of a run, with their defaults (a run on scikit-learn's digits)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=_kebab, populate_by_name=True
    )

    # --- Run ---------------------------------------------------------------------
    name: str = _setting(
        "",
        "Run",
        "Name of the run's folder; empty: `<strategy>-<dataset>-seed<seed>`, numbered if taken.",
        pattern=r"^[A-Za-z0-9._-]*$",
    )
    output_dir: str = _setting(
        "runs", "Run", "Folder that holds the folders of runs.", min_length=1
    )
    resume: str = _setting("", "Run", "Folder of an interrupted run to continue; empty: a new run.")
    tracker: str = _setting(
        "none",
        "Run",
        "Where progress is shown besides: `none`, `tensorboard`, `mlflow` or `wandb`.",
    )
    seed: int = _setting(0, "Run", "Seed of everything random in the run.", ge=0, lt=2**31)

    # --- Data --------------------------------------------------------------------
    dataset: str = _setting(
        "digits",
        "Data",
        "`digits` (built in), a Hugging Face name such as `uoft-cs/cifar10`, or a local folder.",
        min_length=1,
    )
    data_dir: str = _setting("", "Data", "Folder for decoded data; empty: `~/.cache/ahfal`.")
    image_column: str = _setting("", "Data", "Column with the images; empty: found by its type.")
    label_column: str = _setting("", "Data", "Column with the labels; empty: found by its type.")
    classes: str = _setting(
        "",
        "Data",
        "Names of the classes in their order, with commas between; empty: the data set's own.",
        pattern=r"^[^,]*(,[^,]+)*$",
    )
    image_size: int = _setting(
        0,
        "Data",
        "Height and width that images are scaled to, whole and centred on black; 0: as they are.",
        ge=0,
        le=4096,
    )
    test_fraction: float = _setting(
        0.2, "Data", "Share held out for testing where a data set has no test split.", gt=0, lt=1
    )
    max_train_samples: int = _setting(
        0, "Data", "Use a stratified share of at most so many training samples; 0: all.", ge=0
    )
    max_test_samples: int = _setting(
        0, "Data", "Use a stratified share of at most so many test samples; 0: all.", ge=0
    )
    num_clients: int = _setting(
        0, "Data", "Number of clients; 0: all connected ones (in process: 10).", ge=0
    )
    partition: str = _setting(
        "dirichlet-balanced",
        "Data",
        "How samples are split over clients: `dirichlet`, `dirichlet-capped`, "
        "`dirichlet-balanced` or `iid`; or `sites`: clients have data of their own, and `dataset` "
        "is what the server tests with.",
    )
    alpha: float = _setting(
        0.3, "Data", "Concentration of the Dirichlet split; small is skewed.", gt=0, le=1e6
    )
    min_partition_size: int = _setting(10, "Data", "Fewest samples that a client may get.", ge=1)
    partition_attempts: int = _setting(
        1000, "Data", "Draws or balancing steps after which partitioning gives up.", ge=1
    )

    # --- Model and local training -------------------------------------------------
    model: str = _setting(
        "auto",
        "Training",
        "Network by name, or `torchvision/<name>`; `auto`: `small-cnn` for digits, else `resnet8`.",
    )
    head_kernel: Literal[3, 1] = _setting(
        3, "Training", "Pixels of the kernel of `mobilenet-v2`'s last convolution."
    )
    rounds: int = _setting(10, "Training", "Federated rounds in each cycle.", ge=1)
    local_epochs: int = _setting(5, "Training", "Epochs of local training in a round.", ge=1)
    batch_size: int = _setting(128, "Training", "Samples in a training batch.", ge=1)
    learning_rate: float = _setting(0.1, "Training", "Learning rate of SGD.", gt=0, le=100)
    momentum: float = _setting(0.9, "Training", "Momentum of SGD.", ge=0, lt=1)
    weight_decay: float = _setting(5e-4, "Training", "Weight decay of SGD.", ge=0, le=1)
    lr_decay_epochs: int = _setting(
        260, "Training", "Local epochs of a cycle before the learning rate drops; 0: never.", ge=0
    )
    lr_decay_factor: float = _setting(
        0.1, "Training", "What the learning rate is multiplied with at that point.", gt=0, le=1
    )
    optimizer_state: Literal["persist", "reset"] = _setting(
        "persist", "Training", "Momentum over the rounds of a cycle: kept, or fresh every round."
    )
    reset_model: bool = _setting(
        True, "Training", "Start each cycle from a fresh model; false: go on with the last one."
    )
    augment: Literal["auto", "none", "crop", "crop-flip"] = _setting(
        "auto", "Training", "Augmentation; `auto`: what the data set's literature uses."
    )
    local_update: Literal["plain", "kcfu"] = _setting(
        "plain",
        "Training",
        "Loss of local training: cross-entropy (or the strategy's own), or KAFAL's KCFU.",
    )
    kcfu_mixing: Literal["permutation", "single-partner"] = _setting(
        "permutation",
        "Training",
        "KCFU mixes each image with another one each, or all with one (the published code).",
    )
    kcfu_teacher: Literal["eval", "train"] = _setting(
        "eval",
        "Training",
        "Batch norm of KCFU's teacher: in evaluation mode, or by batch (the published code).",
    )
    kcfu_pool: Literal["current", "initial"] = _setting(
        "current",
        "Training",
        "KCFU distils on what is unlabelled now, or was at the start (the published code).",
    )
    precision: Literal["auto", "fp32", "bf16"] = _setting(
        "auto", "Training", "Arithmetic of training; `auto`: bf16 where the hardware has it."
    )
    compile: Literal["auto", "always", "never"] = _setting(
        "auto", "Training", "Compile the training step; `auto`: where it was measured to pay."
    )
    client_batching: Literal["auto", "always", "never"] = _setting(
        "auto",
        "Training",
        "In one process, clients train together as one tensor program; `auto`: on a GPU. May "
        "change the last digits.",
    )
    device: str = _setting(
        "auto",
        "Training",
        "`auto`, `cpu`, `cuda` or `cuda:<n>`.",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
    )
    threads: int = _setting(
        1,
        "Training",
        "Processor threads for one client; 0: all. Another number may change the last digits.",
        ge=0,
    )

    # --- Federation ---------------------------------------------------------------
    aggregation: AggregationName = _setting(
        "fedavg",
        "Federation",
        "How models are aggregated: a mean, a server optimiser's step, or a robust choice.",
    )
    proximal_mu: float = _setting(
        0.01,
        "Federation",
        "`fedprox`: weight of the squared distance to the global model in local training.",
        gt=0,
        le=1e3,
    )
    server_learning_rate: float = _setting(
        0.0,
        "Federation",
        "Server's step; 0: `fedavgm` 1, `fedadam` and `fedadagrad` 0.1, `fedyogi` 0.01.",
        ge=0,
        le=100,
    )
    server_momentum: float = _setting(
        0.9,
        "Federation",
        "`fedavgm`: momentum of the server; `fedadam`, `fedyogi`: decay of the first moment.",
        ge=0,
        lt=1,
    )
    server_second_moment: float = _setting(
        0.99, "Federation", "`fedadam`, `fedyogi`: decay of the second moment.", ge=0, lt=1
    )
    server_adaptivity: float = _setting(
        1e-3,
        "Federation",
        "`fedadam`, `fedadagrad`, `fedyogi`: added to the second moment's root; small adapts more.",
        ge=1e-12,
        le=1e3,
    )
    trimmed_share: float = _setting(
        0.2,
        "Federation",
        "`fedtrimmedavg`: share of the clients that is cut off at each end of every value.",
        gt=0,
        lt=0.5,
    )
    malicious_clients: int = _setting(
        1,
        "Federation",
        "`krum`, `multikrum`, `bulyan`: how many clients of a round may answer anything.",
        ge=0,
    )
    multikrum_clients: int = _setting(
        0,
        "Federation",
        "`multikrum`: how many clients' models are averaged; 0: all but the malicious.",
        ge=0,
    )
    client_fraction: float = _setting(
        1.0,
        "Federation",
        "Share of clients trained in a round (all of them in a cycle's last round).",
        gt=0,
        le=1,
    )
    quorum: float = _setting(
        0.5,
        "Federation",
        "Share of the asked clients that must answer, else the run stops.",
        gt=0,
        le=1,
    )
    start_timeout: float = _setting(
        60.0, "Federation", "Seconds to wait for the clients at the start.", gt=0
    )
    round_timeout: float = _setting(
        3600.0, "Federation", "Seconds to wait for the answers to one message.", gt=0
    )
    evaluate_every: int = _setting(
        0,
        "Federation",
        "Test the global model every so many rounds; 0: at the end of a cycle.",
        ge=0,
    )
    client_state: Literal["disk", "memory"] = _setting(
        "disk",
        "Federation",
        "Where a client keeps labels and momentum: on disk (can be resumed) or in Flower's state.",
    )

    # --- Active learning ----------------------------------------------------------
    strategy: str = _setting("ahfal", "Active learning", "Query strategy by name.")
    tau: float = _setting(
        12.0,
        "Active learning",
        "Classes whose proportion deviates less over clients (percentage points) are low-variance.",
        ge=0,
    )
    dispersion: Literal["deviation", "coefficient-of-variation"] = _setting(
        "deviation",
        "Active learning",
        "What is compared with tau: the deviation, or that in percent of the class's mean.",
    )
    align: Literal["none", "true-global", "estimated"] = _setting(
        "none",
        "Active learning",
        "Class budgets that bring a client's labels to the true or estimated global classes.",
    )
    align_membership: Literal["pseudo", "true"] = _setting(
        "pseudo",
        "Active learning",
        "`align` goes by predicted classes, or by the hidden true ones (leaks; upper bound).",
    )
    initial_fraction: float = _setting(
        0.1,
        "Active learning",
        "Share of each client's samples labelled at random at the start.",
        gt=0,
        le=1,
    )
    query_fraction: float = _setting(
        0.05,
        "Active learning",
        "Share of each client's samples labelled in each cycle.",
        gt=0,
        le=1,
    )
    target_fraction: float = _setting(
        0.35, "Active learning", "Share of each client's samples labelled at the end.", gt=0, le=1
    )
    cycles: int = _setting(
        0, "Active learning", "Most cycles to run; 0: as many as the target needs.", ge=0
    )
    oracle: str = _setting("simulated", "Active learning", "Who answers with labels.")
    label_deadline: float = _setting(
        604800.0,
        "Active learning",
        "Seconds that a cycle waits for labels before it goes on with those it has.",
        ge=0,
    )

    # --- Privacy of the class histograms --------------------------------------------
    privacy: Literal["none", "local-dp", "secure-aggregation", "local-dp+secure-aggregation"] = (
        _setting("none", "Privacy", "Protection of the class histograms.")
    )
    epsilon: float = _setting(
        0.0,
        "Privacy",
        "Privacy budget ε of a client's histograms, for the whole run; needed by `local-dp`.",
        ge=0,
        le=1e6,
    )
    adjacency: Literal["replace", "add-remove"] = _setting(
        "replace",
        "Privacy",
        "What ε protects: one label replaced by another (sensitivity 2; the number of labels is "
        "public), or one label more or less (sensitivity 1).",
    )
    secure_aggregation_threshold: float = _setting(
        0.65,
        "Privacy",
        "Share of the run's clients that must stay until a secure sum is unmasked.",
        gt=0.5,
        le=1,
    )

    # --- Parameters of the query strategy -------------------------------------------
    strategy_parameters: dict[str, Scalar] = Field(default_factory=dict, exclude=True)

    def labelled_fraction(self, cycle: int) -> Fraction:
        """Return the exact share of samples that is labelled when `cycle` (from 0) is trained."""
        fraction = exact_fraction(self.initial_fraction) + cycle * exact_fraction(
            self.query_fraction
        )
        return min(fraction, exact_fraction(self.target_fraction))

    @property
    def num_cycles(self) -> int:
        """Number of trainings: one on the initial labels, then one after each purchase."""
        missing = exact_fraction(self.target_fraction) - exact_fraction(self.initial_fraction)
        needed = 1 + math.ceil(missing / exact_fraction(self.query_fraction))
        return min(needed, self.cycles) if self.cycles else needed

    @property
    def has_sites(self) -> bool:
        """Whether the clients have data of their own, and the server's is for testing alone."""
        return self.partition == SITES

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
    def num_releases(self) -> int:
        """Number of histograms that a client tells: one before each purchase but the first."""
        return self.num_cycles - 1

    @property
    def epsilon_per_release(self) -> Fraction:
        """The exact share of `epsilon` that one histogram costs."""
        return exact_fraction(self.epsilon) / max(1, self.num_releases)

    @property
    def sensitivity(self) -> int:
        """L1 distance of the class counts of two neighbouring labelled sets."""
        return 2 if self.adjacency == "replace" else 1

    def labels_due(self, cycle: int, num_samples: int) -> int:
        """Return how many of `num_samples` are to be labelled when `cycle` is trained."""
        return math.ceil(self.labelled_fraction(cycle) * num_samples)

    def to_flat(self) -> dict[str, Scalar]:
        """Return all settings by their kebab-case keys, as `parse_settings` reads them."""
        flat: dict[str, Scalar] = self.model_dump(by_alias=True)
        for key, value in sorted(self.strategy_parameters.items()):
            flat[STRATEGY_PREFIX + key] = value
        return flat

    def to_yaml(self) -> str:
        """Return all settings as YAML."""
        return yaml.safe_dump(self.to_flat(), sort_keys=False)


def exact_fraction(value: float) -> Fraction:
    """Return the number that a person has written, and not the float nearest to it."""
    # 0.1 + 0.05 must be 0.15 and not 0.15000000000000002, or a client buys a label too many.
    return Fraction(str(value))


def share_of(fraction: float, count: int) -> int:
    """Return that share of a count, rounded up, at least 1."""
    return max(1, math.ceil(exact_fraction(fraction) * count))


def setting_fields() -> dict[str, FieldInfo]:
    """Return the declared settings by their kebab-case keys, in order."""
    return {
        _kebab(name): field
        for name, field in Settings.model_fields.items()
        if name != "strategy_parameters"
    }


def parse_settings(values: Mapping[str, object]) -> Settings:
    """Parse flat kebab-case settings, reporting all problems at once.

    An empty `strategy.<parameter>` means that parameter's default, since Flower can only
    override keys that its manifest lists.

    Raises
    ------
    ConfigError
        A key is unknown, or a value has the wrong type or is out of range.
    """
    settings, problems = read_settings(values)
    if problems:
        raise ConfigError(problems)
    return settings


def read_settings(values: Mapping[str, object]) -> tuple[Settings, list[str]]:
    """Return what can be used of flat settings, with defaults for the rest, and all problems.

    For checks that go on where a problem is known, to tell all at once.
    """
    fields = setting_fields()
    known: dict[str, object] = {}
    parameters: dict[str, object] = {}
    problems: list[str] = []
    for key, value in values.items():
        if key.startswith(STRATEGY_PREFIX):
            if value != "":
                parameters[key.removeprefix(STRATEGY_PREFIX)] = value
        elif key in fields:
            problem = _type_problem(key, value, fields[key])
            if problem is None:
                known[key] = value
            else:
                problems.append(problem)
        else:
            problems.append(unknown_key(key, fields))
    try:
        settings = Settings.model_validate({**known, "strategy_parameters": parameters})
    except ValidationError as error:
        problems.extend(_range_problem(detail, fields) for detail in error.errors())
        # What is in range is still checked for contradictions, to tell all problems at once.
        refused = {str(detail["loc"][0]) for detail in error.errors()}
        known = {key: value for key, value in known.items() if key not in refused}
        settings = Settings.model_validate(known)
    problems.extend(_contradictions(settings))
    return settings, problems


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the line that refuses an unknown key and suggests the nearest known one."""
    return f"{key}: unknown setting{suggestion(key, known)}; `ahfal settings` lists all"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def allowed_values(field: FieldInfo) -> str:
    """Return in words which values a setting takes."""
    annotation = field.annotation
    if typing.get_origin(annotation) is Literal:
        return " | ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    kinds = {bool: "true | false", int: "integer", float: "number", str: "text"}
    words = [kinds.get(typing.cast(type, annotation), "text")]
    for bound in field.metadata:
        for attribute, symbol in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if (limit := getattr(bound, attribute, None)) is not None:
                words.append(f"{symbol} {limit:g}" if limit < 2**31 else f"{symbol} {limit}")
        if (pattern := getattr(bound, "pattern", None)) is not None:
            words.append(f"matching `{pattern}`")
        if getattr(bound, "min_length", None):
            words.append("not empty")
    return ", ".join(words)


def _type_problem(key: str, value: object, field: FieldInfo) -> str | None:
    """Refuse what pydantic would silently convert, such as `true` for a number."""
    annotation = field.annotation
    if typing.get_origin(annotation) is Literal:
        # `True == 1`, but it is no choice between numbers.
        fits = type(value) is type(typing.get_args(annotation)[0])
    elif annotation is bool:
        fits = isinstance(value, bool)
    elif annotation is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif annotation is float:
        fits = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    else:
        fits = isinstance(value, str)
    return None if fits else _refusal(key, value, field)


def _range_problem(detail: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    key = str(detail["loc"][0])
    if key not in fields:
        parameter = ".".join(str(part) for part in detail["loc"][1:2])
        return f"{STRATEGY_PREFIX}{parameter}={detail['input']!r}: must be a single value"
    return _refusal(key, detail["input"], fields[key])


def _refusal(key: str, value: object, field: FieldInfo) -> str:
    nearest = ""
    if typing.get_origin(field.annotation) is Literal and isinstance(value, str):
        choices = typing.get_args(field.annotation)
        nearest = suggestion(value, [choice for choice in choices if isinstance(choice, str)])
    return f"{key}={value!r}: allowed is {allowed_values(field)}{nearest}"


def _contradictions(settings: Settings) -> list[str]:
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
    if settings.target_fraction < settings.initial_fraction:
        problems.append(
            f"target-fraction={settings.target_fraction!r}: allowed is at least "
            f"initial-fraction={settings.initial_fraction!r}"
        )
    return problems


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
            f"epsilon={settings.epsilon!r}: allowed is at least {SMALLEST_EPSILON:g} with "
            f"privacy={settings.privacy!r}"
        )
    for key, belongs_to in _PRIVACY_KEYS.items():
        value = getattr(settings, key.replace("-", "_"))
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
