"""What clients and configurations of the older servers relied on;
docs/compatibility.md has the names."""

import logging
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from typer.testing import CliRunner

from fakes import ScriptedEngine
from harness import Harness, config
from llm_runtime.__main__ import cli
from llm_runtime.contract import CompletionCacheConfig, FiltersConfig, ServerConfig
from llm_runtime.settings import SettingsInvalid, load
from unit.runtime.road import Road

MASKED = ServerConfig(filters=FiltersConfig(output="Mask"))
OLD_FILE = {
    "app": {"name": "llm", "host": "127.0.0.1", "port": 8080},
    "model": {
        "name": "team/bot",
        "source": "hub",
        "device": "cpu",
        "max_tokens": 512,
        "temperature": 0.7,
    },
    "security": {"api_key": "not-to-be-shown", "max_prompt_chars": 4000},
    "rate_limit": {"enabled": True, "requests_per_minute": 60},
    "cache": {"enabled": True, "size": 100, "ttl_seconds": 60},
    "chat_history": {"enabled": True, "ttl_seconds": 600},
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("API_KEY", "MODEL_NAME", "MODEL_PATH", "MODEL_VERSION", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


async def test_masked_answers_come_without_their_tokens_and_say_so(run: Any) -> None:
    async with run(ScriptedEngine(["mail", " joe@example.org"]), server=MASKED) as api:
        answer = await api.client.post(
            "/generate", json={"prompt": "Hello world", "max_new_tokens": 5}
        )
    assert answer.status_code == 200
    assert answer.json()["completions"] == [{"text": "mail [EMAIL]", "tokens": []}]
    assert "Tokens are left out" in answer.json()["notice"]


async def test_answers_that_are_not_masked_say_nothing_of_it(api: Harness) -> None:
    assert "notice" not in (await api.client.post("/generate", json={"prompt": "a b"})).json()


async def test_a_model_that_is_not_there_is_named_by_the_field_that_asked(api: Harness) -> None:
    for path, field in (("/generate", "model_name"), ("/v1/generate", "model")):
        answer = await api.client.post(path, json={"prompt": "a b", field: "other"})
        assert (answer.status_code, answer.json()["details"]["field"]) == (404, field)


async def test_an_error_has_a_uuid(api: Harness) -> None:
    assert UUID((await api.client.post("/predict", json={})).json()["request_id"])


async def test_the_documents_are_routes_of_their_own(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llm_runtime.access")
    async with run() as api:
        for path in ("/docs", "/redoc", "/openapi.json", "/no-such-path"):
            await api.client.get(path)
        metrics = (await api.client.get("/metrics")).text
    routes = [record.route for record in caplog.records if hasattr(record, "route")]
    assert routes[:4] == ["/docs", "/redoc", "/openapi.json", "unmatched"]
    assert 'endpoint="/redoc"' in metrics


async def test_a_server_that_waits_for_its_first_request_says_so(run: Any) -> None:
    async with run(server=ServerConfig(lazy_load=True)) as api:
        assert (await api.client.get("/status")).json()[
            "status"
        ] == "unloaded: The first request loads the model."


async def test_sampled_answers_are_given_again_where_that_is_set() -> None:
    for sampled, computed in ((True, 1), (False, 2)):
        settings = config(ServerConfig(completion_cache=CompletionCacheConfig(sampled=sampled)))
        road = Road(settings=settings)
        first, _ = await road.answer(temperature=0.7)
        again, _ = await road.answer(temperature=0.7)
        assert (first.cached, again.cached, len(road.engine.requests)) == (False, sampled, computed)
        road.assert_nothing_is_held()


def test_a_name_and_a_registry_are_enough_to_start_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "bot")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://x")
    model = load(None).config.model
    assert (model.name, model.uri, model.tracking_uri) == (
        "bot",
        "models:/bot/Production|latest",
        "http://x",
    )


def test_one_bad_value_makes_the_start_forget_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PATH", "/m")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    monkeypatch.setenv("API_PORT", "many")
    with pytest.raises(SettingsInvalid) as caught:
        load(None)
    faults = str(caught.value).split("; ")
    assert [fault.split(": ")[1] for fault in faults] == ["API_PORT", "LOG_LEVEL"]


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("MODEL_STAGE", "Production", "MODEL__URI=models:/name/Production"),
        ("MODEL_ID", "team/bot", "MODEL__URI=hf://org/name@revision"),
        ("MODEL__SOURCE", "hub", "hf://org/name@revision"),
        ("MLFLOW__MODEL_STAGE", "Production", "models:/name/Production"),
    ],
)
def test_hints_of_the_start_name_what_works(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, way_out: str
) -> None:
    monkeypatch.setenv("MODEL_PATH", "/m")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=way_out):
        load(None)


def converted(tmp_path: Path, old: dict[str, Any]) -> tuple[str, Path]:
    (tmp_path / "config.yml").write_text(yaml.safe_dump(old))
    result = CliRunner().invoke(cli, ["settings", "convert", "config.yml", "--output", "new.yaml"])
    return result.output, tmp_path / "new.yaml"


def test_a_converted_file_starts_and_says_the_same(tmp_path: Path) -> None:
    said, new = converted(tmp_path, OLD_FILE)
    settings = load(new).config
    assert said == ""
    assert (settings.model.name, settings.model.uri, settings.engine.device) == (
        "team/bot",
        "hf://team/bot",
        "cpu",
    )
    assert (settings.engine.max_model_length, settings.server.max_prompt_characters) == (512, 4000)
    assert settings.tiers[0].requests_per_minute == 60
    assert (
        settings.server.completion_cache.entries,
        settings.server.completion_cache.ttl_seconds,
    ) == (100, 60)
    assert settings.server.sessions.ttl_seconds == 600
    text = new.read_text()
    assert "not-to-be-shown" not in text
    for name in (
        "API_KEY",
        "API_HOST=127.0.0.1",
        "API_PORT=8080",
        "app.name is left out",
        "model.temperature is left",
    ):
        assert name in text


@pytest.mark.parametrize(
    ("old", "model"),
    [
        (
            {"mlflow": {"tracking_uri": "http://m", "model_name": "bot", "model_stage": "Staging"}},
            {"uri": "models:/bot/Staging", "trackingUri": "http://m"},
        ),
        (
            {"model": {"name": "bot", "source": "mlflow"}},
            {"name": "bot", "uri": "models:/bot/Production|latest"},
        ),
        (
            {"model": {"name": "/models/bot", "source": "local"}},
            {"name": "/models/bot", "path": "/models/bot"},
        ),
    ],
)
def test_where_the_model_comes_from_is_one_address(
    tmp_path: Path, old: dict[str, Any], model: dict[str, str]
) -> None:
    _, new = converted(tmp_path, old)
    assert yaml.safe_load(new.read_text())["model"].items() >= model.items()


def test_a_value_that_can_not_be_used_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    said, new = converted(tmp_path, {**OLD_FILE, "cache": {"size": "many"}})
    assert "server.completionCache.entries" in said
    assert not new.exists()


def test_a_start_with_an_old_file_names_the_converter(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(yaml.safe_dump(OLD_FILE))
    with pytest.raises(SettingsInvalid, match=r"llm-runtime settings convert config\.yml"):
        load(Path("config.yml"))
