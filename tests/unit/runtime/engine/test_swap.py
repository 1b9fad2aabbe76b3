"""A model replaced while it serves, and adapters that come and go:
between steps, and nobody's answer changes."""

import asyncio
import gc
import threading
import weakref
from pathlib import Path

import pytest

from llm_runtime.contract import ModelConfig, RuntimeConfig
from llm_runtime.engine import client as client_module
from llm_runtime.engine.adapters import AdapterTable
from llm_runtime.engine.client import EngineClient
from llm_runtime.engine.local import start_local
from llm_runtime.engine.model import Build, Model, TellCodec
from llm_runtime.errors import EngineFailed, ModelCorrupt, NotFound, ServiceUnavailable
from llm_runtime.request import GenerationRequest, Sampling
from unit.runtime.engine.fakes import (
    CharacterVocabulary,
    ScriptedRunner,
    collect,
    engine,
    model,
    request,
    text_of,
)
from waiting import PATIENCE_SECONDS, until

CONFIG = RuntimeConfig(model=ModelConfig(name="m"))


class PreparedVocabulary(CharacterVocabulary):
    def __init__(self, prepared: threading.Event) -> None:
        self._prepared = prepared

    def prepare(self) -> None:
        self._prepared.set()


def gated(answers: dict[str, str]) -> ScriptedRunner:
    runner = ScriptedRunner(answers)
    runner.gate = threading.Semaphore(0)
    return runner


def builder(*runners: ScriptedRunner) -> Build:
    remaining = list(runners)

    def build(config: RuntimeConfig, folder: Path, tell: TellCodec) -> Model:
        if folder.name == "corrupt":
            raise ModelCorrupt("short file")
        if folder.name == "bug":
            raise ZeroDivisionError("oops")
        return model(remaining.pop(0))

    return build


async def test_a_codec_is_prepared_while_its_model_is_still_loaded() -> None:
    prepared = threading.Event()
    made = model(ScriptedRunner())
    made.codec = PreparedVocabulary(prepared)

    def build(config: RuntimeConfig, folder: Path, tell: TellCodec) -> Model:
        tell(made.codec)
        assert prepared.wait(PATIENCE_SECONDS), "nobody prepared it"
        return made

    before = engine(ScriptedRunner(), build=build)
    assert (await before.swap(CONFIG, Path("next"))).codec is made.codec


async def test_a_codec_of_a_model_that_is_not_loaded_after_all_is_forgotten() -> None:
    def build(config: RuntimeConfig, folder: Path, tell: TellCodec) -> Model:
        tell(CharacterVocabulary())
        raise ModelCorrupt("short file")

    running = engine(ScriptedRunner(), build=build)
    with pytest.raises(EngineFailed, match="short file"):
        await running.swap(CONFIG, Path("next"))
    assert running._link._codecs == {}


async def test_requests_end_on_the_weights_they_began_on() -> None:
    old = gated({"a": "old one", "b": "old two"})
    before = engine(old, slots=1, build=builder(ScriptedRunner({"c": "new"})))
    running, queued = (
        asyncio.create_task(collect(before, request(name=name, max_tokens=20))) for name in "ab"
    )
    await until(lambda: before.stats().running == 1)
    swap = asyncio.create_task(before.swap(CONFIG, Path("next")))
    await asyncio.sleep(0.02)
    assert not swap.done()  # It takes over between two steps, and one is in progress.
    old.gate.release(2)  # type: ignore[union-attr]
    after = await swap
    fresh = asyncio.create_task(collect(after, request(name="c", max_tokens=20)))
    old.gate.release(100)  # type: ignore[union-attr]
    assert text_of(await fresh) == "new"
    assert (text_of(await running), text_of(await queued)) == ("old one", "old two")
    after.close()


@pytest.mark.parametrize(("folder", "reason"), [("corrupt", "ModelCorrupt"), ("bug", "LoadFailed")])
async def test_a_model_that_does_not_load_changes_nothing(folder: str, reason: str) -> None:
    running = engine(ScriptedRunner({"a": "still here"}), build=builder())
    with pytest.raises(EngineFailed) as failed:
        await running.swap(CONFIG, Path(folder))
    assert failed.value.reason == reason
    assert text_of(await collect(running, request(name="a", max_tokens=20))) == "still here"
    running.close()


async def test_the_old_model_is_freed_after_its_last_request() -> None:
    old = gated({"a": "bye"})
    gone = weakref.ref(old)
    before = engine(old, build=builder(ScriptedRunner()))
    job = asyncio.create_task(collect(before, request(name="a", max_tokens=20)))
    await until(lambda: before.stats().running == 1)
    old.gate.release(1)  # type: ignore[union-attr]
    after = await before.swap(CONFIG, Path("next"))
    before.retire()
    with pytest.raises(ServiceUnavailable, match="replaced"):
        before.generate(request())
    old.gate.release(100)  # type: ignore[union-attr]
    del old
    assert text_of(await job) == "bye"
    await until(lambda: gone() is None)
    after.close()


async def test_a_request_on_its_way_during_a_swap_is_still_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "RETIRE_SECONDS", 0.05)
    before = engine(ScriptedRunner({"a": "old"}), build=builder(ScriptedRunner()))
    after = await before.swap(CONFIG, Path("next"))
    assert text_of(await collect(before, request(name="a"))) == "old"
    await asyncio.sleep(0.1)
    with pytest.raises(ServiceUnavailable):
        before.generate(request())
    after.close()


async def test_a_swap_that_nobody_waits_for_any_more_leaves_nothing_behind() -> None:
    release = threading.Event()
    unused = ScriptedRunner()
    gone = weakref.ref(unused)
    built = [model(unused)]
    del unused

    def build(config: RuntimeConfig, folder: Path, tell: TellCodec) -> Model:
        release.wait(2)
        return built.pop()

    running = engine(ScriptedRunner({"a": "still here"}), build=build)
    swap = asyncio.create_task(running.swap(CONFIG, Path("next")))
    await asyncio.sleep(0.02)
    swap.cancel()
    await asyncio.gather(swap, return_exceptions=True)
    release.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while gone() is not None:
            assert text_of(await collect(running, request(name="a", max_tokens=20))) == "still here"
            gc.collect()
    running.close()


def for_adapter(name: str, request_id: str = "r", max_tokens: int = 8) -> GenerationRequest:
    return GenerationRequest(
        request_id, (97, 98, 99), Sampling(max_tokens=max_tokens), adapter=name
    )


async def loaded(runner: ScriptedRunner, folder: Path) -> EngineClient:
    running = engine(runner)
    await running.load_adapter("french", folder)
    return running


async def test_an_adapter_is_known_once_it_is_loaded(tmp_path: Path) -> None:
    runner = ScriptedRunner({"r": "oui"})
    running = engine(runner)
    with pytest.raises(NotFound, match="french"):
        running.generate(for_adapter("french"))
    await running.load_adapter("french", tmp_path)
    assert (running.adapters, runner.adapters) == (("french",), {"french@1": tmp_path})
    assert text_of(await collect(running, for_adapter("french"))) == "oui"
    running.close()


async def test_an_adapter_that_does_not_load_is_not_known(tmp_path: Path) -> None:
    running = engine(ScriptedRunner())
    with pytest.raises(EngineFailed) as failed:
        await running.load_adapter("french", tmp_path / "missing")
    assert failed.value.reason == "ModelNotFound"
    assert not running.adapters
    running.close()


async def test_an_adapter_for_which_room_was_made_in_vain_leaves_those_that_are_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("no room on the GPU")

    runner = ScriptedRunner()
    running = start_local(model(runner, adapters=AdapterTable(3)))
    for name in ("french", "german"):
        await running.load_adapter(name, tmp_path)
    monkeypatch.setattr(runner, "install_adapter", refuse)
    with pytest.raises(EngineFailed, match="no room"):
        await running.load_adapter("french", tmp_path)
    assert running.adapters == ("german",)  # What it was to replace had to go first.
    with pytest.raises(NotFound):
        running.generate(for_adapter("french"))
    running.close()


async def test_a_dropped_adapter_is_refused_at_once_and_serves_to_the_end_of_its_requests(
    tmp_path: Path,
) -> None:
    runner = gated({"r": "oui oui"})
    running = await loaded(runner, tmp_path)
    job = asyncio.create_task(collect(running, for_adapter("french")))
    await until(lambda: running.stats().running == 1)
    drop = asyncio.create_task(running.drop_adapter("french"))
    await asyncio.sleep(0.02)
    with pytest.raises(NotFound):
        running.generate(for_adapter("french"))
    assert "french@1" in runner.adapters
    assert not drop.done()
    runner.gate.release(100)  # type: ignore[union-attr]
    assert text_of(await job) == "oui oui"
    await drop
    assert runner.adapters == {}
    running.close()


async def test_an_adapter_that_is_not_there_can_not_be_dropped() -> None:
    running = engine(ScriptedRunner())
    with pytest.raises(NotFound):
        await running.drop_adapter("french")
    running.close()


async def test_a_replaced_adapter_serves_to_the_end_of_its_requests(tmp_path: Path) -> None:
    runner = gated({"old": "vieux", "new": "neuf"})
    running = await loaded(runner, tmp_path)
    old = asyncio.create_task(collect(running, for_adapter("french", "old")))
    await until(lambda: running.stats().running == 1)
    replacing = asyncio.create_task(running.load_adapter("french", tmp_path))
    for _ in range(2):  # One step until the command is seen, another one while a thread reads.
        await asyncio.sleep(0.05)
        runner.gate.release(1)  # type: ignore[union-attr]
    await replacing
    assert sorted(runner.adapters) == ["french@1", "french@3"]
    new = asyncio.create_task(collect(running, for_adapter("french", "new")))
    runner.gate.release(100)  # type: ignore[union-attr]
    assert (text_of(await old), text_of(await new)) == ("vieux", "neuf")
    await until(lambda: sorted(runner.adapters) == ["french@3"])
    used = {span.sequence.adapter for batch in runner.batches for span in batch.spans}
    assert used == {"french@1", "french@3"}
    running.close()


async def test_over_the_limit_the_adapter_not_used_for_longest_leaves(tmp_path: Path) -> None:
    runner = ScriptedRunner({"r": "oui"})
    running = start_local(model(runner, adapters=AdapterTable(2)))
    for name in ("french", "german"):
        await running.load_adapter(name, tmp_path)
    await collect(running, for_adapter("french"))
    await running.load_adapter("italian", tmp_path)
    assert running.adapters == ("french", "italian")
    with pytest.raises(NotFound, match="german"):
        running.generate(for_adapter("german"))
    running.close()
