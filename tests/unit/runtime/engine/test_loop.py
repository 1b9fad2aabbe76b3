"""The engine's thread and its bridge: every request ends with a final event,
and no accident ends the engine."""

import asyncio
import gc
import threading
import time

import pytest

from llm_runtime.engine.client import ClientStream
from llm_runtime.engine.local import start_local
from llm_runtime.engine.scheduler import Batch
from llm_runtime.engine.sequence import Sampled
from llm_runtime.errors import InvalidRequest, QueueFull, ServiceUnavailable
from llm_runtime.machine.memory import StepOutOfMemory
from llm_runtime.request import FinishReason
from unit.runtime.engine.fakes import (
    CharacterText,
    CharacterVocabulary,
    ScriptedRunner,
    collect,
    engine,
    model,
    request,
    text_of,
)
from waiting import eventually, until


async def test_an_answer_comes_token_by_token_and_ends_with_its_reason() -> None:
    running = engine(ScriptedRunner({"a": "hello"}))
    events = await collect(running, request(name="a", max_tokens=20))
    running.close()
    assert text_of(events) == "hello"
    assert [event.finish_reason for event in events] == [None] * 5 + [FinishReason.STOP]


async def test_requests_from_several_event_loops_share_a_batch() -> None:
    running = engine(ScriptedRunner({"a": "one", "b": "two"}))
    other: list[str] = []
    thread = threading.Thread(
        target=lambda: other.append(
            text_of(asyncio.run(collect(running, request(name="b", max_tokens=9))))
        )
    )
    thread.start()
    mine = text_of(await collect(running, request(name="a", max_tokens=9)))
    await asyncio.to_thread(thread.join)
    running.close()
    assert (mine, other) == ("one", ["two"])


async def test_closing_the_iterator_frees_the_place() -> None:
    running = engine(ScriptedRunner())
    stream = running.generate(request(max_tokens=250))
    await anext(stream)
    await stream.aclose()
    await until(lambda: running.stats().running == 0)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    running.close()


async def test_closing_before_the_first_event_cancels_too() -> None:
    runner = ScriptedRunner()
    runner.gate = threading.Semaphore(0)
    running = engine(runner, slots=1)
    first = running.generate(request(max_tokens=9))
    second = running.generate(request(max_tokens=9, name="second"))
    await second.aclose()
    runner.gate.release(100)
    assert len([event async for event in first]) == 9
    await until(lambda: running.stats().waiting == 0)
    running.close()
    assert all(batch.spans[0].sequence.request.id != "second" for batch in runner.batches)


async def test_a_forgotten_iterator_is_cancelled() -> None:
    running = engine(ScriptedRunner())
    stream = running.generate(request(max_tokens=250))
    await anext(stream)
    del stream
    gc.collect()
    await until(lambda: running.stats().running == 0)
    running.close()


async def test_a_cancelled_task_frees_the_place_through_aclose() -> None:
    runner = ScriptedRunner()
    runner.gate = threading.Semaphore(1)
    running = engine(runner)
    task = asyncio.create_task(collect(running, request(max_tokens=250)))
    await until(lambda: running.stats().running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    runner.gate.release(10)
    await until(lambda: running.stats().running == 0)
    running.close()


async def test_a_full_queue_refuses_at_once() -> None:
    runner = ScriptedRunner()
    runner.gate = threading.Semaphore(0)
    running = engine(runner, slots=1, max_queue_length=1)
    streams = [running.generate(request())]
    await until(lambda: running.stats().running == 1)
    streams.append(running.generate(request()))
    with pytest.raises(QueueFull):
        running.generate(request())
    runner.gate.release(1000)
    assert [len([event async for event in stream]) for stream in streams] == [8, 8]
    running.close()


async def test_what_could_raise_in_a_step_is_refused_before() -> None:
    running = engine(ScriptedRunner())
    for wrong in (
        request(prompt=()),
        request(prompt=(5000,)),
        request(prompt=(-1,)),
        request(max_tokens=-1),
    ):
        with pytest.raises(InvalidRequest):
            running.generate(wrong)
    with pytest.raises(InvalidRequest, match="or max_tokens to 253"):
        running.generate(request(max_tokens=254))
    running.close()


async def test_a_failed_step_ends_its_requests_with_an_error_and_the_engine_lives_on() -> None:
    def fail(batch: Batch) -> None:
        if any(span.sequence.request.id == "bad" for span in batch.spans):
            raise RuntimeError("kernel")

    running = engine(ScriptedRunner({"good": "fine"}, fail))
    events = await collect(running, request(name="bad"))
    assert (events[-1].finish_reason, events[-1].error) == (
        FinishReason.ERROR,
        "the engine failed while generating: RuntimeError",
    )
    assert text_of(await collect(running, request(name="good"))) == "fine"
    assert running.stats().alive
    running.close()


async def test_neighbours_of_a_failed_request_get_their_whole_answers() -> None:
    def fail(batch: Batch) -> None:
        if any(span.sequence.request.id == "bad" and span.start > 3 for span in batch.spans):
            raise RuntimeError("kernel")

    runner = ScriptedRunner({"a": "first answer", "b": "second answer", "bad": "never whole"}, fail)
    runner.gate = threading.Semaphore(0)
    running = engine(runner)
    jobs = [
        asyncio.create_task(collect(running, request(name=name, max_tokens=20)))
        for name in ("a", "bad", "b")
    ]
    await asyncio.sleep(0)
    runner.gate.release(1000)
    first, bad, second = await asyncio.gather(*jobs)
    running.close()
    assert (text_of(first), text_of(second)) == ("first answer", "second answer")
    assert (text_of(bad), bad[-1].finish_reason) == ("ne", FinishReason.ERROR)


async def test_a_runner_that_breaks_its_word_ends_what_runs_and_spares_the_queue() -> None:
    class Silent(ScriptedRunner):
        def forward(self, batch: Batch) -> list[Sampled]:
            sampled = super().forward(batch)
            return [] if batch.spans[0].sequence.request.id == "a" else sampled

    running = engine(Silent({"b": "fine"}), slots=1)
    first, second = (asyncio.create_task(collect(running, request(name=name))) for name in "ab")
    assert (await first)[-1].finish_reason is FinishReason.ERROR
    assert text_of(await second) == "fine"
    assert running.stats().alive
    running.close()


async def test_memory_that_runs_out_costs_nobody_his_answer() -> None:
    def fail(batch: Batch) -> None:
        if batch.tokens > 4:
            raise StepOutOfMemory("full")

    runner = ScriptedRunner({name: f"answer {name}" for name in "abcd"}, fail)
    running = engine(runner)
    answers = await asyncio.gather(
        *(collect(running, request("long prompt", 20, name)) for name in "abcd")
    )
    running.close()
    assert [text_of(events) for events in answers] == [f"answer {name}" for name in "abcd"]


async def test_a_request_that_the_loop_does_not_take_ends_with_an_error() -> None:
    class Broken(CharacterVocabulary):
        def detokenizer(self, prompt: object = (), shown: object = ()) -> CharacterText:
            raise ValueError("odd tokenizer")

    parts = model(ScriptedRunner())
    parts.codec = Broken()
    running = start_local(parts)
    [event] = await collect(running, request())
    assert event.finish_reason is FinishReason.ERROR
    assert (running.outstanding, running.stats().alive) == (0, True)
    running.close()


async def test_a_slow_reader_takes_all_that_has_come() -> None:
    running = engine(ScriptedRunner({"a": "hello"}))
    stream = running.generate(request(name="a", max_tokens=20))
    await until(lambda: running.outstanding == 0)
    assert [text_of(await stream.take()), await stream.take()] == ["hello", []]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    running.close()


async def test_three_failures_in_a_row_end_the_engine_and_everything_queued() -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("device lost")

    runner = ScriptedRunner(fail=fail)
    runner.gate = threading.Semaphore(0)
    running = engine(runner, slots=1)
    jobs = [asyncio.create_task(collect(running, request(name=str(i)))) for i in range(5)]
    await asyncio.sleep(0)
    runner.gate.release(10)
    for events in await asyncio.gather(*jobs):
        assert events[-1].finish_reason is FinishReason.ERROR
    assert not running.stats().alive
    with pytest.raises(ServiceUnavailable):
        running.generate(request())


async def test_a_step_that_stands_still_is_not_alive() -> None:
    runner = ScriptedRunner()
    runner.gate = threading.Semaphore(0)
    running = engine(runner, stall_seconds=0.05)
    assert running.stats().alive
    stream = running.generate(request())
    await until(lambda: not running.stats().alive)
    runner.gate.release(1000)
    assert len([event async for event in stream]) == 8
    assert running.stats().alive
    running.close()


async def test_draining_admits_nothing_and_lets_the_running_finish() -> None:
    running = engine(ScriptedRunner({"a": "all of it"}))
    job = asyncio.create_task(collect(running, request(name="a", max_tokens=20)))
    await asyncio.sleep(0)
    await running.drain(5)
    assert text_of(await job) == "all of it"
    with pytest.raises(ServiceUnavailable, match="shutting down"):
        running.generate(request())
    running.close()


async def test_what_outlasts_the_drain_is_cancelled_with_a_final_event() -> None:
    runner = ScriptedRunner(fail=lambda _: time.sleep(0.02))
    running = engine(runner)
    job = asyncio.create_task(collect(running, request(max_tokens=250)))
    await asyncio.sleep(0)
    await running.drain(0.05)
    assert (await job)[-1].finish_reason is FinishReason.CANCELLED
    running.close()


async def test_close_ends_what_runs_and_what_waits() -> None:
    runner = ScriptedRunner(fail=lambda _: time.sleep(0.01))
    running = engine(runner, slots=1)
    jobs = [asyncio.create_task(collect(running, request(max_tokens=250))) for _ in range(3)]
    await until(lambda: running.stats().running == 1)
    await asyncio.to_thread(running.close)
    assert [events[-1].finish_reason for events in await asyncio.gather(*jobs)] == [
        FinishReason.CANCELLED
    ] * 3


async def test_stats_count_running_waiting_and_the_cache() -> None:
    runner = ScriptedRunner()
    runner.gate = threading.Semaphore(1)
    running = engine(runner, slots=1)
    streams = [running.generate(request(max_tokens=50)) for _ in range(3)]
    await anext(streams[0])
    stats = running.stats()
    assert (stats.running, stats.waiting) == (1, 2)
    assert stats.kv_cache_usage_ratio == pytest.approx(2 / 1000)
    for stream in streams:
        await stream.aclose()
    runner.gate.release(10)
    running.close()


def test_a_closed_event_loop_does_not_end_the_engine() -> None:
    running = engine(ScriptedRunner({"b": "ok"}, fail=lambda _: time.sleep(0.002)))

    async def leave() -> None:
        kept.append(running.generate(request(max_tokens=250)))
        await anext(kept[0])

    kept: list[ClientStream] = []
    asyncio.run(leave())
    assert text_of(asyncio.run(collect(running, request(name="b")))) == "ok"
    eventually(lambda: running.stats().running == 0)
    running.close()
