"""The store at which ranks meet."""

import socket
from datetime import timedelta

import pytest

from milepost.learner.zero.rendezvous import connect_store, open_store

_SOON = timedelta(seconds=5)


def test_a_store_listens_when_its_port_is_told_so_nobody_can_take_it_in_between() -> None:
    first, second = open_store("127.0.0.1", _SOON), open_store("127.0.0.1", _SOON)
    assert first.port != second.port
    with pytest.raises(OSError, match="Address already in use"):
        socket.create_server(("127.0.0.1", first.port))
    connect_store("127.0.0.1", first.port, _SOON).set("met", "yes")
    assert first.get("met") == b"yes"
    assert not second.check(["met"])


def test_a_store_is_open_to_its_own_address_alone() -> None:
    store = open_store("127.0.0.2", _SOON)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", store.port), timeout=5)
    connect_store("127.0.0.2", store.port, _SOON)


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(OSError, match="Cannot assign requested address"):
        open_store("192.0.2.77", _SOON)
