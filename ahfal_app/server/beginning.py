"""The first labels of clients that bought none as they joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ahfal_app.messages.answers import QueryAnswer
from ahfal_app.messages.protocol import BEGIN, Order
from ahfal_app.server.federation import Federation, Replies, ask
from ahfal_app.server.purchase import grants, read_answers


def begin(
    federation: Federation, order: Order, clients: Iterable[int], granted: Mapping[int, int]
) -> tuple[dict[int, QueryAnswer], Replies]:
    """Have clients buy their first labels, of which joining alone could not decide.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that is about to be trained.
    clients : Iterable[int]
        Clients that have bought nothing yet.
    granted : Mapping[int, int]
        How many labels each may have, where the server says so.

    Returns
    -------
    dict[int, QueryAnswer]
        How the purchases stand, by client.
    Replies
        The replies, and why there are not more.
    """
    replies = ask(federation, order, BEGIN, {c: grants(order, granted, c) for c in clients})
    return read_answers(replies, order.settings), replies
