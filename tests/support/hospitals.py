"""A run at sites where people label, on real processes; what they answer is counted apart.

The sites' images are handwritten digits. A labeller answers each request at once with the true
labels, and keeps a journal of its own: by it, and by the request folders, a test tells what was
paid for, whatever the label stores say.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.deployment import Deployment, deployment, processes_of
from support.hosts import Clock, Network
from support.site_images import write_images, write_labels

from ahfal_app.deployment.certificates import write_certificates
from ahfal_app.labels.exchange import verify_store
from ahfal_app.labels.spreadsheet import write_csv
from ahfal_app.labels.store import Entry, LabelStore

DIGITS = tuple("0123456789")
SITES = ("site-0", "site-1", "site-2")

#: Where sites find a server that is a host of its own.
SERVER_ADDRESS = "10.77.0.1"

#: Two cycles of two rounds.
SETTINGS: dict[str, object] = {
    "partition": "sites",
    "rounds": 2,
    "local-epochs": 1,
    "initial-fraction": 0.1,
    "query-fraction": 0.05,
    "target-fraction": 0.15,
    "quorum": 0.5,
    "start-timeout": 240.0,
    "round-timeout": 120.0,
    "label-deadline": 600.0,
}
_END_TIMEOUT_S = 900.0
_ROWS = {"site-0": range(0, 200), "site-1": range(200, 320), "site-2": range(320, 440)}


def _nothing(site: str, request: Path) -> None:
    """Do nothing after an answer."""


@dataclass
class Labeller:
    """Answers all requests of all sites, in a thread.

    Attributes
    ----------
    folders : dict[str, Path]
        The oracle's folder, by site.
    truth : dict[str, str]
        The true class, by file.
    answers : dict[str, list[tuple[str, str]]]
        File and class of each answer that was given, by site: what was paid for.
    answered : Callable[[str, Path], None]
        Called with the site and the request's folder right after an answer was given.
    pause : threading.Lock
        Nobody labels while it is held.
    """

    folders: dict[str, Path]
    truth: dict[str, str]
    answers: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    answered: Callable[[str, Path], None] = field(default=_nothing)
    pause: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _work(self) -> None:
        while not self._stop.wait(0.05):
            with self.pause:
                for site, folder in self.folders.items():
                    for request in sorted(folder.glob("cycle-*")):
                        if not (request / "labels.csv").exists():
                            self._answer(site, request)

    def _answer(self, site: str, request: Path) -> None:
        lines = [(row["original"], self.truth[row["original"]]) for row in requested(request)]
        try:
            write_csv(request / "labels.csv", ("file", "label"), lines)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return  # As people would: the program says so, and they save again later.
        self.answers.setdefault(site, []).extend(lines)
        self.answered(site, request)


def requested(request: Path) -> list[dict[str, str]]:
    """Return the lines of a request."""
    with (request / "request.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Account:
    """What became of the answers of all sites.

    Attributes
    ----------
    answered : int
        Answers that were given.
    lost : int
        Of these, those that no store has, and that none waits for.
    waiting : int
        Of these, those that lie in a request's folder, which the store still waits for: the next
        look takes them in.
    bought_twice : int
        Images that were asked for again.
    """

    answered: int
    lost: int
    waiting: int
    bought_twice: int


@dataclass
class Trial:
    """A server and its sites, and one run after the other.

    Attributes
    ----------
    stack : contextlib.ExitStack
        Left when no process is there any more.
    network : Network | None
        Set where server and sites are hosts of their own.
    clock : Clock | None
        Set where a site has a clock of its own.
    reveals : str
        What the sites' policy lets strategies tell; empty: nothing.
    said : dict[str, object]
        The last run's settings besides those that all runs have.
    """

    folder: Path
    deployment: Deployment
    labeller: Labeller
    data_dir: Path
    sites: tuple[str, ...]
    stack: contextlib.ExitStack
    network: Network | None = None
    clock: Clock | None = None
    reveals: str = ""
    run_id: str = ""
    said: dict[str, object] = field(default_factory=dict)

    def state(self, site: str) -> Path:
        """Return where a site keeps labels."""
        return self.folder / "sites" / site / "state"

    def node_config(self, site: str) -> str:
        """Return what a site says of itself."""
        root = self.folder / "sites" / site
        values: dict[str, object] = {
            "data": root / "images",
            "state-dir": self.state(site),
            "oracle-dir": self.labeller.folders[site],
            "data-dir": self.data_dir,
        }
        if self.reveals:
            values["policy-reveals"] = self.reveals
        own = " ".join(f'{key}="{value}"' for key, value in values.items())
        place = f"partition-id={self.sites.index(site)} num-partitions={len(self.sites)}"
        return f'{place} oracle="files" {own}'

    def start(self) -> None:
        """Start the server and the sites, whose keys are registered."""
        self.deployment.start_server()
        for site in self.sites:
            key = self.deployment.certificates / "server" / "sites" / f"{site}.pub"
            printed = self.deployment.flwr("supernode", "register", str(key), "deployment")
            assert "registered" in printed, printed
            self.deployment.start_site(site, self.node_config(site))
        self.deployment.supervise()

    def forget(self) -> None:
        """Remove what earlier runs have left, as if there had been none."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        for site in self.sites:
            shutil.rmtree(self.state(site), ignore_errors=True)
            with self.labeller.pause:
                shutil.rmtree(self.labeller.folders[site], ignore_errors=True)
                self.labeller.answers.pop(site, None)
        self.labeller.answered = _nothing

    def run(self, **settings: object) -> None:
        """Start a run."""
        self.said = settings
        values = {
            **SETTINGS,
            "num-clients": len(self.sites),
            "output-dir": str(self.folder / "runs"),
            "data-dir": str(self.data_dir),
            **settings,
        }
        config = self.folder / "run.toml"
        config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))
        printed = self.deployment.flwr(
            "run", ".", "deployment", "--run-config", str(config), "--format", "json"
        )
        self.run_id = str(json.loads(printed[printed.index("{") :])["run-id"])

    def status(self) -> str:
        """Return the run's status, as Flower says."""
        return self.deployment.status(self.run_id)

    def end(self, *, must_complete: bool = True) -> str:
        """Return how the run ended, as Flower says."""
        status = ""
        deadline = time.monotonic() + _END_TIMEOUT_S
        while not status.startswith("finished") and time.monotonic() < deadline:
            status = self.deployment.wait_for_end(self.run_id, _END_TIMEOUT_S)
        if must_complete:
            assert status == "finished:completed", f"{status}\n{self.deployment.logs()}"
            assert json.loads((self.run_folder / "summary.json").read_text())["complete"]
        return status

    @property
    def run_folder(self) -> Path:
        """The folder of the only run."""
        (found,) = (self.folder / "runs").iterdir()
        return found

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Return what the run has written of rounds, or of cycles."""
        lines = [
            json.loads(line)
            for path in (self.folder / "runs").glob("*/metrics.jsonl")
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        return [line for line in lines if line["kind"] == kind]

    def reasons(self) -> list[str]:
        """Return why sites have failed, each as often as the run has written it."""
        records = [*self.records("round"), *self.records("cycle")]
        return [str(failure["reason"]) for record in records for failure in record["failed"]]

    def at_work(self, site: str) -> bool:
        """Return whether a message is being dealt with at a site."""
        marker = str(self.folder)
        commands = processes_of(marker, f"{site}-superexec").values()
        # One is what ClientApps are forked from, and bear its name.
        return sum("deployment.fork_server" in command for command in commands) > 1

    def account(self) -> Account:
        """Count what was answered against what the stores have; they must be sound, too."""
        answered, lost, waiting, twice = 0, 0, 0, 0
        for site in self.sites:
            answers = self.labeller.answers.get(site, [])
            folders = sorted(self.labeller.folders[site].glob("cycle-*"))
            asked = Counter(row["original"] for folder in folders for row in requested(folder))
            twice += sum((asked - Counter(set(asked))).values())
            twice += sum(count - 1 for count in Counter(file for file, _ in answers).values())
            answered += len(answers)
            missing = set(answers) - set(self.labels(site).items())
            awaited = {file for file, _ in missing} & self._awaited(site)
            waiting += len(awaited)
            lost += len(missing) - len(awaited)
        return Account(answered, lost, waiting, twice)

    def labels(self, site: str) -> dict[str, str]:
        """Return the classes that a site's store has, by file; its ledger must be exact."""
        entries = self._entries(site)
        return {str(e.file): DIGITS[e.label] for e in entries if e.label is not None}

    def _awaited(self, site: str) -> set[str]:
        """Return the files that the store waits for and whose answers are still on the disk."""
        answered = {
            row["original"]
            for folder in self.labeller.folders[site].glob("cycle-*")
            if (folder / "labels.csv").exists()
            for row in requested(folder)
        }
        return answered & {str(e.file) for e in self._entries(site) if e.state == "reserved"}

    def _entries(self, site: str) -> tuple[Entry, ...]:
        if not list(self.state(site).rglob("labels.sqlite")):
            return ()
        found = verify_store(self.state(site))
        ledger = found.ledger
        assert ledger.allotted == ledger.spent + ledger.reserved + ledger.free
        assert ledger.spent == found.states.get("labelled", 0)
        assert ledger.reserved == found.states.get("reserved", 0)
        assert not found.conflicts
        store = LabelStore.open_existing(found.path)
        try:
            return store.entries()
        finally:
            store.close()


@contextlib.contextmanager
def trial(folder: Path, data_dir: Path, num_sites: int = 2) -> Iterator[Trial]:
    """Make sites and their certificates; no process is left when the block ends.

    `AHFAL_TEST` in this process's environment must be `folder`.
    """
    sites = SITES[:num_sites]
    truth: dict[str, str] = {}
    for site in sites:
        root = folder / "sites" / site
        own = write_images(root / "images", _ROWS[site], DIGITS)
        write_labels(root / "truth.csv", own)
        truth |= own
    write_certificates(folder / "certificates", [SERVER_ADDRESS], [*sites, "stranger"])
    labeller = Labeller({site: folder / "sites" / site / "to-label" for site in sites}, truth)
    with (
        contextlib.ExitStack() as stack,
        deployment(folder, folder / "certificates") as running,
        labeller.at_work(),
    ):
        yield Trial(folder, running, labeller, data_dir, sites, stack)
    assert not running.left_behind, running.left_behind
