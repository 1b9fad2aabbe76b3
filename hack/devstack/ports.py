"""TCP ports for programs that must be told theirs before they start."""

import random
import socket

RANGE = range(10_000, 30_000)
"""Below Kubernetes' NodePorts and below the ports that Linux gives to outgoing connections (32768
and up): such a port, free when it was asked for, was now and then taken by a connection before the
program had started."""


def free_port() -> int:
    """A port that is free on 127.0.0.1."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports that are free on 127.0.0.1, all different.
    Chosen by chance: others on this machine look for some, too."""
    found: list[int] = []
    for port in random.sample(RANGE, len(RANGE)):
        if len(found) == count:
            break
        try:
            with socket.create_server(("127.0.0.1", port)):
                found.append(port)
        except OSError:
            continue
    return found
