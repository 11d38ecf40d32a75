"""How a policy travels to clients before they choose, and what each tells of its choice.

Both are arrays whose forms the query strategy declares (`query/core/server_side.py`); whatever else
comes is refused before memory is taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord

from ahfal_app.flat import ArrayForm, FlatArrays
from ahfal_app.messages.arrays import decode_all, held_record
from ahfal_app.messages.fields import shown
from ahfal_app.query.core.server_side import Arrays, RowsForm


def arrays_to(arrays: Arrays) -> ArrayRecord:
    """Return a policy or a report as it travels."""
    return held_record(dict(arrays))


def policy_from(record: ArrayRecord, forms: Mapping[str, ArrayForm]) -> FlatArrays:
    """Return a policy that came in.

    Raises
    ------
    ValueError
        The strategy has none, or an array is missing, unknown, of another form, or not finite.
    """
    if not forms:
        raise ValueError("policy: the run's query strategy has none")
    return decode_all(record, forms)


def report_from(record: ArrayRecord, forms: Mapping[str, RowsForm], most: int) -> FlatArrays:
    """Return a report that came in; whether it can be meant is for the strategy to check.

    Parameters
    ----------
    record : ArrayRecord
        What came in.
    forms : Mapping[str, RowsForm]
        What it must be; all arrays have as many rows.
    most : int
        How many these may be.

    Raises
    ------
    ValueError
        An array is missing, unknown, of another form, or not finite.
    """
    first = next(iter(forms))
    shape = tuple(record[first].shape) if first in record else ()
    rows = shape[0] if shape else 0
    if type(rows) is not int or not 1 <= rows <= most:
        raise ValueError(f"report: {shown(rows)} rows of {first}; allowed are 1 to {most}")
    return decode_all(record, {name: form.of(rows) for name, form in forms.items()})
