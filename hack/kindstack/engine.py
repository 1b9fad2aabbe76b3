"""A Docker engine: the one that answers where it can start a node,
else Debian's own with its state in our cache."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from devstack.cache import CACHE
from devstack.waits import complain, locked
from kindstack.shell import KindError, MachineLacks, run

FOLDER = CACHE / "kind" / "engine"
SYS_RESOURCE = 24  # the number of CAP_SYS_RESOURCE, capabilities(7)
START_SECONDS = 60
NETWORK = "kind"
"""The network that kind makes for its nodes."""
# Of this process: one that tries the same engine at the same time must not remove it.
PROBE = f"localhost/llm-operator-probe:{os.getpid()}"
HELD = "another process starts or ends the Docker engine of clusters"
POLICY = Path("/usr/sbin/policy-rc.d")
MARK = "# of hack/e2e-kind, while it installs docker.io"
NO_ROOT = (
    "no Docker engine answers, and only root can start one: start your engine, or run this as root"
    " (sudo), where Debian's docker.io is installed and started for the time of the run"
)


@dataclass(frozen=True)
class Engine:
    """A Docker engine, and how its clients reach it.
    `own` is true for one that this package started."""

    own: bool
    environment: dict[str, str] = field(default_factory=dict)

    def docker(
        self, *arguments: str | Path, stdin: str | None = None, timeout_seconds: float | None = None
    ) -> str:
        """Run the docker command. Raises KindError with what it said."""
        return run(
            "docker", *arguments, env=self.environment, stdin=stdin, timeout_seconds=timeout_seconds
        )

    def has(self, image: str) -> bool:
        """Whether the engine keeps this image."""
        return bool(self.docker("images", "--quiet", image).strip())

    def pull(self, image: str, progress: Callable[[str], None]) -> bool:
        """Fetch an image; False where its registry can't be reached,
        which is found out within seconds."""
        if self.has(image):
            return True
        try:
            self.docker("manifest", "inspect", image, timeout_seconds=15)
        except KindError:
            return False
        progress(f"pulling {image}")
        self.docker("pull", "--quiet", image)
        return True


def find(static_program: Path, progress: Callable[[str], None]) -> Engine:
    """The engine to use. `static_program` ends well with `version`:
    it is run in a container to try the engine.

    Raises KindError where there is none and none can be started.
    """
    given = Engine(own=False)
    if shutil.which("docker") and answers(given):
        trouble = refusal(given, static_program)
        if trouble is None:
            return given
        progress(f"the Docker engine that answers can't start privileged containers: {trouble}")
        progress("starting one of our own beside it")
    return start(static_program, progress)


def answers(engine: Engine) -> bool:
    try:
        engine.docker("info", timeout_seconds=10)
    except KindError:
        return False
    return True


def refusal(engine: Engine, static_program: Path) -> str | None:
    """Why the engine can't run a privileged container, as kind's nodes are; None where it can."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "probe.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(static_program, "program")
        engine.docker("import", archive, PROBE)
    try:
        engine.docker(
            "run", "--rm", "--privileged", "--network", "none", PROBE, "/program", "version"
        )
    except KindError as error:
        return str(error).splitlines()[-1]
    finally:
        engine.docker("rmi", "--force", PROBE)
    return None


def start(static_program: Path, progress: Callable[[str], None]) -> Engine:
    """Start Debian's engine with its data, its state and its socket below the cache,
    or use the one that runs there."""
    if os.geteuid() != 0:
        raise MachineLacks(NO_ROOT)
    with locked(FOLDER / "lock", HELD, progress):
        engine = _start(static_program, progress)
        uses.begin()
        return engine


def _start(static_program: Path, progress: Callable[[str], None]) -> Engine:
    if policy_is_ours():
        # Left by an installation that was killed: no service of the machine would start any more
        POLICY.unlink()
    if shutil.which("dockerd") is None:
        install(progress)
    engine = Engine(own=True, environment={"DOCKER_HOST": f"unix://{FOLDER / 'docker.sock'}"})
    if (FOLDER / "docker.sock").exists() and answers(engine):
        return engine
    if alive():
        raise KindError(
            f"the Docker engine in {FOLDER} runs and does not answer: wait, or end it (its log:"
            " dockerd.log)"
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Left by an engine that was killed.
    for leftover in ("docker.pid", "docker.sock"):
        (FOLDER / leftover).unlink(missing_ok=True)
    command = [
        *(
            "dockerd",
            "--host",
            f"unix://{FOLDER / 'docker.sock'}",
            "--pidfile",
            str(FOLDER / "docker.pid"),
        ),
        *("--data-root", str(FOLDER / "data"), "--exec-root", str(FOLDER / "exec")),
        # Neither the firewall nor the bridge of an engine beside it is touched:
        # kind makes a network of its own.
        *("--iptables=false", "--ip6tables=false", "--bridge=none"),
    ]
    if not may_raise_limits():
        command += [
            "--add-runtime",
            f"nosysres={runtime_wrapper()}",
            "--default-runtime",
            "nosysres",
        ]
    with (FOLDER / "dockerd.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        await_start(engine, process, progress)
        if trouble := refusal(engine, static_program):
            raise MachineLacks(
                f"this machine can't run privileged containers, which kind's nodes are: {trouble}"
            )
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(START_SECONDS)
        raise
    return engine


def alive() -> bool:
    """Whether an engine of ours runs, also one that is too busy to answer;
    its number alone may be another's by now."""
    try:
        pid = (FOLDER / "docker.pid").read_text().strip()
        return str(FOLDER / "docker.sock").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def await_start(
    engine: Engine, process: subprocess.Popen[bytes], progress: Callable[[str], None]
) -> None:
    progress(f"waiting for dockerd (log: {FOLDER / 'dockerd.log'})")
    deadline = time.monotonic() + START_SECONDS
    while not answers(engine):
        if process.poll() is not None or time.monotonic() > deadline:
            said = "\n".join((FOLDER / "dockerd.log").read_text(errors="replace").splitlines()[-5:])
            raise KindError(f"dockerd did not start; the end of {FOLDER / 'dockerd.log'}:\n{said}")
        time.sleep(0.3)


def require_space(engine: Engine, gib: int) -> None:
    """Raises MachineLacks where the engine's disk has too little room,
    if it is a disk of this machine."""
    folder = (
        FOLDER
        if engine.own
        else Path(engine.docker("info", "--format", "{{.DockerRootDir}}").strip())
    )
    try:
        free = shutil.disk_usage(folder).free >> 30
    except OSError:
        return  # the engine runs elsewhere
    if free < gib:
        raise MachineLacks(
            f"{gib} GiB of free disk are needed for nodes and images, {free} GiB are free in"
            f" {folder}"
        )


def install(progress: Callable[[str], None]) -> None:
    if shutil.which("apt-get") is None:
        raise MachineLacks(
            "no Docker engine answers and none is installed: install Docker, and start it"
        )
    progress("installing Debian's docker.io")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    # The package would start an engine of its own, with its data elsewhere.
    if not POLICY.exists():
        POLICY.write_text(f"#!/bin/sh\n{MARK}\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        run("apt-get", "update", "-qq", env=quiet)
        run(
            "apt-get",
            "install",
            "-qq",
            "--no-install-recommends",
            "docker.io",
            "iptables",
            env=quiet,
        )
    except KindError as error:
        raise MachineLacks(
            f"no Docker engine answers, and Debian's can't be installed: {error}"
        ) from error
    finally:
        if policy_is_ours():
            POLICY.unlink()


def policy_is_ours() -> bool:
    return POLICY.is_file() and MARK in POLICY.read_text(errors="replace").splitlines()


def may_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, which runc wants for privileged containers."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> SYS_RESOURCE & 1)
    return True


def runtime_wrapper() -> Path:
    """An OCI runtime that is runc without CAP_SYS_RESOURCE,
    for machines that lack it: see runc_wrapper.py."""
    source = Path(__file__).with_name("runc_wrapper.py")
    runc = shutil.which("runc") or "/usr/sbin/runc"
    wrapper = FOLDER / "runc-without-sys-resource"
    words = shlex.join([sys.executable, "-I", str(source), runc])
    wrapper.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def stop(engine: Engine) -> None:
    """End an engine that this package started, unless another run uses it or a cluster is in it.
    Its images stay."""
    if not engine.own:
        return
    with locked(FOLDER / "lock", HELD, complain):
        uses.end()
        if not uses.others():
            _stop(engine)


class Uses:
    """The runs that use our engine, each a locked file, so that one that was killed counts no more.

    A kept cluster has no run; its containers tell of it.
    """

    def __init__(self) -> None:
        self._held: IO[str] | None = None

    @property
    def folder(self) -> Path:
        return FOLDER / "users"

    def begin(self) -> None:
        """Count this process until `end` or its own end."""
        if self._held is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = (self.folder / str(os.getpid())).open("w")
            fcntl.flock(self._held, fcntl.LOCK_EX)

    def end(self) -> None:
        if self._held is not None:
            Path(self._held.name).unlink(missing_ok=True)
            self._held.close()
            self._held = None

    def others(self) -> bool:
        """Whether another process uses the engine; what killed ones left is removed."""
        found = False
        for file in self.folder.glob("*"):
            with file.open("r+") as opened:
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()
                except BlockingIOError:
                    found = True
        return found


uses = Uses()


def _stop(engine: Engine) -> None:
    pid_file = FOLDER / "docker.pid"
    if not pid_file.exists():
        return
    try:
        if engine.docker("ps", "--quiet").strip():
            return
    except KindError:
        return  # It has ended, and its number may be another process's by now.
    with contextlib.suppress(KindError):
        engine.docker("network", "rm", NETWORK)  # else its bridge stays on this machine
    pid = int(pid_file.read_text())
    os.kill(pid, 15)
    deadline = time.monotonic() + START_SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.2)
