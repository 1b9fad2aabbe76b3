"""Probes in every state, metrics that a scraper can parse,
and one usage row for each way to end."""

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes import ScriptedEngine
from harness import Harness, config
from llm_runtime import errors
from llm_runtime.api.serving import WarmModel
from llm_runtime.contract import FatalReport, MlflowVersion, ModelConfig, RuntimeConfig
from llm_runtime.files.origin import origin
from llm_runtime.metrics import Rate
from waiting import until

PROBES = ("/livez", "/readyz", "/health")


async def statuses(api: Harness) -> list[int]:
    return [(await api.client.get(path)).status_code for path in PROBES]


async def test_loading_is_alive_but_not_ready(run: Any) -> None:
    release = threading.Event()
    engine = ScriptedEngine()

    def load() -> WarmModel:
        release.wait(2)
        return WarmModel(engine, engine.codec)

    async with run(engine, load=load, wait=False) as api:
        assert await statuses(api) == [200, 503, 200]
        assert "loading" in (await api.client.get("/readyz")).json()["reason"]
        refused = await api.chat()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert (await api.client.get("/health")).json()["model_status"] == "loading"
        assert sample(await scrape(api), "model_loaded") == 0
        release.set()
        while (await api.client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert (await api.chat()).status_code == 200


async def test_the_codec_is_prepared_on_another_thread_once_a_model_is_ready(
    api: Harness,
) -> None:
    await until(lambda: bool(api.engine.codec.prepared_by))
    [thread] = api.engine.codec.prepared_by
    assert thread != threading.main_thread().name


async def test_ready_health_has_the_fields_people_look_for(api: Harness) -> None:
    assert await statuses(api) == [200, 200, 200]
    assert (await api.client.get("/livez")).json() == {"status": "ok"}
    health = (await api.client.get("/health")).json()
    assert health.pop("timestamp")
    assert health.pop("uptime_seconds") >= 0
    assert health == {
        "status": "healthy",
        "api_status": "running",
        "model_status": "loaded",
        "gpu_status": "unavailable",
        "engine": "batched",
        "model_loaded": True,
        "model_name": "support-bot",
    }


async def test_draining_is_not_ready_yet_serves_and_asks_clients_to_leave(api: Harness) -> None:
    api.server.serving.begin_drain()
    assert await statuses(api) == [200, 503, 200]
    response = await api.chat()
    assert (response.status_code, response.headers["connection"]) == (200, "close")
    await api.server.serving.drain(0)
    assert (await api.chat()).status_code == 503


async def test_a_dead_engine_fails_liveness(api: Harness) -> None:
    api.engine.alive = False
    assert await statuses(api) == [503, 503, 503]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(errors.ModelCorrupt("short"), "ModelCorrupt"), (ValueError("odd"), "LoadFailed")],
)
async def test_a_model_that_does_not_load_ends_the_server_with_a_reason(
    run: Any, fault: Exception, reason: str
) -> None:
    ended = []

    def load() -> WarmModel:
        raise fault

    async with run(load=load, wait=False) as api:
        api.server.serving.on_failure = lambda: ended.append(True)
        await until(lambda: ended)
        assert await statuses(api) == [503, 503, 503]
        assert api.server.serving.failure.reason == reason


async def test_another_model_takes_over_while_serving(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ScriptedEngine()
    new = ScriptedEngine(script=["Good", " day"])
    version = MlflowVersion(tracking_uri="http://mlflow", name="support-bot", version="4")
    wanted = config().model_copy(update={"model": ModelConfig(name="support-bot", mlflow=version)})

    async def swap(config: RuntimeConfig, folder: Path) -> WarmModel:
        if folder.name == "corrupt":
            raise errors.EngineFailed(FatalReport(reason="ModelCorrupt", message="short"))
        return WarmModel(new, new.codec)

    async with run(old, load=lambda: WarmModel(old, old.codec, swap=swap)) as api:
        with pytest.raises(errors.EngineFailed):
            await api.server.serving.swap(wanted, Path("corrupt"))
        before = (await api.chat()).json()
        served = list[bool]()
        monkeypatch.setattr(
            new.codec, "prepare", lambda: served.append(api.server.serving.loaded.engine is new)
        )
        await api.server.serving.swap(wanted, Path("next"))
        assert served == [True], (
            "while a codec is prepared, requests must not meet the new model with the old codec"
        )
        after = (await api.chat()).json()
        with pytest.raises(errors.ServiceUnavailable):  # This fake can't be replaced once more.
            await api.server.serving.swap(wanted, Path("next"))
    answers = [
        (answer["choices"][0]["message"]["content"], answer["system_fingerprint"])
        for answer in (before, after)
    ]
    assert answers == [("Hello there!", "support-bot-v3"), ("Good day", "support-bot-v4")]


async def scrape(api: Harness) -> dict[str, Any]:
    text = (await api.client.get("/metrics")).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def sample(families: dict[str, Any], name: str, **labels: str) -> float | None:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found[0] if found else None


async def test_metrics_are_there_and_add_up(api: Harness) -> None:
    await api.chat(n=2)
    await api.chat(tools=[1])
    await api.client.get("/scan/me")
    families = await scrape(api)
    chat = "/v1/chat/completions"
    assert sample(families, "tokens_generated_total", model="support-bot") == 6
    assert sample(families, "prompt_tokens_total") == 3
    assert sample(families, "api_requests_total", endpoint=chat, status="200") == 1
    assert sample(families, "api_requests_total", endpoint=chat, status="400") == 1
    assert sample(families, "http_requests_total", endpoint="unmatched", status="404") == 1
    assert sample(families, "api_request_duration_seconds_count", endpoint=chat) == 2
    assert sample(families, "llm_time_to_first_token_seconds_count") == 1
    assert sample(families, "llm_inter_token_seconds_count") == 4
    assert sample(families, "llm_answer_tokens_fine_total", le="3.0") == 2
    assert (sample(families, "llm_resident_memory_bytes") or 0) > 0
    assert sample(families, "api_errors_total", type="validation_error") == 1
    assert sample(families, "llm_kv_cache_usage_ratio") == 0.25
    assert sample(families, "model_loaded") == 1
    assert {
        "llm_requests_running",
        "llm_requests_waiting",
        "tokens_per_second",
        "http_request_duration_seconds",
        "llm_batch_size",
        "llm_engine_steps",
        "llm_prompt_tokens",
        "llm_prefix_cache_tokens",
        "llm_guessed_tokens",
        "llm_guessed_tokens_right",
    } <= set(families)
    assert "gpu_memory_usage_bytes" not in families


async def test_a_gpu_shows_its_memory(run: Any) -> None:
    engine = ScriptedEngine(gpu_memory_bytes=123)
    async with run(engine, load=lambda: WarmModel(engine, engine.codec, on_gpu=True)) as api:
        assert sample(await scrape(api), "gpu_memory_usage_bytes") == 123
        assert (await api.client.get("/health")).json()["gpu_status"] == "available"


@pytest.mark.parametrize(
    ("uri", "recorded", "version", "source"),
    [
        (
            "models:/bot@champion",
            "http://secret:5000 models:/bot/7 mlflow-artifacts:/x",
            "7",
            "models:/bot/7",
        ),
        (
            "models:/it's a bot/latest",
            "http://x models:/it's a bot/7 mlflow-artifacts:/x",
            "7",
            "models:/it's a bot/7",
        ),
        ("hf://org/bot@main", "hf://org/bot@0a1b2c", "0a1b2c", "hf://org/bot@0a1b2c"),
        ("runs:/abc123/model", "runs:/abc123/model", "abc123", "runs:/abc123/model"),
        ("s3://bucket/model", "s3://bucket/model", "", "local"),
    ],
)
async def test_a_model_by_uri_says_which_version_it_really_is(
    api: Harness, tmp_path: Path, uri: str, recorded: str, version: str, source: str
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"source": recorded}))
    serving = api.server.serving
    model = serving.config.model.model_copy(update={"mlflow": None, "uri": uri})
    serving.config = serving.config.model_copy(update={"model": model})
    serving.loaded = replace(serving.loaded, origin=origin(tmp_path))
    said = (await api.client.get("/info")).json()
    assert (said["version"], said["source"]) == (version, source)
    assert "secret" not in str(said)


async def test_labels_do_not_grow_with_what_clients_send(api: Harness) -> None:
    for number in range(20):
        await api.client.request(f"METHOD{number}", f"/path/{number}")
        await api.client.get(f"/v1/models/m{number}")
    endpoints = {
        sample.labels["endpoint"] for sample in (await scrape(api))["http_requests"].samples
    }
    assert endpoints == {"unmatched", "/v1/models/{model_id:path}"}


def test_the_token_rate_is_over_ten_whole_seconds() -> None:
    now = [100.0]
    rate = Rate(lambda: now[0])
    for second in range(20):
        now[0] = 100.0 + second
        rate.add(7)
    now[0] = 120.0
    assert rate.value() == 7
    now[0] = 200.0
    assert rate.value() == 0


async def test_a_finished_request_leaves_one_row_without_text_or_key(api: Harness) -> None:
    response = await api.chat(n=2, user="someone@example.com")
    [row] = api.rows
    assert (row.request_id, row.key_id) == (response.headers["x-request-id"], "web")
    assert (row.model, row.model_version, row.endpoint) == (
        "support-bot",
        "3",
        "/v1/chat/completions",
    )
    assert (row.prompt_tokens, row.completion_tokens, row.choices) == (3, 6, 2)
    assert (row.outcome, row.finish_reasons, row.stream) == ("completed", ("stop", "stop"), False)
    assert row.first_token_seconds
    assert 0 < row.first_token_seconds <= row.duration_seconds
    assert "someone" not in str(row)
    assert "Hello" not in str(row)


async def test_openapi_lists_every_endpoint(api: Harness) -> None:
    document = (await api.client.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/generate", "/predict", "/livez"} <= set(
        document["paths"]
    )
    assert "messages" in json.dumps(document)
    for path in ("/docs", "/redoc"):
        assert (await api.client.get(path)).status_code == 200


async def test_a_sane_request_id_is_kept_and_another_is_replaced(api: Harness) -> None:
    kept = await api.client.get("/livez", headers={"X-Request-ID": "trace-1.2:3"})
    replaced = await api.client.get("/livez", headers={"X-Request-ID": "bad id\x7f" + "x" * 200})
    assert kept.headers["x-request-id"] == "trace-1.2:3"
    assert UUID(replaced.headers["x-request-id"])
    assert float(kept.headers["x-process-time"]) >= 0


async def test_adapters_are_told_to_a_key_that_may_use_them(run: Any) -> None:
    async with run(ScriptedEngine(adapters=("merger", "sales"))) as api:
        assert (await api.client.get("/info")).json()["adapters"] == ["merger", "sales"]
        for headers in ({"X-API-Key": ""}, {"X-API-Key": "guess"}):
            assert (await api.client.get("/info", headers=headers)).json()["adapters"] == []


async def test_a_model_on_its_way_is_told_by_its_name_alone(run: Any) -> None:
    async with run() as api:
        with api.server.serving.arriving("/mnt/secret/place") as arrival:
            assert "secret" not in (await api.client.get("/status")).text
            arrival.name = "place"
            assert (await api.client.get("/status")).json()["loading"]["model_name"] == "place"
