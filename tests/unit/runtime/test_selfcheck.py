"""Readiness that is true: an engine that stands still,
produces nothing or fails is not ready, asked or not."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fakes import ScriptedEngine
from harness import Harness
from llm_runtime.api import selfcheck
from llm_runtime.api.selfcheck import SelfCheck
from llm_runtime.api.serving import WarmModel
from llm_runtime.request import FinishReason, GenerationRequest, Sampling
from unit.runtime.engine.fakes import ScriptedRunner
from unit.runtime.engine.test_loop import engine as looping
from unit.runtime.test_embeddings import embedder
from waiting import until


@asynccontextmanager
async def checking(engine: Any) -> AsyncIterator[SelfCheck]:
    loaded = WarmModel(engine, engine.codec)
    check = SelfCheck(lambda: loaded, idle_seconds=0.01)
    task = asyncio.create_task(check.run())
    yield check
    task.cancel()


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "AGAIN_SECONDS", 0.01)


async def test_an_engine_of_which_nothing_comes_is_not_ready_long_before_it_is_dead(
    api: Harness,
) -> None:
    api.engine.quiet_seconds = 61
    ready = await api.client.get("/readyz")
    assert (ready.status_code, (await api.client.get("/livez")).status_code) == (503, 200)
    assert (
        ready.json()["reason"]
        == "The engine has produced nothing for 61 s although requests are in progress."
    )
    api.engine.quiet_seconds = 0
    assert (await api.client.get("/readyz")).status_code == 200


async def test_an_idle_engine_whose_step_hangs_is_found_out_without_any_request() -> None:
    runner = ScriptedRunner()
    runner.gate = threading.Semaphore(0)
    running = looping(runner, stall_seconds=0.2)
    async with checking(running):
        await until(lambda: running.stats().quiet_seconds > 0.05)
        assert running.stats().alive
        await until(lambda: not running.stats().alive)
        runner.gate.release(1000)
        await until(lambda: running.stats().quiet_seconds == 0 and running.stats().alive)
    running.close()


async def test_an_engine_that_works_is_quiet_for_no_time() -> None:
    running = looping(ScriptedRunner())
    assert running.stats().quiet_seconds == 0
    async with checking(running) as check:
        await asyncio.sleep(0.1)
        assert check.fault is None
        assert running.stats().steps >= 2
    running.close()


async def test_an_engine_that_fails_every_request_is_not_ready_until_one_succeeds() -> None:
    engine = ScriptedEngine(ending=FinishReason.ERROR)
    async with checking(engine) as check:
        await until(lambda: check.fault is not None)
        assert "can't generate" in str(check.fault)
        engine.ending = None
        await until(lambda: check.fault is None)


async def test_a_model_for_embeddings_is_asked_for_one() -> None:
    engine = embedder()
    async with checking(engine) as check:
        await until(lambda: len(engine.requests) > 1)
        assert engine.requests[0].embeds
        assert check.fault is None


async def test_a_busy_engine_is_left_alone() -> None:
    engine = ScriptedEngine(token_seconds=1)
    stream = engine.generate(GenerationRequest("a", (1,), Sampling(max_tokens=3)))
    async with checking(engine):
        await asyncio.sleep(0.1)
    assert [request.id for request in engine.requests] == ["a"]
    await stream.aclose()


async def test_an_engine_that_is_leaving_is_no_fault() -> None:
    engine = ScriptedEngine()
    engine.draining = True
    async with checking(engine) as check:
        await asyncio.sleep(0.05)
        assert check.fault is None
