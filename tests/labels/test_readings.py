"""Several people read an image: what their readings decide, and how far they agree."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import fleiss_kappa as reference_fleiss_kappa

from ahfal_app.cli import main
from ahfal_app.labels.agreement import agreement, fleiss_kappa
from ahfal_app.labels.exchange import import_labels
from ahfal_app.labels.readings import (
    ADJUDICATOR,
    MAJORITY,
    RULES,
    Reading,
    Verdict,
    decide,
    disagree,
)
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.ledger import Ledger

PEOPLE = ("anna", "ben", "carl", "dora", "emil")


def readings(*labels: int | None, settled: int | None = None) -> list[Reading]:
    said = [Reading(person, label) for person, label in zip(PEOPLE, labels, strict=False)]
    return said if settled is None else [*said, Reading("prof", settled, decides=True)]


# --- the rules ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "readers", "rule", "wanted"),
    [
        ((1,), 1, MAJORITY, 1),
        ((1, 2), 1, MAJORITY, 1),
        ((None,), 1, ADJUDICATOR, None),
        ((1, 1), 2, MAJORITY, 1),
        ((1, 2), 2, MAJORITY, "open"),
        ((1, 2, 1), 3, MAJORITY, 1),
        ((1, 2, 0), 3, MAJORITY, "open"),
        ((1, 1), 3, MAJORITY, "wait"),
        ((1, 1, 2, 2), 4, MAJORITY, "open"),
        ((1, 1, 2, 0), 4, MAJORITY, "open"),
        ((1, 2, 2), 2, MAJORITY, 2),
        ((None, None, 1), 3, MAJORITY, None),
        ((None, 1), 2, MAJORITY, "open"),
        ((1, 1, 1), 3, ADJUDICATOR, 1),
        ((1, 1, 2), 3, ADJUDICATOR, "open"),
        ((None, None), 2, ADJUDICATOR, None),
        ((1, 1, 2), 2, ADJUDICATOR, "open"),
    ],
)
def test_what_readings_decide(labels, readers, rule, wanted):
    said = readings(*labels)
    verdict = decide(said, readers, rule)
    assert (verdict.label if verdict else "none") == (
        wanted if wanted not in ("open", "wait") else "none"
    )
    assert disagree(said, readers, rule) is (wanted == "open")


@pytest.mark.parametrize("rule_", RULES)
def test_somebody_else_settles_what_is_open(rule_: str):
    said = readings(1, 2, settled=0)
    assert decide(said, 2, rule_) == Verdict(0, ("prof",))
    assert not disagree(said, 2, rule_)


def test_a_verdict_names_those_who_say_so():
    assert decide(readings(1, 2, 1), 3, MAJORITY) == Verdict(1, ("anna", "carl"))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, 5))
def test_a_majority_is_more_than_half_and_unanimity_all(labels: list[int], readers: int):
    for rule_, needed in ((MAJORITY, len(labels) // 2 + 1), (ADJUDICATOR, len(labels))):
        verdict = decide(readings(*labels), readers, rule_)
        if readers == 1:
            assert verdict == Verdict(labels[0], ("anna",))
        elif len(labels) < readers:
            assert verdict is None
        else:
            votes = Counter(labels)
            winners = [label for label, count in votes.items() if count >= needed]
            assert (verdict.label if verdict else None) == (winners[0] if winners else None)


# --- the store ------------------------------------------------------------------------------


def opened(path: Path) -> LabelStore:
    return LabelStore.open_file(path / "labels.sqlite", np.arange(6), 3, grows=True)


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    store = opened(tmp_path)
    store.describe(("cat", "dog", "owl"), {i: f"{i}.png" for i in range(6)})
    store.allot(4)
    store.reserve(LabelRequest("r", 1, "margin", (0, 1, 2), readers=2))
    return store


def say(sample: int, who: str, label: int | None, hour: int = 10, **more: object) -> LabelReceipt:
    return LabelReceipt("r", sample, label, who, f"2026-01-02T{hour}:00:00.000Z", **more)  # type: ignore[arg-type]


def test_a_label_is_bought_once_all_have_read_it(store: LabelStore, tmp_path: Path):
    assert store.commit([say(0, "anna", 1)]) == 0
    assert store.ledger() == Ledger(4, 0, 3, 1)
    assert store.pending("r") == 3
    store.close()
    store = opened(tmp_path)  # It is known which request wants how many.
    assert store.commit([say(0, "anna", 1), say(0, "ben", 1, 11)]) == 1
    assert store.ledger() == Ledger(4, 1, 2, 1)
    (entry,) = [e for e in store.entries() if e.state == "labelled"]
    assert (entry.label, entry.annotator) == (1, "anna, ben")
    assert entry.answered == "2026-01-02T11:00:00.000Z"
    assert store.conflicts() == ()
    store.verify()


def test_a_disagreement_waits_for_somebody_else(store: LabelStore):
    assert store.commit([say(0, "anna", 1), say(0, "ben", 2)]) == 0
    assert store.ledger() == Ledger(4, 0, 3, 1)
    assert store.conflicts() == ()
    assert store.commit([say(0, "prof", 2, 12, decides=True, comment="biopsy")]) == 1
    assert store.ledger() == Ledger(4, 1, 2, 1)
    assert store.labelled().labels_N.tolist() == [2]
    assert store.conflicts() == ()
    assert [(e.what, e.annotator, e.label, e.stands) for e in store.history(0)] == [
        ("answer", "anna", 1, False),
        ("answer", "ben", 2, True),
        ("decision", "prof", 2, True),
    ]
    (entry,) = [e for e in store.entries() if e.state == "labelled"]
    assert (entry.annotator, entry.answered) == ("prof", "2026-01-02T12:00:00.000Z")
    # What comes after that is a contradiction, as of any label.
    store.commit([say(0, "emil", 0, 13)])
    assert [(c.annotator, c.label, c.standing_label) for c in store.conflicts()] == [("emil", 0, 2)]
    store.verify()


def test_a_reader_may_decide_as_well_as_read(store: LabelStore):
    """As where one of the two is the head of the department, and says so on purpose."""
    store.commit([say(0, "anna", 1), say(0, "ben", 2)])
    assert store.commit([say(0, "ben", 2, 12, decides=True)]) == 1
    assert store.labelled().labels_N.tolist() == [2]


def test_a_reader_who_changes_his_mind_before_it_is_decided(store: LabelStore):
    """The newest reading counts, however often an oracle tells the older ones again."""
    first, second = say(0, "anna", 1), say(0, "anna", 2, 11)
    for _ in range(2):
        store.commit([first, second])
        store.commit([first])
    assert store.commit([say(0, "ben", 2, 12)]) == 1
    assert [(e.what, e.annotator, e.label) for e in store.history(0)] == [
        ("answer", "anna", 1),
        ("answer", "anna", 2),
        ("taken back", "anna", 1),
        ("answer", "ben", 2),
    ]
    # Afterwards, it changes nothing, and is kept.
    store.commit([say(0, "anna", 0, 13)])
    assert store.labelled().labels_N.tolist() == [2]
    assert [(c.annotator, c.label) for c in store.conflicts()] == [("anna", 0)]
    store.verify()


def test_and_back_again(store: LabelStore):
    store.commit([say(0, "anna", 1, 10)])
    store.commit([say(0, "anna", 2, 11)])
    store.commit([say(0, "anna", 1, 12)])
    assert store.commit([say(0, "ben", 1, 13)]) == 1
    assert store.labelled().labels_N.tolist() == [1]


def test_nobody_can_tell_is_a_reading(store: LabelStore):
    store.commit([say(0, "anna", None), say(0, "ben", None), say(1, "anna", None)])
    assert store.ledger() == Ledger(4, 0, 2, 2)
    assert [e.state for e in store.entries()] == ["skipped", "reserved", "reserved"]
    # One who can tell does not outvote two who cannot.
    assert store.commit([say(0, "carl", 1, 12)]) == 0
    assert store.commit([say(0, "dora", 1, 13), say(0, "emil", 1, 14)]) == 1
    assert store.ledger() == Ledger(4, 1, 2, 1)
    store.verify()


def test_a_label_that_the_site_has_decides(store: LabelStore):
    store.commit([say(0, "anna", 1)])
    store.give({0: 2}, "labels.csv")
    assert store.labelled().labels_N.tolist() == [2]
    assert store.ledger() == Ledger(4, 1, 2, 1)


def test_the_rule_is_that_of_the_request(store: LabelStore):
    store.allot(9)
    strict = LabelRequest("s", 2, "margin", (4, 5), readers=3, rule=ADJUDICATOR)
    assert store.reserve(strict) == strict
    assert store.request("s") == strict
    receipts = [
        LabelReceipt("s", sample, label, who)
        for sample, labels in ((4, (1, 1, 2)), (5, (0, 0, 0)))
        for who, label in zip(PEOPLE, labels, strict=False)
    ]
    assert store.commit(receipts) == 1
    assert store.labelled().samples_N.tolist() == [5]


def test_readings_come_in_by_import_as_well(store: LabelStore, tmp_path: Path):
    store.close()
    source = tmp_path / "in.csv"
    source.write_text("file,label,annotator\n0.png,cat,anna\n0.png,cat,ben\n1.png,cat,anna\n")
    assert import_labels(tmp_path / "labels.sqlite", source, "x").labelled == 1


class ReadersMachine(RuleBasedStateMachine):
    """The store against the plain function, whatever comes in whatever order, and again."""

    @initialize(readers=st.integers(1, 3), rule_=st.sampled_from(RULES))
    def start(self, readers: int, rule_: str) -> None:
        self.store = LabelStore.from_bytes(b"", np.arange(4), 3)
        self.store.allot(4)
        self.request = self.store.reserve(
            LabelRequest("r", 0, "x", (0, 1, 2, 3), readers=readers, rule=rule_)
        )
        self.said: dict[int, list[Reading]] = {sample: [] for sample in range(4)}
        self.expected: dict[int, int | None] = {}
        self.clock = itertools.count(1)

    @rule(
        sample=st.integers(0, 3),
        who=st.sampled_from(PEOPLE),
        label=st.none() | st.integers(0, 2),
        decides=st.booleans(),
        again=st.booleans(),
    )
    def answer(self, sample: int, who: str, label: int | None, decides: bool, again: bool) -> None:
        if sample in self.expected or any(r.annotator == who for r in self.said[sample]):
            return  # What comes later is looked at by the tests above.
        given_ = f"2026-01-02T10:00:{next(self.clock) % 60:02d}.{next(self.clock):03d}Z"
        receipt = LabelReceipt("r", sample, label, who, given_, decides=decides)
        self.said[sample].append(Reading(who, label, decides))
        verdict = decide(self.said[sample], self.request.readers, self.request.rule)
        bought = self.store.commit([receipt] * (2 if again else 1))
        assert bought == (verdict is not None and verdict.label is not None)
        if verdict is not None:
            self.expected[sample] = verdict.label

    @rule()
    def crash_and_reopen(self) -> None:
        self.store = LabelStore.from_bytes(self.store.to_bytes(), np.arange(4), 3)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.verify()
        labelled = self.store.labelled()
        labels = {s: label for s, label in self.expected.items() if label is not None}
        assert (
            dict(zip(labelled.samples_N.tolist(), labelled.labels_N.tolist(), strict=True))
            == labels
        )
        ledger = self.store.ledger()
        skipped = len(self.expected) - len(labels)
        assert ledger == Ledger(4, len(labels), 4 - len(self.expected), skipped)
        assert self.store.conflicts() == ()


TestReadersMachine = ReadersMachine.TestCase
TestReadersMachine.settings = settings(max_examples=40)


# --- agreement ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_is_that_of_statsmodels(seed: int):
    rng = np.random.default_rng(seed)
    truth_N = rng.integers(0, 4, 50)
    noise_NR = rng.integers(0, 4, (50, 3))
    labels_NR = np.where(rng.random((50, 3)) < 0.6, truth_N[:, None], noise_NR)
    counts_NC, _ = aggregate_raters(labels_NR)
    wanted = reference_fleiss_kappa(counts_NC, method="fleiss")
    assert fleiss_kappa(counts_NC) == pytest.approx(wanted, abs=1e-12)
    found = agreement(
        {
            sample: [Reading(PEOPLE[i], int(label)) for i, label in enumerate(labels_R)]
            for sample, labels_R in enumerate(labels_NR)
        }
    )
    assert found.fleiss == pytest.approx(wanted, abs=1e-12)
    assert (found.readers, found.read, found.images) == (3, 50, 50)
    assert [(p.first, p.second, p.images) for p in found.pairs] == [
        (first, second, 50) for first, second in itertools.combinations(PEOPLE[:3], 2)
    ]
    assert found.pairs[0].kappa == pytest.approx(
        cohen_kappa_score(labels_NR[:, 0], labels_NR[:, 1]), abs=1e-12
    )
    assert found.pairs[0].agreed == int((labels_NR[:, 0] == labels_NR[:, 1]).sum())
    assert found.unanimous == int((labels_NR == labels_NR[:, :1]).all(axis=1).sum())


def test_a_worked_example_of_kappa():
    """Cohen 1960: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no; κ = 0.4."""
    cells = {(0, 0): 20, (0, 1): 5, (1, 0): 10, (1, 1): 15}
    pairs = [labels for labels, count in cells.items() for _ in range(count)]
    found = agreement({i: readings(*labels) for i, labels in enumerate(pairs)})
    assert found.pairs[0].kappa == pytest.approx(0.4)
    assert (found.pairs[0].agreed, found.unanimous) == (35, 35)


def test_decisions_and_lonely_readings_are_no_part_of_it():
    found = agreement(
        {
            0: readings(1, 2, settled=1),
            1: readings(1),
            2: readings(None, None),
            3: readings(0, 0, 0),
        }
    )
    assert (found.images, found.unanimous, found.settled) == (3, 2, 1)
    assert (found.readers, found.read) == (2, 2)
    assert {person for pair in found.pairs for person in (pair.first, pair.second)} == {
        "anna",
        "ben",
        "carl",
    }


def test_where_all_say_the_same_kappa_is_not_defined():
    found = agreement({0: readings(1, 1), 1: readings(1, 1)})
    assert (found.fleiss, found.pairs[0].kappa) == (None, None)
    assert agreement({}).fleiss is None


@pytest.mark.parametrize("counts", [[[1, 0]], [[2, 0], [1, 2]], []])
def test_fleiss_kappa_of_something_else_is_refused(counts: list[list[int]]):
    with pytest.raises(ValueError, match="equally many"):
        fleiss_kappa(np.array(counts, dtype=np.int64).reshape(-1, 2))


def test_the_command_tells_how_far_people_agree(
    store: LabelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for sample, labels in enumerate(((1, 1), (0, 2), (2, 2))):
        store.commit([say(sample, who, label) for who, label in zip(PEOPLE, labels, strict=False)])
    store.commit([say(1, "prof", 2, 12, decides=True)])
    store.close()
    with pytest.raises(SystemExit) as done:
        main(["labels", "agreement", str(tmp_path)])
    assert done.value.code == 0
    out = capsys.readouterr().out
    wanted = cohen_kappa_score([1, 0, 2], [1, 2, 2])
    assert "3 images were read by several people: 2 unanimously; 1 were settled" in " ".join(
        out.split()
    )
    assert re.search(rf"anna.*ben.*3.*2 \(66\.7 %\).*{wanted:.3f}", out)
