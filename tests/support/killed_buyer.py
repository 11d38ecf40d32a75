"""A process that buys labels and is killed at random moments; what became of what it paid for."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ahfal_app.labels.store import LabelStore

_SAMPLES = 20_000
_TIMEOUT_S = 1200

# Whoever labels writes down what has been paid for before it answers, and answers a repeated
# request with what it has written down.
_BUYER = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore, request_id

    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    journal, acknowledged = folder / "paid.txt", folder / "acknowledged.txt"

    def append(path, samples):
        with path.open("a") as file:
            file.write("".join(f"{sample}\\n" for sample in samples))
            file.flush()
            os.fsync(file.fileno())

    def read(path):
        text = path.read_text() if path.exists() else ""
        return [int(line) for line in text.splitlines(keepends=True) if line.endswith("\\n")]

    def answer(store, request):
        paid = set(read(journal))
        append(journal, [s for s in request.samples if s not in paid])
        receipts = [
            LabelReceipt(request.request_id, s, None if s % 7 == 0 else s % 10, "anna")
            for s in request.samples
        ]
        store.commit(receipts)
        append(acknowledged, [r.sample for r in receipts if r.label is not None])

    def buy():
        store = LabelStore.open_file(folder / "labels.sqlite", np.arange(20_000), 10)
        os.write(opened, b".")
        while os.getppid() == parent:
            for request in store.open_requests():
                answer(store, request)
            cycle = store.last_cycle() + 1
            store.allot(store.ledger().allotted - store.ledger().free + 3)
            chosen = tuple(store.unlabelled()[:3].tolist())
            request = LabelRequest(request_id("run", 0, cycle), cycle, "x", chosen)
            answer(store, store.reserve(request))

    parent = os.getpid()
    draw = random.Random(0)
    has_opened, opened = os.pipe()
    kill = 0
    # A slow machine buys less between two kills: more of them, then.
    while kill < kills or len(read(journal)) < 500:
        kill += 1
        child = os.fork()
        if not child:
            buy()
        if kill % 5:
            os.read(has_opened, 1)
        time.sleep(draw.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(kill)
"""


@dataclass(frozen=True)
class Counts:
    """What became of the labels.

    Attributes
    ----------
    injected : int
        Kills.
    answered : int
        Labels that were paid for.
    lost : int
        Labels that were acknowledged and that the store does not hold.
    bought_twice : int
        Labels that were paid for more than once.
    """

    injected: int
    answered: int
    lost: int
    bought_twice: int


def kill_buyer(folder: Path, kills: int) -> Counts:
    """Kill a buyer so many times, or more on a slow machine; the store must be sound then."""
    script = [sys.executable, "-c", textwrap.dedent(_BUYER), str(folder), str(kills)]
    done = subprocess.run(script, check=True, timeout=_TIMEOUT_S, capture_output=True, text=True)
    store = LabelStore.open_file(folder / "labels.sqlite", np.arange(_SAMPLES), 10)
    try:
        for request in store.open_requests():
            store.release(request.request_id)
        store.verify()
        labelled = store.labelled()
        assert store.ledger().spent == len(labelled.samples_N)
    finally:
        store.close()
    assert (labelled.labels_N == labelled.samples_N % 10).all()
    assert (labelled.samples_N % 7 != 0).all()
    paid = _numbers(folder / "paid.txt")
    lost = set(_numbers(folder / "acknowledged.txt")) - set(labelled.samples_N.tolist())
    return Counts(int(done.stdout), len(paid), len(lost), len(paid) - len(set(paid)))


def _numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()]
