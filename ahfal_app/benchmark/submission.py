"""What a method came to under a protocol, as one line of a file that can be handed in.

A submission is data of another party: every field is checked against the protocol before anything
is made of it, and what is refused is refused with all its reasons.

Shapes: T cycles.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from ahfal_app.benchmark.lock import Digest, Lock, LockedSplit
from ahfal_app.benchmark.protocol import Case, Method, Name, Protocol
from ahfal_app.benchmark.text import Text, Value, skeleton
from ahfal_app.errors import BenchmarkError
from ahfal_app.results.reading import Run

#: A file of more bytes is none of submissions: a method's line has some ten thousand.
LARGEST_FILE = 64 * 1024 * 1024

#: Problems of a submission that are told; a hostile one could have millions.
_MOST_TOLD = 12

#: How far an accuracy may be from a share of the tests, by rounding alone.
_ROUNDING = 1e-6


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Labels = Annotated[int, Field(ge=1, le=10**12)]

# Of a list of thousands the first problem is enough.
_LONG = FailFast()

Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Protocolled(_Part):
    """Which protocol a submission was made under."""

    title: Annotated[str, Field(max_length=200)]
    version: int
    hash: Digest


class Package(_Part):
    """A component of another package that was run: what it is, and a hash of its source."""

    setting: Text
    name: Text
    package: Text | None
    version: Text | None
    source: Digest


class Code(_Part):
    """AHFAL's version, hash and commit."""

    version: Text
    hash: Digest
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}([0-9a-f]{24})?$")] | None
    dirty: bool | None


class Machine(_Part):
    """What it was run on."""

    system: Text
    processor: Text
    cores: Annotated[int, Field(ge=1, le=10**6)] | None
    gpus: Annotated[tuple[Text, ...], Field(max_length=64, strict=False)]


class RunLine(_Part):
    """A run: labels (T) that its cycles were trained on, test accuracies (T), fingerprints."""

    problem: Name
    split: Name
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    data: Digest
    partition: Digest
    labels: Annotated[
        tuple[Labels, ...], Field(min_length=1, max_length=10_000, strict=False), _LONG
    ]
    accuracy: Annotated[
        tuple[Share, ...], Field(min_length=1, max_length=10_000, strict=False), _LONG
    ]
    seconds: Seconds

    @property
    def case(self) -> Case:
        """What it was run on."""
        return Case(self.problem, self.split, self.seed)


class Submission(_Part):
    """A method's results under a protocol."""

    format: Literal[1] = 1
    protocol: Protocolled
    method: Text
    strategy: Text
    settings: Annotated[dict[Text, Value], Field(max_length=100)]
    packages: Annotated[tuple[Package, ...], Field(max_length=20, strict=False)]
    code: Code
    machines: Annotated[tuple[Machine, ...], Field(min_length=1, max_length=20, strict=False)]
    runs: Annotated[
        tuple[RunLine, ...], Field(min_length=1, max_length=100_000, strict=False), _LONG
    ]

    @property
    def by_case(self) -> dict[Case, RunLine]:
        """The runs by what they were run on."""
        return {run.case: run for run in self.runs}


def make_submission(
    protocol: Protocol, digest: str, method: Method, runs: Sequence[tuple[Case, Run]]
) -> Submission:
    """Put a method's runs, which are done, into a submission.

    Parameters
    ----------
    protocol : Protocol
        The benchmark.
    digest : str
        `protocol_hash`.
    method : Method
        What was run.
    runs : Sequence[tuple[Case, Run]]
        Its run of each case.

    Raises
    ------
    BenchmarkError
        The runs are not all of one code.
    """
    codes = {run.environment["code"]["hash"] for _, run in runs}
    if len(codes) > 1:
        raise BenchmarkError([f"{method.name}: runs of {len(codes)} codes; allowed is one"])
    environment = runs[0][1].environment
    code = environment["code"]
    machines = {_machine(run.environment["hardware"]): None for _, run in runs}
    return Submission(
        protocol=Protocolled(title=protocol.title, version=protocol.version, hash=digest),
        method=method.name,
        strategy=method.strategy,
        settings=dict(method.settings),
        packages=tuple(_package(each) for each in environment.get("components", ())),
        code=Code(**{key: code[key] for key in ("version", "hash", "commit", "dirty")}),
        machines=tuple(machines),
        runs=tuple(_run_line(case, run) for case, run in runs),
    )


def _run_line(case: Case, run: Run) -> RunLine:
    data = run.environment["data"]
    return RunLine(
        problem=case.problem,
        split=case.split,
        seed=case.seed,
        data=data["fingerprint"],
        partition=data["partition_fingerprint"],
        labels=tuple(cycle.labels for cycle in run.metrics.cycles),
        accuracy=tuple(float(cycle.accuracy) for cycle in run.metrics.cycles),
        seconds=round(sum(run.metrics.seconds.values()), 3),
    )


def _package(component: dict[str, Any]) -> Package:
    return Package(**{key: component[key] for key in Package.model_fields})


def _machine(hardware: dict[str, Any]) -> Machine:
    return Machine(
        # Not its kernel, which says more of a machine than anybody need know.
        system=hardware["system"].split()[0],
        processor=hardware["processor"] or "unknown",
        cores=hardware["cores"],
        gpus=tuple(hardware["gpus"]),
    )


def lines_of(submissions: Sequence[Submission]) -> bytes:
    """Return submissions as a file's content."""
    return b"".join(each.model_dump_json().encode() + b"\n" for each in submissions)


def read_submissions(path: Path, protocol: Protocol, lock: Lock, digest: str) -> list[Submission]:
    """Read a file of submissions, and refuse what the protocol does not allow.

    Parameters
    ----------
    path : Path
        A line for each submission.
    protocol, lock, digest : Protocol, Lock, str
        What they must have been made under; `digest` is `protocol_hash`.

    Raises
    ------
    BenchmarkError
        The file cannot be read, or a line is refused: all reasons, with its number.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise BenchmarkError([f"{path}: {size:,} bytes; allowed are {LARGEST_FILE:,}"])
        content = path.read_bytes()
    except OSError as error:
        raise BenchmarkError([f"{path}: cannot be read ({error.strerror})"]) from error
    found: list[Submission] = []
    problems: list[str] = []
    for number, text in enumerate(io.BytesIO(content), 1):
        if len(problems) > _MOST_TOLD:
            break
        where = f"{path}, line {number}"
        try:
            submission = Submission.model_validate_json(text)
        except ValidationError as error:
            problems += [f"{where}: {_told(each)}" for each in _first_errors(error)]
            continue
        reasons = itertools.islice(_refusals(submission, protocol, lock, digest), _MOST_TOLD + 1)
        problems += [f"{where}, {submission.method!r}: {reason}" for reason in reasons]
        found.append(submission)
    if not found and not problems:
        problems = [f"{path}: no line; allowed is one for each submission"]
    if problems:
        raise BenchmarkError(_some(problems))
    return found


def same_names(submissions: Sequence[Submission]) -> list[str]:
    """Return a line for each name that several submissions have: nobody could tell them apart.

    Names that differ by the width or the case of letters alone are the same.
    """
    called: dict[str, list[str]] = {}
    for submission in submissions:
        called.setdefault(skeleton(submission.method), []).append(submission.method)
    return [
        f"{', '.join(map(repr, dict.fromkeys(names)))}: {len(names)} submissions are called so; "
        "allowed is one"
        for names in called.values()
        if len(names) > 1
    ]


def _refusals(submission: Submission, protocol: Protocol, lock: Lock, digest: str) -> Iterator[str]:
    """Yield why a submission is none of a protocol."""
    if submission.protocol.hash != digest:
        yield (
            f"made under the protocol {submission.protocol.hash[:16]}…; allowed is "
            f"{digest[:16]}…, version {protocol.version} of {protocol.title!r}"
        )
        return
    is_plain = submission.strategy == submission.method and not submission.settings
    of_baselines = {skeleton(baseline) for baseline in protocol.baselines}
    if skeleton(submission.method) in of_baselines and (submission.packages or not is_plain):
        yield "called as a baseline, and another strategy; allowed is another name"
    for key in submission.settings:
        if key not in protocol.free and not key.startswith("strategy."):
            yield f"settings: {key}: would change what is measured"
    expected, counts = lock.by_case, Counter(run.case for run in submission.runs)
    for run in submission.runs:
        if run.case not in expected:
            yield f"a run of {str(run.case)!r}; allowed are the protocol's data sets and splits"
        else:
            yield from (f"{run.case}: {reason}" for reason in _run_refusals(run, lock))
    yield from (
        f"{case}: {count} runs; allowed is one" for case, count in counts.items() if count > 1
    )
    missing = [case for case in expected if case not in counts]
    if missing:
        yield f"{len(missing)} runs are missing, such as {missing[0]}; allowed is all of them"


def _run_refusals(run: RunLine, lock: Lock) -> Iterator[str]:
    split: LockedSplit = lock.by_case[run.case]
    problem = lock.problems[run.problem]
    if run.data != problem.data:
        yield f"data with the fingerprint {run.data[:16]}…; allowed is {problem.data[:16]}…"
    if run.partition != split.partition:
        yield (
            f"a split with the fingerprint {run.partition[:16]}…; allowed is "
            f"{split.partition[:16]}…"
        )
    if run.labels != split.labels:
        yield f"labels {_shown(run.labels)}; the budgets prescribe {_shown(split.labels)}"
    if len(run.accuracy) != len(split.labels):
        yield f"{len(run.accuracy)} accuracies; allowed are {len(split.labels)}, one a cycle"
    for value in run.accuracy:
        right = value * problem.test
        if not math.isclose(right, round(right), abs_tol=_ROUNDING * problem.test):
            yield f"accuracy {value!r}: allowed is a share of {problem.test} tests"


def _shown(labels: Sequence[int]) -> str:
    shown = ", ".join(map(str, labels[:12]))
    return f"[{shown}{', …' if len(labels) > 12 else ''}]"


def _told(error: Any) -> str:
    # A field's name may be the other party's, too.
    where = ".".join(ascii(part)[:40].strip("'") for part in error["loc"]) or "line"
    return f"{where}: {error['msg']}"


def _first_errors(error: ValidationError) -> list[Any]:
    return error.errors(include_url=False, include_input=False)[: _MOST_TOLD + 1]


def _some(problems: list[str]) -> list[str]:
    if len(problems) <= _MOST_TOLD:
        return problems
    return [*problems[:_MOST_TOLD], "and more problems, of which these are the first"]
