"""A port for a server that another program opens.

Between the choice and the moment at which that program listens, somebody may take the port. Nearly always that is a
connection out of this machine, to which the kernel gives a port of its own range: so the port lies below that range.
A server of this program is better told to take port 0.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 20_000
"""Ray's workers take theirs below."""
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS = 200


def free_port() -> int:
    """A port on which nobody listens at 127.0.0.1, below those of outgoing connections.

    Raises:
        OSError: none was found.
    """
    end = int(_OUTGOING.read_text().split()[0])
    ports = range(_LOWEST, end) if end > _LOWEST + _ATTEMPTS else range(_LOWEST, 2**16)
    for port in random.sample(ports, _ATTEMPTS):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise OSError(f"no free port on 127.0.0.1 among {_ATTEMPTS} from {ports.start} to {ports.stop}")
