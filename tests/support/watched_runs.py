"""Runs' folders as servers leave them while they wait for labels."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from support.fake_run import make_fake_run

from ahfal_app.results.records import Failure
from ahfal_app.results.status import Phase, RunStatus, SiteStatus, State, write_status

#: What a site would have to be called to do harm.
HOSTILE_NAME = '<img src=x onerror="document.title=1"><b>Hill</b>'


def waiting_run(parent: Path, name: str = "spring") -> Path:
    """Make a run of three sites, the second of which is called as no site should be."""
    folder = make_fake_run(
        parent,
        name=name,
        num_clients=3,
        rounds=2,
        cycles_done=2,
        simulated=False,
        failures=[Failure(client=2, site="St Anne", reason="<script>document.title=2</script>")],
    )
    tell_status(folder)
    return folder


def tell_status(folder: Path, given: int = 20, **more: object) -> None:
    """Write that the server waits for the second site's labels."""
    now = dt.datetime.now(dt.UTC)
    earlier = now - dt.timedelta(hours=31)
    sites = (
        SiteStatus(client=0, name="North", wanted=24, given=24, last_seen=now, version="0.1.0"),
        SiteStatus(
            client=1,
            name=HOSTILE_NAME,
            last_seen=now - dt.timedelta(hours=5),
            wanted=24,
            given=given,
            missing=24 - given,
            missing_since=earlier if given < 24 else None,
            longest=min(3, 24 - given),
            longest_since=earlier if given < 24 else None,
            failing="</td><script>document.title=3</script>",
            failing_since=now - dt.timedelta(hours=4),
            version="0.1.0",
        ),
        SiteStatus(client=2, name="St Anne", wanted=24, given=24, last_seen=now, version="0.1.0"),
    )
    values: dict[str, object] = {
        "run": "0" * 16,
        "state": State.RUNNING,
        "phase": Phase.LABELLING,
        "phase_since": earlier,
        "cycle": 1,
        "round": 2,
        "started": now - dt.timedelta(days=9),
        "written": now,
        "waiting_for": 2,
        "waiting_since": earlier,
        "sites": sites,
    }
    write_status(folder, RunStatus.model_validate(values | more))
