"""Equal deterministic requests are computed once;
requests sent again under their own name are answered once."""

import asyncio
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from fakes import ScriptedEngine
from harness import config
from llm_runtime import errors
from llm_runtime.cache.answer import Answer, AnswerChoice, from_json, to_json
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.cache.idempotency import IdempotencyKeys
from llm_runtime.cache.key import job_digest, model_digest
from llm_runtime.cache.store import AnswerStore
from llm_runtime.contract import CompletionCacheConfig, MlflowVersion
from llm_runtime.db.database import Database
from llm_runtime.request import Caller, FinishReason, Sampling, TokenEvent, TopLogprob
from unit.runtime.road import CountingLimiter, Road, job
from waiting import until

SLOW = 0.002
ANSWER = Answer(2, (AnswerChoice((TokenEvent(None, "hi", finish_reason=FinishReason.STOP),), 1),))


async def test_second_equal_request_costs_no_tokens_and_says_the_same() -> None:
    road = Road()
    first, said = await road.answer()
    again, repeated = await road.answer()
    assert (first.cached, again.cached) == (False, True)
    assert [(choice.text, choice.finish_reason, choice.tokens) for choice in repeated] == [
        (choice.text, choice.finish_reason, choice.tokens) for choice in said
    ]
    assert (again.prompt_tokens, again.completion_tokens) == (
        first.prompt_tokens,
        first.completion_tokens,
    )
    assert len(road.engine.requests) == 1
    assert road.limiter.asked == [12]
    assert road.limiter.used == 2 + 3
    assert road.limiter.requests == 2
    assert [row.cached for row in road.rows] == [False, True]
    road.assert_nothing_is_held()


async def test_a_hit_is_replayed_as_a_stream_with_its_log_probabilities() -> None:
    road = Road()
    wanted = Sampling(10, 0.0, logprobs=2)
    _, said = await road.answer(sampling=wanted, n=2)
    async with await road.pipeline.start(job(sampling=wanted, n=2, stream=True)) as generation:
        bursts = [(index, events) async for index, events in generation.bursts()]
    assert generation.cached
    assert [index for index, _ in bursts] == [0, 1]
    for index, events in bursts:
        assert "".join(event.text for event in events) == said[index].text
        assert [event.logprob for event in events if event.token_id is not None] == [-0.5] * 3
        assert [bool(event.finish_reason) for event in events] == [False] * 3 + [True]


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "a c"},
        {"prompts": (({"role": "user", "content": "a b"},),)},
        {"caller": Caller("other", "default/other")},
        {"max_tokens": 11},
        {"adapter": "polite"},
        {"n": 2},
        {"sampling": Sampling(10, 0.0, stop=("x",))},
        {"sampling": Sampling(10, 0.0, stop_token_ids=frozenset({3}))},
        {"sampling": Sampling(10, 0.0, logprobs=0)},
        {"seed": 7},
    ],
    ids=str,
)
async def test_what_differs_in_anything_that_decides_the_answer_is_computed(
    other: dict[str, object],
) -> None:
    road = Road()
    await road.answer()
    generation, _ = await road.answer(**other)
    assert not generation.cached


async def test_names_of_the_request_and_how_it_is_shown_make_no_difference() -> None:
    model = model_digest(config())
    plain = job()
    same = replace(
        plain,
        id="x",
        endpoint="/v1/chat",
        request_id="y",
        stream=True,
        user="joe",
        idempotency_key="k",
    )
    assert job_digest(model, plain) == job_digest(model, same)


def test_every_field_of_the_sampling_is_in_the_key() -> None:
    model = model_digest(config())
    plain = job()
    seen = {job_digest(model, plain)}
    for each in fields(Sampling):
        changed = replace(
            plain.sampling, **{each.name: frozenset({1}) if "ids" in each.name else "other"}
        )
        seen.add(job_digest(model, replace(plain, sampling=changed)))
    assert len(seen) == 1 + len(fields(Sampling))


async def test_a_swap_of_the_model_invalidates_everything() -> None:
    road = Road()
    await road.answer()
    version = MlflowVersion(tracking_uri="http://mlflow", name="support-bot", version="4")
    model = config().model.model_copy(update={"mlflow": version})
    road.pipeline = road.serve(config().model_copy(update={"model": model}))
    generation, _ = await road.answer()
    assert not generation.cached


def test_a_folder_with_other_files_is_another_model(tmp_path: Path) -> None:
    settings = config().model_copy(
        update={"model": config().model.model_copy(update={"path": str(tmp_path)})}
    )
    before = model_digest(settings)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert model_digest(settings) != before


async def test_sampled_requests_are_never_kept() -> None:
    road = Road()
    for _ in range(2):
        generation, _ = await road.answer(temperature=1.0)
        assert not generation.cached
    assert road.cache.entries == 0


async def test_seeded_requests_are_kept() -> None:
    road = Road()
    await road.answer(temperature=1.0, seed=7)
    generation, _ = await road.answer(temperature=1.0, seed=7)
    assert generation.cached


async def test_equal_requests_at_once_run_once() -> None:
    road = Road(ScriptedEngine(token_seconds=SLOW))
    answers = await asyncio.gather(*(road.answer() for _ in range(20)))
    assert len(road.engine.requests) == 1
    assert sum(generation.cached for generation, _ in answers) == 19
    assert {choices[0].text for _, choices in answers} == {"Hello there!"}
    road.assert_nothing_is_held()


async def test_when_the_leader_leaves_the_next_one_leads() -> None:
    road = Road(ScriptedEngine(token_seconds=SLOW))
    leader = asyncio.create_task(road.answer())
    followers = [asyncio.create_task(road.answer()) for _ in range(3)]
    await until(lambda: road.engine.running)
    leader.cancel()
    answers = await asyncio.gather(*followers)
    assert sorted(generation.cached for generation, _ in answers) == [False, True, True]
    assert len(road.engine.requests) == 2
    road.assert_nothing_is_held()


async def test_a_follower_that_leaves_harms_nobody() -> None:
    road = Road(ScriptedEngine(token_seconds=SLOW))
    leader, leaving, staying = (asyncio.create_task(road.answer()) for _ in range(3))
    await until(lambda: road.engine.running)
    leaving.cancel()
    (first, _), (second, _) = await asyncio.gather(leader, staying)
    assert (first.cached, second.cached) == (False, True)
    road.assert_nothing_is_held()


async def test_a_follower_waits_no_longer_than_its_own_time() -> None:
    cache = CompletionCache(CompletionCacheConfig())
    turn = await cache.find("key", tenant="web", model="m", timeout_seconds=1)
    with pytest.raises(errors.RequestTimeout):
        await cache.find("key", tenant="web", model="m", timeout_seconds=0.01)
    assert not isinstance(turn, Answer)
    turn.keep(ANSWER)
    assert await cache.find("key", tenant="web", model="m", timeout_seconds=1) == ANSWER


async def test_limits_hold_for_hits_too() -> None:
    road = Road(limiter=CountingLimiter())
    await road.answer()
    road.limiter.refusing = True
    with pytest.raises(errors.QueueFull):
        await road.answer()
    road.assert_nothing_is_held()


async def test_answers_grow_old_and_the_one_not_asked_for_longest_makes_room() -> None:
    now = 0.0
    cache = CompletionCache(CompletionCacheConfig(entries=2, ttl_seconds=10), clock=lambda: now)

    async def has(key: str) -> bool:
        found = await cache.find(key, tenant="web", model="m", timeout_seconds=1)
        if isinstance(found, Answer):
            return True
        found.keep(ANSWER)
        return False

    assert [await has(key) for key in ("a", "b", "a", "c", "a", "b")] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    now = 11.0
    assert not await has("a")


async def test_huge_answers_are_given_and_not_kept() -> None:
    road = Road(ScriptedEngine(script=("x" * 40_000,)))
    for _ in range(2):
        generation, _ = await road.answer()
        assert not generation.cached


async def test_hits_and_misses_are_counted() -> None:
    road = Road()
    for _ in range(3):
        await road.answer()
    figures = road.cache.statistics()
    assert (figures.hits, figures.misses, figures.entries) == (2, 1, 1)
    exposed = generate_latest(road.metrics.registry).decode()
    assert 'llm_completion_cache_lookups_total{result="hit"} 2.0' in exposed
    assert "llm_completion_cache_entries 1.0" in exposed


async def test_a_key_sent_again_gets_the_same_answer_even_of_a_sampled_request() -> None:
    road = Road()
    first, _ = await road.answer(temperature=1.0, idempotency_key="k")
    again, _ = await road.answer(temperature=1.0, idempotency_key="k")
    fresh, _ = await road.answer(temperature=1.0, idempotency_key="l")
    assert [first.cached, again.cached, fresh.cached] == [False, True, False]


async def test_a_key_belongs_to_one_request() -> None:
    road = Road()
    await road.answer(idempotency_key="k")
    with pytest.raises(errors.InvalidRequest) as refused:
        await road.answer("other", idempotency_key="k")
    assert refused.value.code == "idempotency_key_reused"
    stranger, _ = await road.answer("other", idempotency_key="k", caller=Caller("other", "other"))
    assert not stranger.cached


async def test_a_key_whose_request_is_running_is_in_conflict() -> None:
    road = Road(ScriptedEngine(token_seconds=SLOW))
    first = asyncio.create_task(road.answer(temperature=1.0, idempotency_key="k"))
    await until(lambda: road.engine.running)
    with pytest.raises(errors.Conflict) as refused:
        await road.answer(temperature=1.0, idempotency_key="k")
    assert (refused.value.status, refused.value.code) == (409, "idempotency_conflict")
    await first
    road.assert_nothing_is_held()


async def test_a_key_is_free_again_after_a_failure() -> None:
    road = Road(ScriptedEngine(ending=FinishReason.ERROR))
    with pytest.raises(errors.GenerationFailed):
        await road.answer(idempotency_key="k")
    road.engine.ending = None
    generation, _ = await road.answer(idempotency_key="k")
    assert not generation.cached


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_has_a_bounded_length(key: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        await Road().answer(idempotency_key=key)


def test_keys_are_forgotten_after_a_day() -> None:
    now = 0.0
    keys = IdempotencyKeys(clock=lambda: now)
    turn = keys.claim("web", "k", "digest")
    assert not isinstance(turn, Answer)
    turn.keep(ANSWER)
    assert keys.claim("web", "k", "digest") == ANSWER
    now = 24 * 3600 + 1.0
    assert not isinstance(keys.claim("web", "k", "other"), Answer)


def test_an_answer_survives_json() -> None:
    top = (TopLogprob(1, "a", -0.5), TopLogprob(2, "\0ü", float("-inf")))
    events = (
        TokenEvent(5, "hi", -0.25, top),
        TokenEvent(None, "", finish_reason=FinishReason.LENGTH),
    )
    stopped = (TokenEvent(None, "hi", finish_reason=FinishReason.STOP, stopped_by="END"),)
    answer = Answer(3, (AnswerChoice(events, 1), AnswerChoice(stopped, 1)))
    assert from_json(to_json(answer)) == answer


async def test_other_replicas_and_later_starts_find_answers_in_the_database(
    database: Database,
) -> None:
    settings = CompletionCacheConfig(database=True)
    async with AnswerStore(database, 100) as store:
        await Road(cache=CompletionCache(settings, store)).answer()
    async with AnswerStore(database, 100) as store:
        road = Road(cache=CompletionCache(settings, store))
        generation, [choice] = await road.answer()
        assert generation.cached
        assert (choice.text, choice.tokens) == ("Hello there!", 3)
        assert not road.engine.requests


async def test_answers_in_the_database_grow_old(database: Database) -> None:
    async with AnswerStore(database, 0) as store:
        store.put("a" * 64, "web", "m", ANSWER)
    assert await store.get("a" * 64) is None


async def test_a_database_that_is_away_is_a_miss() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    async with AnswerStore(database, 100) as store:
        road = Road(cache=CompletionCache(CompletionCacheConfig(database=True), store))
        assert not (await road.answer())[0].cached
        assert (await road.answer())[0].cached
    await database.close()
