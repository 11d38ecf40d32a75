"""Augmented views of images, whose features by a frozen backbone are computed once.

A view is what training without a backbone could see of its image: moved and mirrored by the same
arithmetic, before the backbone's preprocessing. What is drawn for it hangs on the image's pixels
and the view's number alone. So a view is the same in every run, split, site and order, its features
are found again by its own pixels, and nothing of it has to be kept but these.

Shapes: N images, V views of each, B of a batch, H height, W width, c channels.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import AugmentationDraws, transformed
from ahfal_app.data.features import digest_of


class WithViews:
    """Images, then the first view of each, then the second one of each, and so on.

    Views are made when they are asked for: what is in memory is what is asked for at a time.

    Parameters
    ----------
    images_NHWC : NDArray[np.uint8]
        The images.
    augmentation : Augmentation
        How far they are moved, and whether they are mirrored.
    views : int
        V, at least 1 and at most 255.
    """

    def __init__(
        self, images_NHWC: NDArray[np.uint8], augmentation: Augmentation, views: int
    ) -> None:
        self._images_NHWC = images_NHWC
        self._augmentation = augmentation
        self._views = views

    def __len__(self) -> int:
        """Return (V + 1) N."""
        return (self._views + 1) * len(self._images_NHWC)

    def __getitem__(self, rows: int | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return one image or view (H, W, c), or several (B, H, W, c)."""
        rows_B = np.atleast_1d(np.asarray(rows, np.int64))
        view_B, image_B = np.divmod(rows_B, len(self._images_NHWC))
        images_BHWc = np.ascontiguousarray(self._images_NHWC[image_B])
        is_view_B = view_B > 0
        if is_view_B.any():
            draws = self._draws(images_BHWc[is_view_B], view_B[is_view_B])
            views_BHWc = torch.from_numpy(images_BHWc[is_view_B])
            moved_BHWc = transformed(views_BHWc, self._augmentation.padding, draws)
            images_BHWc[is_view_B] = moved_BHWc.numpy()
        return images_BHWc if isinstance(rows, np.ndarray) else images_BHWc[0]

    def rows(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of some images and of their views."""
        starts_V = len(self._images_NHWC) * np.arange(self._views + 1)
        return (starts_V[:, None] + rows_N).ravel()

    def _draws(
        self, images_BHWc: NDArray[np.uint8], views_B: NDArray[np.int64]
    ) -> AugmentationDraws:
        """Draw from a hash of each image and its view's number: 8 bytes for each number."""
        numbers_B3 = np.empty((len(views_B), 3), np.uint64)
        for position, (image_HWc, view) in enumerate(zip(images_BHWc, views_B, strict=True)):
            drawn = hashlib.sha256(digest_of(image_HWc) + bytes([view])).digest()
            numbers_B3[position] = np.frombuffer(drawn, "<u8", 3)
        padding, flip = self._augmentation.padding, self._augmentation.flip
        offsets_B2 = (numbers_B3[:, :2] % np.uint64(2 * padding + 1)).astype(np.int64)
        return AugmentationDraws(
            torch.from_numpy(offsets_B2.T.copy()) if padding else None,
            torch.from_numpy(numbers_B3[:, 2] % np.uint64(2) == 1) if flip else None,
        )
