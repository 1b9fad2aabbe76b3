"""What was measured once: figures come back, for what they belong to, and harm is only slowness."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.machine.remembered import (
    LARGEST_BYTES,
    Remembered,
    cache_folder,
    cpu_flags,
    cpu_name,
)

CPUINFO = "processor\t: 0\nmodel name\t: Fast One 3000\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\n"


def test_figures_come_back_and_new_ones_lie_beside_them(tmp_path: Path) -> None:
    Remembered("gains", ("cpu",), tmp_path).add({"8x8": 1.5})
    Remembered("gains", ("cpu",), tmp_path).add({"9x9": 2.5})
    assert Remembered("gains", ("cpu",), tmp_path).read() == {"8x8": 1.5, "9x9": 2.5}
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "other", [("gains", ("other cpu",)), ("gains", ("cpu", "more")), ("losses", ("cpu",))]
)
def test_another_machine_another_code_and_another_kind_remember_nothing_of_it(
    tmp_path: Path, other: Any
) -> None:
    Remembered("gains", ("cpu",), tmp_path).add({"8x8": 1.5})
    assert Remembered(*other, tmp_path).read() == {}


def test_parts_of_what_it_depends_on_do_not_run_into_each_other(tmp_path: Path) -> None:
    Remembered("gains", ("ab", "c"), tmp_path).add({"8x8": 1.5})
    assert Remembered("gains", ("a", "bc"), tmp_path).read() == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"[" * 100_000, b"{" + b" " * LARGEST_BYTES + b"}"],
    ids=["empty", "cut", "binary", "list", "null", "deep", "large"],
)
def test_a_damaged_file_is_none_and_is_written_anew(tmp_path: Path, content: bytes) -> None:
    memory = Remembered("gains", ("cpu",), tmp_path)
    memory.add({"8x8": 1.5})
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert memory.read() == {}
    memory.add({"9x9": 2.0})
    assert memory.read() == {"9x9": 2.0}


def test_only_positive_numbers_are_figures(tmp_path: Path) -> None:
    memory = Remembered("gains", ("cpu",), tmp_path)
    memory.add({"good": 1.5})
    (file,) = tmp_path.iterdir()
    odd = {"text": "1.5", "true": True, "zero": 0, "less": -1, "none": None, "list": [1]}
    file.write_text(json.dumps({"good": 1.5, **odd})[:-1] + ', "nan": NaN, "much": Infinity}')
    assert memory.read() == {"good": 1.5}


def test_a_folder_that_is_no_folder_keeps_nothing_and_does_no_harm(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for folder in (None, blocked, tmp_path / "gone"):
        memory = Remembered("gains", ("cpu",), folder)
        memory.add({"8x8": 1.5})
        assert memory.read() == {}


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Remembered("gains", ("cpu",), tmp_path)
    memory.add({"8x8": 1.5})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    memory.add({"9x9": 2.0})
    assert memory.read() == {"8x8": 1.5}
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_lies_where_the_user_says_or_below_home_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("measured") == tmp_path / "cache" / "llm-operator" / "measured"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("measured") == tmp_path / ".cache" / "llm-operator" / "measured"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache_folder("measured") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert cache_folder("measured") is None


def test_the_processor_is_told_by_name_and_instructions(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    assert (cpu_name(cpuinfo), cpu_flags(cpuinfo)) == ("Fast One 3000", {"fpu", "avx2", "fma"})
    assert (cpu_name(tmp_path / "gone"), cpu_flags(tmp_path / "gone")) == ("", frozenset())
