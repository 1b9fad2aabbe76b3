"""The stack of manifests/compose.yaml for its tests;
images that can't be pulled are made of packages.

hack/e2e-compose runs this. It needs a Docker engine that answers, and starts none.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from devstack.cache import CACHE, workplace
from devstack.ports import free_ports
from devstack.waits import locked, waiting
from kindstack import base
from kindstack.engine import Engine, answers
from kindstack.phases import Phases
from kindstack.programs import go
from kindstack.shell import ROOT, KindError, run, selection, verb_of

FOLDER = ROOT / ".e2e-compose"
# Of this checkout: another's containers are not this one's to remove.
PROJECT = f"llm-runtime-e2e-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
FILE = ROOT / "manifests" / "compose.yaml"
ENGINE = (25, 0)
COMPOSE = (2, 24)
PORTS = ("RUNTIME_PORT", "MLFLOW_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
SUITE = "tests/compose"
PYTEST = f"pytest {SUITE} -q"
STAND_INS = ROOT / "hack" / "compose"
# Builds reach the package registries by this machine's own network,
# also where the engine has no bridge.
OVERRIDE = """\
services:
  runtime: {build: {network: host}}
  mlflow: {build: {network: host}}
"""


@dataclass(frozen=True)
class Stack:
    """One project of Docker Compose. `settings` are what `manifests/.env` would hold."""

    settings: dict[str, str]
    files: tuple[Path, ...] = (FILE, FOLDER / "override.yaml")

    @staticmethod
    def attach() -> Stack:
        """The stack that hack/e2e-compose has prepared. Raises KindError where it has not."""
        file = FOLDER / "env"
        if not file.exists():
            raise KindError(f"{file} is not there; run hack/e2e-compose, which prepares the stack")
        return Stack(dict(line.split("=", 1) for line in file.read_text().splitlines()))

    @property
    def services(self) -> list[str]:
        """Services that can run here: without Grafana where its image can't be had."""
        names = run(*self.command("config", "--services")).split()
        return [
            name
            for name in names
            if name != "grafana" or self.settings.get("WITHOUT_GRAFANA") != "1"
        ]

    def url(self, port: str) -> str:
        """Where a service answers: url("RUNTIME_PORT")."""
        return f"http://127.0.0.1:{self.settings[port]}"

    def command(self, *words: str) -> tuple[str, ...]:
        files = [word for file in self.files for word in ("--file", str(file))]
        return (
            "docker",
            "compose",
            "--project-name",
            PROJECT,
            "--env-file",
            str(FOLDER / "env"),
            *files,
            *words,
        )

    def __call__(self, *words: str, **environment: str) -> str:
        """`docker compose …`; a keyword stands for a line of `.env`.
        Raises KindError with what it said."""
        return run(*self.command(*words), env=environment)

    def container(self, service: str) -> str:
        """Id of the container, also of one that has ended."""
        return self("ps", "--all", "--quiet", service).strip()


def require(engine: Engine) -> str:
    """The versions, in words.
    Raises KindError where no engine answers, or it or Compose is too old."""
    if not answers(engine):
        raise KindError("no Docker engine answers: start one, or name it in DOCKER_HOST")
    versions = []
    for name, least, command in (
        ("Docker", ENGINE, ("version", "--format", "{{.Server.Version}}")),
        ("Docker Compose", COMPOSE, ("compose", "version", "--short")),
    ):
        try:
            said = engine.docker(*command).strip()
        except KindError as error:
            raise KindError(f"{name} does not say its version: {error}") from error
        if tuple(int(number) for number in re.findall(r"\d+", said)[:2]) < least:
            raise KindError(
                f"{name} {said} is too old: manifests/compose.yaml needs"
                f" {'.'.join(map(str, least))} or newer"
            )
        versions.append(f"{name} {said}")
    return ", ".join(versions)


def images(engine: Engine, progress: Callable[[str], None]) -> dict[str, str]:
    """Settings that name the images: those of compose.yaml where they can be pulled,
    else such as are made here."""
    origin = base.plain(engine, progress)
    settings = {"BASE_IMAGE": origin, "BUILD_IMAGE": base.for_building(engine, origin)}
    for name, official in re.findall(r"image: \$\{(\w+)_IMAGE:-(\S+)\}", FILE.read_text()):
        if engine.pull(official, progress):
            continue
        if name == "GRAFANA":
            progress(f"{official} can't be pulled and no package has it: the stack runs without it")
            settings["WITHOUT_GRAFANA"] = "1"
            continue
        progress(f"{official} can't be pulled: making its stand-in")
        settings[f"{name}_IMAGE"] = stand_in(
            engine, name.lower(), official, settings["BUILD_IMAGE"], progress
        )
    return settings


def stand_in(
    engine: Engine, name: str, official: str, build_image: str, progress: Callable[[str], None]
) -> str:
    """Build hack/compose/NAME.Dockerfile and return the image's name."""
    made = f"localhost/llm-operator-{official.rpartition('/')[2]}"
    more: list[str | Path] = []
    if name == "prometheus":
        more = ["--build-context", f"programs={prometheus(official.rpartition(':v')[2], progress)}"]
    engine.docker(
        *("build", "--network", "host", "--file", STAND_INS / f"{name}.Dockerfile", "--tag", made),
        *("--build-arg", f"BUILD_IMAGE={build_image}", *more),
        STAND_INS,
    )
    return made


def prometheus(version: str, progress: Callable[[str], None]) -> Path:
    """The folder with prometheus and promtool of a release, built from its Go module.
    Raises KindError."""
    major, minor, patch = (int(number) for number in version.split("."))
    # Prometheus 3.5.0 is v0.305.0 as a Go module.
    module = f"github.com/prometheus/prometheus@v0.{major * 100 + minor}.{patch}"
    folder = CACHE / "compose" / f"prometheus-{version}"
    with locked(folder.parent / ".lock", "another process is building Prometheus", progress):
        if not folder.is_dir():
            progress(f"building Prometheus {version} from its Go module")
            building = waiting(lambda: f"  still building Prometheus {version}", progress)
            with building, workplace(folder.parent) as partial:
                source = partial / "source"
                programs = partial / "programs"
                source.mkdir()
                commands = [
                    f"{module.partition('@')[0]}/cmd/{each}" for each in ("prometheus", "promtool")
                ]
                go("mod", "init", "example.invalid/prometheus", cwd=source)
                go("get", *(f"{each}@{module.partition('@')[2]}" for each in commands), cwd=source)
                stamp = f"-s -w -X github.com/prometheus/common/version.Version={version}"
                go(
                    "build",
                    "-trimpath",
                    "-ldflags",
                    stamp,
                    "-o",
                    f"{programs}/",
                    *commands,
                    cwd=source,
                )
                programs.rename(folder)
    return folder


def prepare(phases: Phases) -> Stack:
    """Images, passwords and free ports, written to the state's folder;
    what an earlier run left is removed."""
    engine = Engine(own=False)
    phases.progress(require(engine))
    down()
    FOLDER.mkdir(exist_ok=True)
    with phases("images of others"):
        settings = images(engine, phases.progress)
    settings |= {"ACCELERATOR": "cpu", "LLM_RUNTIME_VERSION": "e2e"}
    settings |= {
        name: secrets.token_hex(12)
        for name in ("API_KEY", "POSTGRES_PASSWORD", "GRAFANA_ADMIN_PASSWORD")
    }
    settings |= dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    (FOLDER / "override.yaml").write_text(OVERRIDE)
    (FOLDER / "env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    stack = Stack.attach()
    with phases("building runtime and mlflow"):
        stack("build", "runtime", "mlflow")
    return stack


def down() -> None:
    """Remove containers, networks, volumes and settings of the project; images stay."""
    if (FOLDER / "env").exists():
        Stack.attach()("down", "--volumes", "--remove-orphans", "--timeout", "5")
        shutil.rmtree(FOLDER)


def main() -> None:
    """`hack/e2e-compose [test|up|down] [pytest arguments]`;
    a failure is one line on standard error."""
    # A run that is ended by its caller removes its containers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    phases = Phases(lambda line: print(line, flush=True))
    try:
        verb, rest = verb_of(sys.argv[1:], ("test", "up", "down"))
        if verb == "down":
            down()
        elif verb == "up":
            prepare(phases)
            print(
                f"\n{phases.table()}\n\n{PYTEST} runs the tests; hack/e2e-compose down removes what"
                " they leave"
            )
        else:
            sys.exit(test(phases, rest))
    except KindError as error:
        sys.exit(f"e2e-compose: {error}")


def test(phases: Phases, arguments: list[str]) -> int:
    """All of it around pytest, whose status this is."""
    try:
        prepare(phases)
        with phases("tests/compose"):
            command = [sys.executable, "-m", "pytest", "-q", *selection(SUITE, arguments)]
            status = subprocess.run(command, cwd=ROOT).returncode
    finally:
        down()
    print(f"\n{phases.table()}")
    return status


if __name__ == "__main__":
    main()
