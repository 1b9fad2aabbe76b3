"""The road of a request: what is reserved and billed,
and that no end of it leaves anything behind."""

import asyncio
from contextlib import aclosing, suppress

import pytest

from fakes import ScriptedEngine
from harness import config
from llm_runtime import errors
from llm_runtime.contract import DatabaseConfig, FiltersConfig, ServerConfig
from llm_runtime.job import NOT_ASKED
from llm_runtime.request import FinishReason
from llm_runtime.stream import ClientGone, while_connected
from llm_runtime.usage import Outcome
from unit.runtime.road import CountingLimiter, Road, job
from waiting import until


async def leave(road: Road, after: int, **fields: object) -> None:
    """Read `after` bursts of a stream, then be gone."""
    generation = await road.pipeline.start(job(stream=True, **fields))
    with suppress(ClientGone):
        async with generation, aclosing(generation.bursts()) as bursts:
            for _ in range(after):
                await anext(bursts)
            raise ClientGone


async def test_prompt_once_and_all_choices_are_reserved_and_what_was_used_is_billed() -> None:
    road = Road(ScriptedEngine(script=("x", "y", "z")))
    await road.answer(prompts=("a b", "c d e"), n=2, max_tokens=10)
    assert road.limiter.asked == [5 + 4 * 10]
    assert road.limiter.requests == 2
    assert road.limiter.used == 5 + 4 * 3
    [row] = road.rows
    assert (row.prompt_tokens, row.completion_tokens, row.choices) == (5, 12, 4)
    road.assert_nothing_is_held()


async def test_default_answer_length_stays_within_what_the_limits_allow_at_once() -> None:
    road = Road(limiter=CountingLimiter(most=22))
    await road.answer(prompts=("a b",), n=2, max_tokens=NOT_ASKED)
    assert road.limiter.asked == [22]
    assert [request.sampling.max_tokens for request in road.engine.requests] == [10, 10]


async def test_a_number_of_tokens_that_was_asked_for_is_not_made_smaller() -> None:
    road = Road(limiter=CountingLimiter(most=22))
    await road.answer(max_tokens=30)
    assert road.limiter.asked == [32]


async def test_client_gone_while_it_waits_for_a_place() -> None:
    road = Road(limiter=CountingLimiter(places=0))
    waiting = asyncio.create_task(road.pipeline.start(job()))
    await until(lambda: road.limiter.waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    road.assert_nothing_is_held()
    assert not road.rows
    assert not road.engine.requests


async def test_client_gone_before_it_is_admitted_is_noticed_by_its_connection() -> None:
    road = Road(limiter=CountingLimiter(places=0))

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await while_connected(receive, road.pipeline.start(job()), 5)
    road.assert_nothing_is_held()


async def test_client_gone_before_the_first_token() -> None:
    road = Road()
    await leave(road, 0)
    [row] = road.rows
    assert (row.outcome, row.prompt_tokens, row.completion_tokens) == (Outcome.CANCELLED, 2, 0)
    assert road.limiter.used == 2
    road.assert_nothing_is_held()


@pytest.mark.parametrize("sent", [1, 2, 3])
async def test_stream_cut_at_token_k_is_billed_at_least_k(sent: int) -> None:
    road = Road(ScriptedEngine(script=("a", "b", "c", "d")))
    await leave(road, sent)
    [row] = road.rows
    assert row.outcome is Outcome.CANCELLED
    assert sent <= row.completion_tokens <= 4
    assert road.limiter.used == 2 + row.completion_tokens
    road.assert_nothing_is_held()


async def test_client_gone_at_the_end_is_billed_for_all() -> None:
    road = Road(ScriptedEngine(script=("a", "b")))
    await leave(road, 2)
    assert road.rows[0].completion_tokens == 2
    road.assert_nothing_is_held()


@pytest.mark.parametrize("ending", [FinishReason.ERROR, FinishReason.CANCELLED])
async def test_engine_that_gives_up_leaves_nothing_behind(ending: FinishReason) -> None:
    road = Road(ScriptedEngine(ending=ending))
    with pytest.raises(errors.Refusal):
        await road.answer()
    assert len(road.rows) == 1
    road.assert_nothing_is_held()


async def test_engine_that_takes_one_choice_and_refuses_the_next_gives_all_back() -> None:
    road = Road(ScriptedEngine(max_running=1))
    with pytest.raises(errors.QueueFull):
        await road.pipeline.start(job(n=2))
    assert not road.rows
    assert road.limiter.used == 0
    road.assert_nothing_is_held()


async def test_limiter_that_refuses_after_a_cache_miss_frees_the_turn() -> None:
    road = Road()
    road.limiter.refusing = True
    with pytest.raises(errors.QueueFull):
        await road.answer(idempotency_key="k")
    road.assert_nothing_is_held()
    road.limiter.refusing = False
    generation, _ = await road.answer(idempotency_key="k")
    assert not generation.cached


@pytest.mark.parametrize(
    "fields", [{"prompt": ""}, {"prompt": "w " * 100}, {"n": 200}, {"prompt": "x" * 40_000}]
)
async def test_refused_requests_reach_no_limit(fields: dict[str, object]) -> None:
    road = Road()
    with pytest.raises(errors.InvalidRequest):
        await road.pipeline.start(job(**fields))
    assert not road.limiter.asked
    road.assert_nothing_is_held()


async def test_texts_are_stored_only_where_the_configuration_says_so() -> None:
    for store, prompt, completion in ((False, None, None), (True, "a b", "Hello there!")):
        settings = config().model_copy(update={"database": DatabaseConfig(store_prompts=store)})
        road = Road(settings=settings)
        await road.answer()
        await road.answer()  # From the cache: the same texts.
        assert [(row.prompt, row.completion) for row in road.rows] == [(prompt, completion)] * 2


async def test_masked_texts_are_what_the_model_sees_and_what_is_stored_and_cached() -> None:
    server = ServerConfig(filters=FiltersConfig(pii="Mask", output="Mask"))
    settings = config(server).model_copy(update={"database": DatabaseConfig(store_prompts=True)})
    road = Road(ScriptedEngine(script=("Mail ", "joe@", "example.com", " now")), settings=settings)
    answers = [await road.answer("I am joe@example.com") for _ in range(2)]
    assert [choices[0].text for _, choices in answers] == ["Mail [EMAIL] now"] * 2
    assert {row.prompt for row in road.rows} == {"I am [EMAIL]"}
    assert {row.completion for row in road.rows} == {"Mail [EMAIL] now"}
    assert [row.completion_tokens for row in road.rows] == [4, 4]


async def test_a_long_conversation_forgets_its_oldest_messages_where_it_may() -> None:
    talk = tuple(
        {"role": "user" if index % 2 == 0 else "assistant", "content": f"w{index} x"}
        for index in range(40)
    )
    road = Road()
    with pytest.raises(errors.InvalidRequest):
        await road.answer(talk, max_tokens=10)
    generation, _ = await road.answer(talk, max_tokens=10, droppable_messages=39)
    assert generation.prompt_tokens + 10 <= road.engine.max_model_length
    [seen] = road.engine.codec.chats[-1:]
    assert seen[-1]["content"] == "w39 x"
    assert seen[0]["role"] == "user"


async def test_a_generation_that_nobody_enters_is_let_go_with_its_last_reference() -> None:
    road = Road()
    generation = await road.pipeline.start(job())
    del generation
    await asyncio.sleep(0)
    await until(lambda: not road.engine.running)
    assert road.rows[0].outcome is Outcome.CANCELLED
    road.assert_nothing_is_held()


async def test_a_conversation_keeps_its_system_message_and_its_last_one() -> None:
    talk = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "x" * 40_000},
        {"role": "user", "content": "q"},
    )
    road = Road()
    await road.answer(talk, droppable_messages=9)
    assert road.engine.codec.chats[-1] == [talk[0], talk[2]]
    with pytest.raises(errors.InvalidRequest):
        await road.answer(({"role": "user", "content": "x" * 40_000},), droppable_messages=9)
