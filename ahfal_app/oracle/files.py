"""The oracle of files: a folder for each request, answered by CSV files that people put there.

An answer file is applied whole or not at all. Names of classes and files are checked line by
line, and what cannot be used is told in `errors.csv`, in the same folder.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import mimetypes
import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ahfal_app.errors import ConfigError, OracleError
from ahfal_app.labels.disagreements import list_disagreements
from ahfal_app.labels.names import SKIP, ClassNames
from ahfal_app.labels.readings import ADJUDICATOR, MAJORITY, Readers
from ahfal_app.labels.spreadsheet import (
    LineProblem,
    read_csv,
    read_label_lines,
    saved,
    suggested,
    write_csv,
)
from ahfal_app.labels.store import LabelReceipt, LabelRequest
from ahfal_app.oracle import EncodedImage, Oracle, Site, check_folder
from ahfal_app.storage.files import new_folder, remove_parts

#: Who labels, where an answer file does not say.
ANNOTATOR = "files"

_COLUMNS = ("file", "label", "unsure", "comment", "guess", "score", "position", "original")
#: A column more, where some image has an address.
_LINK = "link"

_IMAGES = "images"
_REQUEST = "request.csv"
_INDEX = "request.json"
_ERRORS = "errors.csv"
_LOOKS = ".looks.json"
_DISAGREEMENTS = "disagreements.csv"
_ANSWERS = re.compile(r"(?P<kind>labels|decisions)(?:-(?P<annotator>.+))?\.csv", re.IGNORECASE)
_DECISIONS = "decisions"

# What spreadsheets, browsers and editors make of that name: `labels (1).csv`, `labels.xlsx`.
_MAY_BE_ANSWERS = re.compile(
    r"(?!~\$)(?!(?:labels|decisions)(-.+)?\.csv$)(?:(?:labels|decisions).*(?<!~)|[^.].*\.(?:csv|tsv|xlsx?|xlsm|ods|numbers))",
    re.IGNORECASE,
)
_OWN_FILES = frozenset({_REQUEST, _INDEX, _ERRORS, _DISAGREEMENTS})
_SAVE_AS = "save it as labels.csv or labels-NAME.csv (CSV UTF-8)"
_SAVE_DECISIONS_AS = "save it as decisions.csv or decisions-NAME.csv (CSV UTF-8)"

_ID_LETTERS = 12
_LONGEST_STEM = 80

# A spreadsheet may still be writing a file that is younger than this. By another machine's clock
# it may be from the future: then it must be as it was at the look before.
_SETTLED_S = 2.0

_README = """\
{count} images are to be labelled, for cycle {cycle}.

1. Open {request} in a spreadsheet. Each line is one image in the folder {images}.
2. Write the class into the column `label`. The classes are:

{classes}

   Write `{skip}` where nobody can tell: that image is not asked for again.
   Leave `label` empty for what you have not looked at yet.
   Write `yes` into `unsure` where you are, and into `comment` what else is to be kept.
3. Save it in this folder as labels.csv (CSV, UTF-8; commas, semicolons or tabs).

Save again whenever you have done more; nothing needs to be in order, and lines may be repeated.
If several people label, each saves a file of their own: labels-NAME.csv. {readers}

A file with a mistake in any line is not used at all until it is corrected, and one of another
name is not read: look at errors.csv, which appears in this folder and goes away again. `guess` is
what the model takes the image for, and may well be wrong; `score` is how much the model wants this
image to be labelled.
"""

_ONE_READER = """The first answer for an
image stands; others are kept."""

_SEVERAL_READERS = """Each image is to
be labelled by {count} people, who do not look at what the others say; {rule} stands.
What that leaves open is listed in disagreements.csv, which goes away when nothing is: somebody who
has not labelled these images opens it, writes the class that stands into the column `label`, and
saves it as decisions-NAME.csv."""

_RULES = {
    MAJORITY: "the class that more than half of them name",
    ADJUDICATOR: "only what all of them say",
}

_log = logging.getLogger(__name__)


class FilesOracle(Oracle):
    """Writes requests as folders and reads answers from CSV files.

    Parameters
    ----------
    site : Site
        Whom it labels for.
    folder : Path
        The folder for the requests' folders.

    Raises
    ------
    ConfigError
        A class has a name that means something else here.
    """

    def __init__(self, site: Site, folder: Path) -> None:
        self._site = site
        self._folder = folder
        self._classes = ClassNames(site.class_names)

    def submit(self, request: LabelRequest) -> None:
        """Write the request's folder, unless it is there.

        Raises
        ------
        OracleError
            It cannot be written.
        """
        if self._find(request.request_id) is not None:
            return
        name = f"cycle-{request.cycle:03d}-{request.request_id[:_ID_LETTERS]}"
        try:
            remove_parts(self._folder / name)
            with new_folder(self._folder / name) as part:
                self._write(request, part)
        except OSError as error:
            raise OracleError(
                f"request {name}: cannot be written to {self._folder}: {error}"
            ) from error

    def collect(self, request_id: str) -> list[LabelReceipt]:
        """Return the answers of all files that are free of mistakes, and tell of the others.

        Raises
        ------
        OracleError
            The request's folder cannot be read.
        """
        folder = self._find(request_id)
        if folder is None:
            return []
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            samples = index["samples"]
            receipts, problems = self._answers(folder, samples, request_id)
            readers = Readers(index.get("readers", 1), index.get("rule", MAJORITY))
            names = {sample: name for name, sample in samples.items() if "/" not in name}
            list_disagreements(
                folder / _DISAGREEMENTS, receipts, readers, names, self._site.class_names
            )
            self._tell(folder, problems | self._not_read(folder, samples, receipts))
        except (OSError, ValueError, KeyError) as error:
            raise OracleError(f"{folder}: cannot be read: {error!r}") from error
        return receipts

    def withdraw(self, samples: Collection[int]) -> None:
        """Delete the copies of images that the site no longer has, and their lines in requests.

        What people have written of them stays as it is.

        Raises
        ------
        OracleError
            A request's folder cannot be read or written.
        """
        for folder in sorted(self._folder.glob("cycle-*")):
            try:
                self._withdraw(folder, samples)
            except (OSError, ValueError, KeyError) as error:
                raise OracleError(f"{folder}: images cannot be withdrawn: {error!r}") from error

    def check(self) -> str:
        """See whether requests can be written.

        Raises
        ------
        OracleError
            They cannot.
        """
        check_folder(self._folder)
        return ""

    def _withdraw(self, folder: Path, samples: Collection[int]) -> None:
        named = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["samples"]
        gone = {name for name, sample in named.items() if sample in samples}
        for name in gone:
            if "/" not in name:
                (folder / _IMAGES / name).unlink(missing_ok=True)
        try:
            header, *rows = read_csv(folder / _REQUEST)
        except (FileNotFoundError, ValueError, csv.Error):
            return  # What a spreadsheet has made something else of is no longer ours.
        left = [row for row in rows if row and row[0] not in gone]
        if header in (list(_COLUMNS), [*_COLUMNS, _LINK]) and len(left) < len(rows):
            write_csv(folder / _REQUEST, header, left)

    def _find(self, request_id: str) -> Path | None:
        return next(self._folder.glob(f"cycle-*-{request_id[:_ID_LETTERS]}"), None)

    def _write(self, request: LabelRequest, folder: Path) -> None:
        (folder / _IMAGES).mkdir()
        digits = len(str(len(request.samples)))
        samples: dict[str, int] = {}
        originals: dict[str, int] = {}
        rows: list[tuple[object, ...]] = []
        for position, sample in enumerate(request.samples, start=1):
            image = self._site.image(sample)
            name = f"{position:0{digits}d}-{_file_name(image)}"
            (folder / _IMAGES / name).write_bytes(image.content)
            samples |= {name: sample, f"{_IMAGES}/{name}": sample}
            originals[image.name] = sample
            guess = self._site.class_names[request.guesses[position - 1]] if request.guesses else ""
            score = f"{request.scores[position - 1]:.6g}" if request.scores else ""
            rows.append((name, "", "", "", guess, score, position, image.name, image.link))
        columns = (*_COLUMNS, _LINK) if any(row[-1] for row in rows) else _COLUMNS
        write_csv(folder / _REQUEST, columns, [row[: len(columns)] for row in rows])
        # People also write what the site calls an image, unless another one has that name here.
        samples = originals | samples
        index = {
            "request": request.request_id,
            "cycle": request.cycle,
            "readers": request.readers,
            "rule": request.rule,
            "samples": samples,
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        text = _README.format(
            count=len(request.samples),
            cycle=request.cycle,
            request=_REQUEST,
            images=_IMAGES,
            classes="\n".join(f"   - {name}" for name in self._site.class_names),
            skip=SKIP,
            readers=_ONE_READER
            if request.readers == 1
            else _SEVERAL_READERS.format(count=request.readers, rule=_RULES[request.rule]),
        )
        (folder / "README.txt").write_text(text, encoding="utf-8")

    def _answers(
        self, folder: Path, samples: dict[str, int], request_id: str
    ) -> tuple[list[LabelReceipt], dict[str, list[LineProblem]]]:
        receipts: list[LabelReceipt] = []
        problems: dict[str, list[LineProblem]] = {}
        for path, annotator, decides in _settled_answers(folder):
            lines, wrong = read_label_lines(path.read_bytes(), self._classes, samples, annotator)
            if wrong:
                problems[path.name] = suggested(wrong, samples)
            else:
                given = saved(path)
                receipts += [
                    LabelReceipt(
                        request_id,
                        line.sample,
                        line.label,
                        line.annotator,
                        given,
                        decides=decides,
                        unsure=line.unsure,
                        comment=line.comment,
                    )
                    for line in lines
                ]
        return receipts, problems

    def _not_read(
        self, folder: Path, samples: dict[str, int], receipts: Sequence[LabelReceipt]
    ) -> dict[str, list[LineProblem]]:
        """Return files that people may take for answers, though none of their names is one's."""
        found = {
            name: [LineProblem(0, "", f"is not read; {_SAVE_AS}")]
            for name in sorted(path.name for path in folder.iterdir() if path.is_file())
            if _MAY_BE_ANSWERS.fullmatch(name) and name not in _OWN_FILES
        }
        answered = {receipt.sample for receipt in receipts}
        settled = {receipt.sample for receipt in receipts if receipt.decides}
        for name, known, save_as in (
            (_REQUEST, answered, _SAVE_AS),
            (_DISAGREEMENTS, settled, _SAVE_DECISIONS_AS),
        ):
            content = (folder / name).read_bytes() if (folder / name).is_file() else b""
            lines, _ = read_label_lines(content, self._classes, samples, ANNOTATOR)
            if new := [line for line in lines if line.sample not in known]:
                reason = f"{len(new)} labels are here, which are not read; {save_as}"
                found[name] = [LineProblem(new[0].number, "", reason)]
        return found

    def _tell(self, folder: Path, problems: dict[str, list[LineProblem]]) -> None:
        if not problems:
            (folder / _ERRORS).unlink(missing_ok=True)
            return
        rows = [(name, p.line, p.text, p.reason) for name in problems for p in problems[name]]
        write_csv(folder / _ERRORS, ("answers", "line", "text", "reason"), rows)
        _log.warning(
            "%s: %s not used; see %s",
            folder,
            ", ".join(problems),
            _ERRORS,
        )


def _settled_answers(folder: Path) -> list[tuple[Path, str, bool]]:
    """Return the files of answers that nobody is writing any more.

    With each stands who has written it, and whether it settles what readers disagree on.
    """
    answers = {path: match for path in folder.iterdir() if (match := _ANSWERS.fullmatch(path.name))}
    before = _looks(folder)
    looks, settled = {}, []
    for path, match in sorted(answers.items()):
        status = path.stat()
        look = [status.st_size, status.st_mtime_ns]
        looks[path.name] = look
        age = time.time() - status.st_mtime
        if age >= _SETTLED_S or (age < 0 and before.get(path.name) == look):
            decides = match["kind"].lower() == _DECISIONS
            settled.append(
                (path, match["annotator"] or (_DECISIONS if decides else ANNOTATOR), decides)
            )
    if looks != before:
        # Where it cannot be written, files from the future wait until their time has come.
        with contextlib.suppress(OSError):
            (folder / _LOOKS).write_text(json.dumps(looks), encoding="utf-8")
    return settled


def _looks(folder: Path) -> dict[str, object]:
    """Return size and time of each file of answers at the look before; empty if nobody knows."""
    try:
        found = json.loads((folder / _LOOKS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _file_name(image: EncodedImage) -> str:
    """Return a file name that every system takes and opens, for what a site calls an image."""
    path = Path(re.sub(r"[^\w.-]+", "_", image.name.replace("/", "__")))
    if path.suffix.lower() in Image.registered_extensions():
        return path.stem[-_LONGEST_STEM:].lstrip(".") + path.suffix
    # Such as a row of a parquet file.
    return path.name[-_LONGEST_STEM:].lstrip(".") + _suffix(image.content)


def _suffix(content: bytes) -> str:
    """Return the file extension of an image's format, or nothing where it has none."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            # A JPEG with a preview behind it, which every viewer opens as a JPEG.
            kind = "image/jpeg" if image.format == "MPO" else image.get_format_mimetype()
            return mimetypes.guess_extension(kind or "") or ""
    except (UnidentifiedImageError, OSError):
        return ""


def make(site: Site) -> FilesOracle:
    """Return an oracle of files.

    Raises
    ------
    ConfigError
        There is no folder for it.
    """
    if site.folder is None:
        raise ConfigError(
            [
                "oracle='files': allowed only with a folder: client-state='disk', or oracle-dir "
                "in --node-config"
            ]
        )
    return FilesOracle(site, site.folder)
