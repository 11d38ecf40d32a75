"""Who labels: oracles by name, one file each.

An oracle is told of a request and asked for its answers; both may be repeated, and
answers may come in part, in any order, again, after milliseconds or after days.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ahfal_app.errors import ConfigError, OracleError
from ahfal_app.labels.readings import Readers
from ahfal_app.labels.records import LabelReceipt, LabelRequest
from ahfal_app.parameters import Scalar, parameter_problems
from ahfal_app.plugins import ORACLES


@dataclass(frozen=True)
class EncodedImage:
    """An image as a file: what people who label get to see.

    Attributes
    ----------
    name : str
        What the site calls it: the path inside its folder, or a name made of the sample's id.
    content : bytes
        A PNG or JPEG file, or whatever the site has.
    link : str
        An http or https address where people see more of the case; empty where there is none.
    """

    name: str
    content: bytes
    link: str = ""


@dataclass(frozen=True)
class Site:
    """What an oracle may know of the client that it labels for.

    Attributes
    ----------
    client : int
        The client's place in the partition.
    class_names : tuple[str, ...]
        Names of the classes, by class index.
    truth : Mapping[int, int]
        Class index by sample id, as far as the data set has labels; only the simulated
        oracle reads it.
    image : Callable[[int], EncodedImage]
        A sample's image, by sample id.
    folder : Path | None
        Where the oracle may keep files of its own; None where nothing is written to disk.
    options : Mapping[str, str]
        What the site has set for its oracle, by kebab-case key.
    readers : Readers
        How many people read each image, and what decides; each request says so, too.
    """

    client: int
    class_names: tuple[str, ...]
    truth: Mapping[int, int]
    image: Callable[[int], EncodedImage]
    folder: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    readers: Readers = field(default_factory=Readers)


class Oracle(Protocol):
    """Labels samples on request; classes that are derived from it need `submit` and `collect`."""

    def submit(self, request: LabelRequest) -> None:
        """Take a request; a repeated one changes nothing."""
        ...

    def collect(self, request_id: str) -> list[LabelReceipt]:
        """Return the answers that are there: any part, in any order, repeats allowed."""
        ...

    def withdraw(self, samples: Collection[int]) -> None:
        """Ask nobody for these samples any more, and delete all copies of their images.

        The site no longer has them. It may be told again, and of samples that it never had; what
        was answered before is still collected.

        Raises
        ------
        OracleError
            That cannot be done now; it is told again.
        """
        return

    def check(self) -> str:
        """See whether a request could be taken now, and change nothing; `ahfal doctor` asks.

        Returns
        -------
        str
            What had better be changed all the same; empty where nothing is.

        Raises
        ------
        OracleError
            A request could not be taken.
        """
        return ""


def check_folder(folder: Path) -> None:
    """See whether an oracle can write to its folder; it is made, as a request would make it.

    Raises
    ------
    OracleError
        It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OracleError(f"{folder} cannot be written: {error}; check owner and mounts") from error


def oracle_names() -> tuple[str, ...]:
    """Return the names of all oracles, without importing them."""
    return ORACLES.names()


def make_oracle(name: str, site: Site, parameters: Mapping[str, Scalar] | None = None) -> Oracle:
    """Return an oracle by name.

    Parameters
    ----------
    name : str
        One of `oracle_names()`.
    site : Site
        Whom it labels for.
    parameters : Mapping[str, Scalar], optional
        The run's settings `oracle.<parameter>`, without the prefix. What a site must decide for
        itself, such as folders and addresses, is in `site.options`.

    Raises
    ------
    ConfigError
        No oracle has this name, or a parameter is not allowed.
    """
    if problem := ORACLES.problem(name):
        raise ConfigError([problem])
    model, values = ORACLES.parameters(name), dict(parameters or {})
    if problems := parameter_problems(ORACLES.setting, name, model, values):
        raise ConfigError(problems)
    make = ORACLES.component(name)
    oracle: Oracle = make(site, model.model_validate(values)) if model.model_fields else make(site)
    return oracle
