"""The decoded images of a site's folder, in the cache: as they are now, and nothing besides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ahfal_app.data.cache import (
    FEATURES,
    Description,
    Entry,
    cache_key,
    discard,
    discard_others,
    open_or_build,
    source_hash,
)
from ahfal_app.data.images import DataFormat
from ahfal_app.data.site.decoding import can_be_decoded, decode_site
from ahfal_app.data.site.files import Columns, SiteImage
from ahfal_app.errors import PolicyRefused

#: What the names of sites' decoded images in the cache start with.
DECODED = "site"

#: Version of the rules by which images are decoded.
_RULES = 1


def cache_name_of(folder: Path) -> str:
    """Return what the names of all that is kept of a folder's images in the cache start with."""
    return f"{DECODED}-{source_hash(str(folder.resolve()))}"


def forget(cache: Path, folder: Path) -> None:
    """Remove all decoded images of a folder, and their features."""
    start = f"{cache_name_of(folder)}-"
    discard_others(cache, start, kept="none")
    discard_others(cache, start, kept="none", below=FEATURES)


def decoded(
    folder: Path,
    listed: Sequence[SiteImage],
    ids: Mapping[str, int],
    data_format: DataFormat,
    cache: Path,
    columns: Columns,
    room: int | None,
) -> Entry:
    """Return what `decode_site` makes of a folder's images, made anew where files have changed.

    Parameters
    ----------
    folder : Path
        The folder.
    listed : Sequence[SiteImage]
        Its images.
    ids : Mapping[str, int]
        The id of each by name.
    data_format : DataFormat
        What they are brought to.
    cache : Path
        Folder for decoded data.
    columns : Columns
        How parquet files are read.
    room : int | None
        Bytes that they may take where they are to be decoded; None: as many as they need.

    Raises
    ------
    DatasetError
        The cache cannot be written.
    PolicyRefused
        They would take more than there is room for.
    """
    files = [(ids[i.name], i.name, i.size, i.modified_ns, i.changed_ns) for i in listed]
    # Of one folder and of one state of it there may be several, for runs that differ.
    start = f"{cache_name_of(folder)}-"
    state = f"{start}{source_hash(files)}"
    shape = data_format.image_shape
    key = cache_key(
        state,
        rules=_RULES,
        folder=str(folder.resolve()),
        files=files,
        shape=shape,
        image_column=columns if isinstance(columns, str) else asdict(columns),
    )

    def build(target: Path) -> Description:
        # One for each id, of images that are gone as well.
        item = np.dtype(np.float32 if data_format.vectors else np.uint8).itemsize
        needed = (max(ids.values()) + 1) * math.prod(shape) * item
        what = "vectors" if data_format.vectors else "images"
        if room is not None and needed > room:
            raise PolicyRefused(
                ["policy-disk-gib"], [f"{needed} bytes of decoded {what}; there is room for {room}"]
            )
        return decode_site(listed, ids, columns, shape, target)

    entry = open_or_build(cache, key, build)
    problem_ids, passing = entry.arrays["problem-ids"], entry.arrays["passing"]
    away = set(problem_ids[passing.astype(np.bool_)].tolist())
    # One of each file: the rows of a parquet file come and go with it.
    tried = {image.path: image for image in reversed(listed) if ids[image.name] in away}
    if any(can_be_decoded(image, columns, shape) for image in tried.values()):
        discard(cache, key)
        entry = open_or_build(cache, key, build)
    # Nothing is kept of images that are gone.
    discard_others(cache, start, kept=state)
    return entry
