"""Expands $(VAR) in commands, arguments and values by the kubelet's rules,
and reads downward API fields. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from node.api import Json

REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
SUFFIXES = {
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $(NAME) by its value; an unknown one stays as it is, and $$ is one dollar sign."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else variables.get(match[2], match[0])

    return REFERENCE.sub(value, text)


def field(pod: Json, path: str) -> str:
    """A downward API field of the pod. Raises KeyError with the path if there is no such field."""
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = pod["metadata"].get(path.partition(".")[2]) or {}
        return "\n".join(f'{key}="{quoted(value)}"' for key, value in sorted(entries.items()))
    return str(plain(pod, path))


def plain(pod: Json, path: str) -> object:
    metadata = pod["metadata"]
    spec = pod["spec"]
    status = pod.get("status") or {}
    known: dict[str, object] = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": status.get("podIP", ""),
        "status.podIPs": status.get("podIP", ""),
        "status.hostIP": status.get("hostIP", ""),
        "status.hostIPs": status.get("hostIP", ""),
    }
    if path not in known:
        raise KeyError(path)
    return known[path]


def quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: 100m, 2, 1.5Gi."""
    text = str(text)
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if text.endswith(suffix):
            return float(text[: -len(suffix)]) * SUFFIXES[suffix]
    return float(text)


def resource(container: Json, reference: Json, capacity: Mapping[str, str]) -> str:
    """The value of a resourceFieldRef:
    the limit or request, else the node's capacity, rounded up."""
    kind, _, name = str(reference["resource"]).partition(".")
    amounts = (container.get("resources") or {}).get(kind) or {}
    amount = amounts.get(name) or capacity.get(name, "0")
    divisor = quantity(reference.get("divisor") or "1") or 1
    return str(math.ceil(quantity(amount) / divisor))
