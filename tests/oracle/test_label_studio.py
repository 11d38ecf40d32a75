"""The oracle of Label Studio: its logic, and (slow) against a real server and a real browser."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import browser
from support.deployment import free_ports
from support.labelling import CLASSES, encoded, request
from support.studio import EMAIL, PASSWORD, TOKEN, annotate, api, installed_program, label_studio

from ahfal_app.errors import ConfigError, OracleError
from ahfal_app.labels.readings import Readers
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.ledger import Ledger
from ahfal_app.oracle import Oracle, Site, make_oracle, oracle_names
from ahfal_app.oracle.label_studio import LabelStudioOracle
from ahfal_app.oracle.label_studio.interface import (
    check_classes,
    labelling_interface,
    make_task,
    task_answers,
)


def site(folder: Path | None, **options: str) -> Site:
    return Site(0, CLASSES, {}, encoded, folder, options)


def annotation(number: int, *choices: str, skipped: bool = False, who: str = "anna") -> Any:
    result = [{"from_name": "class", "value": {"choices": list(choices)}}] if choices else []
    return {
        "id": number,
        "result": result,
        "was_cancelled": skipped,
        "created_username": f" {who}@example.invalid, 1",
        "completed_by": 1,
    }


# --- what tasks and annotations mean --------------------------------------------------------


def test_names_of_classes_survive_the_configuration():
    names = ("a & b", 'say "x"', "<c>", "ä")
    check_classes(labelling_interface(names), names)
    check_classes(labelling_interface(names[::-1]), names)


def test_changed_classes_are_named():
    interface = labelling_interface(("healthy", "benign", "cancer"))
    with pytest.raises(OracleError, match="missing: malignant; unknown: cancer;"):
        check_classes(interface, CLASSES)
    with pytest.raises(OracleError, match="missing: healthy, benign, malignant; unknown: none"):
        check_classes("<View/>", CLASSES)
    with pytest.raises(OracleError, match="labelling interface"):
        check_classes("<View", CLASSES)


def test_a_task_carries_ids_image_score_and_guess():
    asked = LabelRequest("r", 4, "entropy", (7, 3), (0.25, 0.5), (2, 0))
    task, _ = make_task(asked, 1, encoded(3), CLASSES)
    assert task["meta"] == {"request": "r", "sample": 3}
    data = task["data"]
    assert data["image"].startswith("data:image/png;base64,")
    assert (data["request"], data["acquisition_score"], data["position"]) == ("r", 0.5, 2)
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.5
    assert prediction["result"][0]["value"] == {"choices": ["healthy"]}
    task, _ = make_task(LabelRequest("r", 0, "random", (7,)), 0, encoded(7), CLASSES)
    assert "predictions" not in task
    assert "acquisition_score" not in task["data"]


@pytest.mark.parametrize(
    ("annotations", "answers", "problems"),
    [
        ([], [], 0),
        ([annotation(1, "benign")], [1], 0),
        ([annotation(2, "healthy"), annotation(1, "benign")], [1, 0], 0),
        ([annotation(1, skipped=True)], [None], 0),
        ([annotation(1, "benign", skipped=True)], [None], 0),
        ([annotation(1, skipped=True), annotation(2, "malignant")], [2], 0),
        ([annotation(1, "unheard-of")], [], 1),
        ([annotation(1), annotation(2, "healthy", "benign")], [], 2),
        ([annotation(1, "unheard-of"), annotation(2, "benign")], [1], 1),
    ],
)
def test_what_annotations_say(annotations: list[Any], answers: list[int | None], problems: int):
    found, wrong = task_answers({"id": 5, "annotations": annotations}, CLASSES)
    assert found == [(label, "anna@example.invalid") for label in answers]
    assert len(wrong) == problems


# --- the oracle, with a server that is a list -----------------------------------------------


@dataclass
class FakeServer:
    """Does what the real one does, and fails when told to."""

    url: str = "http://fake"
    projects: dict[int, tuple[str, str]] = field(default_factory=dict)
    stored: list[dict[str, Any]] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def project_address(self, project: int) -> str:
        return f"{self.url}/projects/{project}"

    def check(self) -> None:
        self._fail("check")

    def find_project(self, title: str, mark: str) -> tuple[int, str] | None:
        self._fail("find")
        found = [(p, interface) for p, (m, interface) in self.projects.items() if m == mark]
        return found[0] if found else None

    def make_project(self, title: str, mark: str, interface: str) -> int:
        self._fail("make")
        number = next(self.numbers)
        self.projects[number] = (mark, interface)
        self._fail("made")
        return number

    def import_tasks(self, project: int, tasks: Sequence[dict[str, Any]]) -> None:
        self._fail("import")
        self.stored += [
            {"id": next(self.numbers), "meta": task["meta"], "annotations": []} for task in tasks
        ]
        self._fail("imported")

    def samples(self, project: int, request_id: str) -> set[int]:
        return {task["meta"]["sample"] for task in self.annotated(project, request_id)}

    def annotated(self, project: int, request_id: str) -> list[dict[str, Any]]:
        return [task for task in self.stored if task["meta"]["request"] == request_id]

    def delete_tasks(self, project: int, samples: Collection[int]) -> None:
        self._fail("delete")
        self.stored = [task for task in self.stored if task["meta"]["sample"] not in samples]

    def _fail(self, where: str) -> None:
        if where in self.fails:
            raise OracleError(f"away at {where}")


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def oracle(server: FakeServer, tmp_path: Path) -> LabelStudioOracle:
    return LabelStudioOracle(site(tmp_path), tmp_path, server)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["find", "make", "made", "import", "imported"])
def test_wherever_it_fails_the_next_try_completes_it_once(
    server: FakeServer, oracle: LabelStudioOracle, tmp_path: Path, where: str
):
    server.fails = {where}
    with pytest.raises(OracleError, match=where):
        oracle.submit(request(7, 3, 9))
    server.fails = set()
    again = LabelStudioOracle(site(tmp_path), tmp_path, server)  # type: ignore[arg-type]
    for _ in range(2):
        again.submit(request(7, 3, 9))
    assert len(server.projects) == 1
    assert [task["meta"]["sample"] for task in server.stored] == [7, 3, 9]


def test_what_is_missing_is_imported(
    server: FakeServer, oracle: LabelStudioOracle, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ahfal_app.oracle.label_studio._IMPORT_BYTES", 1)
    oracle.submit(request(7, 3, 9))
    del server.stored[1]
    oracle.submit(request(7, 3, 9))
    assert [task["meta"]["sample"] for task in server.stored] == [7, 9, 3]


def test_receipts_of_people_who_disagree(server: FakeServer, oracle: LabelStudioOracle):
    assert oracle.collect("request1") == []
    oracle.submit(request(7, 3, 9))
    assert oracle.collect("request1") == []
    server.stored[0]["annotations"] = [annotation(2, "healthy", who="ben"), annotation(1, "benign")]
    server.stored[2]["annotations"] = [annotation(3, skipped=True)]
    expected = [
        LabelReceipt("request1", 7, 1, "anna@example.invalid"),
        LabelReceipt("request1", 7, 0, "ben@example.invalid"),
        LabelReceipt("request1", 9, None, "anna@example.invalid"),
    ]
    assert oracle.collect("request1") == expected
    assert oracle.collect("request1") == expected


def test_a_class_that_does_not_exist_is_told_and_holds_nothing_up(
    server: FakeServer, oracle: LabelStudioOracle, caplog: pytest.LogCaptureFixture
):
    oracle.submit(request(7, 3))
    server.stored[0]["annotations"] = [annotation(1, "unheard-of")]
    server.stored[1]["annotations"] = [annotation(2, "benign")]
    assert [receipt.sample for receipt in oracle.collect("request1")] == [3]
    assert "'unheard-of'" in caplog.text


def test_several_readers_and_who_settles_in_label_studio(server: FakeServer, tmp_path: Path):
    """A skip is a reading, and what is marked as the ground truth settles."""
    of_two = replace(site(tmp_path), readers=Readers(2))
    oracle = LabelStudioOracle(of_two, tmp_path, server)  # type: ignore[arg-type]
    asked = request(7, 3, 9, readers=2)
    store = LabelStore.from_bytes(b"", np.arange(10), len(CLASSES))
    store.allot(4)
    oracle.submit(store.reserve(asked))

    def take_in() -> Ledger:
        for _ in range(2):
            store.commit(oracle.collect("request1"))
        store.verify()
        return store.ledger()

    server.stored[0]["annotations"] = [annotation(1, "benign")]
    server.stored[1]["annotations"] = [annotation(2, "healthy"), annotation(3, "benign", who="ben")]
    server.stored[2]["annotations"] = [
        annotation(4, "benign"),
        annotation(5, skipped=True, who="ben"),
    ]
    assert take_in() == Ledger(4, 0, 3, 1)
    server.stored[0]["annotations"].append(annotation(6, "benign", who="ben"))
    assert take_in() == Ledger(4, 1, 2, 1)
    # One of the readers' own annotations is marked, or that of somebody else.
    server.stored[1]["annotations"][1]["ground_truth"] = True
    assert take_in() == Ledger(4, 2, 1, 1)
    server.stored[2]["annotations"].append(
        annotation(7, "malignant", who="prof") | {"ground_truth": True}
    )
    assert take_in() == Ledger(4, 3, 0, 1)
    assert store.labelled().labels_N.tolist() == [1, 1, 2]
    assert [(e.what, e.annotator, e.label) for e in store.history(9)] == [
        ("answer", "anna@example.invalid", 1),
        ("skip", "ben@example.invalid", None),
        ("decision", "prof@example.invalid", 2),
    ]
    assert store.conflicts() == ()


def test_tasks_of_images_that_are_gone_are_deleted(server: FakeServer, oracle: LabelStudioOracle):
    oracle.withdraw([7])  # Before there is a project, there is nothing to do.
    assert server.projects == {}
    oracle.submit(request(7, 3, 9))
    server.fails = {"delete"}
    with pytest.raises(OracleError, match="away at delete"):
        oracle.withdraw([3, 100])
    server.fails = set()
    oracle.withdraw([3, 100])
    assert [task["meta"]["sample"] for task in server.stored] == [7, 9]


def test_an_annotation_was_given_when_it_was_last_edited(
    server: FakeServer, oracle: LabelStudioOracle
):
    oracle.submit(request(7, 3, 9))
    made, edited = "2026-01-02T10:00:00.123456Z", "2026-01-02T13:00:00+02:00"
    server.stored[0]["annotations"] = [
        annotation(1, "benign") | {"created_at": made, "updated_at": edited}
    ]
    server.stored[1]["annotations"] = [annotation(2, skipped=True) | {"created_at": made}]
    server.stored[2]["annotations"] = [annotation(3, "benign")]
    assert [receipt.given for receipt in oracle.collect("request1")] == [
        "2026-01-02T11:00:00.000Z",
        "2026-01-02T10:00:00.123Z",
        None,
    ]


def test_a_deleted_project_is_told(server: FakeServer, oracle: LabelStudioOracle, tmp_path: Path):
    oracle.submit(request(7))
    server.projects.clear()
    for act in (lambda: oracle.submit(request(7)), lambda: oracle.collect("request1")):
        with pytest.raises(OracleError, match=r"is gone from http://fake: .*label-studio\.json"):
            act()
    assert server.projects == {}
    server.stored.clear()
    (tmp_path / "label-studio.json").unlink()
    oracle.submit(request(7))
    assert len(server.projects) == len(server.stored) == 1


# --- settings -------------------------------------------------------------------------------


def test_a_look_changes_nothing_and_tells_what_is_wrong(
    server: FakeServer, oracle: LabelStudioOracle, tmp_path: Path
):
    assert "without TLS" in oracle.check()
    assert list(tmp_path.iterdir()) == []
    assert server.projects == {}
    server.url = "https://fake"
    oracle.submit(request(7))
    assert oracle.check() == ""
    server.fails = {"check"}
    with pytest.raises(OracleError, match="away at check"):
        oracle.check()
    server.fails = set()
    server.projects.clear()
    with pytest.raises(OracleError, match="is gone from"):
        oracle.check()
    assert server.projects == {}


def test_a_look_does_not_make_a_project_that_was_about_to_be_made(
    server: FakeServer, oracle: LabelStudioOracle
):
    server.fails = {"make"}
    with pytest.raises(OracleError, match="away at make"):
        oracle.submit(request(7))
    server.fails = set()
    oracle.check()
    assert server.projects == {}


@pytest.mark.parametrize("address", ["https://studio.example.org", "http://127.0.0.1:8080"])
def test_addresses_that_nobody_listens_to(
    server: FakeServer, oracle: LabelStudioOracle, address: str
):
    server.url = address
    assert oracle.check() == ""


def test_it_has_a_name():
    assert {"label-studio", "page"} <= set(oracle_names())


def test_all_that_is_wrong_is_named_without_the_token(tmp_path: Path):
    two = tmp_path / "token"
    two.write_text("secret words")
    with pytest.raises(ConfigError) as caught:
        make_oracle(
            "label-studio", site(None, **{"oracle-url": "x", "oracle-token-file": str(two)})
        )
    assert len(caught.value.problems) == 3
    assert "oracle-url='x'" in str(caught.value)
    assert str(two) in str(caught.value)
    assert "secret" not in str(caught.value).replace(str(two), "")


def test_a_missing_sdk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "label_studio_sdk", None)
    with pytest.raises(ConfigError, match="uv sync --extra label-studio"):
        make_oracle("label-studio", site(tmp_path, **options(tmp_path, "http://127.0.0.1:1")))


def options(folder: Path, url: str, token: str = TOKEN) -> dict[str, str]:
    path = folder / f"token-{len(token)}-{token[:4]}"
    path.write_text(f"{token}\n")
    return {"oracle-url": url, "oracle-token-file": str(path)}


# --- against a real server ------------------------------------------------------------------


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server, and give its address."""
    pytest.importorskip("label_studio_sdk", reason="the extra label-studio is not installed")
    program = installed_program()
    if program is None:
        pytest.skip("AHFAL_LABEL_STUDIO names no label-studio program")
    with label_studio(tmp_path_factory.mktemp("studio"), program) as url:
        yield url


def real(folder: Path, url: str, token: str = TOKEN) -> Oracle:
    return make_oracle("label-studio", site(folder, **options(folder, url, token)))


def project_of(oracle: Oracle) -> int:
    assert isinstance(oracle, LabelStudioOracle)
    return oracle._project()


def tasks_of(oracle: Oracle, request_id: str) -> list[dict[str, Any]]:
    assert isinstance(oracle, LabelStudioOracle)
    return oracle._connection._tasks(project_of(oracle), request_id, include="id,meta")


@pytest.mark.slow
def test_real_tasks_are_imported_once_and_collected(studio: str, tmp_path: Path):
    oracle = real(tmp_path, studio)
    assert oracle.collect("request1") == []
    oracle.submit(request(7, 3, 9))
    oracle.submit(request(1, cycle=2))
    tasks = tasks_of(oracle, "request1")
    with api(studio) as client:
        client.tasks.delete(tasks[1]["id"])  # As if the import had been killed half-way.
    again = real(tmp_path, studio)
    again.submit(request(7, 3, 9))
    again.submit(request(7, 3, 9))
    tasks = tasks_of(again, "request1")
    assert sorted(task["meta"]["sample"] for task in tasks) == [3, 7, 9]
    ids = {task["meta"]["sample"]: task["id"] for task in tasks}
    with api(studio) as client:
        annotate(client, ids[7], "benign")
        annotate(client, ids[7], "healthy")
        annotate(client, ids[3], skipped=True)
        annotate(client, ids[9], "unheard-of")
    found = [(r.sample, r.label) for r in again.collect("request1")]
    assert sorted(found, key=lambda pair: pair[0]) == [(3, None), (7, 1), (7, 0)]
    assert {r.annotator for r in again.collect("request1")} == {EMAIL}
    assert all(receipt.given for receipt in again.collect("request1"))
    assert again.collect("request2") == []
    again.withdraw([7, 1])
    assert sorted(t["meta"]["sample"] for t in tasks_of(again, "request1")) == [3, 9]
    assert tasks_of(again, "request2") == []


@pytest.mark.slow
def test_two_real_processes_import_nothing_twice(studio: str, tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = ['tests'];"
        "from test_label_studio import real, request;"
        f"real(Path({str(tmp_path)!r}), {studio!r}).submit(request(*range(20)))"
    )
    options(tmp_path, studio)
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    tasks = tasks_of(real(tmp_path, studio), "request1")
    assert sorted(task["meta"]["sample"] for task in tasks) == list(range(20))


@pytest.mark.slow
def test_what_goes_wrong_with_a_real_server_is_named(studio: str, tmp_path: Path):
    oracle = real(tmp_path, studio)
    assert oracle.check() == ""
    oracle.submit(request(7))
    assert oracle.check() == ""
    wrong = "f" * 40
    for use in (lambda oracle: oracle.check(), lambda oracle: oracle.submit(request(7))):
        with pytest.raises(OracleError, match=r"status 401.*the token is wrong") as caught:
            use(real(tmp_path, studio, wrong))
        assert wrong not in str(caught.value)
    with pytest.raises(OracleError, match="cannot be reached"):
        real(tmp_path, f"http://127.0.0.1:{free_ports(1)[0]}").collect("request1")
    project = project_of(oracle)
    changed = labelling_interface(("healthy", "benign", "cancer"))
    with api(studio) as client:
        client.projects.update(project, label_config=changed)
    with pytest.raises(OracleError, match="missing: malignant; unknown: cancer"):
        oracle.collect("request1")
    with api(studio) as client:
        client.projects.update(project, label_config=labelling_interface(CLASSES))
    assert oracle.collect("request1") == []
    with api(studio) as client:
        client.projects.delete(project)
    with pytest.raises(OracleError, match="is gone from"):
        oracle.submit(request(7))


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on the path")
def test_a_person_labels_in_label_studio(studio: str, tmp_path: Path):
    from support.devtools import chromium, wait_for

    oracle = real(tmp_path, studio)
    oracle.submit(request(7, 3, 9))
    project = project_of(oracle)

    def answers() -> list[tuple[int, int | None]]:
        return [(receipt.sample, receipt.label) for receipt in oracle.collect("request1")]

    with chromium(tmp_path) as started, started.tab() as tab:
        tab.resize(1280)
        tab.open(f"{studio}/user/login/")
        tab.click("input[name=email]")
        tab.write(EMAIL)
        tab.click("input[name=password]")
        tab.write(PASSWORD)
        tab.press("Enter")
        tab.wait("!location.pathname.includes('login') && document.readyState === 'complete'")
        tab.open(f"{studio}/projects/{project}/data?labeling=1")
        checked = "document.querySelector('.lsf-choices input:checked')?.name"
        # The model's guess is chosen already: the first is accepted, the second is corrected.
        tab.wait(f"{checked} === 'malignant'")
        tab.wait("[...document.images].some((i) => i.naturalWidth === 48)")
        tab.click("button[aria-label='Submit current annotation']")
        wait_for(lambda: len(answers()) == 1, "the first answer")
        tab.wait(f"{checked} === 'malignant'")
        tab.click(".lsf-choices input[name=benign]")
        tab.wait(f"{checked} === 'benign'")
        tab.click("button[aria-label='Submit current annotation']")
        wait_for(lambda: len(answers()) == 2, "the second answer")
        tab.wait(f"{checked} === 'malignant'")
        tab.click("button[aria-label=skip-task]")
        wait_for(lambda: len(answers()) == 3, "the third answer")
        assert {url.split("/")[2] for url in tab.urls if url.startswith("http")} == {
            studio.split("/")[2]
        }
    assert sorted(label is None for _, label in answers()) == [False, False, True]
    assert {label for _, label in answers()} == {CLASSES.index("malignant"), 1, None}
    assert {sample for sample, _ in answers()} == {7, 3, 9}
