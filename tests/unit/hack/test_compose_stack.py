"""What hack/e2e-compose says before it builds anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kindstack import compose
from kindstack.engine import Engine
from kindstack.phases import Phases
from kindstack.shell import KindError


class Answering(Engine):
    """An engine and a Compose of given versions; "" is one that is not installed."""

    def __init__(self, server: str, composing: str) -> None:
        super().__init__(own=False)
        object.__setattr__(self, "said", {"info": server, "version": server, "compose": composing})

    def docker(self, *arguments: object, **_: object) -> str:
        said: str = self.said[arguments[0]]  # type: ignore[attr-defined]
        if not said:
            raise KindError(f"docker {arguments[0]} failed")
        return f"{said}\n"


def test_versions_are_told_as_distributions_write_them() -> None:
    assert (
        compose.require(Answering("26.1.5+dfsg1", "2.26.1-4"))
        == "Docker 26.1.5+dfsg1, Docker Compose 2.26.1-4"
    )
    assert compose.require(Answering("25.0.0", "v2.24.0"))


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (("", ""), "no Docker engine answers"),
        (
            ("20.10.24+dfsg1", "2.26.1"),
            r"Docker 20\.10\.24\+dfsg1 is too old.* needs 25\.0 or newer",
        ),
        (("26.1.5", "2.23.3"), r"Docker Compose 2\.23\.3 is too old.* needs 2\.24 or newer"),
        (("26.1.5", ""), "Docker Compose does not say its version"),
    ],
)
def test_what_is_missing_or_too_old_is_named(engine: tuple[str, str], told: str) -> None:
    with pytest.raises(KindError, match=told):
        compose.require(Answering(*engine))


def test_without_a_prepared_stack_it_says_what_prepares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "FOLDER", tmp_path)
    with pytest.raises(KindError, match="run hack/e2e-compose"):
        compose.Stack.attach()


def test_a_word_that_a_verb_would_ignore_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "down", lambda: None)
    monkeypatch.setattr(compose.sys, "argv", ["hack/e2e-compose", "down", "--volumes"])
    with pytest.raises(SystemExit, match="down takes no --volumes"):
        compose.main()


def test_a_path_replaces_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(compose, "prepare", lambda _: None)
    monkeypatch.setattr(compose, "down", lambda: None)
    monkeypatch.setattr(compose.subprocess, "run", run)
    quiet = Phases(lambda _: None)
    assert compose.test(quiet, ["tests/compose/test_stack.py"]) == 0
    assert compose.test(quiet, ["-k", "keys"]) == 0
    assert commands == [
        ["pytest", "-q", "tests/compose/test_stack.py"],
        ["pytest", "-q", "tests/compose", "-k", "keys"],
    ]


def test_each_checkout_has_a_project_of_its_own(tmp_path: Path) -> None:
    """A copy of the package elsewhere names another project."""
    shutil.copytree(
        Path(compose.__file__).parents[1],
        tmp_path / "hack",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    command = [sys.executable, "-c", "from kindstack import compose; print(compose.PROJECT)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hack")}
    other = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other != compose.PROJECT
    assert other.startswith("llm-runtime-e2e-")
