"""`POST /load-probe`: who may ask, what it measures, and that clients come first."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import ScriptedEngine
from harness import KEY, key_file, record
from llm_runtime.api.state.load_probe import PRIORITY, Probe, ProbeBody
from llm_runtime.contract import format_key
from llm_runtime.request import EngineStats
from unit.runtime.test_embeddings import embedder

OPERATORS = format_key("op", "o" * 43)
LOAD = {"concurrency": 2, "seconds": 0.1, "prompt_tokens": 5, "max_tokens": 3}


def probe(engine: ScriptedEngine, **fields: Any) -> Probe:
    return Probe(engine, 100, ProbeBody.model_validate({**LOAD, **fields}), random.Random(1))


@pytest.fixture
def operators(keys_path: Path) -> None:
    """The server knows the operator's key beside a client's."""
    keys_path.write_text(key_file(record(KEY), record(OPERATORS, operator=True)))


async def test_a_load_keeps_its_concurrency_ends_in_time_and_measures_every_answer() -> None:
    engine = ScriptedEngine(token_seconds=0.005)
    found = await probe(engine).run()
    assert found.answers >= 4
    assert found.tokens_per_second > 20
    assert found.first_token_seconds is not None
    assert found.inter_token_seconds is not None
    assert 0.004 < found.inter_token_seconds[0] <= found.inter_token_seconds[1]
    assert not found.dropped
    assert {request.priority for request in engine.requests} == {PRIORITY}
    assert {len(request.prompt_token_ids) for request in engine.requests} == {5}
    assert len({request.prompt_token_ids for request in engine.requests}) == len(engine.requests)
    assert not engine.running


async def test_a_model_for_embeddings_is_asked_for_them_and_counted_by_what_it_reads() -> None:
    engine = embedder(token_seconds=0.005, max_model_length=4)
    found = await probe(engine).run()
    assert found.answers >= 4
    assert found.first_token_seconds is not None
    assert found.inter_token_seconds is None
    assert found.tokens_per_second > 20
    assert {len(request.prompt_token_ids) for request in engine.requests} == {4}
    assert all(request.embeds for request in engine.requests)


async def test_clients_that_queue_end_the_probe_and_its_requests() -> None:
    class Queued(ScriptedEngine):
        def stats(self) -> EngineStats:
            return replace(super().stats(), waiting=9)

    engine = Queued(token_seconds=1.0)
    found = await asyncio.wait_for(probe(engine, seconds=60).run(), 5)
    assert found.dropped
    assert found.busy == 1
    assert not engine.running


async def test_only_the_operators_key_may_probe_and_nothing_of_it_is_billed(
    run: Any, operators: None
) -> None:
    async with run() as api:
        refused = await api.client.post("/load-probe", json=LOAD)
        assert refused.status_code == 403
        assert not api.engine.requests
        mine = {"Authorization": f"Bearer {OPERATORS}"}
        before = (await api.client.get("/metrics")).text
        both = await asyncio.gather(
            *(api.client.post("/load-probe", json=LOAD, headers=mine) for _ in range(2))
        )
        assert sorted(answer.status_code for answer in both) == [200, 409]
        figures = next(answer.json() for answer in both if answer.status_code == 200)
        assert figures["answers"] > 0
        assert figures["memoryBytes"] > 0
        assert not api.rows
        after = (await api.client.get("/metrics")).text
        for name in (
            "tokens_generated_total",
            "llm_time_to_first_token_seconds_count",
            "api_requests_total",
        ):
            assert [line for line in before.split("\n") if line.startswith(name)] == [
                line for line in after.split("\n") if line.startswith(name)
            ]
        too_long = await api.client.post(
            "/load-probe", json={**LOAD, "prompt_tokens": 5000}, headers=mine
        )
        assert too_long.status_code == 400


async def test_an_adapter_or_a_candidate_of_one_is_probed_by_its_name(
    run: Any, operators: None
) -> None:
    async with run(ScriptedEngine(adapters=("legal", "legal@4.a"))) as api:
        mine = {"Authorization": f"Bearer {OPERATORS}"}
        for adapter in ("legal", "legal@4.a"):
            api.engine.requests.clear()
            answer = await api.client.post(
                "/load-probe", json={**LOAD, "adapter": adapter}, headers=mine
            )
            assert answer.json()["answers"] > 0
            assert {request.adapter for request in api.engine.requests} == {adapter}
        away = await api.client.post("/load-probe", json={**LOAD, "adapter": "x"}, headers=mine)
        assert (away.status_code, "x is not loaded" in away.text) == (503, True)
