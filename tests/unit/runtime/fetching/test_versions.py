"""Which versions go to make room, and which never do."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_runtime.errors import DiskFull
from llm_runtime.fetching.fetch import Fetcher
from llm_runtime.fetching.versions import claim, evict, in_use, remove_stale, versions_in
from llm_runtime.files.verify import is_whole, write_manifest
from unit.runtime.fetching.fakes import VERSION, FolderRegistry, write_model

HOUR = 3600.0
ROOT = Path(__file__).parents[4]


def version(models: Path, name: str, unused_hours: float) -> Path:
    folder = models / name
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(1000))
    write_manifest(folder, "test")
    then = time.time() - unused_hours * HOUR
    os.utime(folder / "manifest.json", (then, then))
    return folder


def names(models: Path) -> list[str]:
    return [found.folder.name for found in versions_in(models)]


def test_those_not_used_for_longest_go_first(tmp_path: Path) -> None:
    for number, name in enumerate(("new", "old", "older"), 2):
        version(tmp_path, name, unused_hours=number)
    evict(tmp_path, keep_bytes=10_000, room_bytes=0)
    assert names(tmp_path) == ["older", "old", "new"]
    evict(tmp_path, keep_bytes=2_500, room_bytes=0)
    assert names(tmp_path) == ["old", "new"]
    evict(tmp_path, keep_bytes=0, room_bytes=0)
    assert names(tmp_path) == []


def test_what_was_just_used_or_is_linked_stays(tmp_path: Path) -> None:
    version(tmp_path, "just", unused_hours=0.5)
    (tmp_path / "current").symlink_to(version(tmp_path, "linked", unused_hours=50))
    claim(version(tmp_path, "claimed", unused_hours=50))
    evict(tmp_path, keep_bytes=0, room_bytes=0)
    assert sorted(names(tmp_path)) == ["claimed", "just", "linked"]


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_a_version_with_a_link_out_of_it_is_fetched_anew(tmp_path: Path, name: str) -> None:
    """Others may write to a shared volume, and a chat template may be any file of this pod."""
    (tmp_path / "password").write_text("secret")
    fetcher = Fetcher(FolderRegistry(write_model(tmp_path / "registry")), tmp_path / "models")
    folder = fetcher.fetch(VERSION)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "password")
    assert not claim(folder)
    assert fetcher.fetch(VERSION) == folder
    assert not (folder / name).exists()
    assert claim(folder)


HOLDER = """
import sys; sys.path.insert(0, {runtime!r})
from pathlib import Path
from llm_runtime.fetching.versions import in_use
with in_use(Path({folder!r})):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_serves_stays_until_that_ends(tmp_path: Path) -> None:
    folder = version(tmp_path, "served", unused_hours=50)
    script = HOLDER.format(runtime=str(ROOT / "runtime"), folder=str(folder))
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    later = time.time() + 50 * HOUR
    evict(tmp_path, keep_bytes=0, room_bytes=0, now=later)
    assert is_whole(folder)
    holder.communicate(timeout=10)
    evict(tmp_path, keep_bytes=0, room_bytes=0, now=later)
    assert not folder.exists()


def test_on_a_volume_without_locks_a_day_must_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    version(tmp_path, "yesterday", unused_hours=20)
    version(tmp_path, "last week", unused_hours=150)
    with in_use(version(tmp_path, "served", unused_hours=150)):
        while versions_in(tmp_path)[-1].folder.name != "served":  # Touched by a thread.
            time.sleep(0.001)
        evict(tmp_path, keep_bytes=0, room_bytes=0)
    assert sorted(names(tmp_path)) == ["served", "yesterday"]


def test_nothing_goes_when_that_would_not_make_room_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(tmp_path, "old", unused_hours=50)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10 << 20}))
    with pytest.raises(DiskFull, match=r"10 MiB free and 0 MiB of versions not in use"):
        evict(tmp_path, keep_bytes=10_000, room_bytes=1 << 30)
    assert names(tmp_path) == ["old"]


def test_a_full_disk_counts_what_can_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = version(tmp_path, "old", unused_hours=50)
    room = type("Usage", (), {"free": (64 << 20) + 500})
    more = type("Usage", (), {"free": (64 << 20) + 1500})
    monkeypatch.setattr("shutil.disk_usage", lambda _: room if folder.exists() else more)
    evict(tmp_path, keep_bytes=10_000, room_bytes=1000)
    assert not folder.exists()


def test_a_new_version_takes_the_place_of_the_oldest(tmp_path: Path) -> None:
    models = tmp_path / "models"
    old = version(models, "old", 2)
    older = version(models, "older", 3)
    registry = FolderRegistry(write_model(tmp_path / "registry"))
    size = sum(file.stat().st_size for file in registry.folder.iterdir())
    folder = Fetcher(registry, models, cache_bytes=1500 + size).fetch(VERSION)
    assert is_whole(folder)
    assert is_whole(old)
    assert not older.exists()


def test_a_version_that_is_being_removed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = version(tmp_path, "old", unused_hours=50)
    seen: list[bool] = []
    remove = shutil.rmtree

    def watched(path: Path) -> None:
        seen.append(claim(path))
        remove(path)

    monkeypatch.setattr("shutil.rmtree", watched)
    evict(tmp_path, keep_bytes=0, room_bytes=0)
    assert seen == [False]
    assert not folder.exists()


def test_partial_folders_that_nobody_goes_on_with_are_removed(tmp_path: Path) -> None:
    for name in ("bot-3-0123456789ab", "bot-4-0123456789ab", "bot-5-0123456789ab-random"):
        (tmp_path / f".partial-{name}").mkdir()
        (tmp_path / f".partial-{name}/.part-weights").write_bytes(b"half")
    remove_stale(tmp_path)
    assert len(list(tmp_path.glob(".partial-*"))) == 3
    with (tmp_path / ".lock-bot-4-0123456789ab").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_stale(tmp_path, now=time.time() + 25 * HOUR)
    assert [path.name for path in tmp_path.glob(".partial-*")] == [".partial-bot-4-0123456789ab"]
