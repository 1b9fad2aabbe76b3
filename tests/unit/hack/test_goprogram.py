"""Programs in Go that tests ask: what is said while they are built,
and what is left where they can't be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devstack import golang, goprogram, waits


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module; `go` on the PATH is what the test writes to bin/go."""
    monkeypatch.setattr(goprogram, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(waits, "SILENT_SECONDS", 0.01)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    monkeypatch.setenv("PATH", environment["PATH"])
    monkeypatch.setattr(golang, "environment", lambda say: environment)
    (tmp_path / "judges").mkdir()
    (tmp_path / "judges" / "go.mod").write_text("module judges\n")
    (tmp_path / "judges" / "go.sum").touch()
    return tmp_path / "judges"


def go(source: Path, text: str) -> None:
    file = source.parent / "bin" / "go"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_a_build_says_how_far_it_is(source: Path) -> None:
    # Before, a build of minutes said nothing.
    told = source.parent / "told"
    go(
        source,
        f'echo "go: downloading a v1" >&2; echo a >&2; until [ -e {told} ]; do sleep 0.05; done;'
        ' touch "$8"',
    )
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("  1 packages compiled, 1 modules fetched ("):
            told.touch()

    built = goprogram.program(source, say=say)
    assert built.is_file()
    assert said[0] == "building hack/judges from source, once"
    assert told.exists()


def test_a_failed_build_has_the_words_of_go_and_leaves_nothing(source: Path) -> None:
    go(source, "echo 'judges: no required module provides package x' >&2; exit 1")
    left = source.parent / "cache" / "judges" / ".partial-killed"  # of a build that was killed
    left.mkdir(parents=True)
    with pytest.raises(
        goprogram.GoProgramError, match=r"(?s)the build of hack/judges failed: .*no required module"
    ):
        goprogram.program(source, say=lambda _: None)
    assert [each.name for each in left.parent.iterdir()] == [".lock"]


def test_a_cache_that_can_not_be_written_to_is_told(source: Path) -> None:
    (source.parent / "cache").touch()
    with pytest.raises(
        goprogram.GoProgramError, match=r"hack/judges can't be built below .*cache: .*"
    ):
        goprogram.program(source, say=lambda _: None)
