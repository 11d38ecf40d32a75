"""Features of images by a frozen backbone: computed once for each image, kept, memory-mapped.

A store is a folder with two files that only grow: features (float16, D for each row) and the
SHA-256 of the images that they are of. Whatever kills a process, rows that are whole in both files
stay, and the next process goes on behind them. Equal images share a row, whichever data set, split
or client they belong to; another backbone, other weights, another preprocessing have another store.

Shapes: N images, B of a batch, H height, W width, c channels, D features.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn

from ahfal_app.backbones import Backbone
from ahfal_app.data.cache import FEATURES
from ahfal_app.errors import DatasetError, PolicyRefused
from ahfal_app.storage.files import write_bytes

#: Told how many of how many images are done, and how many a second.
Tell = Callable[[int, int, float], None]


class ImageRows(Protocol):
    """Images by row: an array, or what makes them as they are asked for."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Return uint8 (H, W, c) for a row, (B, H, W, c) for an array of rows."""


#: What the names of sites' stores start with, as those of their decoded images do.
SITE = "site"

_VALUES, _DIGESTS, _ROWS = "features.f16", "digests.bin", "rows-{}.i64"
_DIGEST_BYTES = 32

#: Images in a batch of extraction, on a CPU and on a GPU.
_BATCH_ON_CPU, _BATCH_ON_GPU = 32, 256

#: Rows after which what is computed is written down.
_WRITTEN_AFTER = 512

#: Seconds between two lines of progress.
_TOLD_AFTER_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the images of a split.

    Attributes
    ----------
    values_MD : NDArray[np.float16]
        All rows of the store, memory-mapped and read-only.
    rows_N : NDArray[np.int64]
        The row of each image of the split; -1 where there is none.
    computed : int
        How many images were not in the store before.
    seconds : float
        How long they took.
    """

    values_MD: NDArray[np.float16]
    rows_N: NDArray[np.int64]
    computed: int = 0
    seconds: float = 0.0


class FeatureStore:
    """The features of a backbone, in a folder that processes share.

    Parameters
    ----------
    root : Path
        The setting `data-dir`.
    backbone : Backbone
        Computes what is not there.
    device : torch.device
        Where it computes.
    owner : str
        Begins the folder's name: `site-<hash>` where a site's images are, whose features are kept
        apart and go when they go; empty otherwise.
    compiles_from : int | None
        Images from which on the network is compiled for the processor; None: never.
    in_bf16 : bool
        Whether it computes in bf16; such features are kept apart.
    """

    def __init__(
        self,
        root: Path,
        backbone: Backbone,
        device: torch.device,
        owner: str = "",
        compiles_from: int | None = None,
        in_bf16: bool = False,
    ) -> None:
        key = backbone.computation[:32] + ("-bf16" if in_bf16 else "")
        name = f"{owner}-{key}" if owner else key
        self.folder = root / FEATURES / name
        self._owner = owner
        self._backbone = backbone
        self._device = device
        self._compiles_from = compiles_from
        self._in_bf16 = in_bf16
        self._row_bytes = 2 * backbone.features

    def of(
        self,
        images_NHWC: ImageRows,
        fingerprint: str,
        wanted_N: NDArray[np.int64] | None = None,
        room: int | None = None,
        tell: Tell | None = None,
    ) -> Features:
        """Return the features of a split's images, computing those that nobody has computed.

        Parameters
        ----------
        images_NHWC : ImageRows
            The split's images, uint8.
        fingerprint : str
            Equal for equal images and wanted rows; what is found is noted under it.
        wanted_N : NDArray[np.int64] | None
            The rows that are images; None: all.
        room : int | None
            Bytes that a site's policy allows for; None: as many as the disk has.
        tell : Tell | None
            Told of progress; by default it is logged.

        Raises
        ------
        DatasetError
            The folder cannot be written, or the disk has no room.
        PolicyRefused
            The site's policy has no room.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            noted = self._noted(fingerprint, len(images_NHWC))
            if noted is not None:
                return Features(self._values(), noted)
            with FileLock(f"{self.folder}.lock"):
                return self._completed(images_NHWC, fingerprint, wanted_N, room, tell or _logged)
        except OSError as error:
            raise DatasetError(
                f"data-dir: features cannot be kept in {self.folder}: {error}"
            ) from error

    def forget_others(self, features: Features) -> None:
        """Remove the features of images that a split does not have; nothing is kept of them.

        Of what the owner has by other backbones, stores that hold such images go as a whole.
        """
        used_M = np.unique(features.rows_N[features.rows_N >= 0])
        self._forget_elsewhere(used_M)
        if len(used_M) == len(features.values_MD):
            return
        with FileLock(f"{self.folder}.lock"):
            values, digests = self._values()[used_M], self._digests()[used_M]
            # The digests go first: without them the rows are nobody's.
            for note in self.folder.glob(_ROWS.format("*")):
                note.unlink()
            write_bytes(self.folder / _DIGESTS, b"")
            write_bytes(self.folder / _VALUES, values.tobytes())
            write_bytes(self.folder / _DIGESTS, digests.tobytes())

    def _forget_elsewhere(self, used_M: NDArray[np.int64]) -> None:
        found = self.folder.parent.glob(f"{self._owner}-*/") if self._owner else ()
        others = [folder for folder in found if folder != self.folder]
        left = {digest.tobytes() for digest in self._digests()[used_M]} if others else set()
        for folder in others:
            # What another process is computing now is left to the next time.
            with suppress(Timeout), FileLock(f"{folder}.lock", timeout=0):
                path = folder / _DIGESTS
                digests = path.read_bytes() if path.exists() else b""
                starts = range(0, len(digests), _DIGEST_BYTES)
                if any(digests[start : start + _DIGEST_BYTES] not in left for start in starts):
                    shutil.rmtree(folder)

    def _completed(
        self,
        images_NHWC: ImageRows,
        fingerprint: str,
        wanted_N: NDArray[np.int64] | None,
        room: int | None,
        tell: Tell,
    ) -> Features:
        self._cut_off_halves()
        wanted = range(len(images_NHWC)) if wanted_N is None else wanted_N.tolist()
        digests = {row: digest_of(images_NHWC[row]) for row in wanted}
        known = self._known()
        missing = {digest: row for row, digest in digests.items() if digest not in known}
        self._check_room(len(missing), room)
        start = time.monotonic()
        rows = np.array(sorted(missing.values()), np.int64)
        for done, values_BD in self._computed(images_NHWC, rows, tell):
            batch = rows[done : done + len(values_BD)].tolist()
            self._append(values_BD, b"".join(digests[row] for row in batch))
        seconds = time.monotonic() - start
        known = self._known()
        rows_N = np.full(len(images_NHWC), -1, np.int64)
        for row, digest in digests.items():
            rows_N[row] = known[digest]
        write_bytes(self.folder / _ROWS.format(fingerprint[:32]), rows_N.tobytes())
        return Features(self._values(), rows_N, len(rows), seconds)

    def _computed(
        self, images_NHWC: ImageRows, rows_N: NDArray[np.int64], tell: Tell
    ) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield features of some rows as they are done, with the number done before."""
        if not len(rows_N):
            return
        batches = batches_for(len(rows_N), self._device, self._compiles_from)
        size = batches.size
        start = told = time.monotonic()
        done, kept = 0, []
        how = (self._device, batches.compiled_size, self._in_bf16)
        with extracting(self._backbone, *how) as extract:
            for first in range(0, len(rows_N), size):
                batch = np.ascontiguousarray(images_NHWC[rows_N[first : first + size]])
                kept.append(extract(torch.from_numpy(batch)))
                reached = first + len(batch)
                if reached - done >= _WRITTEN_AFTER or reached == len(rows_N):
                    yield done, np.concatenate(kept)
                    done, kept = reached, []
                now = time.monotonic()
                if now - told > _TOLD_AFTER_S or reached == len(rows_N):
                    told = now
                    tell(reached, len(rows_N), reached / max(1e-9, now - start))

    def _check_room(self, missing: int, room: int | None) -> None:
        needed = missing * (self._row_bytes + _DIGEST_BYTES)
        if room is not None and needed > room:
            raise PolicyRefused(
                ["policy-disk-gib"], [f"{needed} bytes of features; there is room for {room}"]
            )
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DatasetError(
                f"data-dir: the features of {missing} images take {needed} bytes in "
                f"{self.folder}, and the disk has {free}; allowed is a folder with more room"
            )

    def _append(self, values_BD: NDArray[np.float16], digests: bytes) -> None:
        # In this order: a digest without its features would be a lie.
        for name, content in ((_VALUES, values_BD.tobytes()), (_DIGESTS, digests)):
            with (self.folder / name).open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    def _cut_off_halves(self) -> None:
        """Cut off what a killed process has not finished, and remove what it has half replaced."""
        for part in self.folder.glob(".*.tmp"):
            part.unlink()
        count = self._count()
        for name, size in ((_VALUES, self._row_bytes), (_DIGESTS, _DIGEST_BYTES)):
            path = self.folder / name
            path.touch()
            if path.stat().st_size != count * size:
                os.truncate(path, count * size)

    def _count(self) -> int:
        """Return how many rows are whole in both files."""
        pairs = ((_VALUES, self._row_bytes), (_DIGESTS, _DIGEST_BYTES))
        paths = [(self.folder / name, size) for name, size in pairs]
        return min(path.stat().st_size // size if path.exists() else 0 for path, size in paths)

    def _values(self) -> NDArray[np.float16]:
        shape = (self._count(), self._backbone.features)
        if not shape[0]:
            return np.empty(shape, np.float16)
        return np.memmap(self.folder / _VALUES, np.float16, mode="r", shape=shape)

    def _digests(self) -> NDArray[np.uint8]:
        content = (self.folder / _DIGESTS).read_bytes()[: self._count() * _DIGEST_BYTES]
        return np.frombuffer(content, np.uint8).reshape(-1, _DIGEST_BYTES)

    def _known(self) -> dict[bytes, int]:
        return {digest.tobytes(): row for row, digest in enumerate(self._digests())}

    def _noted(self, fingerprint: str, images: int) -> NDArray[np.int64] | None:
        """Return the rows that were found for these images before, or None."""
        path = self.folder / _ROWS.format(fingerprint[:32])
        if not path.exists():
            return None
        content = path.read_bytes()
        rows_N = np.frombuffer(content[: len(content) // 8 * 8], np.int64)
        fits = len(rows_N) == images and int(rows_N.max(initial=-1)) < self._count()
        return rows_N if fits else None


@dataclass(frozen=True)
class Batches:
    """How new images go through a network: so many at a time, compiled or as it is."""

    size: int
    is_compiled: bool

    @property
    def compiled_size(self) -> int | None:
        """What `extracting` wants to know."""
        return self.size if self.is_compiled else None


def batches_for(images: int, device: torch.device, compiles_from: int | None) -> Batches:
    """Return how so many new images go through a network.

    Parameters
    ----------
    images : int
        How many, views counted.
    device : torch.device
        Where it computes.
    compiles_from : int | None
        Images from which on the network is compiled for the processor; None: never.
    """
    if device.type != "cpu":
        return Batches(_BATCH_ON_GPU, False)
    return Batches(_BATCH_ON_CPU, compiles_from is not None and images >= compiles_from)


@contextmanager
def extracting(
    backbone: Backbone,
    device: torch.device,
    compiled_size: int | None = None,
    in_bf16: bool = False,
) -> Iterator[Callable[[Tensor], NDArray[np.float16]]]:
    """Give a function from bytes (B, H, W, c) to features (B, D), float16.

    It computes on all cores of the processor, or on the device: a run waits for it. Batches of
    `compiled_size` images go through a compiled network, which folds batch normalisation into
    the weights and differs by rounding; None: none do. In bf16 convolutions and products are.
    """
    network: nn.Module = backbone.network
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    network.to(device).to(memory_format=torch.channels_last)
    compiled: Callable[[Tensor], Tensor] = network
    if compiled_size is not None:
        compiled = torch.compile(network, dynamic=False, options={"freezing": True})

    def extract(images_BHWC: Tensor) -> NDArray[np.float16]:
        with torch.inference_mode():
            inputs_BcHW = backbone.preprocessing(images_BHWC.to(device))
            is_full = len(images_BHWC) == compiled_size
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                features_BD: Tensor = (compiled if is_full else network)(inputs_BcHW).float()
        limit = float(np.finfo(np.float16).max)
        found: NDArray[np.float16] = features_BD.clamp(-limit, limit).half().cpu().numpy()
        if not np.isfinite(found).all():
            raise DatasetError(
                f"backbone={backbone.name!r}: with these backbone-weights it gives features that "
                "are no numbers"
            )
        return found

    try:
        yield extract
    finally:
        network.to("cpu")
        torch.set_num_threads(threads)


def digest_of(image_HWC: NDArray[np.uint8]) -> bytes:
    """Return the SHA-256 of an image's shape and pixels, by which its features are found."""
    shape = ",".join(map(str, image_HWC.shape)).encode()
    return hashlib.sha256(shape + b"\0" + np.ascontiguousarray(image_HWC).tobytes()).digest()


def _logged(done: int, images: int, per_second: float) -> None:
    _log.warning("features: %d of %d images, %.0f a second", done, images, per_second)
