"""What kstatus and Argo CD say of our objects: asks the Go program in hack/judges, built once into the user's cache."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devstack import golang
from devstack.cache import CACHE
from devstack.waits import locked

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
    with locked(folder / ".lock", "another process is building the judges"):
        if not built.exists():
            _build(built)
    return built


def _build(target: Path) -> None:
    """Beside the final place, then renamed: nobody ever runs half a program."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / "judges"
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(partial), "."]
        try:
            environment = {**golang.environment(), "CGO_ENABLED": "0"}
        except golang.GoError as error:
            raise JudgesError(str(error)) from error
        done = subprocess.run(command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise JudgesError(f"the build of hack/judges failed: {done.stderr.strip()[-2000:]}")
        partial.rename(target)
