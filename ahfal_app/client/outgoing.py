"""What a site tells of an error: a code and a fixed text.

The error itself may name files, and files are called after patients. It stays in the site's log.
`docs/privacy.md` lists the codes.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import torch

from ahfal_app import errors
from ahfal_app.client.node_config import KNOWN_KEYS
from ahfal_app.config import setting_fields

#: Text by code. None of them has a place for anything that is known at the site alone.
TEXTS = {
    "message": "the message says what no server of this version says; nothing of it was done",
    "policy": "the run asks for more than the site's policy allows",
    "settings": "the run's settings and the site's --node-config cannot be used together",
    "images": "the site's images or vectors cannot be used",
    "label-file": "a file of labels at the site cannot be used",
    "label-store": "the site's label store cannot be used",
    "oracle": "the site's oracle cannot be used",
    "component": "the site has no component of a name that the run uses, or has it twice",
    "strategy": "the query strategy failed at the site",
    "privacy": "the answer would tell more than the run's privacy allows",
    "secure-aggregation": "the step of secure aggregation cannot be done",
    "memory": "the site's memory does not suffice",
    "disk": "the site's disk is full",
    "files": "a file at the site cannot be read or written",
    "unforeseen": "an error that nobody foresaw",
}

_FULL = (errno.ENOSPC, errno.EDQUOT)

_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (errors.MessageRefused, "message"),
    (errors.PolicyRefused, "policy"),
    (errors.ConfigError, "settings"),
    (errors.DatasetError, "images"),
    (errors.PartitionError, "images"),
    (errors.LabelFileError, "label-file"),
    (errors.StoreError, "label-store"),
    (errors.BudgetExceeded, "label-store"),
    (errors.LabelConflict, "label-store"),
    (errors.PoolExhausted, "label-store"),
    (errors.OracleError, "oracle"),
    (errors.UnknownComponent, "component"),
    (errors.DuplicateComponent, "component"),
    (errors.InvalidSelection, "strategy"),
    (errors.NonFiniteSignal, "strategy"),
    (errors.PrivacyRefused, "privacy"),
    (errors.PrivacyBudgetExceeded, "privacy"),
    (errors.SecureAggregationFailed, "secure-aggregation"),
    (errors.DeviceMemoryExhausted, "memory"),
    (torch.OutOfMemoryError, "memory"),
    (MemoryError, "memory"),
    (OSError, "files"),
)


def told(error: BaseException) -> str:
    """Return what the server is told of an error, and no more.

    Keys of settings and of a policy's rules are the same at all sites, so they are told.
    """
    code, keys = code_of(error), _keys(error)
    return (
        f"[{code}] {TEXTS[code]}{': ' + ', '.join(keys) if keys else ''}; the site's log says more"
    )


def code_of(error: BaseException) -> str:
    """Return the code of an error."""
    if any(_is_full_disk(each) for each in _chain(error)):
        return "disk"
    return next((code for kind, code in _CODES if isinstance(error, kind)), "unforeseen")


def _keys(error: BaseException) -> list[str]:
    if isinstance(error, errors.PolicyRefused):
        return list(error.rules)
    if not isinstance(error, errors.ConfigError):
        return []
    known = {*KNOWN_KEYS, *setting_fields()}
    matches = (re.match(r"[a-z.-]+", problem) for problem in error.problems)
    return sorted({match[0] for match in matches if match} & known)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    # SQLite's word for it, and that of `storage.database`.
    return isinstance(error, errors.StoreError) and "disk is full" in str(error)
