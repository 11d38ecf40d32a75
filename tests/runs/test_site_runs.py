"""Whole runs in this process whose clients have folders of their own."""

from __future__ import annotations

import csv
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from support.simulation import Outcome, Simulation
from support.site_images import write_images, write_labels

from ahfal_app.client import coordination
from ahfal_app.client_app import app as client_app
from ahfal_app.errors import ConfigError, QuorumNotReached
from ahfal_app.label_page.answers import DECISION
from ahfal_app.label_page.desk import Answer, Desk, Item, Withdrawn
from ahfal_app.labels.exchange import export_labels, label_agreement
from ahfal_app.labels.spreadsheet import write_csv
from ahfal_app.labels.store import LabelStore
from ahfal_app.ledger import Ledger
from ahfal_app.results.grants import grants_table
from ahfal_app.results.reading import read_run
from ahfal_app.server import purchase
from ahfal_app.training import resources

DIGITS = tuple("0123456789")

SITES: dict[str, object] = {
    "partition": "sites",
    "initial-fraction": 0.1,
    "query-fraction": 0.05,
    "target-fraction": 0.2,
    "label-deadline": 600.0,
}

NodeConfig = dict[str, object]


class Hospitals:
    """Three sites with different images: one has few, and one knows some labels."""

    def __init__(self, root: Path) -> None:
        self.truth: dict[str, str] = {}
        self.nodes: list[NodeConfig] = []
        for number, rows in enumerate((range(0, 200), range(200, 320), range(320, 360))):
            data = root / f"data-{number}"
            truth = write_images(data, rows, DIGITS)
            write_labels(root / f"truth-{number}.csv", truth)
            self.truth |= truth
            self.nodes.append(
                {
                    "partition-id": number,
                    "num-partitions": 3,
                    "data": str(data),
                    "state-dir": str(root / f"state-{number}"),
                    "truth": str(root / f"truth-{number}.csv"),
                }
            )
        (root / "data-0" / "damaged.png").write_bytes(b"")
        known = dict(list(truth.items())[:10])
        write_labels(root / "data-2" / "labels.csv", known)

    def handler(self, message: Message, context: Context) -> Message:
        context.node_config = dict(self.nodes[int(context.node_config["partition-id"])])  # type: ignore[arg-type]
        return client_app(message, context)


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    monkeypatch.setattr(purchase, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(purchase, "_LONGEST_PAUSE_S", 0.05)
    # Files that the annotator below writes are complete: it renames them.
    monkeypatch.setattr("ahfal_app.oracle.files._SETTLED_S", 0.0)
    return Hospitals(tmp_path)


@contextmanager
def _annotator(folder: Path, truth: Mapping[str, str]) -> Iterator[list[str]]:
    """Label what is asked for, each request in two halves and the second with a typo first."""
    stop, labelled = threading.Event(), list[str]()

    def look() -> None:
        while not stop.wait(0.02):
            for request in folder.glob("cycle-*"):
                if not (request / "all.done").exists():
                    answer(request)

    def answer(request: Path) -> None:
        with (request / "request.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        lines = [(row["file"], truth[row["original"]]) for row in rows]
        half = len(lines) // 2
        write_csv(request / "labels.csv", ("file", "label"), lines[:half])
        wrong = [*lines[:-1], (lines[-1][0], "seven")]
        write_csv(request / "labels.csv", ("file", "label"), wrong)
        while not (request / "errors.csv").exists() and not stop.wait(0.01):
            pass
        write_csv(request / "labels.csv", ("file", "label"), reversed(lines))
        (request / "all.done").touch()
        labelled.extend(name for name, _ in lines)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield labelled
    finally:
        stop.set()
        thread.join()


def _learned(outcome: Outcome) -> tuple[object, ...]:
    _, cycles, losses, model = outcome.result
    return cycles, losses, model


@pytest.mark.slow
def test_people_who_label_files_give_the_result_of_the_simulated_oracle(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    # Long enough to learn something: pixels and labels must belong together.
    settings = SITES | {"rounds": 4, "local-epochs": 5, "batch-size": 16}
    rehearsed = simulation(settings, handler=hospitals.handler)
    requests = tmp_path / "requests"
    node = hospitals.nodes[1]
    del node["truth"]
    hospitals.nodes[1] |= {"oracle": "files", "oracle-dir": str(requests)}
    with _annotator(requests, hospitals.truth) as labelled:
        real = simulation(settings, handler=hospitals.handler)
    assert _learned(real) == _learned(rehearsed)
    assert real.metrics.cycles[-1].accuracy > 0.5
    last = real.metrics.cycles[-1]
    # Shares are of a site's usable images; the ten labels that site 2 has come on top.
    assert last.labels_per_client == (40, 24, 8 + 10)
    assert len(labelled) == 24
    assert len(set(labelled)) == 24
    assert "damaged.png,empty" in (tmp_path / "state-0" / "set-aside.csv").read_text()
    assert not (real.folder / "partition.json").exists()
    stores = sorted((tmp_path / "state-1").glob("*/1/labels.sqlite"))
    assert len(stores) == 2
    answers = []
    for path in stores:
        store = LabelStore.open_existing(path)
        store.verify()
        assert store.class_names() == DIGITS
        files = store.files()
        found = store.labelled()
        names = [files[sample] for sample in found.samples_N.tolist()]
        answers.append(dict(zip(names, found.labels_N.tolist(), strict=True)))
        store.close()
    assert answers[0] == answers[1]
    assert {name: DIGITS[label] for name, label in answers[0].items()}.items() <= (
        hospitals.truth.items()
    )


#: Of hospitals with 200, 120 and 40 images: what each gets at first, and after each cycle with why.
_GOT: dict[str, list[tuple[str, ...]]] = {
    # Exact shares of 45, 120 and 195: 25, 15, 5; 66.67, 40, 13.33; 108.33, 65, 21.67.
    "share": [
        ("25", "42 (200)", "41 (200)", "108"),
        ("15", "25 (120)", "25 (120)", "65"),
        ("5", "8 (40)", "9 (40)", "22"),
    ],
    # A third of 45 and of 75; then the smallest has all of its images labelled.
    "equal": [
        ("15", "25 (1)", "38 (1)", "78"),
        ("15", "25 (1)", "37 (1)", "77"),
        ("15", "25 (1)", "0 (1)", "40"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("split", ["share", "equal", "missing", "threshold"])
def test_the_report_says_which_of_three_hospitals_got_what_and_why(
    simulation: Simulation, hospitals: Hospitals, split: str
) -> None:
    (Path(str(hospitals.nodes[2]["data"])) / "labels.csv").unlink()
    for node in hospitals.nodes:
        node["policy-reveals"] = "budget,sums"
    settings = {
        "partition": "sites",
        "budget": "global",
        "budget-split": split,
        "initial-labels": 45,
        "query-labels": 75,
        "target-labels": 195,
        "strategy": "entropy",
        "strategy.model": "global",
        "rounds": 1,
    }
    outcome = simulation(settings, handler=hospitals.handler)
    table = grants_table(read_run(outcome.folder))
    assert table is not None
    assert f"budget-split={split}" in table.title
    assert table.title in (outcome.folder / "report.html").read_text()
    told = [row[1:] for row in table.rows]
    had = np.array([cycle.labels_per_client for cycle in outcome.metrics.cycles])
    assert had.sum(axis=1).tolist() == [45, 120, 195]
    bought = np.diff(had, axis=0, prepend=0).T
    for cells, labels in zip(told, bought.tolist(), strict=True):
        assert [int(cell.split(" ")[0]) for cell in cells] == [*labels, sum(labels)]
    if split in _GOT:
        assert told == _GOT[split]
        return
    assert [cells[0] for cells in told] == ["25", "15", "5"]
    # What it went by says who gets how much.
    for cycle in (1, 2):
        weights = [float(cells[cycle].split("(")[1].rstrip(")")) for cells in told]
        assert (
            sorted(range(3), key=weights.__getitem__)
            == np.argsort(bought[:, cycle], kind="stable").tolist()
        )


@pytest.mark.slow
def test_sites_choose_together_where_all_of_them_allow_it(
    simulation: Simulation, hospitals: Hospitals
) -> None:
    settings = SITES | {"strategy": "coordinated-prob-cover", "strategy.least-region": 2}
    for node in hospitals.nodes:
        node["policy-reveals"] = "centroids,embeddings,distances,radius,sums"
    straight = simulation(settings, handler=hospitals.handler)
    assert not any(cycle.failed for cycle in straight.metrics.cycles)

    def anew(message: Message, context: Context) -> Message:
        coordination._under_way.clear()  # As at a site, where each message has its process.
        return hospitals.handler(message, context)

    assert _learned(simulation(settings, handler=anew)) == _learned(straight)
    del hospitals.nodes[2]["policy-reveals"]
    with pytest.raises(QuorumNotReached, match="policy-reveals"):
        simulation(settings | {"quorum": 1.0}, handler=hospitals.handler)


@pytest.mark.slow
def test_a_policy_is_learned_of_sites_that_allow_it(
    simulation: Simulation, hospitals: Hospitals
) -> None:
    """Of sets of any size, as sites have them: no two choose from as many images."""
    settings = SITES | {
        "strategy": "leadq",
        "strategy.agent": "set",
        "strategy.learn-from": 1,
        "strategy.gradient-steps": 5,
        "target-fraction": 0.3,
        "held-out": 40,
    }
    with pytest.raises(QuorumNotReached, match="policy-reveals"):
        simulation(settings, handler=hospitals.handler)
    for node in hospitals.nodes:
        node["policy-reveals"] = "observations"
    rows: dict[int, list[int]] = {}

    def look(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        reply = hospitals.handler(message, context)
        if message.metadata.message_type == "query.select":
            report = reply.content.array_records["report"]
            rows.setdefault(client, []).append(report["rows"].shape[0])
        return reply

    outcome = simulation(settings, handler=look)
    cycles = outcome.metrics.cycles
    assert not any(cycle.failed for cycle in cycles)
    assert ["epsilon" in cycle.policy for cycle in cycles] == [False, False, True, True, False]
    assert len({tuple(each) for each in rows.values()}) == 3
    # What was labelled is not there any more.
    assert all(np.diff(each).max() < 0 for each in rows.values())


@pytest.mark.slow
def test_guesses_and_scores_go_to_people(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    requests = tmp_path / "requests"
    hospitals.nodes[1] |= {"oracle": "files", "oracle-dir": str(requests)}
    with _annotator(requests, hospitals.truth):
        simulation(SITES, handler=hospitals.handler, strategy="margin", cycles=2)
    first, second = sorted(requests.glob("cycle-*"))
    for folder, filled in ((first, False), (second, True)):
        with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert all((row["score"] != "") is filled for row in rows)
        assert all((row["guess"] in DIGITS and row["guess"] != "") is filled for row in rows)
    scores = [float(row["score"]) for row in rows]
    assert len(set(scores)) > 1


@pytest.mark.slow
def test_skipped_images_are_free_and_others_bought(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    hospitals.nodes[1]["truth"] = str(tmp_path / "half.csv")
    names = sorted(path for path in hospitals.truth if int(Path(path).stem) in range(200, 320))
    write_labels(tmp_path / "half.csv", {name: hospitals.truth[name] for name in names[::2]})
    outcome = simulation(SITES, handler=hospitals.handler, strategy="random")
    (path,) = (tmp_path / "state-1").glob("*/1/labels.sqlite")
    store = LabelStore.open_existing(path)
    store.verify()
    states = [entry.state for entry in store.entries()]
    store.close()
    assert states.count("skipped") > 0
    assert states.count("labelled") == outcome.metrics.cycles[-1].labels_per_client[1]
    ledger = outcome.metrics.cycles[1].ledger
    assert ledger.reserved == 0
    assert ledger.free > 0


@pytest.mark.slow
def test_what_one_run_bought_the_next_one_has(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    (tmp_path / "part.csv").write_text("file,label\n")
    hospitals.nodes[0]["truth"] = str(tmp_path / "part.csv")
    hospitals.nodes[1] |= {"oracle": "files", "oracle-dir": str(tmp_path / "requests")}
    with _annotator(tmp_path / "requests", hospitals.truth):
        simulation(SITES, handler=hospitals.handler, cycles=1)
    for site in (0, 1):
        export_labels(tmp_path / f"state-{site}", tmp_path / f"data-{site}" / "labels.csv")
    resources._sites.clear()
    hospitals.nodes[1]["oracle"] = "simulated"
    again = simulation(SITES, handler=hospitals.handler, cycles=1)
    # The first site could label none of its 20, which are not asked for again; of the second
    # one's 12 labels each is there already.
    assert again.metrics.cycles[0].labels_per_client[1] == 12 + 12
    (path,) = (tmp_path / "state-1").glob(f"{_newest_run(tmp_path)}/1/labels.sqlite")
    store = LabelStore.open_existing(path)
    given = {e.sample for e in store.entries() if e.state == "given"}
    assert len(given) == 12
    assert {e.annotator for e in store.entries() if e.state == "given"} == {"files"}
    store.close()
    with (tmp_path / "state-0" / "set-aside.csv").open(encoding="utf-8-sig", newline="") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    assert reasons.count("skip, says labels.csv") == 20


def _newest_run(root: Path) -> str:
    runs = [path for path in (root / "state-1").iterdir() if len(path.name) == 16]
    return max(runs, key=lambda path: path.stat().st_mtime_ns).name


@pytest.mark.slow
def test_an_image_that_goes_before_it_is_labelled_is_given_back(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    requests = tmp_path / "requests"
    hospitals.nodes[1] |= {"oracle": "files", "oracle-dir": str(requests)}
    removed: list[str] = []

    def handler(message: Message, context: Context) -> Message:
        resources._sites.clear()  # As in deployment, where each message has a process of its own.
        reply = hospitals.handler(message, context)
        if not removed and requests.exists():
            (folder,) = requests.iterdir()
            with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
                removed.extend(row["original"] for row in csv.DictReader(file))
            (tmp_path / "data-1" / removed[0]).unlink()
            lines = [(name, hospitals.truth[name]) for name in removed[1:]]
            write_csv(folder / "labels.csv", ("file", "label"), lines)
        return reply

    outcome = simulation(SITES, handler=handler, cycles=1)
    assert outcome.metrics.cycles[0].labels_per_client[1] == len(removed) - 1
    (path,) = (tmp_path / "state-1").glob("*/1/labels.sqlite")
    store = LabelStore.open_existing(path)
    store.verify()
    (gone,) = [entry for entry in store.entries() if entry.state == "removed"]
    assert gone.file == removed[0]
    assert store.ledger().free == 1
    store.close()
    (folder,) = requests.iterdir()
    assert len(list((folder / "images").iterdir())) == len(removed) - 1


@pytest.mark.slow
def test_an_image_that_goes_leaves_the_page_and_is_not_paid_for(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    """Nor is one whose label somebody gave a moment before, which is kept all the same."""
    hospitals.nodes[1] |= {"oracle": "page", "oracle-dir": str(tmp_path / "desk")}
    desk = Desk(tmp_path / "desk")
    asked: list[Item] = []
    contents: dict[str, bytes] = {}

    def say(item: Item) -> None:
        label = DIGITS.index(hospitals.truth[item.original])
        desk.answer(Answer(desk.sheets()[0].request, item.sample, label, "anna"))

    def handler(message: Message, context: Context) -> Message:
        resources._sites.clear()  # As in deployment, where each message has a process of its own.
        reply = hospitals.handler(message, context)
        if not asked and desk.sheets():
            asked.extend(desk.sheets()[0].items)
            first, second, *_ = asked
            say(first)
            for item in (first, second):
                path = tmp_path / "data-1" / item.original
                contents[item.original] = path.read_bytes()
                path.unlink()
        elif asked and len(desk.sheets()[0].items) < len(asked):
            with pytest.raises(Withdrawn):
                say(asked[1])
            for item in asked[2:]:
                say(item)
        return reply

    outcome = simulation(SITES, handler=handler, cycles=1)
    left = len(asked) - 2
    assert outcome.metrics.cycles[0].labels_per_client[1] == left
    assert [item.sample for item in desk.sheets()[0].items] == [item.sample for item in asked[2:]]
    assert len(list(desk.folder.glob("requests/*/images/*"))) == left
    (path,) = (tmp_path / "state-1").glob("*/1/labels.sqlite")
    store = LabelStore.open_existing(path)
    store.verify()
    ledger = store.ledger()
    assert (ledger.spent, ledger.reserved, ledger.free) == (left, 0, 2)
    states = {entry.sample: entry.state for entry in store.entries()}
    assert [states[item.sample] for item in asked[:3]] == ["removed", "removed", "labelled"]
    assert [event.annotator for event in store.history(asked[0].sample)] == ["anna"]
    assert store.history(asked[1].sample) == ()
    store.close()
    # What docs/sites.md says of erasing: no copy is left, and the name in two tables and a list.
    left_over = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, image in contents.items():
        assert [path for path, content in left_over.items() if image in content] == []
        named = [path for path, content in left_over.items() if name.encode() in content]
        assert {path.name.removesuffix("-wal") for path in named if "truth" not in path.name} == {
            "images.sqlite",
            "labels.sqlite",
            "set-aside.csv",
        }


class _Readers:
    """Two who read what a site is asked for, and one who settles what they disagree on.

    Ben takes the first image of each request for another digit.
    """

    def __init__(self, oracle: str, folder: Path, truth: Mapping[str, str]) -> None:
        self._work = {"page": self._at_the_page, "files": self._in_files}[oracle]
        self._folder, self._truth = folder, truth
        self.disputed: list[str] = []

    def work(self) -> None:
        self._work()

    def _label(self, file: str, wrong: bool) -> str:
        right = self._truth[file]
        return DIGITS[(DIGITS.index(right) + 1) % 10] if wrong else right

    def _at_the_page(self) -> None:
        desk = Desk(self._folder)
        for who in ("anna", "ben"):
            while images := desk.take(who, who).images:
                sheet, item = images[0].sheet, images[0].item
                wrong = who == "ben" and item == sheet.items[0]
                label = DIGITS.index(self._label(item.original, wrong))
                desk.answer(Answer(sheet.request, item.sample, label, who))
        while images := desk.take("prof", "prof", settle=True).images:
            sheet, item = images[0].sheet, images[0].item
            assert [answer.annotator for answer in images[0].readings] == ["anna", "ben"]
            self.disputed.append(item.original)
            label = DIGITS.index(self._truth[item.original])
            desk.answer(Answer(sheet.request, item.sample, label, "prof", kind=DECISION))

    def _in_files(self) -> None:
        for folder in sorted(self._folder.glob("cycle-*")):
            with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
            for who in ("anna", "ben"):
                lines = [
                    (row["file"], self._label(row["original"], who == "ben" and row is rows[0]))
                    for row in rows
                ]
                write_csv(folder / f"labels-{who}.csv", ("file", "label"), lines)
            if (folder / "disagreements.csv").exists():
                with (folder / "disagreements.csv").open(encoding="utf-8-sig", newline="") as file:
                    (row,) = csv.DictReader(file)
                assert row["file"] == rows[0]["file"]
                self.disputed.append(rows[0]["original"])
                line = (row["file"], self._truth[rows[0]["original"]])
                write_csv(folder / "decisions-prof.csv", ("file", "label"), [line])


@pytest.mark.slow
@pytest.mark.parametrize(("oracle", "cycles"), [("page", 1), ("files", 1)])
def test_several_readers_give_the_labels_that_the_budget_is_for(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path, oracle: str, cycles: int
):
    rehearsed = simulation(SITES, handler=hospitals.handler, cycles=cycles)
    before = set((tmp_path / "state-1").glob("*/1/labels.sqlite"))
    del hospitals.nodes[1]["truth"]
    hospitals.nodes[1] |= {"oracle": oracle, "oracle-dir": str(tmp_path / "people"), "readers": 2}
    people = _Readers(oracle, tmp_path / "people", hospitals.truth)

    def handler(message: Message, context: Context) -> Message:
        reply = hospitals.handler(message, context)
        people.work()
        return reply

    outcome = simulation(SITES, handler=handler, cycles=cycles)
    # As if somebody who knows had answered at once: each label once, and all that were to be had.
    assert _learned(outcome) == _learned(rehearsed)
    bought = outcome.metrics.cycles[-1].labels_per_client[1]
    (path,) = set((tmp_path / "state-1").glob("*/1/labels.sqlite")) - before
    store = LabelStore.open_existing(path)
    store.verify()
    assert store.ledger() == Ledger(bought, bought, 0, 0)
    names = {name: sample for sample, name in store.files().items()}
    assert len(people.disputed) == len(set(people.disputed)) == cycles
    for name in people.disputed:
        events = store.history(names[name])
        assert [event.what for event in events] == ["answer", "answer", "decision"]
        assert events[-1].label == DIGITS.index(hospitals.truth[name])
    readings = store.readings()
    for sample in store.labelled().samples_N.tolist():
        assert sum(not reading.decides for reading in readings[sample]) == 2
    store.close()
    found = label_agreement(path)
    assert (found.images, found.unanimous, found.settled) == (bought, bought - cycles, cycles)


@pytest.mark.slow
def test_a_deleted_request_is_written_again_with_what_is_still_open(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    requests = tmp_path / "requests"
    hospitals.nodes[1] |= {"oracle": "files", "oracle-dir": str(requests)}
    asked: list[list[str]] = []

    def handler(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        reply = hospitals.handler(message, context)
        if partition == 1 and (folders := list(requests.glob("cycle-*"))):
            (folder,) = folders
            if (folder / "labels.csv").exists():
                # What was said is taken in: nobody needs the folder any more, or so they think.
                shutil.rmtree(folder)
                return reply
            with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
                asked.append([row["original"] for row in csv.DictReader(file)])
            first, *others = asked[-1]
            lines = [(first, "skip"), *((name, hospitals.truth[name]) for name in others[:-1])]
            if len(asked) > 1:
                lines = [(name, hospitals.truth[name]) for name in asked[-1]]
            write_csv(folder / "labels.csv", ("file", "label"), lines)
        return reply

    outcome = simulation(SITES, handler=handler, cycles=1)
    assert asked[1:] == [asked[0][-1:]]
    assert outcome.metrics.cycles[0].labels_per_client[1] == len(asked[0]) - 1
    # All is answered, and the folder is gone again: nobody is asked once more.
    assert not list(requests.glob("cycle-*"))


@pytest.mark.slow
def test_the_home_of_a_site_is_found_for_its_state_as_well(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    hospitals.nodes[1] |= {"data": "~/data-1", "state-dir": "~/state-1"}
    simulation(SITES, handler=hospitals.handler, cycles=1)
    assert (tmp_path / "state-1" / "images.sqlite").is_file()
    assert len(list((tmp_path / "state-1").glob("*/1/labels.sqlite"))) == 1
    assert not (tmp_path / "~").exists()


@pytest.mark.slow
def test_labels_that_come_late_change_nothing_that_was_trained(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    """Site 1 is never answered, and then corrected from outside between two runs of a server."""
    requests = tmp_path / "requests"
    hospitals.nodes[1] |= {"oracle": "files", "oracle-dir": str(requests)}
    with pytest.raises(KeyboardInterrupt), _annotator(requests, hospitals.truth):
        simulation(
            SITES,
            handler=_interrupted(hospitals, "train", 4),
            **{"label-deadline": 600.0},
        )
    (folder,) = (tmp_path / "runs").iterdir()
    (path,) = (tmp_path / "state-1").glob("*/1/labels.sqlite")
    store = LabelStore.open_existing(path)
    before = store.labelled(1)
    store.correct({int(before.samples_N[0]): (int(before.labels_N[0]) + 1) % 10}, "a doctor")
    assert np.array_equal(store.labelled(1).labels_N, before.labels_N)
    assert not np.array_equal(store.labelled(2).labels_N[: len(before.labels_N)], before.labels_N)
    store.close()
    with _annotator(requests, hospitals.truth):
        resumed = simulation.resume(folder, hospitals.handler)
    assert resumed.metrics.cycles[1].labels_per_client[1] == len(before.samples_N)


def _interrupted(hospitals: Hospitals, kind: str, client_calls: int):
    """Stop the server, as Ctrl-C does, after so many calls of one kind of cycle 1."""
    calls = []

    def handler(message: Message, context: Context) -> Message:
        reply = hospitals.handler(message, context)
        is_cycle_1 = message.content.config_records["config"]["cycle"] == 1
        if message.metadata.message_type == kind and is_cycle_1:
            calls.append(1)
            if len(calls) == client_calls:
                raise KeyboardInterrupt
        return reply

    return handler


@pytest.mark.parametrize(
    ("change", "settings", "told", "logged"),
    [
        ({"data": None}, {}, "[settings] …: data;", "data: missing in --node-config"),
        ({"state-dir": None}, {}, "[settings] …: state-dir;", "state-dir: missing"),
        ({"truth": None}, {}, "[settings] …: oracle;", "only for a rehearsal"),
        ({"data": "/nowhere"}, {}, "[images] …;", "'/nowhere': no such folder"),
        ({"partition-id": None}, {}, "[settings] …: partition-id;", "partition-id: missing"),
        ({"partition-id": "1"}, {}, "[settings] …: partition-id;", "is an integer"),
        ({}, {"partition": "iid"}, "[settings] …: partition;", "nodes that have data"),
        ({"oracle": "phone"}, {}, "[settings] …: oracle;", "oracle='phone': allowed is"),
    ],
)
def test_sites_that_cannot_take_part_say_why(
    simulation: Simulation,
    hospitals: Hospitals,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, object],
    settings: dict[str, object],
    told: str,
    logged: str,
):
    """The server hears a code and the key of a setting; the site's own log has it all."""
    for node in hospitals.nodes:
        node |= change
        for key in [key for key, value in change.items() if value is None]:
            del node[key]

    def handler(request: Message, context: Context) -> Message:
        context.node_config = dict(hospitals.nodes[context.node_id - 1])  # type: ignore[arg-type]
        return client_app(request, context)

    with pytest.raises(QuorumNotReached) as raised:
        simulation(SITES | settings, handler=handler)
    code, _, end = told.partition("…")
    assert re.search(f"{re.escape(code)}[a-zA-Z' -]+{re.escape(end)}", str(raised.value))
    assert logged not in str(raised.value)
    assert logged in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"client-state": "memory"}, "allowed is 'disk' with partition='sites'"),
        ({"align": "true-global"}, "without partition='sites'"),
        ({"align-membership": "true"}, "without partition='sites'"),
        ({"classes": "0,1,2,0"}, "at least two different names"),
        ({"classes": "0,1,2"}, "and '3' is none of them"),
        ({"classes": "Skip," + ",".join(DIGITS)}, "classes='Skip': allowed is any name but 'skip'"),
    ],
)
def test_settings_that_do_not_fit_sites_are_refused(simulation: Simulation, settings, message):
    with pytest.raises(ConfigError, match=message):
        simulation(SITES | settings)


@pytest.mark.slow
def test_classes_and_size_of_the_run_are_those_of_all_sites(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    """An eleventh class that the server has no test images of, and images of another size."""
    outcome = simulation(
        SITES,
        handler=hospitals.handler,
        classes="ten," + ",".join(reversed(DIGITS)),
        cycles=1,
        **{"image-size": 12},
    )
    (cycle,) = outcome.metrics.cycles
    assert cycle.class_accuracy[0] is None
    assert None not in cycle.class_accuracy[1:]
    (path,) = (tmp_path / "state-2").glob("*/2/labels.sqlite")
    store = LabelStore.open_existing(path)
    assert store.class_names() == ("ten", *reversed(DIGITS))
    names, labelled = store.files(), store.labelled()
    store.close()
    for sample, label in zip(labelled.samples_N.tolist(), labelled.labels_N.tolist(), strict=True):
        assert DIGITS[10 - label] == hospitals.truth[names[sample]]


@pytest.mark.slow
def test_an_image_is_asked_for_while_the_pool_remembers_it(
    simulation: Simulation, hospitals: Hospitals
):
    outcome = simulation({**SITES, "pool-memory": 2}, handler=hospitals.handler)
    cycles = outcome.metrics.cycles
    told = [cycle.arrivals for cycle in cycles]
    # All images came at the start, and for the last purchase they are too old.
    assert [each.figures.arrived for each in told] == [360] * 3
    assert [each.figures.new for each in told] == [360, 0, 0]
    assert [each.figures.expired > 0 for each in told] == [False, False, True]
    assert told[2].figures.open == 0
    assert cycles[0].bought > 0
    assert cycles[1].bought == 0
    assert cycles[1].ledger.free > 0
    assert told[0].classes == ()
    assert told[0].tests is None
    assert "Arrivals" in (outcome.folder / "report.html").read_text()


def test_sites_draw_their_audits_and_test_themselves(simulation: Simulation, hospitals: Hospitals):
    more = {"audit-share": 0.3, "drift-test": "permutation", "drift-window": 1}
    outcome = simulation({**SITES, **more}, handler=hospitals.handler)
    cycles = outcome.metrics.cycles
    assert cycles[0].drift is None
    for cycle in cycles[1:]:
        assert cycle.drift is not None
        # Of 4, 6 and 8 labels of the smallest site 2, 2 and 3 are due of its audit.
        refusals = ["", "", "a window has no audit label"]
        assert [site.refusal for site in cycle.drift.sites] == refusals
        assert not cycle.drift.is_drift
    # The ten labels that site 2 has are not paid for.
    assert cycles[-1].ledger.spent == cycles[-1].labels - 10
    assert "Drift of the class mix" in (outcome.folder / "report.html").read_text()


@pytest.mark.slow
def test_an_audit_tells_people_no_guess(
    simulation: Simulation, hospitals: Hospitals, tmp_path: Path
):
    requests = tmp_path / "requests"
    hospitals.nodes[1] |= {"oracle": "files", "oracle-dir": str(requests)}
    with _annotator(requests, hospitals.truth) as labelled:
        settings = {**SITES, "audit-share": 0.3, "strategy": "margin"}
        simulation(settings, handler=hospitals.handler, cycles=2)
    told = []
    for folder in requests.glob("cycle-001-*"):
        with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        told.append((len(rows), {bool(row["score"]) for row in rows}))
        assert {bool(row["guess"]) for row in rows} == told[-1][1]
    # Of the 18 labels of this site 6 are due of its audit, of the 12 before 4.
    assert sorted(told) == [(2, {False}), (4, {True})]
    assert len(set(labelled)) == len(labelled) == 18
