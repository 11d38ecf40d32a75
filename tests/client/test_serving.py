"""Clients of a simulation are made once for an engine, and anew for whatever is another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.simulation import TINY

from ahfal_app.client.momentum import Collection, collected_in
from ahfal_app.client.serving import client_for
from ahfal_app.config import parse_settings
from ahfal_app.errors import ConfigError
from ahfal_app.messages.protocol import Order
from ahfal_app.results.identity import mark

RUN = "0123456789abcdef"


@pytest.fixture
def order(tmp_path: Path, data_dir: Path) -> Order:
    mark(tmp_path, RUN)
    settings = parse_settings({**TINY, "data-dir": str(data_dir), "num-clients": 3})
    return Order(settings, RUN, str(tmp_path), "0" * 64, round=1)


def _client(order: Order, partition: int = 0):
    node = {"partition-id": partition, "num-partitions": 3}
    return client_for(order, node, dict)


def test_a_client_is_made_once_for_a_run(order: Order) -> None:
    with collected_in(Collection()):
        first = _client(order)
        assert _client(replace(order, cycle=1, round=2)) is first
        # Settings that came in another message are other objects, and mean the same.
        again = parse_settings(order.settings.to_flat())
        assert again is not order.settings
        assert _client(replace(order, settings=again)) is first
        assert _client(order, 1) is not first
        assert _client(order) is first


@pytest.mark.parametrize("change", ["settings", "run_folder", "proximal_mu", "engine", "none"])
def test_what_is_another_run_has_other_clients(change: str, order: Order, tmp_path: Path) -> None:
    other = order
    if change == "settings":
        other = replace(order, settings=order.settings.model_copy(update={"rounds": 9}))
    elif change == "run_folder":
        (tmp_path / "other").mkdir()
        mark(tmp_path / "other", RUN)
        other = replace(order, run_folder=str(tmp_path / "other"))
    elif change == "proximal_mu":
        other = replace(order, proximal_mu=0.5)
    engine = Collection()
    with collected_in(engine):
        first = _client(order)
        if change == "none":
            assert _client(other) is first
        elif change != "engine":
            assert _client(other) is not first
    if change == "engine":
        with collected_in(Collection()):
            assert _client(order) is not first
        # Where nothing is collected there is no engine that clients could belong to.
        assert _client(order) is not _client(order)


def test_a_folder_of_another_run_is_refused_each_time(order: Order) -> None:
    with collected_in(Collection()):
        _client(order)
        for _ in range(2):
            with pytest.raises(ConfigError, match="state-dir"):
                _client(replace(order, run="f" * 16))
