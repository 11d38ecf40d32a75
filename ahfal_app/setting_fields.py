"""Every setting of a run: name, type, range, default and meaning, in this one place.

The run config of Flower, YAML files, the command line and the table in the README are
all read or generated from `SettingFields`. What follows from them: `Settings`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from ahfal_app.parameters import Scalar, kebab
from ahfal_app.plugins import FAMILIES

#: Settings that choose a component, whose parameters are `<setting>.<parameter>`.
COMPONENTS = tuple(FAMILIES)

#: The setting that carries parameters where only listed keys can be given.
MORE = "more"

#: The number of clients of the in-process engine when `num-clients` is 0.
DEFAULT_NUM_CLIENTS = 10

#: What `covariate-drift` does to images.
Look = Literal["none", "noise", "blur", "contrast", "brightness", "rotation"]

#: A secure sum of fewer histograms would tell each client too much about the others.
FEWEST_SUMMED = 3

#: Numbers that a vector may have: its moments travel with each message to a site.
LONGEST_VECTOR = 32_768

#: Below this the noise would outgrow any data set.
SMALLEST_EPSILON = 1e-6

#: The partition of a run whose clients have data of their own.
SITES = "sites"

#: The data set of a server that has none.
NO_DATASET = "none"

#: Settings that are the server's own affair: no message, tracker or report says them.
OF_SERVER = frozenset({"on-event", "on-event-after-hours"})


def _setting(default: Any, group: str, meaning: str, **bounds: Any) -> Any:
    return Field(default=default, description=meaning, json_schema_extra={"group": group}, **bounds)


class SettingFields(BaseModel):
    """All settings of a run, with their defaults (a run on scikit-learn's digits)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=kebab, populate_by_name=True
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
    on_event: str = _setting(
        "",
        "Run",
        "Whom the server tells of events, such as a cycle that is done: an address (`http://…`, "
        "`https://…`) or a command of its own; empty: nobody.",
    )
    on_event_after_hours: float = _setting(
        24.0, "Run", "Hours that labels are waited for until that is an event.", ge=0, le=1e5
    )
    more: str = Field(
        default="",
        description="Parameters of components that only other packages know, as `key=value` with "
        "spaces between: for `flwr run`, which takes no keys but those listed here. With `resume` "
        "also settings that are to be as they are by default, such as `stopping=none`, which "
        "`flwr run` cannot tell from what nobody has said.",
        json_schema_extra={"group": "Run"},
        exclude=True,
    )
    seed: int = _setting(0, "Run", "Seed of everything random in the run.", ge=0, lt=2**31)

    # --- Data --------------------------------------------------------------------
    dataset: str = _setting(
        "digits",
        "Data",
        "`digits` or `breast-cancer` (built in), a Hugging Face name such as `uoft-cs/cifar10`, a "
        "local folder, or a parquet file with vectors; `none`: the server has no data, and sites "
        "test.",
        min_length=1,
    )
    data_dir: str = _setting("", "Data", "Folder for decoded data; empty: `~/.cache/ahfal`.")
    image_column: str = _setting("", "Data", "Column with the images; empty: found by its type.")
    label_column: str = _setting("", "Data", "Column with the labels; empty: found by its type.")
    vector_column: str = _setting(
        "", "Data", "Column with vectors, lists of numbers; empty: found by its type."
    )
    shown_column: str = _setting(
        "",
        "Data",
        "Beside vectors, the column that people who label see: text, a link or images; empty: "
        "`text`, `link`, `url` or `image`, if there is one.",
    )
    standardise: Literal["federation", "none"] = _setting(
        "federation",
        "Data",
        "What vectors are standardised by, number by number: mean and deviation over all clients' "
        "samples, or nothing.",
    )
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
    image_channels: Literal[1, 3] = _setting(
        3, "Data", "Channels of images with `dataset=none`: 1 is grey, 3 is RGB."
    )
    vector_length: int = _setting(
        0,
        "Data",
        "Numbers of each vector with `dataset=none`; 0: the sites have images.",
        ge=0,
        le=LONGEST_VECTOR,
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
    held_out: int = _setting(
        0,
        "Data",
        "Test samples that the server holds out, of each class its share, for a strategy that "
        "measures what labels bring; no reported figure is of them.",
        ge=0,
        le=10**6,
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
    backbone: str = _setting(
        "none",
        "Training",
        "Network whose features the model takes: `none` (the model is trained on images), "
        "`timm/<name>`, `torchvision/<name>` or another package's.",
        min_length=1,
    )
    backbone_weights: str = _setting(
        "pretrained",
        "Training",
        "Weights of the backbone: `pretrained` (downloaded), a file (safetensors, or a state "
        "dictionary of torch), or `none`.",
        min_length=1,
    )
    backbone_size: int = _setting(
        0,
        "Training",
        "Height and width of the images that the backbone sees; 0: what it was trained on.",
        ge=0,
        le=4096,
    )
    backbone_crop: bool = _setting(
        False,
        "Training",
        "The backbone sees the middle of an image, as in its training; false: all of it.",
    )
    tune: str = _setting(
        "head",
        "Training",
        "What is trained with a backbone: `head` (features are computed once), `all`, or parts by "
        "prefix with the head, such as `layer4,head`.",
        pattern=r"^[^,]+(,[^,]+)*$",
    )
    feature_views: int = _setting(
        0,
        "Training",
        "With a frozen backbone: augmented views of each training image whose features are "
        "computed, too; training draws one of them, or the image's own, each time.",
        ge=0,
        le=8,
    )
    initial_model: str = _setting(
        "",
        "Training",
        "File or run's folder with the model that cycles start from; empty: a fresh one.",
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
        "auto",
        "Training",
        "Augmentation; `auto`: what a known data set's literature uses; photographs of your own "
        "are moved a little, and mirrored if they are in colour.",
    )
    local_update: str = _setting(
        "plain",
        "Training",
        "Loss of local training: cross-entropy (or the strategy's own), or KAFAL's KCFU.",
    )
    precision: Literal["auto", "fp32", "bf16"] = _setting(
        "auto",
        "Training",
        "Arithmetic of training; `auto`: bf16 where the hardware has it. A backbone computes "
        "features in bf16 with `bf16` alone.",
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
    aggregation: str = _setting(
        "fedavg",
        "Federation",
        "How models are aggregated: a mean, a server optimiser's step, or a robust choice.",
    )
    client_fraction: float = _setting(
        1.0,
        "Federation",
        "Share of clients trained in a round, drawn among those with labels (all clients in a "
        "cycle's last round).",
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
    max_client_samples: int = _setting(
        10_000_000,
        "Federation",
        "Most samples that a client may say it has; one that says more is left out by name.",
        ge=1,
        le=10**12,
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
    evaluate_last: int = _setting(
        0,
        "Federation",
        "Test the global model after each of a cycle's last so many rounds, or of all where there "
        "are fewer; 0: at the end of a cycle.",
        ge=0,
    )
    keep: Literal["last", "best"] = _setting(
        "last",
        "Federation",
        "The model that a run leaves: that of its last cycle, or of all that were tested the one "
        "whose `metric` was best; of equals the earliest.",
    )
    metric: str = _setting(
        "accuracy",
        "Federation",
        "What models are compared by, `accuracy` or a metric by name: by `keep=best`, and in the "
        "report of a sweep.",
        min_length=1,
    )
    evaluate: Literal["server", "sites", "both"] = _setting(
        "server",
        "Federation",
        "Where the global model is tested: on the server's test set, on labelled samples that the "
        "clients hold out (of which the server learns sums alone), or both.",
    )
    validation_fraction: float = _setting(
        0.2,
        "Federation",
        "Share of its labels of each class that a client holds out for testing, and never trains "
        "on; with `evaluate=sites|both`.",
        gt=0,
        lt=1,
    )
    validation_from: Literal["all", "initial"] = _setting(
        "all",
        "Federation",
        "Which labels a client holds out from: `all` that it has, or those of the first request "
        "alone, which are drawn at random (`initial-strategy=random`) where later ones are chosen.",
    )
    client_state: Literal["disk", "memory"] = _setting(
        "disk",
        "Federation",
        "Where a client keeps labels and momentum: on disk (can be resumed) or in Flower's state.",
    )

    # --- Active learning ----------------------------------------------------------
    strategy: str = _setting("ahfal", "Active learning", "Query strategy by name.")
    initial_strategy: str = _setting(
        "random",
        "Active learning",
        "What chooses the first labels, before there is a model: `random`, or by vectors or a "
        "frozen backbone's features a strategy that needs no labels, such as `typicality`.",
    )
    tau: float = _setting(
        12.0,
        "Active learning",
        "Classes whose proportion deviates less over clients (percentage points) are low-variance.",
        ge=0,
    )
    tau_rule: Literal["fixed", "otsu"] = _setting(
        "fixed",
        "Active learning",
        "Whether `tau` is the threshold, or Otsu's of the classes' deviations in each cycle (ours, "
        "not the paper's); then `tau` counts only where all classes deviate the same.",
    )
    dispersion: Literal["deviation", "coefficient-of-variation"] = _setting(
        "deviation",
        "Active learning",
        "What is compared with tau: the deviation, or that in percent of the class's mean.",
    )
    forget: float = _setting(
        0.0,
        "Active learning",
        "Cycles after which a label counts half as much in the class statistics; 0: all count the "
        "same for ever.",
        ge=0,
        le=1e6,
    )
    forget_budgets: bool = _setting(
        False,
        "Active learning",
        "With `forget`, a client's own class budgets go by the weighted counts, too.",
    )
    dispersion_correction: bool = _setting(
        False,
        "Active learning",
        "Take from the deviation over clients what sampling alone would give it.",
    )
    audit_share: float = _setting(
        0.0,
        "Active learning",
        "Share of each client's labels that are drawn at random from what may be asked for, before "
        "the strategy chooses the rest; 0: none.",
        ge=0,
        lt=1,
    )
    drift_test: Literal["none", "chi-square", "permutation", "predicted"] = _setting(
        "none",
        "Active learning",
        "How each client's class mix is compared in two windows of cycles: by tests of the labels "
        "of its audit, or `predicted`, an indicator, by the classes that a model predicts of all "
        "that arrived.",
    )
    drift_window: int = _setting(
        3, "Active learning", "Cycles in each of the two windows that are compared.", ge=1, le=10**6
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
        "Share of each client's samples labelled at the start.",
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
    initial_labels: int = _setting(
        0,
        "Active learning",
        "Labels bought at the start, as a number; 0: `initial-fraction`.",
        ge=0,
        le=10**9,
    )
    query_labels: int = _setting(
        0,
        "Active learning",
        "Labels bought in each cycle, as a number; 0: `query-fraction`.",
        ge=0,
        le=10**9,
    )
    target_labels: int = _setting(
        0,
        "Active learning",
        "Labels at the end, as a number; 0: `target-fraction`. The three numbers are given "
        "together, and stand before the three fractions.",
        ge=0,
        le=10**9,
    )
    label_steps: str = _setting(
        "",
        "Active learning",
        "Labels at each training, as growing numbers with commas between, such as "
        "`10,50,100,500`, in place of the three numbers.",
        pattern=r"^( *\d{1,9} *(, *\d{1,9} *)*)?$",
    )
    budget: Literal["client", "global"] = _setting(
        "client",
        "Active learning",
        "Whose labels fractions and numbers mean: `client`: each client's; `global`: all clients' "
        "together, split as `budget-split` says.",
    )
    budget_split: Literal["share", "equal", "missing", "threshold"] = _setting(
        "share",
        "Active learning",
        "How `budget=global` is split over the clients, by largest remainder: `share`: in "
        "proportion to their samples; `equal`: each cycle's labels alike; `missing`: to who seems "
        "to have the classes that all together lack; `threshold`: to who has the highest scores of "
        "all. First labels are split by `share` with the last two.",
    )
    budget_floor: int = _setting(
        0,
        "Active learning",
        "Fewest labels of a client in a cycle, where it has so many samples; with "
        "`budget-split=missing|threshold`.",
        ge=0,
        le=10**9,
    )
    budget_cap: int = _setting(
        0,
        "Active learning",
        "Most labels of a client in a cycle, with `budget-split=missing|threshold`; 0: four equal "
        "shares.",
        ge=0,
        le=10**9,
    )
    cycles: int = _setting(
        0, "Active learning", "Most cycles to run; 0: as many as the target needs.", ge=0
    )
    stopping: str = _setting(
        "none",
        "Active learning",
        "Rule that ends a run before its target, where more labels are not worth it; several with "
        "commas between.",
        pattern=r"^[^,]+(,[^,]+)*$",
    )
    stopping_mode: Literal["all", "any"] = _setting(
        "all",
        "Active learning",
        "With several rules: whether all have to hold after the same cycle, or any of them.",
    )
    stop_set: Literal["auto", "always"] = _setting(
        "auto",
        "Active learning",
        "When clients tell how their predictions of the stop set change: `auto`: where a rule goes "
        "by it; `always`: also to record it.",
    )
    stop_set_size: int = _setting(
        2000,
        "Active learning",
        "Samples of the stop set, of all clients together; drawn once, labelled or not.",
        ge=1,
        le=10**7,
    )
    label_cost: float = _setting(
        0.0, "Active learning", "What a label costs; 0: nobody counts it.", ge=0, le=1e9
    )
    round_cost: float = _setting(
        0.0, "Active learning", "What a federated round costs; 0: nobody counts it.", ge=0, le=1e9
    )
    currency: str = _setting("EUR", "Active learning", "Of the costs.", pattern=r"^[^\s<>]{1,8}$")
    oracle: str = _setting("simulated", "Active learning", "Who answers with labels.")
    readers: int = _setting(
        1,
        "Active learning",
        "People that read each image; none of them sees what the others say.",
        ge=1,
        le=99,
    )
    readers_rule: Literal["majority", "adjudicator"] = _setting(
        "majority",
        "Active learning",
        "What decides between several readers: `majority`: the class that more than half of them "
        "name; `adjudicator`: only what all of them say. Somebody else settles the rest.",
    )
    label_deadline: float = _setting(
        604800.0,
        "Active learning",
        "Seconds that a cycle waits for labels before it goes on with those it has.",
        ge=0,
    )

    # --- Arrivals -----------------------------------------------------------------
    arrivals: Literal["all", "share", "count"] = _setting(
        "all",
        "Arrivals",
        "How many of a client's samples there are in simulation: `all` from the start, or a "
        "`share` or `count` of them at the start and more before each later cycle.",
    )
    arrival_start: float = _setting(
        0.0,
        "Arrivals",
        "Share or number of each client's samples that is there before the first cycle.",
        ge=0,
        le=1e9,
    )
    arrival_rate: float = _setting(
        0.0,
        "Arrivals",
        "Share or number of each client's samples that arrives before each later cycle.",
        ge=0,
        le=1e9,
    )
    arrival_order: str = _setting("random", "Arrivals", "In which order samples arrive, by name.")
    arrival_exhausted: Literal["refuse", "less", "recycle"] = _setting(
        "refuse",
        "Arrivals",
        "Where a client has too few samples for all cycles: `refuse` the run; `less`: nothing more "
        "arrives; `recycle`: what nobody was asked for comes again, in a new order.",
    )
    arrival_replacement: bool = _setting(
        False,
        "Arrivals",
        "A cycle's arrivals are drawn with replacement, so that there may be fewer different ones.",
    )
    pool_memory: int = _setting(
        0,
        "Arrivals",
        "Cycles for which a sample may be asked for once it has arrived; 0: for ever, 1: single "
        "access.",
        ge=0,
        le=10**6,
    )
    covariate_drift: Look = _setting(
        "none",
        "Arrivals",
        "How images change, each as it arrives: the later, the more.",
    )
    severity: float = _setting(
        5.0, "Arrivals", "How far images change with `covariate-drift`, at most.", gt=0, le=5
    )
    severity_path: Literal["linear", "sudden", "recurring"] = _setting(
        "linear",
        "Arrivals",
        "How images change over the cycles: steadily, all at once in the middle, or to and fro.",
    )
    severity_period: int = _setting(
        4, "Arrivals", "Cycles until images look again as they did, with `recurring`.", ge=2
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
        alias="privacy.epsilon",
    )
    adjacency: Literal["replace", "add-remove"] = _setting(
        "replace",
        "Privacy",
        "What ε protects: one label replaced by another (sensitivity 2; the number of labels is "
        "public), or one label more or less (sensitivity 1).",
        alias="privacy.adjacency",
    )
    releases: Literal["cumulative", "increments"] = _setting(
        "cumulative",
        "Privacy",
        "What a release holds: all labels so far, so that each costs its part of ε, or those that "
        "are new, so that each may cost all of it.",
        alias="privacy.releases",
    )
    secure_aggregation_threshold: float = _setting(
        0.65,
        "Privacy",
        "Share of the run's clients that must stay until a secure sum is unmasked.",
        gt=0.5,
        le=1,
        alias="privacy.threshold",
    )

    # --- Parameters of components, by their full key ---------------------------------
    parameters: dict[str, Scalar] = Field(default_factory=dict, exclude=True)


def setting_fields() -> dict[str, FieldInfo]:
    """Return the declared settings by their kebab-case keys, in order."""
    return {
        field.alias or name: field
        for name, field in SettingFields.model_fields.items()
        if name != "parameters"
    }
