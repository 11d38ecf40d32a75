"""Which image a name means: as it is written, as Unicode has it equal, as people vary it."""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

from ahfal_app.errors import ConfigError
from ahfal_app.labels.formulas import plain_file, plain_text, text_cell
from ahfal_app.parameters import SUGGESTION, suggestion

#: What is written in place of a class where nobody can tell.
SKIP = "skip"

# As many names are compared letter by letter, the most similar ones by their trigrams.
_COMPARED = 50


class SampleNames:
    r"""Sample ids by name.

    A name is looked up exactly, then by its normal form NFC (macOS writes accents apart), then
    without what people and systems add: spaces around it, `./` before it, `\` for `/`, and the
    apostrophes that keep a spreadsheet from taking it for a formula.

    Parameters
    ----------
    samples : Mapping[str, int]
        Sample id by name, under every name that is accepted for it.
    """

    def __init__(self, samples: Mapping[str, int]) -> None:
        self._samples = samples

    def find(self, name: str) -> frozenset[int]:
        """Return the samples that a name may mean: none, one, or several if it is ambiguous."""
        for form in _forms(name):
            if form in self._samples:
                return frozenset({self._samples[form]})
            if found := self._normal.get(_normal(form)):
                return frozenset(found)
        return frozenset()

    def near(self, name: str) -> str:
        """Return `; did you mean …?` for the most similar name, or nothing.

        Takes some milliseconds for each thousand names, so it is for few.
        """
        base = name.rsplit("/", 1)[-1]
        elsewhere = self._by_base.get(base, ())
        if len(elsewhere) == 1:
            return f"{SUGGESTION}{elsewhere[0]!r}?"
        wanted = _trigrams(name)
        likest = heapq.nlargest(
            _COMPARED, self._samples, key=lambda known: len(wanted & _trigrams(known))
        )
        return suggestion(name, likest)

    @cached_property
    def _normal(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for name, sample in self._samples.items():
            found.setdefault(_normal(name), set()).add(sample)
        return found

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._samples:
            found.setdefault(name.rsplit("/", 1)[-1], []).append(name)
        return found


class ClassNames:
    """Class indices by name as people type it: in any case, with spaces around it.

    Parameters
    ----------
    names : Iterable[str]
        The classes, by index.

    Raises
    ------
    ConfigError
        A name is what a file of labels has in place of a class, or what a spreadsheet's cell has in
        place of another.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        if reserved := [name for name in self._names if _folded(name) in (SKIP, "")]:
            raise ConfigError(
                [
                    f"classes={reserved[0]!r}: allowed is any name but {SKIP!r} and the empty one, "
                    "which files of labels have where nobody can tell, or has said anything"
                ]
            )
        mixed = [name for name in self._names if text_cell(name) in set(self._names) - {name}]
        if mixed:
            raise ConfigError(
                [
                    f"classes={mixed[0]!r}: allowed is no other class {text_cell(mixed[0])!r}, "
                    "since cells of spreadsheets say that for it"
                ]
            )
        self._exact = {name.strip(): index for index, name in enumerate(self._names)}
        self._looser = [_unique(self._names, form) for form in (_normal, _folded)]
        self._refusals: dict[str, str] = {}

    def index(self, text: str) -> int | None:
        """Return the class of this name, or None."""
        normal, folded = self._looser
        for form in (text, plain_text(text)):
            if form in self._exact:
                return self._exact[form]
            found = normal.get(_normal(form), folded.get(_folded(form)))
            if found is not None:
                return found
        return None

    def refusal(self, text: str, also: Iterable[str] = ()) -> str:
        """Say that there is no such class, and which may have been meant."""
        if text not in self._refusals:
            allowed = (*self._names, *also)
            # What many lines say is looked for once; of many different ones, the first few.
            near = suggestion(text, allowed) if len(self._refusals) < _COMPARED else ""
            shown = ", ".join(self._names[:20]) + (", …" if len(self._names) > 20 else "")
            named = ", ".join((shown, *also))
            self._refusals[text] = f"no class {text!r}{near}; allowed are {named}"
        return self._refusals[text]


def _forms(name: str) -> Iterator[str]:
    yield name
    yield plain_file(name)
    for form in (plain_text(name), plain_text(name.strip())):
        yield form
        yield form.replace("\\", "/").removeprefix("./")


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _normal(_normal(text.strip()).casefold())


def _unique(names: tuple[str, ...], form: Callable[[str], str]) -> dict[str, int]:
    """Return the classes by a form of their names, without those that share one."""
    forms = [form(name.strip()) for name in names]
    counts = Counter(forms)
    return {text: index for index, text in enumerate(forms) if counts[text] == 1}


def _trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}
