"""A real PostgreSQL server for a test session:
a folder of its own, a free port on loopback, gone afterwards."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from devstack.ports import free_port

BINARIES = (
    sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if Path("/usr/lib/postgresql").is_dir()
    else []
)
START_SECONDS = 30
# Nothing here has to survive a power cut.
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}


class NoPostgres(RuntimeError):
    """PostgreSQL's server programs are not installed."""


@dataclass
class Postgres:
    """A running server."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None
    host: str = "127.0.0.1"
    """Where others reach it; it listens on loopback in any case."""

    def create(self) -> str:
        """The address of a new, empty database."""
        name = f"test_{uuid4().hex[:12]}"
        self.psql("postgres", f"CREATE DATABASE {name}")
        return f"postgresql://postgres@{self.host}:{self.port}/{name}"

    def psql(self, database: str, statement: str) -> str:
        """Run one statement, without the driver that is under test."""
        address = f"postgresql://postgres@127.0.0.1:{self.port}/{database}"
        command = [str(program("psql")), address, "-XAtqc", statement]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def start(self) -> None:
        options = [word for name, value in FAST.items() for word in ("-c", f"{name}={value}")]
        where = [
            "-D",
            str(self.folder / "data"),
            "-p",
            str(self.port),
            "-h",
            f"127.0.0.1,{self.host}",
            "-k",
            str(self.folder),
        ]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [*_unprivileged(), str(program("postgres")), *where, *options], stderr=log
        )
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(
            [str(program("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        ).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NoPostgres(
                    f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.05)

    def family(self) -> list[int]:
        """Its processes: the postmaster and its children, one for each connection.
        From /proc: pgrep may be missing."""
        assert self.process
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [parent, *map(int, children)]

    def stop(self) -> None:
        """At once, as a crash would: connections break."""
        if self.process:
            self.process.send_signal(
                3
            )  # SIGQUIT: PostgreSQL's immediate shutdown, which leaves no child behind.
            self.process.wait(10)
            self.process = None


def program(name: str) -> Path:
    """One of PostgreSQL's programs."""
    found = shutil.which(
        name, path=os.pathsep.join([*map(str, BINARIES), os.environ.get("PATH", "")])
    )
    if found is None:
        raise NoPostgres(f"{name} is not installed: apt-get install postgresql-15 (or the like)")
    return Path(found)


@contextmanager
def postgres(host: str = "127.0.0.1") -> Iterator[Postgres]:
    """A server for as long as the block lasts,
    on loopback and on another address of this machine if it is given.

    Whoever reaches that address may do everything: give it one of a network that the test has made.
    """
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    port = free_port()
    if os.geteuid() == 0:
        shutil.chown(folder, _account())
    server = Postgres(folder, port, host=host)
    try:
        initdb = [
            str(program("initdb")),
            "-D",
            str(folder / "data"),
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
        ]
        subprocess.run([*_unprivileged(), *initdb], check=True, capture_output=True)
        with (folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {'samehost' if host == '127.0.0.1' else 'all'} trust\n")
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> str:
    """PostgreSQL refuses to run as root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise NoPostgres("no account that is not root's to run PostgreSQL as")


def _unprivileged() -> list[str]:
    return ["setpriv", f"--reuid={_account()}", "--clear-groups", "--"] if os.geteuid() == 0 else []
