"""What kstatus and Argo CD say of our objects:
asks the Go program in hack/judges, built once into the user's cache."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devstack.goprogram import program

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "hack" / "judges"
HEALTH = ROOT / "charts" / "llm-operator" / "argocd" / "health.lua"


class JudgesError(RuntimeError):
    """The judges can't be asked; the message has what the program said."""


@dataclass(frozen=True)
class Verdict:
    """How others read one object."""

    kstatus: str
    """InProgress, Current, Failed, Terminating, …"""
    argo: str
    """Progressing, Healthy, Degraded, Suspended."""
    message: str
    """What Argo CD shows beside it."""


def built() -> Path:
    """The program; half a minute the first time. Raises GoProgramError."""
    return program(SOURCE)


def judge(objects: list[dict[str, Any]]) -> list[Verdict]:
    """The verdicts on `objects`, in their order.
    Raises JudgesError, or GoProgramError when they can't be built."""
    done = subprocess.run(
        [str(built()), str(HEALTH)],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise JudgesError(done.stderr.strip())
    return [
        Verdict(each["kstatus"], each["argo"], each["argoMessage"])
        for each in json.loads(done.stdout)
    ]
