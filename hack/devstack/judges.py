"""What kstatus and Argo CD say of our objects: asks the Go program in hack/judges, built once into the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devstack.cache import CACHE

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "hack" / "judges"
HEALTH = ROOT / "charts" / "llm-operator" / "argocd" / "health.lua"


class JudgesError(RuntimeError):
    """The judges can't be built or asked; the message has what the program said."""


@dataclass(frozen=True)
class Verdict:
    """How others read one object."""

    kstatus: str
    """InProgress, Current, Failed, Terminating, …"""
    argo: str
    """Progressing, Healthy, Degraded, Suspended."""
    message: str
    """What Argo CD shows beside it."""


def judge(objects: list[dict[str, Any]]) -> list[Verdict]:
    """The verdicts on `objects`, in their order. Raises JudgesError."""
    done = subprocess.run(
        [str(program()), str(HEALTH)], input=json.dumps(objects), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise JudgesError(done.stderr.strip())
    return [Verdict(each["kstatus"], each["argo"], each["argoMessage"]) for each in json.loads(done.stdout)]


def program() -> Path:
    """The built program; half a minute the first time, named after what went into it. Raises JudgesError."""
    digest = hashlib.sha256()
    for file in [SOURCE / "go.mod", SOURCE / "go.sum", *sorted(SOURCE.glob("*.go"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    folder = CACHE / "judges"
    built = folder / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        if not built.exists():
            _build(built)
    return built


def _build(target: Path) -> None:
    """Beside the final place, then renamed: nobody ever runs half a program."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / "judges"
        command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(partial), "."]
        environment = {**os.environ, "CGO_ENABLED": "0"}
        try:
            done = subprocess.run(command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise JudgesError("Go 1.26 or newer is needed to build hack/judges: install it from go.dev/dl") from error
        if done.returncode:
            raise JudgesError(f"the build of hack/judges failed: {done.stderr.strip()[-2000:]}")
        partial.rename(target)
