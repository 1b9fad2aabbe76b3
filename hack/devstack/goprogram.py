"""Programs in Go that tests ask: built once into the user's cache, named after what went into them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from devstack.cache import CACHE


class GoProgramError(RuntimeError):
    """The program can't be built; the message has what Go said."""


def program(source: Path, package: str = ".") -> Path:
    """`package` of the module in the folder `source`, built; a minute or so the first time. Raises GoProgramError."""
    digest = hashlib.sha256()
    for file in [source / "go.mod", source / "go.sum", *sorted(source.glob("*.go"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    folder = CACHE / source.name
    built = folder / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        if not built.exists():
            _build(source, package, built)
    return built


def _build(source: Path, package: str, target: Path) -> None:
    """Beside the final place, then renamed: nobody ever runs half a program."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / source.name
        command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(partial), package]
        environment = {**os.environ, "CGO_ENABLED": "0"}
        try:
            done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise GoProgramError(
                f"Go 1.26 or newer is needed to build hack/{source.name}: install it from go.dev/dl"
            ) from error
        if done.returncode:
            raise GoProgramError(f"the build of hack/{source.name} failed: {done.stderr.strip()[-2000:]}")
        partial.rename(target)
