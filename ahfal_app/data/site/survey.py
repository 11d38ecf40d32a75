"""Which images of a site can be used, and why the others cannot."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ahfal_app.data.cache import Entry
from ahfal_app.data.site.files import SiteImage
from ahfal_app.data.site.index import Known
from ahfal_app.errors import StoreError
from ahfal_app.labels.store import STORE_FILE, LabelStore

_GONE = "gone; labels that it has are kept, and it is not trained on"
_CHANGED = "not what it was when a label was asked or given for it; another one needs another name"


@dataclass
class Survey:
    """What of a site's images can be used.

    Attributes
    ----------
    usable : dict[int, SiteImage]
        The images by id.
    samples : dict[str, int]
        Id by name, of duplicates that of the image that is used.
    problems : dict[str, str]
        Why others cannot be used, by name.
    new_digests : dict[int, bytes]
        Digests by id that are to be kept, of images that are usable for the first time, or that
        changed while nobody had been asked for them.
    """

    usable: dict[int, SiteImage] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    new_digests: dict[int, bytes] = field(default_factory=dict)


def survey(
    listed: Sequence[SiteImage],
    known: Mapping[str, Known],
    entry: Entry,
    bound: Callable[[], Collection[int]],
) -> Survey:
    """Return which images can be used.

    Parameters
    ----------
    listed : Sequence[SiteImage]
        The images that are there.
    known : Mapping[str, Known]
        All images that were ever known, by name.
    entry : Entry
        What `decode_site` has written of those that are there.
    bound : Callable[[], Collection[int]]
        Returns the ids that a label was asked or given for. It is called only where an image is
        not what it was.
    """
    ids, texts = entry.arrays["problem-ids"], entry.arrays["problems"]
    undecodable = dict(zip(ids.tolist(), texts.tolist(), strict=True))
    digests_N32 = np.asarray(entry.arrays["digests"], np.uint8)
    found, first = Survey(), dict[bytes, SiteImage]()
    bound_ids: Collection[int] | None = None
    for image in sorted(listed, key=lambda image: known[image.name].id):
        identity, digest_before = known[image.name].id, known[image.name].digest
        digest = digests_N32[identity].tobytes()
        if identity in undecodable:
            found.problems[image.name] = undecodable[identity]
            continue
        if digest_before is not None and digest_before != digest:
            bound_ids = bound() if bound_ids is None else bound_ids
            if identity in bound_ids:
                found.problems[image.name] = _CHANGED
                continue
        if digest_before != digest:
            found.new_digests[identity] = digest
        same = first.setdefault(digest, image)
        found.samples[image.name] = known[same.name].id
        if same is image:
            found.usable[identity] = image
        else:
            found.problems[image.name] = f"the same image as {same.name}"
    present = {image.name for image in listed}
    found.problems |= {
        name: _GONE
        for name, image in known.items()
        if name not in present and image.digest is not None
    }
    return found


def asked_or_labelled(state: Path) -> set[int] | None:
    """Return the ids that any run at this site has asked for, or has a label of.

    Parameters
    ----------
    state : Path
        The site's state folder, with a folder for each run and in it one for each client.

    Returns
    -------
    set[int] | None
        The ids; None where a label store cannot be read, so that nobody knows.
    """
    ids: set[int] = set()
    for path in sorted(state.glob(f"*/*/{STORE_FILE}")):
        try:
            store = LabelStore.open_existing(path)
            try:
                ids |= {entry.sample for entry in store.entries()}
            finally:
                store.close()
        except (StoreError, sqlite3.DatabaseError):
            return None
    return ids
