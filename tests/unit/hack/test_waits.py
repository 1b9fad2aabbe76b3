"""Who waits says for what."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from devstack import terminal, waits
from devstack.waits import locked, waiting


def test_a_wait_says_again_and_again_what_it_is_for() -> None:
    said: list[str] = []
    thrice = threading.Event()
    steps = iter(["pulling", "starting", "running", *["ready"] * 1000])

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            thrice.set()

    with waiting(lambda: next(steps), say, every_seconds=0.001):
        assert thrice.wait(30)
    assert [line.split(" (")[0] for line in said[:3]] == ["pulling", "starting", "running"]
    assert said[0].endswith(" s)")


def test_a_quick_block_says_nothing() -> None:
    said: list[str] = []
    with waiting(lambda: "slow", said.append, every_seconds=3600):
        pass
    assert said == []


def test_a_lock_that_another_holds_is_told_before_it_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other.fileno(), fcntl.LOCK_EX)

        def say(text: str) -> None:
            said.append(text)
            fcntl.flock(other.fileno(), fcntl.LOCK_UN)

        with locked(tmp_path / "lock", "another build runs", say):
            pass
    assert said == ["another build runs; waiting for it"]


def test_a_free_lock_is_taken_silently(tmp_path: Path) -> None:
    said: list[str] = []
    with locked(tmp_path / "folder" / "lock", "another build runs", said.append):
        pass
    assert said == []


def test_a_command_that_is_shown_says_that_it_still_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Before, an upload of 40 s on a busy machine was a silent demo.
    monkeypatch.setattr(waits, "SILENT_SECONDS", 0.01)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        (tmp_path / "told").touch()

    monkeypatch.setattr(terminal, "say", say)
    command = f"until [ -e {tmp_path}/told ]; do sleep 0.05; done; echo done"
    assert terminal.Shell({}).run(command) == "done\n"
    assert said[0].startswith("  … this command still runs (")
