"""A port for somebody else's server is free and out of the way of outgoing connections."""

import random
import socket
from pathlib import Path

import pytest

from milepost.cluster.base import ports


def test_a_port_is_free_and_no_outgoing_connection_can_be_given_it() -> None:
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = ports.free_port()
    assert 20_000 <= port < first_outgoing
    socket.create_server(("127.0.0.1", port)).close()


def test_a_port_on_which_somebody_listens_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    free = ports.free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(random, "sample", lambda *_: [taken.getsockname()[1], free])
        assert ports.free_port() == free
        monkeypatch.setattr(random, "sample", lambda *_: [taken.getsockname()[1]])
        with pytest.raises(OSError, match="no free port"):
            ports.free_port()
