"""`status.json` in a run's folder: what its server is doing now, and what it knows of its sites.

The server replaces the whole file at most about once a second; who reads it sees one state or the
next. There are numbers, times and names of sites in it, and nothing of a single image.
"""

from __future__ import annotations

import datetime as dt
import enum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ahfal_app.errors import ReportError
from ahfal_app.storage.files import replace_bytes

STATUS = "status.json"

#: The server writes at least so often, whatever it is doing.
HEARTBEAT_S = 10.0

#: Of a server that has not written for so long nobody knows whether it is still there.
SILENT_AFTER_S = 60.0

_FORMAT = 1

Count = Annotated[int, Field(ge=0)]


class State(enum.StrEnum):
    """What has become of a run, as its server has written it."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Phase(enum.StrEnum):
    """What the server is doing."""

    JOINING = "waiting for sites"
    TRAINING = "training"
    TESTING = "testing the model"
    CHOOSING = "choosing images"
    LABELLING = "waiting for labels"
    SENDING = "sending the model to the sites"
    ENDED = "ended"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SiteStatus(_Part):
    """A site as its server knows it.

    Attributes
    ----------
    client : int | None
        Its partition; None while it is connected and has not joined.
    name : str
        The name that it was registered under; empty where it has none.
    last_seen : datetime | None
        When it last answered, or was last connected.
    wanted, given, missing : int
        Labels that it was asked for in all, and what of them is there and is not.
    missing_since : datetime | None
        When it was first known that labels are missing that still are.
    longest : int
        Images that wait longest.
    longest_since : datetime | None
        Since when they do.
    failing : str
        Why its last answer could not be used; empty where it could.
    failing_since : datetime | None
        Since when.
    version, device : str
        Of its package, and what it trains on; empty before it has joined.
    """

    client: int | None
    name: str = ""
    last_seen: dt.datetime | None = None
    wanted: Count = 0
    given: Count = 0
    missing: Count = 0
    missing_since: dt.datetime | None = None
    longest: Count = 0
    longest_since: dt.datetime | None = None
    failing: str = ""
    failing_since: dt.datetime | None = None
    version: str = ""
    device: str = ""


class RunStatus(_Part):
    """What a run's server is doing.

    Attributes
    ----------
    run : str
        The run's identity.
    state, reason : State, str
        What has become of it, and why where it failed.
    phase, phase_since : Phase, datetime
        What is being done, and since when.
    cycle, round : int
        From 0 and from 1; round 0 outside of training.
    started, written : datetime
        When it was first started, and when this was written.
    resumed : int
        How often it was started again.
    waiting_for, waiting_since : int | None, datetime | None
        The cycle whose labels are waited for, and since when.
    version : str
        Of the server's package.
    sites : tuple[SiteStatus, ...]
        All sites, by client.
    """

    format: Literal[1] = 1
    run: str
    state: State
    reason: str = ""
    phase: Phase
    phase_since: dt.datetime
    cycle: Count
    round: Count = 0
    started: dt.datetime
    written: dt.datetime
    resumed: Count = 0
    waiting_for: int | None = None
    waiting_since: dt.datetime | None = None
    version: str = ""
    sites: tuple[SiteStatus, ...] = ()

    def is_silent(self, now: dt.datetime) -> bool:
        """Tell whether the server should have written since, and has not."""
        silent_for = (now - self.written).total_seconds()
        return self.state is State.RUNNING and silent_for > SILENT_AFTER_S


def write_status(folder: Path, status: RunStatus) -> None:
    """Replace a run's status.

    It is not synced to the disk: after a power cut there may be none. Then a resumed run counts
    from its new start on how long it has waited, and nothing else is lost.

    Raises
    ------
    OSError
        It cannot be written; the one before is still there.
    """
    replace_bytes(folder / STATUS, status.model_dump_json(indent=1).encode())


def read_status(folder: Path) -> RunStatus | None:
    """Return a run's status; None where its server has written none.

    Raises
    ------
    ReportError
        The file cannot be read, or is none that this version knows.
    """
    path = folder / STATUS
    try:
        return RunStatus.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReportError(
            f"{path}: not a status of format {_FORMAT}: {where and where + ': '}{first['msg']}"
        ) from error
