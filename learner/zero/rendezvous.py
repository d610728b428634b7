"""Where the ranks of a process group meet: a store that rank 0 opens and the others connect to.

The port is bound before anybody is told of it, so no other process can take it in between, and it is bound on one
address only. Whoever can reach that address can join: the cluster's network has to be a private one.
"""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]


def open_store(address: str, timeout: timedelta) -> TCPStore:
    """Listen on `address`, on a port that the system gives; `port` of what is returned says which.

    Args:
        timeout: how long a rank waits for what another one puts there.

    Raises:
        OSError: this host has no such address, or no port is free.
    """
    with socket.create_server((address, 0)) as server:
        port = int(server.getsockname()[1])
        return TCPStore(
            address, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=server.detach()
        )


def connect_store(address: str, port: int, timeout: timedelta) -> TCPStore:
    """The store that rank 0 opened at `address`.

    Raises:
        torch.distributed.DistError: nobody answered there within `timeout`.
    """
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
