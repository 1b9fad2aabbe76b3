"""The settings of a process node."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

# Passed on from the node's own environment.
# Everything else would make pods depend on who started the node.
PASSED_ON = ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR")


@dataclass(frozen=True)
class Settings:
    """The command line, parsed."""

    name: str
    folder: Path
    # Set in every container, overriding its spec. $(POD_IP) is expanded.
    environment: dict[str, str] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    taints: tuple[str, ...] = ()
    backoff_seconds: float = 1.0
    backoff_maximum_seconds: float = 60.0
    sync_seconds: float = 60.0

    def base_environment(self) -> dict[str, str]:
        """What every container starts from."""
        return {name: os.environ[name] for name in PASSED_ON if name in os.environ}

    def search_path(self, own: str | None) -> str:
        """PATH of a container: --path first, then its own or the node's."""
        return os.pathsep.join([*self.path, own or os.environ.get("PATH", os.defpath)])

    def capacity(self) -> dict[str, str]:
        """This machine's resources, as a Node's capacity."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"cpu": str(os.cpu_count() or 1), "memory": f"{memory // 1024}Ki", "pods": "110"}
