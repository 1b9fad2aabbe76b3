"""Networks for a cluster's Services and pods that this machine has no other way to."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

from kindstack.shell import KindError, run

COUNT = 50
SERVICES = 100
PODS = 150
"""The second number of the first network:
10.100.0.0/16 to 10.149.0.0/16, and 10.150.0.0/16 to 10.199.0.0/16."""
TABLE = Path("/proc/net/route")


def free(first: int, number: int, taken: Sequence[IPv4Network]) -> str:
    """The first of the networks from `first` on that no route overlaps,
    looked for from the `number`th on.

    Where a route covers them all, as 10.0.0.0/8 of a company does, the first in which none ends.
    Raises KindError.
    """
    every = [IPv4Network(f"10.{first + (number + step) % COUNT}.0.0/16") for step in range(COUNT)]
    for network in every:
        if not any(network.overlaps(each) for each in taken):
            return str(network)
    for network in every:
        if not any(each.subnet_of(network) for each in taken):
            return str(network)
    raise KindError(
        f"this machine has a route into each network from 10.{first}.0.0/16 to"
        f" 10.{first + COUNT - 1}.0.0/16, and the cluster needs one of them: remove such as"
        " clusters left (ip route)"
    )


def routed() -> list[IPv4Network]:
    """Where this machine's IPv4 routes lead, without the default route.
    Empty where the table can't be read."""
    try:
        names = [str(each.get("dst")) for each in json.loads(run("ip", "-json", "-4", "route"))]
    except (KindError, ValueError):  # no such program, or one that writes no JSON, as busybox's
        return from_table(TABLE.read_text()) if TABLE.exists() else []
    return [IPv4Network(name) for name in names if name != "default"]


def from_table(text: str) -> list[IPv4Network]:
    """The networks of /proc/net/route, whose numbers are in this machine's order of bytes."""
    pairs = [(line.split()[1], line.split()[7]) for line in text.splitlines()[1:]]
    networks = [
        IPv4Network((int.from_bytes(bytes.fromhex(address), sys.byteorder), bits(mask)))
        for address, mask in pairs
    ]
    return [each for each in networks if each.prefixlen]


def bits(mask: str) -> int:
    return int(mask, 16).bit_count()
