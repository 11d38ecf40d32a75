"""Taking part: a method is run under a protocol, with the baselines whose results are not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from ahfal_app.benchmark.lock import Lock, check_lock, protocol_hash, read_lock
from ahfal_app.benchmark.page import print_board, render_board
from ahfal_app.benchmark.protocol import (
    Case,
    Method,
    Places,
    Protocol,
    baseline,
    read_protocol,
    settings_of,
)
from ahfal_app.benchmark.scores import Board
from ahfal_app.benchmark.submission import (
    Submission,
    lines_of,
    make_submission,
    read_submissions,
    same_names,
)
from ahfal_app.benchmark.text import skeleton
from ahfal_app.errors import BenchmarkError, ConfigError
from ahfal_app.experiments.files import Experiment, PlannedRun
from ahfal_app.experiments.output import write_output
from ahfal_app.experiments.scales import Scale
from ahfal_app.experiments.summaries import Summaries
from ahfal_app.experiments.sweep import SweepResult, run_sweep
from ahfal_app.storage.files import write_bytes

SUBMISSION, BASELINES, PAGE = "submission.jsonl", "baselines.jsonl", "leaderboard.html"


@dataclass(frozen=True)
class Benchmark:
    """A protocol with its lock, and where its file is."""

    file: Path
    protocol: Protocol
    lock: Lock

    @cached_property
    def digest(self) -> str:
        """Hash of what is measured."""
        return protocol_hash(self.protocol, self.lock)

    @classmethod
    def read(cls, file: Path) -> Benchmark:
        """Read a protocol's file and the lock beside it.

        Raises
        ------
        ConfigError, BenchmarkError
            One of the two cannot be used.
        """
        protocol = read_protocol(file)
        return cls(file, protocol, read_lock(file, protocol))

    def cached(self) -> list[Submission]:
        """Return the baselines' results that are kept with the protocol; none where none are.

        Raises
        ------
        BenchmarkError
            They are not of this protocol.
        """
        return self.submissions(self._cached_files())

    def with_cached(self, files: Iterable[Path]) -> list[Submission]:
        """Return the baselines' kept results, and what other files hold.

        Raises
        ------
        BenchmarkError
            One is refused, or two have the same name: all reasons.
        """
        return self.submissions([*self._cached_files(), *files])

    def _cached_files(self) -> list[Path]:
        path = self.file.absolute().parent / self.protocol.cached
        return [path] if self.protocol.cached and path.is_file() else []

    def submissions(self, files: Iterable[Path]) -> list[Submission]:
        """Read files of submissions.

        Raises
        ------
        BenchmarkError
            One is refused: all reasons.
        """
        found: list[Submission] = []
        problems: list[str] = []
        for file in files:
            try:
                found += read_submissions(file, self.protocol, self.lock, self.digest)
            except BenchmarkError as error:
                problems += error.problems
        if problems := [*problems, *same_names(found)]:
            raise BenchmarkError(problems)
        return found

    def board(self, submissions: Sequence[Submission]) -> Board:
        """Put submissions beside each other."""
        return Board(self.protocol, self.lock, tuple(submissions))


def take_part(
    benchmark: Benchmark,
    method: Method | None,
    places: Places,
    out: Path,
    console: Console,
    jobs: int | None = None,
    alone: bool = False,
) -> SweepResult:
    """Run a method, and the baselines whose results are not kept; write what it came to.

    Parameters
    ----------
    benchmark : Benchmark
        The protocol.
    method : Method | None
        None: the baselines alone.
    places : Places
        Where files lie.
    out : Path
        A sweep's folder: the same command goes on after any stop.
    console : Console
        Where progress and the leaderboard are shown.
    jobs : int, optional
        Runs at the same time.
    alone : bool
        Leave out baselines whose results are not kept.

    Raises
    ------
    ConfigError, BenchmarkError
        The method's name is taken, its settings cannot be used, or data, splits or settings are
        not those of the protocol.
    """
    cached = benchmark.cached()
    names = [submission.method for submission in cached] + benchmark.protocol.baselines
    if method is not None:
        _refuse_taken_name(method.name, names)
    had = {submission.method for submission in cached}
    wanted = () if alone else benchmark.protocol.baselines
    missing = [baseline(name) for name in wanted if name not in had]
    taking_part = [*([method] if method else []), *missing]
    planned = plan(benchmark.protocol, taking_part, places)
    check_lock(benchmark.protocol, benchmark.lock, places)
    experiment = _experiment(benchmark, taking_part, planned)
    result = run_sweep([experiment], out, console, jobs)
    done = _collected(benchmark, taking_part, planned, out)
    own = [each for each in done if method is not None and each.method == method.name]
    others = [each for each in done if each not in own]
    for name, found in ((SUBMISSION, own), (BASELINES, others)):
        if found:
            write_bytes(out / name, lines_of(found))
            console.print(f"{name}: {(out / name).absolute()}", soft_wrap=True, markup=False)
    if cached or done:
        show(benchmark, [*cached, *done], out / PAGE, console)
    return result


def _refuse_taken_name(name: str, taken: Iterable[str]) -> None:
    """Refuse before anything runs what `same_names` and the checks of submissions would."""
    alike = next((each for each in taken if skeleton(each) == skeleton(name)), None)
    if alike is not None:
        called = "so" if alike == name else f"{alike!r}, which looks the same"
        raise ConfigError(
            [
                f"--name={name!r}: a baseline is called {called}; allowed is another name, such as "
                f"{name + ', again'!r}"
            ]
        )


def show(
    benchmark: Benchmark, submissions: Sequence[Submission], out: Path, console: Console
) -> None:
    """Write the leaderboard's page and print its table."""
    board = benchmark.board(submissions)
    write_output(out, render_board(board, benchmark.digest))
    print_board(board, console)
    console.print(f"leaderboard: {out.absolute()}", soft_wrap=True, markup=False)


Planned = dict[tuple[str, Case], PlannedRun]


def plan(protocol: Protocol, methods: Iterable[Method], places: Places) -> Planned:
    """Return every run of some methods, checked.

    Raises
    ------
    ConfigError
        Settings cannot be used: all problems, each once.
    """
    found: Planned = {}
    problems: dict[str, None] = {}
    for method in methods:
        for case in protocol.cases():
            try:
                settings = settings_of(protocol, case, method, places)
            except ConfigError as error:
                problems |= dict.fromkeys(f"{method.name}: {each}" for each in error.problems)
                continue
            labels = {"method": method.name, **case._asdict()}
            found[method.name, case] = PlannedRun(labels, settings)
    if problems:
        raise ConfigError(list(problems))
    return found


def _experiment(benchmark: Benchmark, methods: Sequence[Method], planned: Planned) -> Experiment:
    protocol = benchmark.protocol
    return Experiment(
        title=protocol.title,
        file=benchmark.file.absolute(),
        scale=Scale.PAPER,
        axes={
            "method": tuple(method.name for method in methods),
            "problem": tuple(protocol.problems),
            "split": tuple(protocol.splits),
            "seed": tuple(protocol.seeds),
        },
        runs=tuple(planned.values()),
    )


def _collected(
    benchmark: Benchmark, methods: Sequence[Method], planned: Planned, out: Path
) -> list[Submission]:
    """Return the submissions of the methods all of whose runs are done."""
    summaries = Summaries(out)
    lines = summaries.standing_for(planned.values())
    found = []
    for method in methods:
        runs = []
        for case in benchmark.protocol.cases():
            line = lines.get(planned[method.name, case].name)
            run = summaries.run(line) if line else None
            if run is not None:
                runs.append((case, run))
        if len(runs) == len(benchmark.protocol.cases()):
            found.append(make_submission(benchmark.protocol, benchmark.digest, method, runs))
    return found
