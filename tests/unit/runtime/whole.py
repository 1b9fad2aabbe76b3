"""Whole servers for tests: the runtime's own command line in a process,
with a mock in the place of its model."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from devstack.ports import free_port
from harness import KEY, key_file, record
from waiting import eventually

ROOT = Path(__file__).parents[3]
HEADERS = {"X-API-Key": KEY}


@dataclass
class Whole:
    """A running server."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", trust_env=False).text.splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{name} ", f"{name}{{"))
        )


@contextmanager
def server(
    folder: Path,
    database_url: str,
    *,
    tier: dict[str, Any],
    token_seconds: float = 0,
    pod: str = "",
    **config: Any,
) -> Iterator[Whole]:
    """A server whose one key, `harness.KEY`, has the limits of `tier`;
    ended at once at the end, if it still runs.

    `pod`: the name of the pod that it thinks it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keys.json").write_text(key_file(record(KEY)))
    settings = {
        "model": {"name": "mock", "path": "mock"},
        "tiers": [{"name": "standard", **tier}],
        **config,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "bench.mock",
        "serve",
        "--config",
        "config.yaml",
        "--keys",
        "keys.json",
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}:{ROOT / 'hack'}",
        "DATABASE_URL": database_url,
        "MOCK_TOKEN_SECONDS": str(token_seconds),
        "HOSTNAME": pod,
    }
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=folder,
            stdout=out,
            stderr=out,
        )
    whole = Whole(f"http://127.0.0.1:{port}", process, log)
    try:
        eventually(whole.ready)
        yield whole
    finally:
        process.kill()
        process.wait(10)
