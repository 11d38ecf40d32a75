"""What a site says in --node-config: its place, its data, its oracle, its machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ahfal_app.config import SITES, Settings, expanded, parse_settings
from ahfal_app.data.site.loading import SiteFolders
from ahfal_app.data.site.validation import check_place
from ahfal_app.errors import ConfigError

#: Settings of the run that a site may set for itself.
_OWN = (
    "dataset",
    "data-dir",
    "image-column",
    "vector-column",
    "shown-column",
    "backbone-weights",
    "device",
    "oracle",
)
_READERS = ("readers", "readers-rule")

# Whether models stay at the site, where it does not say.
_KEPT = {"keep-model": True, "keep-personal": False}

_ORACLE_PREFIX = "oracle-"
_ORACLE_FOLDER = "oracle-dir"

NodeConfig = Mapping[str, object]

#: Keys that AHFAL reads, besides those that start with one of `KNOWN_PREFIXES`.
KNOWN_KEYS = (
    "partition-id",
    "num-partitions",
    "data",
    "state-dir",
    "truth",
    "validation",
    *_OWN,
    *_READERS,
    *_KEPT,
)
KNOWN_PREFIXES = (_ORACLE_PREFIX, "policy-")


def partition_of(settings: Settings, node_config: NodeConfig) -> tuple[int, int]:
    """Return which client a node serves, from 0, and how many there are.

    Raises
    ------
    ConfigError
        `partition-id` is missing, or the number of clients is known from nowhere.
    """
    partition = _count(node_config, "partition-id")
    if partition is None:
        raise ConfigError(
            ["partition-id: missing in --node-config; allowed is the site's number, from 0"]
        )
    partitions = _count(node_config, "num-partitions") or settings.num_clients
    if not partitions:
        raise ConfigError(
            [
                "num-partitions: missing in --node-config; allowed is the number of sites, or that "
                "the run says num-clients"
            ]
        )
    return partition, partitions


def is_site(node_config: NodeConfig) -> bool:
    """Return whether a node has folders of its own, and so shares none with the server."""
    return any(node_config.get(key) for key in ("data", "state-dir"))


def state_folder(node_config: NodeConfig) -> Path:
    """Return the folder in which a site keeps its labels.

    Raises
    ------
    ConfigError
        The site does not name it.
    """
    folder = node_config.get("state-dir")
    if not folder:
        raise ConfigError(["state-dir: missing in --node-config; a site must name a folder for it"])
    return path_of(folder)


def at_site(settings: Settings, node_config: NodeConfig) -> Settings:
    """Return the run's settings with those that a site sets for itself.

    A site's decoded images lie where the site says, or in its user's home: never where a server
    says. How many people can read an image is known there, too.

    Raises
    ------
    ConfigError
        The site sets what is not allowed.
    """
    own: dict[str, object] = {
        key.replace("-", "_"): str(node_config[key]) for key in _OWN if key in node_config
    }
    own |= _readers(node_config)
    if is_site(node_config):
        own.setdefault("data_dir", "")
    if own.get("oracle", settings.oracle) == settings.oracle:
        return settings.model_copy(update=own) if own else settings
    # The run's parameters are of the run's oracle, and mean nothing to another one.
    kept = {k: v for k, v in settings.parameters.items() if not k.startswith("oracle.")}
    return settings.model_copy(update=own | {"parameters": kept})


def _readers(node_config: NodeConfig) -> dict[str, object]:
    """Return what a site says of its readers, as settings."""
    flat = {key: node_config[key] for key in _READERS if key in node_config}
    if not flat:
        return {}
    settings = parse_settings(flat)
    return {(name := key.replace("-", "_")): getattr(settings, name) for key in flat}


def models_kept(node_config: NodeConfig) -> tuple[bool, bool]:
    """Return whether a site keeps a run's model, and whether its own beside it.

    Raises
    ------
    ConfigError
        They are no yes or no, or the one is to be kept without the other.
    """
    model, personal = (node_config.get(key, default) for key, default in _KEPT.items())
    problems = [
        f"{key}={value!r}: allowed in --node-config is true or false"
        for key, value in zip(_KEPT, (model, personal), strict=True)
        if not isinstance(value, bool)
    ]
    if not problems and personal and not model:
        problems = ["keep-personal=True: allowed with keep-model=True, which it stands beside"]
    if problems:
        raise ConfigError(problems)
    return bool(model), bool(personal)


def oracle_options(node_config: NodeConfig) -> dict[str, str]:
    """Return what a site has set for its oracle: all keys that start with `oracle-`."""
    return {key: str(value) for key, value in node_config.items() if key.startswith(_ORACLE_PREFIX)}


def oracle_folder(options: Mapping[str, str]) -> Path | None:
    """Return where a site's oracle is to keep its files, or None where the site does not say."""
    folder = options.get(_ORACLE_FOLDER)
    return path_of(folder) if folder else None


def site_folders(settings: Settings, node_config: NodeConfig) -> SiteFolders | None:
    """Return where a client with data of its own keeps it, or None where all share a data set.

    Parameters
    ----------
    settings : Settings
        The run's settings, with those of the site.
    node_config : NodeConfig
        Read are `data`, `state-dir`, `truth` and `validation`.

    Raises
    ------
    ConfigError
        Run and site do not agree on whose data is used, or something is missing.
    """
    keys = ("data", "state-dir", "truth", "validation")
    data, state, truth, validation = (node_config.get(key) for key in keys)
    if not settings.has_sites:
        if data is None and validation is None:
            return None
        raise ConfigError(
            [
                f"partition={settings.partition!r}: allowed is {SITES!r} with nodes that have data "
                "of their own (data in --node-config)"
            ]
        )
    problems = [
        f"{key}: missing in --node-config; with partition={SITES!r} each site must name {what}"
        for key, value, what in (
            ("data", data, "the folder with its images or vectors"),
            ("state-dir", state, "a folder for its labels"),
        )
        if not value
    ]
    if settings.oracle == "simulated" and not truth:
        problems.append(
            f"oracle='simulated': allowed with partition={SITES!r} only for a rehearsal, with "
            "truth in --node-config: a file of all labels"
        )
    if problems:
        raise ConfigError(problems)
    folders = SiteFolders(
        path_of(data),
        path_of(state),
        path_of(truth) if truth else None,
        path_of(validation) if validation else None,
    )
    if folders.validation is not None:
        check_place(folders.validation, folders.data)
    return folders


def path_of(value: object) -> Path:
    """Return the folder that a site names; `~` is its home, since no shell sees it.

    Raises
    ------
    ConfigError
        It starts with `~`, and there is no such home.
    """
    return expanded("--node-config", str(value)).absolute()


def _count(node_config: NodeConfig, key: str) -> int | None:
    value = node_config.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError([f"{key}={value!r}: allowed in --node-config is an integer ≥ 0"])
    return value
