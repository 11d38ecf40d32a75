"""The oracle of `ahfal label`: people at the site label in a small page of their own."""

from __future__ import annotations

from collections.abc import Collection

from ahfal_app.errors import ConfigError
from ahfal_app.label_page.desk import Desk, Item, Sheet
from ahfal_app.label_page.images import for_browser
from ahfal_app.labels.store import LabelReceipt, LabelRequest
from ahfal_app.oracle import Oracle, Site, check_folder

_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
}


class PageOracle(Oracle):
    """Lays requests on a site's desk and takes up the answers.

    Parameters
    ----------
    site : Site
        Whom it labels for.
    desk : Desk
        Where requests and answers lie.
    """

    def __init__(self, site: Site, desk: Desk) -> None:
        self._site = site
        self._desk = desk

    def submit(self, request: LabelRequest) -> None:
        """Lay a request on the desk, unless it is there.

        Raises
        ------
        OracleError
            It cannot be written, or an image cannot be shown.
        """
        if self._desk.has(request.request_id):
            return
        items, images = [], []
        for position, sample in enumerate(request.samples):
            image = self._site.image(sample)
            content, media_type = for_browser(image.content, image.name)
            file = f"{position + 1:04d}.{_EXTENSIONS[media_type]}"
            images.append((file, content))
            items.append(
                Item(
                    sample=sample,
                    file=file,
                    media_type=media_type,
                    original=image.name,
                    link=image.link,
                    guess=request.guesses[position] if request.guesses else None,
                    score=request.scores[position] if request.scores else None,
                )
            )
        sheet = Sheet(
            request=request.request_id,
            cycle=request.cycle,
            strategy=request.strategy,
            classes=self._site.class_names,
            items=tuple(items),
            readers=request.readers,
            rule=request.rule,
        )
        self._desk.add(sheet, images)

    def collect(self, request_id: str) -> list[LabelReceipt]:
        """Return the answers so far; the page can no longer take them back.

        Where several people read each image, those to images that are decided.
        """
        return self._desk.collect(request_id)

    def withdraw(self, samples: Collection[int]) -> None:
        """Take images off the desk that the site no longer has, with their copies.

        Raises
        ------
        OracleError
            They cannot be removed.
        """
        self._desk.withdraw(samples)

    def check(self) -> str:
        """See whether requests can be laid on the desk.

        Raises
        ------
        OracleError
            They cannot be written.
        """
        check_folder(self._desk.folder)
        return ""


def make(site: Site) -> PageOracle:
    """Return an oracle of the page.

    Raises
    ------
    ConfigError
        There is no folder for it.
    """
    if site.folder is None:
        raise ConfigError(
            [
                "oracle='page': allowed only with a folder: client-state='disk', or oracle-dir "
                "in --node-config"
            ]
        )
    return PageOracle(site, Desk(site.folder))
