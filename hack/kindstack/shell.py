"""Commands of this package: run to their end,
with an error that says what was run and what it answered."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class KindError(RuntimeError):
    """The cluster can't be had or used; the message says what happened, and what to do next."""


class MachineLacks(KindError):
    """This machine can't run a cluster as it is: no engine and no right to start one, no space.
    Nothing is broken."""


def verb_of(arguments: list[str], verbs: Collection[str]) -> tuple[str, list[str]]:
    """The verb that a command line begins with, else `test`, and the rest, which is for pytest.

    Raises KindError where a verb without tests is given more.
    """
    verb, rest = (
        (arguments[0], arguments[1:])
        if arguments[:1] and arguments[0] in verbs
        else ("test", arguments)
    )
    if verb != "test" and rest:
        raise KindError(
            f"{verb} takes no {' '.join(rest)}: only test has arguments, which are pytest's"
        )
    return verb, rest


def selection(suite: str, arguments: list[str]) -> list[str]:
    """Arguments for pytest: `suite` is run unless they name a file or folder of tests
    themselves."""
    named = any(
        (ROOT / word.partition("::")[0]).exists()
        and not before.startswith(("--ignore", "--deselect"))
        for before, word in zip(["", *arguments], arguments, strict=False)
        # A word of -k or -m is no path, even where a folder here has its name.
        if "/" in word and not word.startswith("-")
    )
    return arguments if named else [suite, *arguments]


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout_seconds: float | None = None,
) -> str:
    """Run a command and return its standard output.
    `env` is added to this process's own. Raises KindError."""
    words = [str(word) for word in command]
    environment = {**os.environ, **(env or {})}
    program = shutil.which(words[0], path=environment.get("PATH"))
    if program is None:
        raise KindError(f"{words[0]} is not installed")
    try:
        done = subprocess.run(
            [program, *words[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            cwd=cwd,
            input=stdin,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise KindError(f"{shown(words)} did not end within {timeout_seconds:.0f} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        hint = "; free some space and run it again" if "no space left on device" in said else ""
        raise KindError(f"{shown(words)} failed (exit {done.returncode}): {clipped(said)}{hint}")
    return done.stdout


def shown(words: list[str]) -> str:
    """The beginning of a command, short enough for one line of an error."""
    text = " ".join(words)
    return text if len(text) <= 120 else text[:117] + "..."


def clipped(text: str) -> str:
    """Both ends of a long output: the reason stands at one of them."""
    return text if len(text) <= 3000 else f"{text[:1500]}\n…\n{text[-1500:]}"
