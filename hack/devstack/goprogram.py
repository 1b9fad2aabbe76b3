"""Programs in Go that tests ask: built once into the user's cache, named after what went into them."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

from devstack import golang
from devstack.cache import CACHE
from devstack.waits import locked


class GoProgramError(RuntimeError):
    """The program can't be built; the message has what Go said."""


def program(source: Path, package: str = ".") -> Path:
    """`package` of the module in the folder `source`, built; a minute or so the first time. Raises GoProgramError."""
    digest = hashlib.sha256()
    for file in [source / "go.mod", source / "go.sum", *sorted(source.glob("*.go"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    folder = CACHE / source.name
    built = folder / digest.hexdigest()[:16]
    with locked(folder / ".lock", f"another process is building hack/{source.name}"):
        if not built.exists():
            _build(source, package, built)
    return built


def _build(source: Path, package: str, target: Path) -> None:
    """Beside the final place, then renamed: nobody ever runs half a program."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / source.name
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(partial), package]
        try:
            environment = {**golang.environment(), "CGO_ENABLED": "0"}
        except golang.GoError as error:
            raise GoProgramError(str(error)) from error
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise GoProgramError(f"the build of hack/{source.name} failed: {done.stderr.strip()[-2000:]}")
        partial.rename(target)
