"""The engine's process: it starts, it answers,
and whichever of the two processes dies, the other one notices."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.contract import EngineConfig, FatalReport, ModelConfig, RuntimeConfig
from llm_runtime.engine.client import EngineClient
from llm_runtime.engine.process import EngineProcess, death, spawn_engine, start_engine
from llm_runtime.errors import EngineFailed, InvalidRequest, QueueFull, ServiceUnavailable
from llm_runtime.machine.cgroup import MemoryGroup
from llm_runtime.machine.memory import MIB
from llm_runtime.request import FinishReason, TokenEvent
from unit.runtime.engine.fakes import request, text_of
from waiting import eventually, until

# Each test starts a process of its own.
pytestmark = pytest.mark.timeout(30)

WORKER = (sys.executable, str(Path(__file__).parent / "scripted_worker.py"))
PARENT = Path(__file__).parent / "lone_parent.py"
Start = Callable[..., Any]


def config(slots: int = 4) -> RuntimeConfig:
    return RuntimeConfig(model=ModelConfig(name="m"), engine=EngineConfig(max_batch_size=slots))


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[EngineClient] = []

    async def begin(folder: str = "hello", slots: int = 4, **options: Any) -> EngineClient:
        started.append(await start_engine(config(slots), Path(folder), WORKER, **options))
        return started[-1]

    yield begin
    for client in started:
        await asyncio.to_thread(client.close)


def process_of(client: EngineClient) -> "subprocess.Popen[bytes]":
    channel = client._link._channel
    assert isinstance(channel, EngineProcess)
    return channel._process


async def read(
    client: EngineClient, prompt: str = "hi", max_tokens: int = 20, **sampling: Any
) -> list[TokenEvent]:
    return [event async for event in client.generate(request(prompt, max_tokens, **sampling))]


async def test_it_answers_and_knows_its_model(start: Start) -> None:
    client = await start()
    assert (client.max_model_length, client.device, client.codec.decode([104, 105])) == (
        256,
        "cpu",
        "hi",
    )
    events = await read(client)
    assert text_of(events) == "hello"
    assert events[-1].finish_reason is FinishReason.STOP
    assert client.stats().alive
    assert (client.stats().running, client.stats().waiting, client.stats().prompt_tokens) == (
        0,
        0,
        2,
    )


async def test_many_at_once_get_every_token_in_order(start: Start) -> None:
    client = await start(slots=8)
    answers = await asyncio.gather(*(read(client, "forever", max_tokens=40) for _ in range(10)))
    assert {text_of(events) for events in answers} == {"hello" * 8}


async def test_what_is_wrong_with_a_request_is_known_without_asking_the_engine(
    start: Start,
) -> None:
    client = await start(slots=1)
    with pytest.raises(InvalidRequest):
        client.generate(request(max_tokens=-1))
    streams = [client.generate(request("forever", 20)) for _ in range(9)]
    with pytest.raises(QueueFull):
        client.generate(request())
    for stream in streams:
        await stream.aclose()
    await until(lambda: client.outstanding == 0)
    assert text_of(await read(client)) == "hello"


async def test_a_stream_that_is_left_frees_its_place(start: Start) -> None:
    client = await start()
    stream = client.generate(request("forever", 200))
    await anext(stream)
    assert client.stats().running == 1
    await stream.aclose()
    await until(lambda: client.stats().running == 0)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("missing", "ModelNotFound"), ("broken", "LoadFailed"), ("dies", "EngineKilled")],
)
async def test_a_model_that_does_not_load_says_why(start: Start, folder: str, reason: str) -> None:
    with pytest.raises(EngineFailed) as failed:
        await start(folder)
    assert failed.value.reason == reason


async def test_an_engine_that_is_killed_for_its_memory_before_it_is_heard_says_so(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [group(oom_kills=0)]
    monkeypatch.setattr("llm_runtime.machine.cgroup.memory_groups", lambda: groups)
    spawned = spawn_engine(config(), WORKER)
    spawned.end()
    groups[0] = group(oom_kills=1)
    with pytest.raises(EngineFailed) as failed:
        await start(spawned=spawned)
    assert failed.value.reason == "OutOfMemory"


async def test_a_killed_engine_ends_every_stream_with_an_error(start: Start) -> None:
    client = await start(slots=1)
    streams = [client.generate(request("forever", 200)) for _ in range(3)]
    await anext(streams[0])
    process_of(client).kill()
    for stream in streams:
        events = [event async for event in stream]
        assert events[-1].finish_reason is FinishReason.ERROR
        assert [event.finish_reason for event in events].count(None) == len(events) - 1
    assert not client.stats().alive
    with pytest.raises(ServiceUnavailable):
        client.generate(request())


async def test_whoever_asks_is_told_of_a_death_that_nobody_wanted(start: Start) -> None:
    client = await start()
    other = await start()
    told = list[FatalReport]()
    client.on_death(told.append)
    other.on_death(told.append)
    process_of(client).send_signal(signal.SIGSEGV)
    await asyncio.to_thread(other.close)
    await until(lambda: bool(told))
    client.on_death(told.append)  # Also who asks late.
    assert [report.reason for report in told] == ["EngineDied", "EngineDied"]
    assert "signal 11 (SIGSEGV)" in told[0].message


def group(limit_mib: int | None = 1024, oom_kills: int = 0) -> MemoryGroup:
    return MemoryGroup(
        None if limit_mib is None else limit_mib * MIB, 900 * MIB, 1000 * MIB, 0, oom_kills
    )


def test_the_kernels_count_tells_lack_of_memory_from_a_kill_from_outside() -> None:
    report = death(-9, [group(oom_kills=3), group(limit_mib=None)], oom_kills_before=2)
    assert report.reason == "OutOfMemory"
    assert (
        "the limit is 1024 MiB, of which 1000 MiB were used at most; raise the memory limit"
        in report.message
    )
    report = death(-9, [group(limit_mib=None, oom_kills=1)], oom_kills_before=0)
    assert (report.reason, "there is no limit" in report.message) == ("OutOfMemory", True)
    report = death(-9, [group(oom_kills=2)], oom_kills_before=2)
    assert (report.reason, "signal 9 (SIGKILL) from outside" in report.message) == (
        "EngineKilled",
        True,
    )


def test_an_engine_that_ended_by_itself_is_said_to_have_ended_so() -> None:
    assert death(1, [], 0) == FatalReport(
        reason="EngineDied",
        message="the engine's process ended with status 1; the log above may say why",
    )
    assert "signal 6 (SIGABRT)" in death(-6, [group()], 0).message


def test_the_tightest_limit_around_the_process_is_the_one_that_is_told() -> None:
    report = death(-9, [group(2048, oom_kills=1), group(512)], 0)
    assert "the limit is 512 MiB" in report.message


async def test_an_engine_that_dies_between_requests_is_noticed(start: Start) -> None:
    client = await start()
    process_of(client).kill()
    await until(lambda: not client.stats().alive)


async def test_an_engine_that_hangs_is_not_alive(start: Start) -> None:
    client = await start(stall_seconds=0.2)
    stream = client.generate(request("forever", 200))
    await anext(stream)
    process_of(client).send_signal(signal.SIGSTOP)
    await until(lambda: not client.stats().alive)
    process_of(client).send_signal(signal.SIGCONT)
    await until(lambda: client.stats().alive)
    await stream.aclose()


async def test_signals_to_the_whole_group_do_not_end_it(start: Start) -> None:
    client = await start()
    job = asyncio.create_task(read(client, "forever", max_tokens=60))
    await until(lambda: client.stats().running == 1)
    process_of(client).send_signal(signal.SIGTERM)
    process_of(client).send_signal(signal.SIGINT)
    assert len(await job) == 60


async def test_closing_ends_the_process_and_what_it_still_had(start: Start) -> None:
    client = await start()
    job = asyncio.create_task(read(client, "forever", max_tokens=200))
    await until(lambda: client.stats().running == 1)
    await asyncio.to_thread(client.close)
    assert process_of(client).returncode == 0
    assert (await job)[-1].finish_reason is FinishReason.CANCELLED


async def test_another_model_takes_over_between_two_steps(start: Start) -> None:
    old = await start("old")
    running = asyncio.create_task(read(old, "forever", max_tokens=120))
    await until(lambda: old.stats().running == 1)
    new = await old.swap(config(), Path("fresh"))
    assert text_of(await read(new)) == "fresh"
    assert not running.done()
    assert text_of(await running) == "old" * 40


def test_a_killed_parent_takes_the_engine_with_it() -> None:
    parent = subprocess.Popen(
        [sys.executable, str(PARENT), *WORKER], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    eventually(lambda: not _exists(worker))
    parent.stdout.close()


def _exists(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_http_needs_no_torch() -> None:
    wanted = (
        "llm_runtime.app, llm_runtime.__main__, llm_runtime.engine.process,"
        " llm_runtime.fetching.fetch, tokenizers"
    )
    heavy = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    program = f"import sys, {wanted}; import llm_runtime.text.codec; print({heavy})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4] / "runtime")}
    found = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert found.strip() == "[]"


async def test_a_process_that_was_started_ahead_is_the_one_that_loads(start: Start) -> None:
    spawned = spawn_engine(config(), WORKER)
    client = await start(spawned=spawned)
    assert process_of(client) is spawned.process
    assert text_of(await read(client)) == "hello"


async def test_a_process_that_died_before_it_was_used_is_told_as_one_that_died(
    start: Start,
) -> None:
    spawned = spawn_engine(config(), (sys.executable, "-c", "raise SystemExit(3)"))
    await asyncio.to_thread(spawned.process.wait)
    with pytest.raises(EngineFailed, match="status 3"):
        await start(spawned=spawned)


async def test_a_process_that_nobody_comes_for_ends_with_its_socket() -> None:
    spawned = spawn_engine(config(), WORKER)
    spawned.ours.close()
    assert await asyncio.to_thread(spawned.process.wait, 20) == 0


async def test_ending_a_process_that_was_started_ahead_waits_until_it_has_gone() -> None:
    spawned = spawn_engine(config(), WORKER)
    await asyncio.to_thread(spawned.end)
    assert spawned.process.returncode == -signal.SIGKILL
    spawned.end()
    spawned.ours.close()
