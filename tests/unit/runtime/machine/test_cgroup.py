"""What the kernel's files say about memory:
both versions, inside a container and outside of one, and a real group."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cgroups import limited
from llm_runtime.machine.cgroup import MemoryGroup, memory_groups
from llm_runtime.machine.memory import MIB, available_bytes

ROOT = Path(__file__).parents[4]


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def membership(folder: Path, text: str) -> Path:
    file = folder / "membership"
    file.write_text(text)
    return file


def test_version_2_inside_a_container_shows_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(
        root, memory__max="1000", memory__current="600", memory__peak="900",
        memory__stat="anon 5\ninactive_file 100\nactive_file 50\n", memory__events="low 0\noom 2\noom_kill 1\n",
    )  # fmt: skip
    [found] = memory_groups(root, membership(tmp_path, "0::/\n"))
    assert found == MemoryGroup(1000, 600, 900, 150, oom_kills=1)
    assert found.left_bytes == 550


def test_version_1_counts_what_lies_below_and_knows_a_paths_of_the_host(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(
        root / "memory", memory__limit_in_bytes="1000", memory__usage_in_bytes="600", memory__max_usage_in_bytes="900",
        memory__stat="inactive_file 1\ntotal_inactive_file 100\nactive_file 1\ntotal_active_file 50\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
    )  # fmt: skip
    # As a container of cgroup version 1 sees it: the host's path, and its own group at the mount.
    [found] = memory_groups(
        root, membership(tmp_path, "4:memory:/kubepods/burstable/pod1/abc\n0::/\n")
    )
    assert found == MemoryGroup(1000, 600, 900, 150, oom_kills=4)


def test_outside_of_a_container_each_group_on_the_way_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    stat = "inactive_file 0\n"
    write(
        root / "user", memory__max=str(100 * MIB), memory__current=str(80 * MIB), memory__stat=stat
    )
    write(
        root / "user" / "job", memory__max="max", memory__current=str(30 * MIB), memory__stat=stat
    )
    member = membership(tmp_path, "0::/user/job\n")
    assert [group.limit_bytes for group in memory_groups(root, member)] == [None, 100 * MIB]
    write(tmp_path, meminfo="MemAvailable: 99999999 kB\n")
    assert available_bytes(root, tmp_path / "meminfo", member) == 20 * MIB


def test_where_nothing_can_be_read_there_are_no_groups(tmp_path: Path) -> None:
    assert memory_groups(tmp_path / "cgroup", tmp_path / "none") == []
    write(tmp_path / "cgroup", memory__max="nonsense", memory__current="1", memory__stat="")
    assert memory_groups(tmp_path / "cgroup", tmp_path / "none") == []


def test_a_process_that_the_kernel_kills_for_its_memory_is_counted_by_the_real_kernel() -> None:
    program = """
import subprocess, sys
from llm_runtime.machine.cgroup import memory_groups
from llm_runtime.engine.process import death, oom_kills
before = oom_kills(memory_groups())
child = subprocess.Popen([sys.executable, "-c", "b = bytearray(400 << 20); print(len(b))"])
print(death(child.wait(), memory_groups(), before).model_dump_json())
"""
    with limited(mib=160) as enter:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
        said = subprocess.run(
            [*enter, sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert '"reason":"OutOfMemory"' in said
    assert "the limit is 160 MiB" in said


@pytest.mark.parametrize("mib", [64, 200])
def test_a_real_limit_is_what_is_left(mib: int) -> None:
    program = (
        "from llm_runtime.machine.memory import available_bytes; print(available_bytes() >> 20)"
    )
    with limited(mib=mib) as enter:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
        said = subprocess.run(
            [*enter, sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert mib - 40 < int(said) < mib
