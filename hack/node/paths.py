"""Rewrites mount paths to real paths, because a process has no mount namespace of its own. Pure.

A value is rewritten if all of it is a path below a mount, alone, after `--flag=`, or in a file: or
sqlite: URL. Paths in the middle of a shell script or inside a file stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIXED = re.compile(
    r"(--?[A-Za-z][\w.-]*=|[A-Za-z][\w+.-]*:/{2,3}|--?[A-Za-z][\w.-]*=[A-Za-z][\w+.-]*:/{2,3})(/.*)",
    re.S,
)


def rewrite(value: str, mounts: Mapping[str, str]) -> str:
    """`value` with a leading mount path replaced by that mount's real path;
    the longest mount path wins."""
    if value.startswith("/"):
        return below(value, mounts)
    if match := PREFIXED.fullmatch(value):
        return match[1] + below(match[2], mounts)
    return value


def below(path: str, mounts: Mapping[str, str]) -> str:
    for mount in sorted(mounts, key=len, reverse=True):
        root = mount.rstrip("/")
        if path == root or path.startswith(root + "/"):
            return mounts[mount] + path[len(root) :]
    return path
