"""The way to a verified folder, and every way it can go wrong: nothing half is ever visible."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llm_runtime.contract import MlflowVersion, ModelConfig
from llm_runtime.errors import (
    ConfigInvalid,
    DiskFull,
    ModelCorrupt,
    ModelNotFound,
    RegistryDenied,
    RegistryUnreachable,
)
from llm_runtime.fetching.disk import disk_errors, point_to
from llm_runtime.fetching.fetch import Fetcher, fetch
from llm_runtime.fetching.local import local_model
from llm_runtime.fetching.sources import fetched, folder_name
from llm_runtime.files.origin import Origin, origin
from llm_runtime.files.verify import is_whole
from unit.runtime.fetching.fakes import VERSION, FolderRegistry, write_model, write_tokenizer


class Answered(Exception):
    """An error with an HTTP status, as requests and MLflow have them."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or f"HTTP {status}")
        self.status = status

    def get_http_status_code(self) -> int:
        return self.status


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    return FolderRegistry(write_model(tmp_path / "registry"))


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def fetcher(tmp_path: Path, registry: FolderRegistry, pauses: list[float]) -> Fetcher:
    return Fetcher(
        registry, tmp_path / "models", lambda done, total: None, pauses.append, lambda: 0.5
    )


def left_over(fetcher: Fetcher) -> list[str]:
    return sorted(p.name for p in fetcher.models.iterdir() if not p.name.startswith(".lock-"))


def test_a_version_becomes_a_whole_folder(fetcher: Fetcher) -> None:
    folder = fetcher.fetch(VERSION)
    assert is_whole(folder)
    assert folder.name.startswith("bot-3-")
    assert left_over(fetcher) == [folder.name]


def test_a_number_that_was_registered_anew_has_a_folder_of_its_own(
    fetcher: Fetcher, registry: FolderRegistry
) -> None:
    former = fetcher.fetch(VERSION)
    (registry.folder / "config.json").write_text('{"model_type": "mistral"}')
    again = VERSION.model_copy(update={"anew": "0a1b2c3d4e"})
    folder = fetcher.fetch(again)
    assert "mistral" in (folder / "config.json").read_text()
    assert (fetched(fetcher.models, again), fetched(fetcher.models, VERSION)) == (folder, former)
    assert origin(folder) == origin(former) == Origin("bot", "3", "models:/bot/3")


def test_what_is_there_is_not_fetched_again(fetcher: Fetcher, registry: FolderRegistry) -> None:
    first = fetcher.fetch(VERSION)
    registry.downloads.clear()
    assert fetcher.fetch(VERSION) == first
    assert registry.downloads == []


def test_who_knows_no_workspace_finds_what_a_process_that_does_has_brought(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_WORKSPACE", "research")
    folder = fetcher.fetch(VERSION)
    monkeypatch.delenv("MLFLOW_WORKSPACE")
    assert folder_name(VERSION) != folder.name
    assert fetched(fetcher.models, VERSION) == folder


@pytest.mark.parametrize(
    "change",
    [{"version": "4"}, {"tracking_uri": "http://other"}, {"sub_path": "final"}, {"anew": "1"}],
)
def test_a_link_to_something_else_on_a_shared_volume_misleads_nobody(
    fetcher: Fetcher, change: dict[str, str]
) -> None:
    own = fetcher.fetch(VERSION)
    wanted = VERSION.model_copy(update=change)
    point_to(fetcher.models / "current", own)
    assert fetched(fetcher.models, wanted) is None
    other = fetcher.models / folder_name(wanted)
    own.rename(other)
    assert fetched(fetcher.models, wanted) is None, "a folder's name alone says nothing"


def test_of_several_workspaces_the_one_linked_last_is_meant(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for workspace in ("research", "production"):
        monkeypatch.setenv("MLFLOW_WORKSPACE", workspace)
        folders.append(fetcher.fetch(VERSION))
    assert fetched(fetcher.models, VERSION) is None
    for folder in folders:
        point_to(fetcher.models / "current", folder)
        assert fetched(fetcher.models, VERSION) == folder


def test_a_folder_that_is_not_whole_is_not_found(fetcher: Fetcher) -> None:
    folder = fetcher.fetch(VERSION)
    (folder / "model.safetensors").write_bytes(b"short")
    assert fetched(fetcher.models, VERSION) is None


def test_a_damaged_folder_is_replaced(fetcher: Fetcher) -> None:
    folder = fetcher.fetch(VERSION)
    (folder / "model.safetensors").write_bytes(b"short")
    assert is_whole(fetcher.fetch(VERSION))


def test_model_and_tokenizer_end_in_one_folder(
    fetcher: Fetcher, registry: FolderRegistry, tmp_path: Path
) -> None:
    registry.folder = tmp_path / "logged"
    write_model(registry.folder / "model", sharded=True, tokenizer=False)
    write_tokenizer(registry.folder / "components/tokenizer")
    (registry.folder / "MLmodel").write_text("flavors: {transformers: {model_binary: model}}")
    names = {file.name for file in fetcher.fetch(VERSION).iterdir()}
    assert {
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "manifest.json",
    } < names
    assert not [name for name in names if name.startswith(".")]


def test_transient_faults_are_retried_with_growing_pauses(
    fetcher: Fetcher, registry: FolderRegistry, pauses: list[float]
) -> None:
    registry.faults = [Answered(503), ConnectionResetError("reset"), Answered(500)]
    assert is_whole(fetcher.fetch(VERSION))
    assert len(pauses) == 3


def test_after_the_last_attempt_the_registry_counts_as_unreachable(
    fetcher: Fetcher, registry: FolderRegistry, pauses: list[float]
) -> None:
    registry.faults = [Answered(503) for _ in range(100)]
    with pytest.raises(RegistryUnreachable, match="downloading"):
        fetcher.fetch(VERSION)
    assert left_over(fetcher) == [f".partial-{folder_name(VERSION)}"]
    assert sorted(set(pauses)) == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Answered(401), RegistryDenied, "check the credentials"),
        (Answered(403, "Invalid Host header"), RegistryDenied, "--allowed-hosts"),
        (Answered(404), ModelNotFound, "HTTP 404"),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull, "more room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFull, "more room"),
    ],
)
def test_lasting_faults_end_at_once_with_their_reason(
    fetcher: Fetcher,
    registry: FolderRegistry,
    pauses: list[float],
    fault: Exception,
    kind: type[Exception],
    words: str,
) -> None:
    registry.faults = [fault]
    with pytest.raises(kind, match=words):
        fetcher.fetch(VERSION)
    assert pauses == []
    assert left_over(fetcher) == []


def test_a_body_that_ends_early_is_retried_and_then_corrupt(
    fetcher: Fetcher, registry: FolderRegistry, pauses: list[float]
) -> None:
    registry.cut_bytes = 1
    with pytest.raises(ModelCorrupt, match="its listing says") as fault:
        fetcher.fetch(VERSION)
    assert fault.value.reason == "ModelCorrupt"
    assert pauses
    assert left_over(fetcher) == []


def test_corrupt_weights_are_not_kept(fetcher: Fetcher, registry: FolderRegistry) -> None:
    weights = registry.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelCorrupt, match="not a whole safetensors file"):
        fetcher.fetch(VERSION)
    assert left_over(fetcher) == []


def test_too_little_room_is_told_before_the_download(
    fetcher: Fetcher, registry: FolderRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match=r"needs 0 MiB and 64 to spare.*10 MiB free"):
        fetcher.fetch(VERSION)
    assert registry.downloads == []


def test_a_path_that_leaves_the_folder_downloads_nothing(
    fetcher: Fetcher, registry: FolderRegistry
) -> None:
    registry.extra = {"../../outside": 1}
    with pytest.raises(ModelCorrupt, match="not a plain relative path"):
        fetcher.fetch(VERSION)
    assert registry.downloads == []


def test_a_version_without_artifacts_is_not_found(
    fetcher: Fetcher, registry: FolderRegistry, tmp_path: Path
) -> None:
    registry.folder = tmp_path / "empty"
    with pytest.raises(ModelNotFound, match="no artifacts"):
        fetcher.fetch(VERSION)


def test_leftovers_of_a_killed_fetch_are_removed(fetcher: Fetcher) -> None:
    dead = fetcher.models / f".partial-{folder_name(VERSION)}-dead"
    dead.mkdir(parents=True)
    fetcher.fetch(VERSION)
    assert not dead.exists()


def test_threads_that_ask_at_once_download_once(fetcher: Fetcher, registry: FolderRegistry) -> None:
    threads = [threading.Thread(target=fetcher.fetch, args=(VERSION,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.downloads) == 4


RACER = """
import sys; sys.path[:0] = [{runtime!r}, {tests!r}]
from pathlib import Path
from llm_runtime.fetching.disk import disk_errors, point_to
from llm_runtime.fetching.fetch import Fetcher
from unit.runtime.fetching.fakes import VERSION, FolderRegistry
registry = FolderRegistry(Path({source!r}))
Fetcher(registry, Path({models!r})).fetch(VERSION)
print(len(registry.downloads))
"""


def test_processes_that_race_on_one_volume_download_once(
    tmp_path: Path, registry: FolderRegistry
) -> None:
    root = Path(__file__).parents[4]
    script = RACER.format(
        runtime=str(root / "runtime"),
        tests=str(root / "tests"),
        source=str(registry.folder),
        models=str(tmp_path / "m"),
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(racer.communicate(timeout=30)[0].strip() for racer in racers) == ["0", "4"]


def test_folder_names_tell_servers_versions_and_sub_paths_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def named(**changed: str) -> str:
        return folder_name(MlflowVersion(**{**VERSION.model_dump(), **changed}))

    names = {
        named(),
        named(tracking_uri="http://b"),
        named(version="4"),
        named(sub_path="x"),
        named(name="bot/3"),
    }
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team")
    names.add(named())
    assert len(names) == 6
    assert not [name for name in names if "/" in name]


def test_current_points_to_the_model_and_moves_in_one_step(tmp_path: Path) -> None:
    link = tmp_path / "models/current"
    link.parent.mkdir()
    for name in ("one", "two"):
        (link.parent / name).mkdir()
        point_to(link, link.parent / name)
        assert link.resolve().name == name
        assert str(link.readlink()) == name
    point_to(tmp_path / "models/away", tmp_path)
    assert (tmp_path / "models/away").readlink().is_absolute()


def test_a_local_folder_is_verified_and_linked(tmp_path: Path) -> None:
    source = write_model(tmp_path / "mine")
    assert fetch(ModelConfig(name="x", path=str(source)), tmp_path / "models") == source
    assert (tmp_path / "models/current").resolve() == source
    assert fetch(ModelConfig(name="x", uri=source.as_uri()), tmp_path / "models") == source
    with pytest.raises(ModelNotFound):
        fetch(ModelConfig(name="x", path=str(tmp_path / "none")), tmp_path / "models")


def test_a_local_download_of_mlflow_is_brought_together_by_links(tmp_path: Path) -> None:
    write_model(tmp_path / "d/model", tokenizer=False)
    write_tokenizer(tmp_path / "d/components/tokenizer")
    (tmp_path / "d/MLmodel").write_text("flavors: {transformers: {model_binary: model}}")
    folder = local_model(tmp_path / "d", tmp_path / "models")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }


def test_a_configuration_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"model.mlflow, model.path or model.uri"):
        fetch(ModelConfig(name="x"), tmp_path)


def test_an_unwritable_cache_is_told(tmp_path: Path, registry: FolderRegistry) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigInvalid, match="check the volume"):
        Fetcher(registry, tmp_path / "file/models").fetch(VERSION)


def test_a_volume_of_another_owner_is_told_with_both_names(tmp_path: Path) -> None:
    """Root may write everywhere, so the kernel's refusal is played."""
    tmp_path.chmod(0o2750)
    refusal = PermissionError(
        errno.EACCES, "Permission denied", str(tmp_path / "models" / ".lock-x")
    )
    with pytest.raises(ConfigInvalid) as told, disk_errors("preparing the cache"):
        raise refusal
    owner = tmp_path.stat()
    assert (
        f"{tmp_path} belongs to user {owner.st_uid} and group {owner.st_gid} with mode 2750"
        in str(told.value)
    )
    assert f"this is user {os.geteuid()} with groups" in str(told.value)
    assert "fsGroup" in str(told.value)


def test_the_next_start_goes_on_with_the_files_that_are_missing(
    fetcher: Fetcher, registry: FolderRegistry
) -> None:
    partial = fetcher.models / f".partial-{folder_name(VERSION)}"
    registry.refused = {"model.safetensors"}
    with pytest.raises(RegistryUnreachable):
        fetcher.fetch(VERSION)
    assert (partial / "tokenizer.json").is_file()
    registry.refused.clear()
    registry.downloads.clear()
    folder = fetcher.fetch(VERSION)
    assert is_whole(folder)
    assert "tokenizer.json" not in registry.downloads
    assert left_over(fetcher) == [folder.name]
    assert not list(folder.glob(".*"))


def test_a_changed_listing_begins_anew(fetcher: Fetcher, registry: FolderRegistry) -> None:
    registry.refused = {"model.safetensors"}
    with pytest.raises(RegistryUnreachable):
        fetcher.fetch(VERSION)
    (registry.folder / "tokenizer.json").write_text('{"other": 1}')
    registry.refused.clear()
    assert (fetcher.fetch(VERSION) / "tokenizer.json").read_text() == '{"other": 1}'


@pytest.mark.parametrize("phase", ["write_manifest", "sync_folder", "sync_folder_entry"])
def test_a_disk_that_is_full_at_the_end_leaves_no_half_version(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"llm_runtime.fetching.fetch.{phase}", full)
        with pytest.raises(DiskFull):
            fetcher.fetch(VERSION)
    assert [name for name in left_over(fetcher) if not is_whole(fetcher.models / name)] == []
    assert is_whole(fetcher.fetch(VERSION))
