"""Benchmarks whose numbers are made up, to be computed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ahfal_app.benchmark.lock import Lock, LockedProblem, LockedSplit, protocol_hash
from ahfal_app.benchmark.protocol import Case, Protocol
from ahfal_app.benchmark.submission import (
    Code,
    Machine,
    Protocolled,
    RunLine,
    Submission,
)

#: Tests of each made-up data set: accuracies are hundredths.
TESTS = 100


def digest(text: str) -> str:
    """Return what looks like a fingerprint."""
    return text.encode().hex().ljust(64, "0")[:64]


def made_up(
    problems: Mapping[str, Sequence[int]],
    baselines: Sequence[str],
    splits: Sequence[str] = ("one",),
    seeds: Sequence[int] = (0, 1),
) -> tuple[Protocol, Lock]:
    """Return a protocol whose data sets have these budgets, and its lock."""
    protocol = Protocol(
        title="Made up",
        version=1,
        settings={},
        problems={name: {"dataset": "digits"} for name in problems},
        splits={name: {"alpha": 1.0} for name in splits},
        seeds=list(seeds),
        reference=baselines[0],
        baselines=list(baselines),
        free=["tau"],
    )
    lock = Lock(
        versions={"numpy": "2"},
        problems={
            name: LockedProblem(data=digest(name), backbone="", test=TESTS, settings={})
            for name in problems
        },
        splits=tuple(
            LockedSplit(
                problem=case.problem,
                split=case.split,
                seed=case.seed,
                partition=digest(str(case)[-20:]),
                labels=tuple(problems[case.problem]),
            )
            for case in protocol.cases()
        ),
    )
    return protocol, lock


def submission(
    protocol: Protocol, lock: Lock, method: str, accuracy: Mapping[Case, Sequence[float]]
) -> Submission:
    """Return a submission with these accuracies of each case."""
    return Submission(
        protocol=Protocolled(
            title=protocol.title, version=protocol.version, hash=protocol_hash(protocol, lock)
        ),
        method=method,
        strategy=method,
        settings={},
        packages=(),
        code=Code(version="0.1.0", hash=digest("code"), commit=None, dirty=None),
        machines=(Machine(system="Linux", processor="a processor", cores=2, gpus=()),),
        runs=tuple(
            RunLine(
                problem=case.problem,
                split=case.split,
                seed=case.seed,
                data=lock.problems[case.problem].data,
                partition=split.partition,
                labels=split.labels,
                accuracy=tuple(accuracy[case]),
                seconds=1.5,
            )
            for case, split in lock.by_case.items()
        ),
    )
