"""Programs in Go that tests ask: built once into the user's cache, named after what went into them.

Standard library only, as is all of the Go part of devstack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from devstack import golang
from devstack.cache import CACHE, workplace
from devstack.waits import complain, locked


class GoProgramError(RuntimeError):
    """The program can't be built; the message has what Go said."""


def program(source: Path, package: str = ".", say: Callable[[str], None] = complain) -> Path:
    """`package` of the module in the folder `source`, built;
    a minute or so the first time, of which `say` is told.

    Raises GoProgramError.
    """
    digest = hashlib.sha256()
    for file in [source / "go.mod", source / "go.sum", *sorted(source.glob("*.go"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    folder = CACHE / source.name
    built = folder / digest.hexdigest()[:16]
    try:
        with locked(folder / ".lock", f"another process is building hack/{source.name}", say):
            if not built.exists():
                _build(source, package, built, say)
    except golang.GoError as error:
        raise GoProgramError(str(error)) from error
    except OSError as error:
        raise GoProgramError(f"hack/{source.name} can't be built below {CACHE}: {error}") from error
    return built


def _build(source: Path, package: str, target: Path, say: Callable[[str], None]) -> None:
    """Beside the final place, then renamed: nobody ever runs half a program."""
    environment = golang.environment(say)
    with workplace(target.parent) as folder:
        partial = folder / source.name
        command = ["go", "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w"]
        say(f"building hack/{source.name} from source, once")
        progress = "  {compiled} packages compiled, {fetched} modules fetched"
        command += ["-o", str(partial), package]
        if why := golang.follow(command, source, environment, progress, say):
            raise GoProgramError(f"the build of hack/{source.name} failed: {why}")
        partial.rename(target)
