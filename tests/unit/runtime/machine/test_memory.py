"""How much memory and how many cores there are."""

import os
from pathlib import Path

import pytest

from llm_runtime.errors import OutOfMemory
from llm_runtime.machine.memory import (
    MIB,
    available_bytes,
    blocks_that_fit,
    check_room,
    resident_bytes,
    server_bytes,
)
from llm_runtime.machine.threads import configure_threads, usable_cores


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_the_containers_limit_counts_and_cached_files_are_free(tmp_path: Path) -> None:
    stat = f"anon 5\ninactive_file {100 * MIB}\nactive_file {50 * MIB}\n"
    write(tmp_path, memory__max=str(1000 * MIB), memory__current=str(600 * MIB), memory__stat=stat)
    meminfo = write(tmp_path, meminfo="MemTotal: 99 kB\nMemAvailable: 99999999 kB\n") / "meminfo"
    assert available_bytes(tmp_path, meminfo) == 550 * MIB


def test_weights_that_can_not_fit_are_refused_before_the_kernel_notices(tmp_path: Path) -> None:
    for part in range(2):
        (tmp_path / f"model-{part}.safetensors").write_bytes(bytes(2 * MIB))
    check_room(tmp_path, 4 * MIB)
    with pytest.raises(OutOfMemory, match="4 MiB"):
        check_room(tmp_path, 3 * MIB)


def test_a_process_knows_its_own_memory(tmp_path: Path) -> None:
    assert resident_bytes() > MIB
    assert resident_bytes(tmp_path / "missing") == 0


def test_a_server_counts_the_memory_of_its_engine_too(tmp_path: Path) -> None:
    assert server_bytes() > MIB
    page = os.sysconf("SC_PAGE_SIZE")
    write(tmp_path / "self", statm="9 100 1 1 1 1 1")
    write(tmp_path / "self" / "task" / "1", children="7 8 ")
    write(tmp_path / "7", statm="9 50 1 1 1 1 1")
    assert server_bytes(tmp_path) == 150 * page


def test_without_a_limit_the_host_decides(tmp_path: Path) -> None:
    write(tmp_path, memory__max="max", memory__current="1", memory__stat="")
    meminfo = write(tmp_path, meminfo="MemAvailable: 2048 kB\n") / "meminfo"
    assert available_bytes(tmp_path, meminfo) == 2 * MIB


def test_blocks_are_reduced_to_what_fits_and_refused_when_no_sequence_does() -> None:
    assert blocks_that_fit(64, 4, 100, 10_000) == 64
    assert blocks_that_fit(64, 4, 100, 1_050) == 10
    with pytest.raises(OutOfMemory, match=r"lower engine.maxModelLength"):
        blocks_that_fit(64, 4, 100, 399)


def test_threads_follow_the_cpu_quota_rounded_up(tmp_path: Path) -> None:
    assert usable_cores(write(tmp_path, cpu__max="50000 100000") / "cpu.max") == 1
    assert usable_cores(write(tmp_path, cpu__max="150000 100000") / "cpu.max") <= 2
    assert usable_cores(tmp_path / "missing") >= 1


def test_threads_leave_what_the_user_set(tmp_path: Path) -> None:
    environment = {"OMP_NUM_THREADS": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}
    assert configure_threads(environment, tmp_path / "missing") == 7
    assert environment["GOMP_SPINCOUNT"] == "1000"
    assert environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "1024"
