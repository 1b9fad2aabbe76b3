"""The container that fetches adapters for a server:
what became of each is told, whatever becomes of its child."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llm_runtime import fetcher
from llm_runtime.adapters.delivery import Delivered, FetchOutcome, read, write
from llm_runtime.contract import FatalReport, PinnedAdapter, RegistryAccess
from llm_runtime.errors import RegistryDenied, Reported
from llm_runtime.fetcher import AdaptersFetcher, FetchTask
from waiting import eventually

LEGAL = ("legal", "1")
FRENCH = ("french", "1")


@dataclass
class FakeChild:
    jobs: list[FetchTask]
    code: int | None = None
    killed: bool = False

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.killed = True


@dataclass
class World:
    """The fetcher of a pod, with a clock that obeys and children that do what the test says."""

    folder: Path
    now: float = 0.0
    children: list[FakeChild] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models = self.folder / "models"
        self.told = self.folder / "told"
        for each in (self.models, self.told):
            each.mkdir(exist_ok=True)
        self.lists = self.folder / "adapters.json"
        self.registries = self.folder / "registries.json"
        self.fetcher = AdaptersFetcher(
            self.lists,
            self.registries,
            self.models,
            self.told,
            self.start,
            lambda: self.now,
            lambda: 0.5,
        )

    def start(self, jobs: list[FetchTask]) -> FakeChild:
        self.children.append(FakeChild(jobs))
        return self.children[-1]

    def want(self, *adapters: tuple[str, str], password: str = "secret-1") -> None:
        entries = [
            {"name": name, "model": f"bot-{name}", "version": version} for name, version in adapters
        ]
        server: dict[str, Any] = {"trackingUri": "http://mlflow"}
        self._put(self.registries, {"connections": {"default": {**server, "password": password}}})
        self._put(self.lists, {"connections": {"default": server}, "adapters": entries})

    def _put(self, file: Path, content: Any) -> None:
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        fresh.replace(file)

    def look(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.fetcher.look()

    @property
    def child(self) -> FakeChild:
        return self.children[-1]

    def asked(self) -> list[list[str]]:
        """Of each child: the versions that it was to bring."""
        return [
            [f"{job.adapter.name}-{job.adapter.version}" for job in each.jobs]
            for each in self.children
        ]

    def bring(self, job: FetchTask) -> None:
        name = f"{job.adapter.name}-{job.adapter.version}"
        (self.models / name).mkdir(exist_ok=True)
        (self.models / name / "manifest.json").write_text("{}")
        write(self.told, job.adapter.name, FetchOutcome(identity=job.identity, folder=name))

    def finish(self) -> None:
        for job in self.child.jobs:
            self.bring(job)
        self.child.code = 0
        self.look()

    def fail(self, reason: str = "RegistryDenied") -> None:
        for job in self.child.jobs:
            report = FatalReport(reason=reason, message="said")
            write(self.told, job.adapter.name, FetchOutcome(identity=job.identity, report=report))
        self.child.code = 0
        self.look()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_candidate_is_brought_beside_the_adapters_by_a_child_that_reads_its_name(
    world: World,
) -> None:
    world.want(LEGAL)
    listed = json.loads(world.lists.read_text())
    candidate = {"name": "legal@2.5f3c", "model": "bot-legal", "version": "2"}
    world._put(world.lists, {**listed, "candidates": [candidate]})
    world.look()
    assert world.asked() == [["legal-1", "legal@2.5f3c-2"]]
    assert (
        fetcher._TASKS.validate_json(fetcher._TASKS.dump_json(world.child.jobs)) == world.child.jobs
    )
    world.finish()
    told = read(world.told, "legal@2.5f3c")
    assert told is not None
    assert told.folder
    world.want(LEGAL)
    world.look()
    assert read(world.told, "legal@2.5f3c") is None
    assert read(world.told, "legal") is not None


def test_a_version_that_was_registered_anew_is_another_one() -> None:
    former = PinnedAdapter(name="legal", model="law", version="1")
    again = former.model_copy(update={"anew": "5f3c"})
    assert (
        FetchTask(adapter=former, access=access()).identity
        != FetchTask(adapter=again, access=access()).identity
    )


def test_what_is_wanted_is_fetched_by_one_child_and_not_again(world: World) -> None:
    world.want(LEGAL, FRENCH)
    world.look()
    world.finish()
    world.look(1000)
    assert world.asked() == [["legal-1", "french-1"]]
    assert [job.access.password for job in world.child.jobs] == ["secret-1", "secret-1"]


def test_a_fault_is_told_and_tried_again_ever_more_rarely(world: World) -> None:
    world.want(LEGAL)
    world.look()
    for pause in (2, 4, 8):
        world.fail()
        before = len(world.children)
        world.look(pause * 0.9)
        assert len(world.children) == before
        world.look(pause * 0.2)
        assert len(world.children) == before + 1
    told = read(world.told, "legal")
    assert told
    assert told.report
    assert told.report.reason == "RegistryDenied"


def test_changed_credentials_are_tried_at_once_also_while_the_old_ones_are_in_use(
    world: World,
) -> None:
    world.want(LEGAL)
    world.look()
    world.fail()
    world.want(LEGAL, password="secret-2")
    world.look()
    first = world.child
    assert first.jobs[0].access.password == "secret-2"
    world.want(LEGAL, password="secret-3")
    world.look()
    assert first.killed
    assert world.child.jobs[0].access.password == "secret-3"


def test_a_version_that_is_not_wanted_any_more_does_not_hold_up_the_next(world: World) -> None:
    world.want(LEGAL)
    world.look()
    first = world.child
    world.want(("legal", "2"))
    world.look()
    assert first.killed
    assert world.asked() == [["legal-1"], ["legal-2"]]


def test_a_child_that_was_killed_is_told_and_started_again(world: World) -> None:
    world.want(LEGAL)
    world.look()
    world.child.code = -9
    world.look()
    told = read(world.told, "legal")
    assert told
    assert told.report
    assert told.report.reason == "InternalError"
    assert "bot-legal version 1 ended with signal 9" in told.report.message
    world.look(3)
    assert len(world.children) == 2


def test_a_process_that_can_not_be_started_is_told_and_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: list[FetchTask]) -> FakeChild:
        raise OSError("no more processes")

    monkeypatch.setattr(world.fetcher, "_start", refuse)
    world.want(LEGAL)
    world.look()
    told = read(world.told, "legal")
    assert told
    assert told.report
    assert "could not be started: no more processes" in told.report.message


def test_a_full_disk_is_logged_as_rarely_as_it_is_tried(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    world.want(LEGAL, FRENCH)
    world.look()
    world.child.code = 1
    with monkeypatch.context() as full:
        full.setattr(fetcher, "write", refuse)
        for _ in range(7):
            world.look(0.25)
    assert len(caplog.records) == 2  # One for each adapter.
    assert len(world.children) == 1
    world.look(1)
    assert world.asked()[1:] == [["legal-1", "french-1"]]


def test_an_outcome_that_can_not_be_written_keeps_no_other_adapter_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "fetch_adapter", lambda adapter, *_: tmp_path / adapter.model)
    (tmp_path / ".legal").mkdir()  # Nothing can be written under this name.
    adapters = [PinnedAdapter(name=name, model=name, version="1") for name in ("legal", "french")]
    fetcher.fetch_all(
        [FetchTask(adapter=each, access=access()) for each in adapters], tmp_path, tmp_path
    )
    told = read(tmp_path, "french")
    assert told
    assert told.folder == "french"


def test_a_fetcher_that_starts_anew_finds_what_is_there_and_misses_what_is_gone(
    world: World,
) -> None:
    world.want(LEGAL, FRENCH)
    world.look()
    world.finish()
    again = World(world.folder)
    again.look()
    assert again.children == []
    (
        again.models / "legal-1" / "manifest.json"
    ).unlink()  # Somebody who shares the volume made room.
    again.look()
    assert again.asked() == [["legal-1"]]


def test_of_an_adapter_that_is_taken_from_the_list_nothing_is_told(world: World) -> None:
    world.want(LEGAL)
    world.look()
    world.finish()
    world.want()
    world.look()
    assert read(world.told, "legal") is None


def test_broken_files_change_nothing_and_no_line_quotes_them(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.want(LEGAL)
    world.look()
    world.registries.write_text('{"connections": {"default": {"password": "secret-9"}}}')
    world.look()
    world.finish()
    assert "the last good ones stay in force" in caplog.text
    assert "secret-9" not in caplog.text
    assert world.asked() == [["legal-1"]]


def test_a_report_holds_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server reads it, and shows it."""

    def refuse(*_: Any) -> Path:
        raise RegistryDenied("the password open-sesame is wrong")

    monkeypatch.setattr(fetcher, "fetch_adapter", refuse)
    adapter = PinnedAdapter(name="legal", model="law", version="1")
    job = FetchTask(
        adapter=adapter, access=RegistryAccess(tracking_uri="http://mlflow", password="open-sesame")
    )
    try:
        fetcher.fetch_all([job], tmp_path, tmp_path)
    finally:
        fetcher.logs.hide({})
    told = read(tmp_path, "legal")
    assert told
    assert told.report
    assert told.report.message == "the password $CREDENTIALS is wrong"
    assert "open-sesame" not in caplog.text


def access(**more: str) -> RegistryAccess:
    return RegistryAccess(tracking_uri="http://mlflow", **more)


async def test_the_server_waits_for_its_version_and_hears_of_faults(tmp_path: Path) -> None:
    adapter = PinnedAdapter(name="legal", model="law", version="2")
    whole = set[Path]()
    delivered = Delivered(tmp_path, Path("/models"), whole.__contains__)
    former = FetchTask(adapter=adapter.model_copy(update={"version": "1"}), access=access())
    write(tmp_path, "legal", FetchOutcome(identity=former.identity, folder="law-1"))
    assert delivered.news()
    assert not delivered.news()
    # The credentials are another container's: they are no part of what a version is.
    job = FetchTask(adapter=adapter, access=access(password="p"))
    write(
        tmp_path,
        "legal",
        FetchOutcome(identity=job.identity, report=FatalReport(reason="DiskFull", message="full")),
    )
    assert delivered.news()
    with pytest.raises(Reported, match="full") as raised:
        await delivered(adapter, access())
    assert raised.value.reason == "DiskFull"
    write(tmp_path, "legal", FetchOutcome(identity=job.identity, folder="law-2"))
    whole.add(Path("/models/law-2"))
    assert await delivered(adapter, access()) == Path("/models/law-2")


def test_the_process_that_stays_imports_no_mlflow_and_ends_well_when_it_is_told_to(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.want(LEGAL)
    command = [sys.executable, "-m", "llm_runtime.fetcher", "--adapters", str(world.lists)]
    command += [
        "--registries",
        str(world.registries),
        "--models",
        str(world.models),
        "--fetched",
        str(world.told),
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        eventually(children.read_text)
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "pydantic" in mapped
        assert "numpy" not in mapped  # What MLflow's client brings along.
    finally:
        process.terminate()
        assert process.wait(10) == 0
